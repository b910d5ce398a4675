"""Fine-tuning data in Chinese: every row form on real files, no character changed, grading by
characters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamita.data.file_formats import BadRows, to_half_width
from llamita.data.utf8_files import Conversions
from llamita.errors import SourceError
from llamita.finetune.conversations import Conversation, read_conversations
from llamita.finetune.dataset import open_sft_dataset, read_texts
from llamita.finetune.dpo_data import read_preferences
from llamita.finetune.evaluate import grade
from llamita.finetune.preview import masked_spans
from llamita.finetune.rendering import Renderer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES
from tests.thinking_templates import QWEN_LIKE
from tests.unit.finetune.conftest import make_config, renderer

# Marks, full-width and half-width forms, the ideographic space inside, compatibility ideographs and a
# radical, kana with a combining mark, an ideographic variant: what normalization would change.
QUESTION = "“你好”——（Ｑｗｅｎ２．５）……《论语》，：；！？～·「引」『文』〔注〕【标】１２３％￥、。"
ANSWER = "　　子曰：\n\n\t“學而時習之”，　不亦說乎？ｶﾞ ガ カ\u3099 豈\uf900 ⼀一 葛\U000e0100 𠮷 한글 ①㎏…"
ASKED, SAID = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
TOOL = {"type": "function", "function": {"name": "查天气", "description": "查询天气，按城市。", "parameters": {}}}
CALL = {"name": "查天气", "arguments": {"城市": "北京（首都）", "日期": ["１月", "二月"]}}


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


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, SAID]},
        [ASKED, SAID],
        {"messages": json.dumps([ASKED, SAID], ensure_ascii=False)},
        {"messages": json.dumps([ASKED, SAID])},
        {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
        {"prompt": [ASKED], "completion": [SAID]},
        {"prompt": QUESTION, "completion": ANSWER},
        {"prompt": QUESTION, "response": ANSWER},
        {"question": QUESTION, "answer": ANSWER},
        {"query": QUESTION, "response": ANSWER},
        {"input": QUESTION, "output": ANSWER},
        {"instruction": QUESTION, "input": "", "output": ANSWER},
    ],
)
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "gb18030"])
def test_every_form_keeps_every_character(row: object, codec: str, tmp_path: Path) -> None:
    """But for white space around a message, which ends with the first character of the answer."""
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps(row, ensure_ascii=False) + "\n").encode(codec))
    (found,) = read_conversations(path)
    assert [turn.text for turn in found.turns] == [QUESTION, ANSWER.lstrip("　")]


def test_tables_with_chinese_columns(tmp_path: Path) -> None:
    cells = ANSWER.strip("　").replace('"', '""')
    (tmp_path / "a.csv").write_bytes(f'编号,问题,答案\r\n一,"{QUESTION}","{cells}"\r\n'.encode("gb18030"))
    (found,) = read_conversations(tmp_path / "a.csv", columns=("问题", "答案"))
    assert [turn.text for turn in found.turns] == [QUESTION, ANSWER.strip("　")]
    assert found.unused_keys == ("编号",)
    with pytest.raises(SourceError, match="it has no '回答', found '编号', '问题', '答案'"):
        list(read_conversations(tmp_path / "a.csv", columns=("问题", "回答")))


def spans(render: Renderer, conversation: Conversation) -> tuple[str, list[str]]:
    """The whole text of a conversation as the model reads it, and what is learned."""
    (example,) = render.render(conversation)
    found = list(masked_spans(example, render.tokenizer))
    return "".join(text for text, _ in found), [text for text, is_learned in found if is_learned]


@pytest.mark.parametrize("name", ["chatml", "llama2", "zephyr"])
def test_templates_write_every_character(name: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    kind = "gpt2" if name == "chatml" else "llama"
    base = make_checkpoint(tmp_path / "base", kind)
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"system": "你是诗人。", "messages": [ASKED, SAID]}, ensure_ascii=False), encoding="utf-8"
    )
    (conversation,) = read_conversations(path)
    with renderer(base, context=4096, template=CHAT_TEMPLATES[name]) as render:
        whole, learned = spans(render, conversation)
    assert "你是诗人。" in whole and QUESTION in whole and ANSWER.strip("　") in whole
    assert len(learned) == 1 and learned[0].strip().startswith(ANSWER.strip("　"))


def test_tool_calls_are_written_in_characters(chat_base: Path, tmp_path: Path) -> None:
    """Not as \\uXXXX, which the model would have to learn to write."""
    asked = {"role": "user", "content": "北京天气如何？"}
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    said = {"role": "tool", "content": json.dumps({"天气": "晴，２５℃"}, ensure_ascii=False)}
    for number, row in enumerate((
        {"messages": [asked, called, said, SAID], "tools": [TOOL]},
        {"messages": [asked, called | {"tool_calls": json.dumps([CALL])}, said, SAID], "tools": json.dumps([TOOL])},
        {"conversations": [
            {"from": "human", "value": asked["content"]}, {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": said["content"]}, {"from": "gpt", "value": ANSWER},
        ], "tools": json.dumps([TOOL])},
    )):  # fmt: skip
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row), encoding="utf-8")  # with \\uXXXX in the file
        (conversation,) = read_conversations(path)
        with renderer(chat_base, context=4096, template=QWEN_LIKE) as render:
            whole, learned = spans(render, conversation)
        assert "\\u" not in whole and "查询天气，按城市。" in whole and "晴，２５℃" in whole
        assert '"arguments": {"城市": "北京（首都）", "日期": ["１月", "二月"]}' in learned[0]


@pytest.mark.parametrize("name", ["alpaca_zh_demo.json", "glaive_toolcall_zh_demo.json"])
def test_real_conversations_are_learned_to_the_byte(name: str, chat_base: Path, shared_data: Path) -> None:
    conversations = list(read_conversations(shared_data / "sft" / name))[:100]
    with renderer(chat_base, context=1 << 16, template=QWEN_LIKE) as render:
        for conversation in conversations:
            whole, learned = spans(render, conversation)
            assert all(turn.text in whole for turn in conversation.turns)
            answers = [turn for turn in conversation.turns if turn.is_target]
            assert len(learned) == len(answers)
            for text, turn in zip(learned, answers, strict=True):
                assert text == f"{turn.text}<|im_end|>" if not turn.calls else "\\u" not in text


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
    assert [turn.text for turn in changed.turns] == ["（Qwen2.5）“很好”，　ｶﾅ…〜。"] * 2
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
