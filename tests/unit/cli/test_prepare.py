"""llamita prepare: its flags, its summary, and one line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamita.cli import main
from llamita.data import tinystories
from llamita.data.token_store import TokenStore

KINDS = ("red", "small", "kind", "old", "quiet", "tall", "green")
WORDS = [a + b for a in KINDS for b in ("fox", "hen", "boat", "king")]
STORIES = [f"The {a} met the {b} near the mill, number {i}. They left." for i, a in enumerate(WORDS) for b in WORDS]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n\n".join(STORIES))
    return path


def run(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["prepare", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_summary(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (source, "-o", tmp_path / "store", "--split-on", "blank-lines", "--vocab-size", 300)
    code, out, err = run(*words, capsys=capsys)
    assert (code, err) == (0, "")
    store = TokenStore(tmp_path / "store")
    train, val = store.split("train"), store.split("val")
    assert "MB/s" in out and "vocabulary  300 tokens: learned, size as asked" in out
    assert f"{source.stat().st_size:,} bytes in 1 file: {len(STORIES)} documents" in out
    for name, split in (("train", train), ("val", val)):
        assert f"{name:<10}  {split.num_documents:,} documents, {split.num_tokens:,} tokens" in out
    code, out, _ = run(*words, capsys=capsys)
    assert code == 0 and "exists already" in out and "nothing to do" in out


def test_default_vocabulary_is_explained(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(source, "-o", tmp_path / "store", "--split-on", "blank-lines", capsys=capsys)
    assert code == 0 and "tokens: learned, as large as this text supports" in out


def test_several_held_out_sources(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, part in (("v1.txt", STORIES[:30]), ("v2.txt", STORIES[30:60])):
        (tmp_path / name).write_text("\n\n".join(part))
    code, out, _ = run(
        "--val", tmp_path / "v1.txt", "--val", tmp_path / "v2.txt", source, "-o", tmp_path / "store",
        "--split-on", "blank-lines", "--vocab-size", 300, capsys=capsys,
    )  # fmt: skip
    assert code == 0 and "dropped     60 duplicates" in out
    assert TokenStore(tmp_path / "store").split("val").num_documents == 60


def test_what_a_killed_run_left_is_named_and_removed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (source, "-o", tmp_path / "store", "--split-on", "blank-lines", "--vocab-size", 300)
    for _ in range(2):  # the second time the store is there already
        leftover = tmp_path / ".store.0123abcd.partial"
        (leftover / "store").mkdir(parents=True)
        (leftover / "lock").write_text("llamita\n1\nhost\nnow\n")
        code, _, err = run(*words, capsys=capsys)
        assert code == 0 and f"note: removed {leftover}, which a killed process left behind" in err
        assert not leftover.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.txt"], "no such file or folder: missing.txt"),
        ([], "no SOURCE given"),
        (["{source}", "--vocab-siz", "9"], "perhaps you meant --vocab-size"),
        (["{source}", "--vocab-size", "ten"], "vocab-size"),
        (["{source}", "--val-fraction", "0.9"], "--val-fraction: expected more than 0, at most 0.5, found 0.9"),
        (["{source}", "--vocab-size", "300", "--tokenizer", "x"], "exclude each other"),
        (["{source}", "--tokenizer", "missing.json"], "missing.json: No such file"),
        (["{source}"], "a single document"),
        (["tinystories", "--val", "{source}"], "has its own held-out file"),
    ],
)
def test_errors_are_one_line(
    source: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(source=source) for word in words]
    code, out, err = run(*filled, "--out", tmp_path / "store", capsys=capsys)
    assert code == 2 and out == ""
    assert err.startswith("llamita: ") and err.count("\n") == 1 and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["stories.txt"]


def test_bad_text_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n{oops\n")
    code, _, err = run(tmp_path / "a.jsonl", "-o", tmp_path / "store", capsys=capsys)
    assert code == 2 and f"{tmp_path / 'a.jsonl'}:2: broken JSON at column 2" in err


def test_stories(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated, also where a folder has this name, and into it."""
    pytest.importorskip("llamita.stories")
    monkeypatch.chdir(tmp_path)
    words = ("stories", "-o", Path("stories") / "store", "--num-stories", 300, "--vocab-size", 400)
    code, out, _ = run(*words, capsys=capsys)
    assert code == 0 and "300 documents" in out
    assert "nothing to do" in run(*words, capsys=capsys)[1]
    assert "other text" in run(*words, "--seed", 1, capsys=capsys)[2]


def test_tinystories(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(directory: Path, *, endpoint: str, progress: object) -> list[Path]:
        asked.append((directory, endpoint))
        directory.mkdir(parents=True, exist_ok=True)
        for name, part in (("train.txt", STORIES[100:]), ("val.txt", STORIES[:100])):
            (directory / name).write_text("<|endoftext|>".join(part))
        return [directory / "train.txt", directory / "val.txt"]

    monkeypatch.setattr(tinystories, "download_tinystories", download)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ("tinystories", "-o", tmp_path / "store", "--vocab-size", 300)
    assert run(*words, capsys=capsys)[0] == 0
    assert run(*words, "--endpoint", "http://x", "--download-dir", tmp_path / "d", capsys=capsys)[0] == 0
    assert asked == [
        (tmp_path / "cache/llamita/tinystories", "https://mirror.example"),
        (tmp_path / "d", "http://x"),
    ]
    assert TokenStore(tmp_path / "store").split("val").num_documents == 100


def test_foreign_files_are_skipped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a.txt").write_text("<|endoftext|>".join(f"A llama number {i} went home. " * 9 for i in range(400)))
    for i in range(10):
        (folder / f"{i}.jpg").write_bytes(b"\xff")
    words = ["prepare", str(folder), "-o", str(tmp_path / "store"), "--vocab-size", "270"]
    assert main(words) == 2
    assert "0.jpg: unknown file type (.jpg)" in capsys.readouterr().err
    for _ in range(2):  # made, then found
        assert main([*words, "--skip-unknown"]) == 0
        assert f"skipped     10 files of unknown types: {folder / '0.jpg'}, " in (out := capsys.readouterr().out)
        assert ", and 2 more" in out or " and 2 more" in out


def test_rows_of_conversations_lead_to_finetune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "qa.jsonl"
    for row in (
        '{"messages": []}',
        '{"instruction": "x", "output": "y"}',
        '{"prompt": "", "chosen": ""}',
        '{"question": "x"}',
    ):
        path.write_text(row + "\n")
        assert main(["prepare", str(path), "-o", str(tmp_path / "store")]) == 2
        error = capsys.readouterr().err
        assert "llamita finetune CHECKPOINT DATA --out DIR" in error and error.count("\n") == 1
    path.write_text('{"body": "x"}\n')
    assert main(["prepare", str(path), "-o", str(tmp_path / "store")]) == 2
    assert "finetune" not in (error := capsys.readouterr().err) and "--text-key" in error


def test_text_in_the_place_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line about the text, and not about numbers that its first bytes might be."""
    text, unnamed, rows = tmp_path / "a.txt", tmp_path / "model.bin", tmp_path / "a.jsonl"
    text.write_text("Once upon a time, there was a llama.\n" * 9)
    unnamed.write_text(text.read_text())
    rows.write_text('{"messages": []}\n')
    for words, expected in (
        (["inspect", "--tensors", text], f"{text} is text, which has no tensors"),
        (["inspect", rows], f"no text in {rows}: all documents are empty"),
        (["inspect", unnamed], "found text that begins with 'Once upon a time"),
        (["import", text, "-o", tmp_path / "out"], "found text that begins with 'Once upon a time"),
        (["quantize", text, tmp_path / "out.gguf", "--type", "q8_0"], "expected a GGUF file, found another format"),
        (["run", text], "expected a GGUF or llama2.c model file, found another format"),
        (["sample", text], "expected a folder with config.json"),
    ):
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1


def test_no_internals_in_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong value is named by its flag, on one line, without types and functions of ours."""
    for words, expected in (
        (["prepare", "x"], "missing --out (see llamita prepare --help)"),
        (["train", "x", "-o", "y", "--minutes", "ten"], "--minutes: expected a number, found 'ten'"),
        (["run", "-t", "-1"], "--temperature: expected 0 to 1000, found -1.0"),
        (["run", "-k", "x"], "--top-k: expected a whole number, found 'x'"),
        (["chat", "x.gguf", "-t", "nan"], "--temperature: expected 0 to 1000, found nan"),
        (["chat", "x.gguf", "--repetition-penalty", "0"], "--repetition-penalty: expected 0.01 to 100"),
        (["run", "-c", "100000"], "--context: expected at most 512, the model's context, found 100,000"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1 and "sampler" not in error and "{" not in error


def test_other_encodings_are_converted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "從前，山裡有一座小廟，廟裡住著一個老和尚。有一天，他們下山去買米。"
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, encoding in enumerate(("utf-8", "big5", "big5", "utf-16")):
        (folder / f"{number}.txt").write_bytes("\n".join(f"{text}{number}{i}" for i in range(99)).encode(encoding))
    (folder / "bad.txt").write_text(f"{text}\ufffd\ufffd\ufffd", encoding="utf-8")
    words = (folder, "-o", tmp_path / "store", "--split-on", "lines", "--vocab-size", 300)
    code, out, err = run(*words, capsys=capsys)
    assert (code, err) == (0, ""), err
    big5 = f"2 files converted from Big5 ({folder}/1.txt, {folder}/2.txt)"
    assert f"  encoding    {big5}; 1 file converted from UTF-16LE ({folder}/3.txt); --encoding" in out
    assert f"  damaged     {folder}/bad.txt: it holds 3 replacement characters (U+FFFD)" in out
    assert "397 documents" in out
    again = run(*words, capsys=capsys)[1]
    assert "nothing to do" in again and big5 in again
    for encoding, message in (("utf-8", "1.txt: byte 0 is not UTF-8; it looks like"), ("wtf", "--encoding: expected")):
        code, out, err = run(*words[:-1], 301, "--encoding", encoding, "--overwrite", capsys=capsys)
        assert code == 2 and message in err and err.count("\n") == 1
