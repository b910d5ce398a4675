"""Tasks made of structure: each one exactly, in English and Chinese."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llamita.cli import main
from llamita.config import PrepareConfig
from llamita.data.corpus import Corpus
from llamita.data.documents import Document
from llamita.data.split_plan import TRAIN, SplitPlan, document_hashes
from llamita.data.token_store import TokenStore
from llamita.finetune.conversations import read_conversations
from llamita.progress import no_progress
from llamita.synthesize import passages
from llamita.synthesize.passages import split_sections
from llamita.synthesize.prompts import BUILT_IN, read_prompts
from llamita.synthesize.rules import make_tasks
from llamita.tokenizer import load_tokenizer

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
    words = words if "--val-fraction" in words or "--held-out" in words else (*words, "--val-fraction", "0")
    assert main(["synthesize", str(folder / "in"), "-o", str(out), "--rules", *words]) == 0
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


WITHOUT_EXTRAS = """
import sys
from llamita.cli import main
for name in ("torch", "tokenizers", "sentencepiece", "tiktoken", "jinja2", "pyarrow", "lxml", "pypdfium2", "starlette"):
    sys.modules[name] = None
words = ["synthesize", "in", "--rules"]
print(main([*words, "-o", "a.jsonl"]), main([*words, "-o", "b.jsonl", "--held-out", "store"]))
"""


def test_no_extra_is_needed(folder: Path) -> None:
    """Only a token store's tokenizer needs packages."""
    (folder / "store").mkdir()
    (folder / "store" / "store.json").write_text("{}")
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, cwd=folder)
    assert done.stdout.endswith("0 2\n") and "llamita: this command needs the package" in done.stderr, done.stderr
    assert (folder / "a.jsonl").exists() and not (folder / "b.jsonl").exists()


def test_the_same_every_time_and_only_some_kinds(folder: Path) -> None:
    assert rows_of(folder) == rows_of(folder)
    assert {row["type"] for row in rows_of(folder, "--kinds", "faq", "heading")} == {"faq", "heading"}
    assert len([row for row in rows_of(folder, "--questions", "1") if row["type"] == "fill_in"]) <= 6


def test_one_question_with_two_answers_is_dropped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in" / "other.md").write_text("# Rice soup\n\nSomething quite different, but with the same name.")
    found = rows_of(folder)
    assert "1 with several answers" not in capsys.readouterr().out
    assert not [row for row in found if row["type"] == "title_to_text" and "Rice soup" in row["messages"][0]["content"]]


def title_and_text_rows(tmp_path: Path, texts: list[str], *words: str) -> set[str]:
    """The documents of which there is a row."""
    (tmp_path / "in").mkdir(exist_ok=True)
    titled = [f"Title {number}\n{text}" for number, text in enumerate(texts)]
    (tmp_path / "in" / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in titled))
    rows = rows_of(tmp_path, "--kinds", "title_to_text", *words)
    return {row["metadata"]["title"] + "\n" + row["messages"][1]["content"] for row in rows}


def test_held_out_documents_are_those_of_prepare(tmp_path: Path) -> None:
    """By the hash of the document: none of them gives a row, all others do."""
    texts = [f"The {number}th text has a body of a few words. {'x' * 60}" for number in range(100)]
    found = title_and_text_rows(tmp_path, texts, "--val-fraction", "0.3", "--seed", "7")
    out = tmp_path / "unused"
    prepared = PrepareConfig(sources=(str(tmp_path / "in"),), out=out, val_fraction=0.3, seed=7)
    plan = SplitPlan.make(Corpus(prepared), prepared, no_progress)
    titled = [f"Title {number}\n{text}" for number, text in enumerate(texts)]
    expected = {text for text, side in zip(titled, plan.decisions, strict=True) if side == TRAIN}
    assert found == expected and 10 < len(found) < 90


def test_held_out_documents_of_a_store(tmp_path: Path, story_store: Path) -> None:
    tokenizer, sides = load_tokenizer(story_store), []
    for name in ("train", "val"):
        split = TokenStore(story_store).split(name)
        sides.append([tokenizer.decode(split.document(i)[:-1].tolist()).decode() for i in range(20)])
    (tmp_path / "in").mkdir()
    texts = [text for side in sides for text in side]
    (tmp_path / "in" / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = rows_of(tmp_path, "--kinds", "fill_in", "--held-out", str(story_store))
    documents = {row["metadata"]["document"] for row in rows}
    assert documents == {digest.hex() for digest in document_hashes([text.encode() for text in sides[0]], 0)}


def test_held_out_questions_and_texts(folder: Path) -> None:
    eval_file, text = folder / "eval.jsonl", folder / "held.md"
    eval_file.write_text(json.dumps({"question": "is it FREE", "answer": "?"}) + "\n")
    text.write_text(EN)
    found = rows_of(folder, "--held-out", str(eval_file), "--held-out", str(text))
    asked = [row["messages"][0]["content"] for row in found]
    assert "Is it fast?" in asked and "Is it free?" not in asked and "How long does it keep?" not in asked


@pytest.mark.parametrize(
    "text",
    ["# a" + " #" * 20_000 + "x", "![" * 20_000, "q" + " " * 40_000 + "x", "---\n---\n" + "\n" * 40_000 + "x",
     "x" * 60_000, "长" * 20_000, ". " * 20_000, "?" * 40_000, "**a" * 14_000, "a\n" * 20_000, "第一" * 20_000,
     "- " * 20_000, "**ab**" + " " * 40_000 + "x", "1.1.1" * 10_000, "a is a " * 8_000, "\n \n" * 14_000 + "x"],
    ids=range(16),
)  # fmt: skip
def test_hostile_texts_take_no_time(tmp_path: Path, text: str) -> None:
    """What regular expressions could be slow on: some took 4 to 12 seconds."""
    document = Document(text, "a.md", 0, len(text))
    start = time.process_time()
    found = passages._text_of(document, "0" * 32, False)
    parts = list(passages.cut_passages(found, 1000))
    make_tasks(found, read_prompts(BUILT_IN, "en"), 1000, 3)
    assert all(len(part.text.encode()) <= 1000 for part in parts)
    assert time.process_time() - start < 2


def test_passages_hold_the_whole_text() -> None:
    words = " ".join(f"Word{number} ends." if number % 9 == 0 else f"word{number}" for number in range(3000))
    text = f"A title\n\n{words}\n\n- one\n- two\n\n" + "长江全长约6300公里。" * 300
    found = passages._text_of(Document(text, "a.md", 0, 0), "0" * 32, False)
    parts = [part.text for part in passages.cut_passages(found, 500)]
    assert "".join("".join(parts).split()) == "".join(text.removeprefix("A title").split())
    assert max(len(part.encode()) for part in parts) <= 500 and "- one\n- two" in "\n".join(parts)
    assert [part.language for part in passages.cut_passages(found, 500)][-1] == "zh"


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
