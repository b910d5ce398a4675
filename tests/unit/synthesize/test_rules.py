"""Tasks made of structure: each one exactly, in English and Chinese."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamita.cli import main
from llamita.finetune.conversations import read_conversations
from llamita.synthesize.passages import split_sections

EN = """---
title: "Rice soup"
author: someone
---

![bowl](/pix/bowl.webp)

Rice soup is a warm dish of rice and broth that cooks for an hour.

## Ingredients

- 200 g rice
- 1 l broth

```
# not a heading
```

## How long does it keep?

Two days in a cool cellar.
"""
ZH = """第一章 长江

长江是一条发源于青藏高原的河流，全长约6300公里，最后注入东海。

问：长江有多长？
答：约6300公里。
"""
FAQ = """Questions

Q: Is it free?
A: Yes, for everybody.

It stays so.

Q: Is it fast?
A: **Very** fast.

## Other

Not an answer.
"""


def rows_of(folder: Path, *words: str) -> list[dict[str, Any]]:
    out = folder / "rows.jsonl"
    out.unlink(missing_ok=True)
    assert main(["synthesize", str(folder / "in"), "-o", str(out), "--rules", "--val-fraction", "0", *words]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name, text in (("soup.md", EN), ("river.txt", ZH), ("faq.md", FAQ)):
        (tmp_path / "in" / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_every_rule(folder: Path) -> None:
    found = {(row["type"], *(turn["content"] for turn in row["messages"])) for row in rows_of(folder)}
    body = "\n".join(EN.split("\n")[7:]).strip()
    definition = "Rice soup is a warm dish of rice and broth that cooks for an hour."
    ingredients = "- 200 g rice\n- 1 l broth\n\n```\n# not a heading\n```"
    river = "长江是一条发源于青藏高原的河流，全长约6300公里，最后注入东海。"
    expected = {
        ("faq", "How long does it keep?", "Two days in a cool cellar."),
        ("faq", "Is it free?", "Yes, for everybody.\n\nIt stays so."),
        ("faq", "Is it fast?", "Very fast."),
        ("faq", "长江有多长？", "约6300公里。"),
        ("heading", "Rice soup: Ingredients?", ingredients),
        ("definition", "Explain the term “Rice soup”.", definition),
        ("fill_in", "请填空：" + river.replace("最后注入东海", "____"), "最后注入东海"),
        ("fill_in", "What is missing in this sentence? " + definition.replace("broth", "____"), "broth"),
        ("title_to_text", "Write the text “Rice soup”.", body),
        ("text_to_title", "请给下面的文字写一个标题：\n\n" + ZH.partition("\n\n")[2].strip(), "第一章 长江"),
    }
    assert found >= expected
    for rule in ("faq", "heading", "definition"):
        assert {row for row in found if row[0] == rule} == {row for row in expected if row[0] == rule}


def test_rows_are_what_finetune_reads(folder: Path) -> None:
    rows = rows_of(folder)
    conversations = list(read_conversations(folder / "rows.jsonl"))
    assert len(conversations) == len(rows) and not any(each.unused_keys for each in conversations)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        text = Path(row["source"]).read_text(encoding="utf-8").replace("**", "")
        answer = row["messages"][1]["content"].replace("**", "")
        assert answer in text or row["type"] == "text_to_title", "the answer stands in the document"
        assert (
            row["metadata"]["passage"] and row["metadata"]["position"] == 0 and len(row["metadata"]["document"]) == 32
        )
        assert row["language"] == ("zh" if "river" in row["source"] else "en") and "model" not in row


def test_the_same_every_time_and_only_some_kinds(folder: Path) -> None:
    assert rows_of(folder) == rows_of(folder)
    assert {row["type"] for row in rows_of(folder, "--kinds", "faq", "heading")} == {"faq", "heading"}
    assert len([row for row in rows_of(folder, "--questions", "1") if row["type"] == "fill_in"]) <= 6


def test_one_question_with_two_answers_is_dropped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in" / "other.md").write_text("# Rice soup\n\nSomething quite different, but with the same name.")
    found = rows_of(folder)
    assert "1 with several answers" not in capsys.readouterr().out
    assert not [row for row in found if row["type"] == "title_to_text" and "Rice soup" in row["messages"][0]["content"]]


def test_held_out_documents_are_those_of_prepare(tmp_path: Path) -> None:
    """By the hash of the document: none of them gives a row, all others do."""
    pytest.importorskip("torch")
    from llamita.data.token_store import TokenStore
    from llamita.tokenizer import load_tokenizer

    texts = [
        f"Title {number}\nThe {number}th text has a body of a few words, and it is long enough. {'x' * 40}"
        for number in range(100)
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "all.txt").write_text("\n\n".join(texts))
    words = ["--split-on", "blank-lines", "--val-fraction", "0.3", "--seed", "7"]
    store = tmp_path / "store"
    assert main(["prepare", str(tmp_path / "in"), "-o", str(store), "--vocab-size", "300", *words]) == 0
    split, tokenizer = TokenStore(store).split("val"), load_tokenizer(store)
    held_out = {tokenizer.decode(split.document(i)[:-1].tolist()).decode() for i in range(split.num_documents)}
    expected = sorted(text for text in texts if text not in held_out)
    for more in (words, ["--split-on", "blank-lines", "--val-fraction", "0", "--held-out", str(store)]):
        rows = rows_of(tmp_path, "--kinds", "title_to_text", *more)
        titles = [row["metadata"]["title"] + "\n" + row["messages"][1]["content"] for row in rows]
        assert sorted(titles) == expected and 0 < len(held_out) < 100


def test_held_out_questions_and_texts(folder: Path) -> None:
    eval_file, text = folder / "eval.jsonl", folder / "held.md"
    eval_file.write_text(json.dumps({"question": "is it FREE", "answer": "?"}) + "\n")
    text.write_text(EN)
    found = rows_of(folder, "--held-out", str(eval_file), "--held-out", str(text))
    asked = [row["messages"][0]["content"] for row in found]
    assert "Is it fast?" in asked and "Is it free?" not in asked and "How long does it keep?" not in asked


@pytest.mark.parametrize(
    ("text", "title", "headings"),
    [
        ("# A\n\nx\n\n## B\n\ny", "A", ["", "B"]),
        ("A title\n=======\n\nx", "A title", [""]),
        ("This is a sentence.\nAnd another one.", "", [""]),
        ("A\n1.2 Scope of this\n\nx\n\n1.3 Terms\n\ny", "A", ["Scope", "Terms"]),
        (
            "第一节 总则\n\n甲\n\n第二节 附则\n\n乙\n\n一、定义\n\n丙\n\n【备注】\n\n丁",
            "第一节 总则",
            ["", "第二节 附则", "一、定义", "备注"],
        ),
        ("---\nno: front\n\nx", "", [""]),
        ("", "", []),
        ("---\n---", "", []),
        ("#\n\nx", "#", [""]),
    ],
)
def test_titles_and_headings(text: str, title: str, headings: list[str]) -> None:
    found, _, sections = split_sections(text)
    assert found == title
    names = [section.heading.removeprefix("1.2 ").removeprefix("1.3 ").removesuffix(" of this") for section in sections]
    assert names == headings
