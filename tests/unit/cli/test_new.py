"""`llamita new` without its steps: what it sees, says, asks and would run, and how it goes on."""

from __future__ import annotations

import io
import itertools
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from llamita import cli
from llamita.cli import main, new
from llamita.cli.command import read_stdin_as_utf8
from llamita.commands import _windows_word

TEXT = "\n\n".join(f"Once upon a time number {i} a llama counted {i * i} sheep." for i in range(600))
Ran = list[list[str]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """The commands that were run; nothing happens in them. The working directory is an empty folder."""
    commands: Ran = []

    def run(words: list[str]) -> int:
        if words[0] == "new":
            return new.main(words[1:])
        commands.append(words)
        return 0

    monkeypatch.setattr(cli, "run_command", run)
    monkeypatch.setattr(new, "_context", lambda tokens, examples: 256)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.chdir(tmp_path)
    return commands


def questions(count: int, word: str = "question") -> str:
    rows = ({"question": f"{word} {i}? " * 20, "answer": f"answer {i} " * 20} for i in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(count: int) -> str:
    rows = ({"prompt": f"asked {i} " * 20, "chosen": f"good {i} " * 20, "rejected": "bad"} for i in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows)


def make(files: dict[str, str | bytes], folder: str = "texts") -> Path:
    for name, content in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Path(folder)


def printed_commands(err: str) -> Ran:
    return [shlex.split(line)[1:] for line in err.splitlines() if line.startswith("  llamita ")]


# ---------------------------------------------------------------- what it would run


def test_text_becomes_tokens_a_run_and_a_file(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    make({"a.txt": TEXT, "b.png": "x"}, "我的 texts")
    assert main(["new", "我的 texts", "--minutes", "10", "--yes"]) == 0
    out = "runs/我的 texts"
    assert ran == [
        ["prepare", "我的 texts", "--skip-unknown", "--split-on", "blank-lines", "--out", f"{out}/tokens"],
        ["train", f"{out}/tokens", "--out", f"{out}/pretrained", "--minutes", "10"],
        ["eval", f"{out}/pretrained", f"{out}/tokens", "--samples", "24"],
        ["export", f"{out}/pretrained", f"{out}/我的 texts.gguf"],
        ["run", f"{out}/我的 texts.gguf", "-i", "", "-N", "3", "-t", "0.8"],
    ]
    err = capsys.readouterr().err
    assert printed_commands(err) == ran
    assert "1 document in 1 file, 35 kB" in err and "1 file of unknown types: b.png" in err
    assert "  more      llamita inspect '我的 texts' shows" in err
    assert "form" in err and "does not learn facts" in err and "35 kB of text is little" in err


def test_text_and_questions(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {"broken.json": "{", "half.txt": "ä".encode() + b"\xff\xfe\xfd" * 99, "sub/rows.csv": "a,b\n1,2\n"}
    make({"a.txt": TEXT, "qa.jsonl": questions(50) + "{\n", "sub/qa.json": "[]", **broken})
    assert main(["new", "texts", "-m", "10", "-y", "-o", "out"]) == 0
    prepare, train, evaluate, finetune, export = ran
    assert prepare[:3] == ["prepare", "texts", "out/examples/text.jsonl"]
    excluded = {after for before, after in itertools.pairwise(prepare) if before == "--exclude"}
    assert excluded == {f"texts/{name}" for name in ("qa.jsonl", "sub/qa.json", *broken)}
    assert train == ["train", "out/tokens", "--out", "out/pretrained", "--minutes", "6", "--context", "256"]
    assert evaluate[0] == "eval"
    assert finetune[:5] == ["finetune", "out/pretrained", "out/examples/questions.jsonl", "--val",
                            "out/examples/held-out.jsonl"]  # fmt: skip
    assert "--preference" not in finetune and finetune[finetune.index("--minutes") + 1] == "4"
    assert export == ["export", "out/finetuned", "out/texts.gguf"]
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == "next: llamita chat out/texts.gguf"
    assert "50 conversations: qa.jsonl" in err and "1 are left out, the first: " in err and "qa.jsonl:51" in err
    assert "50 examples are few" in err and "broken.json" in err and "half.txt" in err and "rows.csv" in err


def test_held_out_questions_are_in_no_text(ran: Ran) -> None:
    make({"qa.jsonl": questions(60), "more.csv": "question,answer\nWhy?,So.\n"})
    assert main(["new", "texts", "-m", "10", "-y", "-o", "out"]) == 0
    assert ran[0][:2] == ["prepare", "out/examples/text.jsonl"], "there is no other text"
    train, val = (
        [json.loads(line)["question"].strip() for line in Path("out/examples", name).read_text().splitlines()]
        for name in ("questions.jsonl", "held-out.jsonl")
    )
    text = Path("out/examples/text.jsonl").read_text()
    assert len(train) + len(val) == 61 and len(val) == 6 and "Why?" in [*train, *val]
    assert all(question in text for question in train) and not any(question in text for question in val)


def test_pairs_alone_teach_the_chosen_answers_first(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    make({"pairs.jsonl": pairs(100)})
    assert main(["new", "texts/pairs.jsonl", "-m", "10", "-y"]) == 0
    assert [words[0] for words in ran] == ["prepare", "train", "eval", "finetune", "finetune", "export"]
    assert ran[4][:3] == ["finetune", "runs/pairs/finetuned", "runs/pairs/examples/pairs.jsonl"]
    assert ran[4][-2:] == ["--preference", "dpo"] and ran[5][1:] == ["runs/pairs/preferred", "runs/pairs/pairs.gguf"]
    row = json.loads(Path("runs/pairs/examples/questions.jsonl").read_text().splitlines()[0])
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert "good" in row["messages"][1]["content"]
    assert "100 pairs of a better and a worse answer" in capsys.readouterr().err
    held_out = Path("runs/pairs/examples/pairs-held-out.jsonl").read_text().splitlines()
    learned = (
        Path("runs/pairs/examples/text.jsonl").read_text() + Path("runs/pairs/examples/questions.jsonl").read_text()
    )
    assert held_out and not any(json.loads(row)["prompt"] in learned for row in held_out)


def test_a_readme_beside_a_data_set_is_not_asked_about(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    make({"README.md": "About.\n\n" * 9, "qa.jsonl": questions(90)})
    monkeypatch.setattr(sys, "stdin", Terminal())  # a question would be an end of the input
    assert main(["new", "texts", "-m", "10"]) == 0
    assert "--split-on" not in ran[0] and ran[-1][0] == "chat"


@pytest.mark.parametrize("name", ["stories", "-x"])
def test_names_that_are_words(ran: Ran, name: str) -> None:
    make({"a.txt": TEXT}, name)
    assert main(["new", "-m", "1", "-y", "--", name]) == 0
    assert ran[0][1] == f"./{name}" and ran[0][-1] == f"runs/{name}/tokens"
    assert main(["new", "-m", "1", "-y", "--out=-out", "--", name]) == 0
    assert ran[-2][1:] == [str(Path("-out", each).absolute()) for each in ("pretrained", f"{name}.gguf")]


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_that_are_not_utf8(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9")
    make({"a.txt": TEXT, f"{name}.jsonl": questions(60), f"{name}.json": "{"}, name)
    for _ in range(2):
        assert main(["new", "-m", "10", "-y", name]) == 0
    assert ran[0][1] == name and ran[0][-1] == "runs/caf_/tokens" and f"{name}/{name}.json" in ran[0]
    printed = capsys.readouterr().err
    assert printed.encode() and "  llamita prepare $'caf\\xe9'" in printed and "changed since" not in printed


# ---------------------------------------------------------------- questions


def test_it_asks_two_questions(ran: Ran, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make({"a.txt": TEXT})
    monkeypatch.setattr(sys, "stdin", Terminal("words\nlines\nten\n0\n7\n"))
    assert main(["new", "texts"]) == 0
    assert ran[0][2:4] == ["--split-on", "lines"] and ran[1][-1] == "7"
    err = capsys.readouterr().err
    assert "blank-lines (600 texts), lines (600 texts), separator (1 text) [blank-lines]" in err
    assert "may the training take? [10]" in err and "expected one of blank-lines, lines, separator" in err
    monkeypatch.setattr(sys, "stdin", Terminal("\n\n"))
    assert main(["new", "texts", "--overwrite"]) == 0
    assert ran[5][2:4] == ["--split-on", "blank-lines"] and ran[6][-1] == "10"
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))  # Ctrl-D at the second question
    assert main(["new", "texts", "--overwrite"]) == 130


def test_the_chat_reads_on_where_the_answers_end(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    class Typed(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    def run(words: list[str]) -> int:
        if words[0] == "new":
            return new.main(words[1:])
        if words[0] == "chat":
            read_stdin_as_utf8()  # as chat does
            assert sys.stdin.readline() == "什么？\n"
        return 0

    make({"qa.jsonl": questions(60)})
    monkeypatch.setattr(cli, "run_command", run)
    monkeypatch.setattr(sys, "stdin", Typed(io.BytesIO("7\n什么？\n".encode()), encoding="latin-1"))
    assert main(["new", "texts"]) == 0


# ---------------------------------------------------------------- interrupted


def failing(at: str, error: BaseException | int, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let a command fail until what is returned is called."""
    run, fails = cli.run_command, True

    def run_or_fail(words: list[str]) -> int:
        if words[0] == at and fails:
            ran.append(words)
            if isinstance(error, int):
                return error
            raise error
        return run(words)

    def end() -> None:
        nonlocal fails
        fails = False

    monkeypatch.setattr(cli, "run_command", run_or_fail)
    return end


@pytest.mark.parametrize("error", [KeyboardInterrupt(), 130])
@pytest.mark.parametrize("at", ["prepare", "train", "eval", "export"])
def test_it_goes_on_where_it_was_interrupted(
    at: str, error: BaseException | int, ran: Ran, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make({"a.txt": TEXT}, "my texts")
    end = failing(at, error, ran, monkeypatch)
    assert main(["new", "my texts", "-m", "3", "--split-on", "lines"]) == 130
    line = next(line for line in capsys.readouterr().err.splitlines() if "goes on with it: llamita " in line)
    end()
    before = len(ran)
    again = shlex.split(line.partition("goes on with it: llamita ")[2])
    assert main(again) == 0, "without a terminal: what was asked is known"
    done = [words[0] for words in ran[before:]]
    assert done == ["prepare", "train", "eval", "export", "run"][["prepare", "train", "eval", "export"].index(at) :]
    if at == "prepare":
        assert ran[before][2:4] == ["--split-on", "lines"] and ran[before + 1][-1] == "3"
    del ran[:]
    assert main(["new", "my texts"]) == 0 and [words[0] for words in ran] == ["run"]


def test_options_of_the_first_start_hold(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that say how the files are read."""
    bodies = [f"Erzählung {number}. " + TEXT[:200] for number in range(200)]
    rows = "".join(json.dumps({"body": body}, ensure_ascii=False) + "\n" for body in bodies)
    make({"a.jsonl": rows.encode("latin-1")})
    end = failing("prepare", 130, ran, monkeypatch)
    words = ["new", "texts", "-m", "3", "-y", "--text-key", "body", "--encoding", "latin-1"]
    assert main(words) == 130
    end()
    assert main(["new", "texts"]) == 0, capsys.readouterr().err
    prepare = next(words for words in ran[1:] if words[0] == "prepare")
    assert prepare[prepare.index("--text-key") + 1] == "body" and prepare[prepare.index("--encoding") + 1] == "latin-1"


def test_a_run_that_has_begun_is_resumed(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    make({"a.txt": TEXT})
    end = failing("train", 130, ran, monkeypatch)
    assert main(["new", "texts", "-m", "3", "-y"]) == 130
    Path("runs/texts/pretrained").mkdir()
    Path("runs/texts/pretrained/run.json").write_text('{"config": {}}')
    end()
    assert main(["new", "texts"]) == 0
    assert ran[2] == ["train", "--out", "runs/texts/pretrained", "--minutes", "3", "--resume"]


def test_more_minutes_train_longer(
    ran: Ran, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from llamita.finetune.base_model import BaseModel

    make({"qa.jsonl": questions(90)})
    assert main(["new", "texts", "-m", "5", "-y"]) == 0
    out = Path("runs/texts")
    make_checkpoint(out / "pretrained")
    config = {"checkpoint": str(out / "pretrained"), "minutes": 2}
    run = {"config": config, "rows_per_step": 1, "data": {"base": BaseModel(out / "pretrained").fingerprint()}}
    make({"finetuned/run.json": json.dumps(run)}, str(out))
    longer = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("longer: llamita "))
    for changed in (False, True):
        del ran[:]
        if changed:
            make_checkpoint(out / "other", seed=1)
            (out / "other" / "model.safetensors").replace(out / "pretrained" / "model.safetensors")
            longer = longer.replace("--minutes 10", "--minutes 20")
        assert main(shlex.split(longer.removeprefix("longer: llamita "))) == 0
        assert [words[0] for words in ran] == ["train", "eval", "finetune", "export"]
        assert ran[0][4:6] == ["--minutes", "12" if changed else "6"]
        assert (ran[2][-1] == "--resume") != changed and (out / "finetuned").exists() != changed


def test_a_changed_source_is_said(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    make({"a.txt": TEXT, "b.txt": TEXT})
    assert main(["new", "texts", "-m", "3", "-y"]) == 0
    make({"a.txt": TEXT + "more", "c.txt": TEXT})
    Path("texts/b.txt").unlink()
    state = Path("runs/texts/new.json")
    state.write_text(state.read_text().replace('"llamita": "', '"llamita": "0.'))
    capsys.readouterr()
    assert main(["new", "texts"]) == 0
    err = capsys.readouterr().err
    assert "texts has changed since (1 new, 1 gone, 1 changed)" in err and "begun by llamita 0." in err
    del ran[:]
    assert main(["new", "texts", "-m", "4", "-y", "--overwrite"]) == 0
    assert [words[0] for words in ran] == ["prepare", "train", "eval", "export", "run"]


def test_overwrite_replaces_only_what_it_made(ran: Ran) -> None:
    make({"a.txt": TEXT})
    assert main(["new", "texts", "-m", "3", "-y"]) == 0
    make({"pretrained/run.json": "{}", "texts.gguf": "old", "mine.txt": "mine"}, "runs/texts")
    assert main(["new", "texts", "-m", "3", "-y", "--overwrite"]) == 0
    assert sorted(path.name for path in Path("runs/texts").iterdir()) == ["mine.txt", "new.json"]


def test_another_source_of_the_same_name_gets_another_folder(ran: Ran) -> None:
    make({"a.txt": TEXT}), make({"a.txt": TEXT}, "other/texts")
    for source, out in (("texts", "runs/texts"), ("other/texts", "runs/texts-2"), ("texts", "runs/texts")):
        assert main(["new", source, "-y"]) == 0
        assert ran[-1][1] == f"{out}/texts.gguf"


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("files", "words", "expected"),
    [
        ({}, [], "no such file or folder: texts"),
        ({".hidden": "x"}, [], "no text in folder texts: it has no files except 1 hidden ones"),
        ({"a.txt": ""}, [], "nothing to learn from in texts: the files are empty"),
        ({"a.txt": "Little."}, [], "too little text in texts: expected at least 20,000 bytes, found 7; add more"),
        ({"a.jsonl": questions(9)}, [], "too few examples in texts: expected at least 10 questions and"),
        ({"a.csv": "body\nx\n"}, [], "cannot use texts/a.csv: its rows are no examples, and no texts: expected the"),
        ({"a.csv": "text\n" * 20, "b.json": '[{"input": ""}]'}, [], "too little text in texts"),
        ({"a.jsonl": questions(4000, "q")}, ["-m", "0.5"], "--minutes: expected at least 1 for 4,000 conver"),
        ({"a.txt": TEXT}, ["--minutes", "0"], "new: --minutes: expected a positive number, found 0.0"),
        ({"a.txt": TEXT}, ["--minutes", "x"], "--minutes: expected a number, found 'x'"),
        ({"a.txt": TEXT}, ["--encoding", "nonsense"], "--encoding: expected the name of an encoding"),
        ({"a.txt": TEXT}, ["--out", "texts/runs"], "cannot write texts/runs: it is in the source folder texts"),
        ({"a.txt": TEXT}, ["--out", "texts"], "--out texts-model"),
        ({"a.txt": TEXT, "../mine/x": ""}, ["--out", "mine"], "cannot write mine: it exists and is not of"),
        ({"a.txt": TEXT, "../mine": ""}, ["--out", "mine"], "cannot write mine: it exists and is not of"),
    ],
)  # fmt: skip
def test_wrong_input(
    files: dict[str, str], words: list[str], expected: str, ran: Ran, capsys: pytest.CaptureFixture[str]
) -> None:
    make(files)
    before = sorted(Path().rglob("*"))
    assert main(["new", "texts", "-y", *words]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not ran and sorted(path for path in Path().rglob("*") if path.name != "runs") == before


def test_without_a_terminal_it_does_not_ask(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    make({"a.txt": TEXT})
    for words, option in (([], "--minutes"), (["--minutes", "3"], "--split-on")):
        assert main(["new", "texts", *words]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line == (
            f"llamita: new: cannot ask: expected a terminal, found none; give {option}, or --yes for the default "
            "answers"
        )
    assert not ran


def test_what_was_begun_cannot_change(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    make({"a.txt": TEXT}), make({"a.txt": TEXT}, "other")
    assert main(["new", "texts", "-m", "3", "-y"]) == 0
    state = Path("runs/texts/new.json")
    good = state.read_text()
    for words, expected in (
        (["texts", "-m", "2"], "--minutes: expected at least 3, as it was begun with, found 2; leave it out, or begin"),
        (["texts", "--text-key", "body"], "--text-key: it was begun with text, found body"),
        (["texts", "--encoding", "gbk"], "--encoding: it was begun with nothing, found gbk"),
        (["other", "-o", "runs/texts"], f"cannot write runs/texts: it was made from {Path('texts').resolve()}"),
    ):
        assert main(["new", *words]) == 2
        assert expected in capsys.readouterr().err.splitlines()[-1].replace("exists and ", "")
    for content, expected in (
        ("{", "cannot go on in runs/texts: cannot read runs/texts/new.json: not valid JSON"),
        ("{}", "format is missing; begin anew with --overwrite"),
        (good.replace('"format": 1', '"format": 2'), "expected format 1, found 2: it is of another version of llamita"),
        (
            good.replace('"minutes": 3.0', '"minutes": -1'),
            "minutes: expected a positive number of at most 1e+06, found",
        ),
        (good.replace('"done": [', '"done": [7, '), "done[0]: expected a string, found 7"),
        (good.replace("--split-on", "--split"), "options.--split-on is missing"),
        (good.replace('"a.txt": [', '"b": null, "a.txt": ['), "files.b: expected a list, found null"),
    ):
        state.write_text(content)
        assert main(["new", "texts", "-o", "runs/texts"]) == 2
        assert expected in capsys.readouterr().err.splitlines()[-1]
    assert main(["new", "texts", "-y", "--overwrite", "-o", "runs/texts"]) == 0, "a damaged state can be replaced"


def test_a_second_one_waits(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    from llamita.cli.steps import lock_new

    make({"a.txt": TEXT})
    with lock_new(Path("runs/texts")):
        assert main(["new", "texts", "-y"]) == 2
    assert "cannot go on in runs/texts: process" in capsys.readouterr().err and not ran


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("runs\\a.gguf", "runs\\a.gguf"),
        ("C:\\中文\\a-b=1", "C:\\中文\\a-b=1"),
        ("a b", '"a b"'),
        ("", '""'),
        ("a&b", '"a&b"'),
        ("a,b", '"a,b"'),
        ("my texts\\", '"my texts\\\\"'),
        ('say "x"', '"say \\"x\\""'),
        ('\\"', '"\\\\\\""'),
    ],
)
def test_words_for_windows(word: str, quoted: str) -> None:
    assert _windows_word(word) == quoted


def test_the_verdict_names_no_command_that_leaves_later_steps_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamita.report import verdict
    from llamita.report.history import History

    said = ["It went (well).", "It has read 6% of its text: training longer would help (llamita train -o 'a (b)')."]
    monkeypatch.setattr(verdict, "sentences", lambda history: said)
    history = History("run", Path("run"), {"config": {"checkpoint": "base"}}, [], [], [], {})
    assert new.verdict(history) == [said[0], "It has read 6% of its text: training longer would help."]
