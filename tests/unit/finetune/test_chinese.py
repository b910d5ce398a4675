"""Fine-tuning data in Chinese: every row form on real files, no character changed, grading by
characters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamita.data.file_formats import BadRows, to_half_width
from llamita.data.utf8_files import Conversions
from llamita.errors import SourceError
from llamita.finetune.conversations import read_conversations
from llamita.finetune.dataset import open_sft_dataset, read_texts
from llamita.finetune.dpo_data import read_preferences
from llamita.finetune.evaluate import grade
from tests.unit.finetune.conftest import make_config


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)


@pytest.mark.parametrize("name", ["alpaca_zh_demo.json", "glaive_toolcall_zh_demo.json"])
def test_real_conversations_keep_every_character(name: str, shared_data: Path) -> None:
    path = shared_data / "sft" / name
    rows = json.loads(path.read_text(encoding="utf-8"))
    found = list(read_conversations(path))
    assert len(found) == len(rows)
    for row, conversation in zip(rows, found, strict=True):
        given = "\n".join(strings(row))
        for turn in conversation.turns:
            if turn.role != "tool":
                assert all(line in given for line in turn.text.split("\n"))
        assert any(turn.role == "assistant" and turn.text in given for turn in conversation.turns)


def test_real_preferences_keep_every_character(shared_data: Path, tmp_path: Path) -> None:
    """As they are, and in GB18030."""
    path = shared_data / "sft" / "dpo_zh_demo.json"
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text)
    (tmp_path / "gb.json").write_bytes(text.encode("gb18030"))
    bad = BadRows()
    for found in (list(read_preferences(path)), list(read_preferences(tmp_path / "gb.json", bad=bad))):
        assert len(found) == len(rows)
        for row, pair in zip(rows, found, strict=True):
            assert pair.chosen.turns[-1].text == row["chosen"]["value"].replace("\r\n", "\n")
            assert pair.rejected.turns[-1].text == row["rejected"]["value"].replace("\r\n", "\n")
    assert bad.conversions.describe_converted() == f"1 file converted from GB18030 ({tmp_path / 'gb.json'})"


def test_flags_reach_the_reader(chat_base: Path, tmp_path: Path) -> None:
    texts = [f"从前，山里有小庙。Ａ{number}" for number in range(12)]
    rows = [json.dumps({"question": "？", "answer": text}, ensure_ascii=False) for text in texts]
    utf8, gb = tmp_path / "utf8.jsonl", tmp_path / "gb.jsonl"
    utf8.write_text("\n".join(rows), encoding="utf-8")
    gb.write_bytes("\n".join(rows).encode("gb18030"))
    expected = open_sft_dataset(make_config(chat_base, utf8, tmp_path / "run"), "cpu")
    found = open_sft_dataset(make_config(chat_base, gb, tmp_path / "run"), "cpu")
    assert found.fingerprint() == expected.fingerprint()
    line = f"1 file converted from GB18030 ({gb})"
    assert line in found.counts.describe() and not expected.counts.files
    narrow = open_sft_dataset(make_config(chat_base, gb, tmp_path / "run", half_width=True), "cpu")
    assert narrow.fingerprint() != expected.fingerprint() and narrow.counts.target_tokens < found.counts.target_tokens
    with pytest.raises(SourceError, match="is not UTF-8"):
        open_sft_dataset(make_config(chat_base, gb, tmp_path / "run", encoding="utf-8"), "cpu")


def test_half_width_only_if_asked(tmp_path: Path) -> None:
    text = "（Ｑｗｅｎ２．５）“很好”，　ｶﾅ…〜。"
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": text, "answer": text}, ensure_ascii=False), encoding="utf-8")
    (kept,) = read_conversations(path)
    assert [turn.text for turn in kept.turns] == [text, text]
    (changed,) = read_conversations(path, bad=BadRows(half_width=True))
    assert [turn.text for turn in changed.turns] == ["(Qwen2.5)“很好”,　ｶﾅ…〜。"] * 2
    assert to_half_width({"ｋ": ["Ａ", 1, None]}) == {"ｋ": ["A", 1, None]}
    (tmp_path / "b.txt").write_text("Ｑ１\n", encoding="utf-8")
    assert read_texts(tmp_path / "b.txt") == ["Ｑ１"]
    assert read_texts(tmp_path / "b.txt", Conversions(), half_width=True) == ["Q1"]


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("中国的首都是北京。", "北京", (False, True)),
        ("北京！", "北京。", (True, True)),
        ("北京？！", "北京", (True, True)),
        ("用 GPU 训练", "用GPU训练。", (True, True)),
        ("用GPU训练", "GPU", (False, True)),
        ("用GPUs训练", "GPU", (False, False)),
        ("共13个", "3个", (False, False)),
        ("共 3 个", "3", (False, True)),
        ("你好　世界", "你好世界", (True, True)),
        ("東京です", "東京", (False, True)),
        ("서울입니다.", "서울", (False, True)),
        ("나는 서울에 간다", "나는서울에 간다", (False, False)),
        ("สวัสดีครับ", "สวัสดี", (False, True)),
        ("上海", "北京", (False, False)),
        ("Parisian", "Paris", (False, False)),
    ],
)
def test_grading_by_characters(answer: str, reference: str, expected: tuple[bool, bool]) -> None:
    assert grade(answer, reference) == expected
