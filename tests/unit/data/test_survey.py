"""A look at text before training: what is counted, in Chinese, English and both; what is not text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamita.config import PrepareConfig
from llamita.data.languages import describe_language
from llamita.data.prepare import prepare
from llamita.data.survey import MAX_SAMPLES, is_text, survey, survey_store
from llamita.errors import SourceError

ENGLISH = "The old fox walked to the mill, and it was not there. He had lost his way in the dark, number {}."
CHINESE = "老狐狸走到磨坊那里，可是磨坊已经不见了。它在黑暗中迷了路，第{}次。"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "English"),
        (CHINESE, "Chinese (simplified)"),
        ("老狐狸走到磨坊那裡，可是磨坊已經不見了。它在黑暗中迷了路。", "Chinese (traditional)"),
        ("请先 check the network connection，然后 try it again with your token。", "Chinese (simplified) and English"),
        ("古い狐は水車小屋まで歩いて行きましたが、そこにはありませんでした。", "Japanese"),
        ("늙은 여우는 방앗간으로 걸어갔지만 그곳에 없었다.", "Korean"),
        ("Der alte Fuchs ging zu der Mühle, und sie war nicht da.", "German"),
        ("Le vieux renard est allé au moulin, et il ne l'a pas trouvé dans la nuit.", "French"),
        ("Старая лиса пришла к мельнице, но она не была там, и он всё понял.", "Russian"),
        ("Xyzzy plugh frobnicate", "others in Latin letters"),
        ("1 + 2 = 3", "no letters"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert describe_language(text) == language


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    (folder / "中文").mkdir(parents=True)
    english = [ENGLISH.format(i) + f"\nAll rights reserved.\nBody {i * i}" for i in (1, 1, 2, 3, 4)]
    (folder / "a.txt").write_text("\n<|endoftext|>\n".join([" ", *english]), encoding="utf-8")
    (folder / "中文" / "b.txt").write_text(CHINESE.format(1) + "\u200b 邮箱abc@qq.com", encoding="utf-8")
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(3)]
    (folder / "qa.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"text": "Only text."}])) + "\n{broken\n")
    (folder / "bad.pdf").write_bytes(b"%PDF-1.4")
    (folder / "x.exe").write_bytes(b"MZ")
    return folder


def test_all_of_it(folder: Path) -> None:
    found = survey([str(folder)])
    assert (found.files, found.documents, found.empty_documents, found.skipped_files) == (4, 10, 1, 1)
    assert found.file_bytes == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.suffix != ".exe")
    assert found.forms == {"text": 7, "questions and answers": 3} and found.main_form == "text"
    assert {share.name: share.documents for share in found.sources} == {"a.txt": 5, "中文/b.txt": 1, "qa.jsonl": 4}
    assert {share.name: share.documents for share in found.kinds} == {".txt": 2, ".jsonl": 1, ".pdf": 1}
    assert sum(share.num_bytes for share in found.sources) == found.num_bytes
    assert sum(share.num_bytes for share in found.languages) == found.num_bytes
    assert sum(share.documents for share in found.lengths) == found.documents
    assert found.quantiles[0] == len("Only text.") and found.quantiles[2] <= found.quantiles[4]
    assert found.duplicates.documents == 1
    assert found.near_duplicates.documents == 3 and found.groups[0].documents == 3
    assert found.groups[0].start.startswith("The old fox") and found.groups[0].like != found.groups[0].start
    assert found.lines == (("All rights reserved.", 4),)
    assert [(each.name, each.count) for each in found.odd_characters] == [("U+200B ZERO WIDTH SPACE", 1)]
    assert [(each.name, each.count, each.examples) for each in found.personal] == [("mail addresses", 1, ("abc…om",))]
    assert len(found.samples) == MAX_SAMPLES and found.samples == survey([str(folder)]).samples
    assert len(found.problems) == 2
    assert "qa.jsonl:5: broken JSON" in found.problems[0] and "bad.pdf" in found.problems[1]


def test_conversations_are_read_without_their_roles(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Hello {i}"}, {"role": "assistant", "content": "Good morning"}]}
        for i in range(6)
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "x", "chosen": "y", "rejected": "z"}))
    found = survey([str(tmp_path)])
    assert found.main_form == "conversations" and found.forms["preferences"] == 1
    assert found.lines == (("Good morning", 6),)
    assert found.num_bytes == 6 * len("Hello 0\nGood morning") + len("x\ny\nz")


def test_a_store_counts_what_crosses_the_split(tmp_path: Path) -> None:
    texts = [" ".join(f"{word}{i}" for word in "abcdefghijklmnopqrst") for i in range(200)]
    source = tmp_path / "a.txt"
    source.write_text("\n".join([*texts, *(f"{text} again" for text in texts)]))
    report = prepare(
        PrepareConfig(
            sources=(str(source),), out=tmp_path / "store", split_on="lines", vocab_size=270, near_duplicates="report"
        )
    )
    found = survey_store(tmp_path / "store")
    assert {share.name: share.documents for share in found.sources} == {
        "train": report.train.documents, "val": report.val.documents
    }  # fmt: skip
    assert found.num_bytes == report.text_bytes
    assert found.near_held_out == report.near_held_out > 0
    assert found.near_duplicates.documents == report.near_duplicates_kept == 200


def test_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(SourceError, match=r"no text in .*: all documents are empty"):
        survey([str(tmp_path / "a.txt")])
    (tmp_path / "b.txt").write_bytes(b"some text\0and more")
    with pytest.raises(SourceError, match=r"no text in .*: cannot read .*b\.txt: byte 9 is NUL"):
        survey([str(tmp_path / "b.txt")])
    with pytest.raises(SourceError, match="no such file"):
        survey([str(tmp_path / "c.txt")])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"x", True), ("a.bin", b"x", False), ("none.md", None, True),
        ("a.txt", b"GGUF\x03\0\0\0", False), ("a.txt", b"GGUF is a format.", True),
        ("none", None, False), ("a.json", b'[{"text": "x"}]', True), ("a.json", b'{"a": 1}\n{"a": 2}\n', True),
        ("tokenizer.json", b'{\n "version": "1.0"\n}\n', False), ("config.json", b'{"a": 1}', False),
        ("a.json", b"", False), ("a.zip", b"PK", True),
    ],
)  # fmt: skip
def test_what_is_text(tmp_path: Path, name: str, content: bytes | None, expected: bool) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert is_text(tmp_path / name) is expected


def test_which_folders_are_text(tmp_path: Path) -> None:
    assert not is_text(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert is_text(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_text(tmp_path)
