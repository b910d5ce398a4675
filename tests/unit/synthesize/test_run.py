"""Documents to rows through an endpoint that fails, in runs that are interrupted and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llamita.cli import main
from llamita.config import SynthesizeConfig
from llamita.errors import LlamitaError, NetworkError
from llamita.finetune.conversations import read_conversations
from llamita.synthesize import run
from llamita.synthesize.cache import AnswerCache
from llamita.synthesize.prompts import BUILT_IN, read_prompts
from llamita.synthesize.run import Result, synthesize

Stub = Any  # conftest.Stub: the tests are not a package


COMMON = {"question": "Who calls a river the blue sister?", "answer": "Fishermen call it the blue sister.",
          "evidence": "Fishermen call it the blue sister."}  # fmt: skip


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    original = run.Endpoint
    monkeypatch.setattr(run, "Endpoint", lambda *a, **k: original(*a, **k, first_wait_seconds=0.01))


def config(stub: Stub, documents: Path, **changes: Any) -> SynthesizeConfig:
    options = {"sources": (str(documents),), "out": documents.parent / "qa.jsonl", "endpoint": stub.url, "model": "m",
               "val_fraction": 0.0, "timeout": 20.0, "retries": 3}  # fmt: skip
    return SynthesizeConfig(**{**options, **changes})


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def expected_rows(stub: Stub, documents: Path) -> str:
    """What a run without any fault writes."""
    whole = config(stub, documents, out=documents.parent / "whole.jsonl")
    synthesize(whole)
    return whole.out.read_text(encoding="utf-8")


def test_rows_of_all_kinds(stub: Stub, documents: Path) -> None:
    result = synthesize(config(stub, documents))
    assert result.rows["pair"] == 24
    found = rows(documents.parent / "qa.jsonl")
    assert result.rows["refusal"] == 12 and result.asked.requests == 36 and len(found) == sum(result.rows.values())
    assert (result.asked.prompt_tokens, result.asked.completion_tokens, result.asked.usage_known) == (3600, 720, True)
    assert len(list(read_conversations(documents.parent / "qa.jsonl"))) == len(found)
    for row in found:
        text = Path(row["source"]).read_text(encoding="utf-8")
        assert (
            row["metadata"]["passage"] in text and row["model"] == "m" and row["metadata"]["title"].startswith("The ")
        )
        assert all(evidence in row["metadata"]["passage"] for evidence in row["metadata"]["evidence"])
    refusals = [row for row in found if row["type"] == "refusal"]
    assert {row["messages"][1]["content"] for row in refusals} <= set(read_prompts(BUILT_IN, "en").refusals)
    body = stub.requests[0]
    assert body["model"] == "m" and body["max_tokens"] == 1024 and body["response_format"]["type"] == "json_schema"


def test_chinese_documents_are_asked_about_in_chinese(stub: Stub, tmp_path: Path) -> None:
    text = "长江\n\n长江是亚洲第一长河，全长约6300公里，最后在上海注入东海。"
    (tmp_path / "长江.txt").write_text(text, encoding="gb18030")
    good = {"question": "长江全长多少公里？", "answer": "约6300公里。", "evidence": "全长约6300公里"}
    wrong = {"question": "长江在哪里入海？", "answer": "在广州注入南海。", "evidence": "最后在上海注入东海"}
    stub.answer = lambda prompt: (
        {"items": [{"question": "长江上有多少座大桥？"}]} if "没有回答" in prompt else {"items": [good, wrong]}
    )
    result = synthesize(config(stub, tmp_path / "长江.txt", encoding="gb18030"))
    first, second = rows(tmp_path / "qa.jsonl")
    assert [turn["content"] for turn in first["messages"]] == [good["question"], good["answer"]]
    assert first["language"] == "zh" and first["source"].endswith("长江.txt") and first["metadata"]["title"] == "长江"
    assert second["type"] == "refusal" and "资料" in second["messages"][1]["content"]
    assert result.dropped == {"with an answer that is not in the passage": 2}
    assert all("阅读下面的资料" in body["messages"][0]["content"] for body in stub.requests)
    assert "标题：长江\n" in stub.requests[0]["messages"][0]["content"]


def test_conversations_need_two_turns(stub: Stub, documents: Path) -> None:
    synthesize(config(stub, documents, kinds=("conversation",)))
    found = rows(documents.parent / "qa.jsonl")
    assert len(found) == 12 and all(len(row["messages"]) == 4 and row["type"] == "conversation" for row in found)
    good = stub.good_answer
    stub.answer = lambda prompt: {
        "items": [*good(prompt)["items"], {"question": "And now?", "answer": "5", "evidence": ""}]
    }
    result = synthesize(config(stub, documents, kinds=("conversation",), turns=4))
    assert result.rows["conversation"] == 12 and result.dropped.total() == 12, "cut before the turn that fails"


def test_every_fault_and_the_same_rows(stub: Stub, documents: Path) -> None:
    expected = expected_rows(stub, documents)
    stub.fail(429, Retry_After="0.1")
    stub.fail("half", 500, "half in chunks", "wrong JSON", "close", "events", "other JSON", "slow", 503, "drip")
    result = synthesize(config(stub, documents, retries=12, timeout=0.8))
    assert (documents.parent / "qa.jsonl").read_text(encoding="utf-8") == expected
    assert result.asked.retries == 11 and not result.asked.failed and not stub.faults


def test_answers_without_questions_are_asked_for_again(stub: Stub, documents: Path) -> None:
    good, seen = stub.good_answer, set[str]()

    def answer(prompt: str) -> Any:
        is_new = prompt not in seen
        seen.add(prompt)
        return ["I cannot do that.", {"items": []}, '{"items": [{"questi'][len(seen) % 3] if is_new else good(prompt)

    stub.answer = answer
    result = synthesize(config(stub, documents))
    assert result.asked.requests == 72 and result.rows["pair"] == 24, "each was asked twice"
    stub.answer = lambda prompt: "No."
    (documents.parent / "qa.jsonl").unlink()
    (documents.parent / "qa.jsonl.answers").unlink()
    with pytest.raises(LlamitaError, match="no questions: all were dropped, 36 that are not in the form asked for"):
        synthesize(config(stub, documents))
    assert not (documents.parent / "qa.jsonl").exists()


def test_wrong_answers_are_dropped_and_counted(stub: Stub, documents: Path) -> None:
    good = stub.good_answer

    def answer(prompt: str) -> Any:
        items = good(prompt)["items"]
        items[0] = {**items[0], "answer": "It is 9999 kilometers long."} if "answer" in items[0] else items[0]
        return {"items": [*items, {"question": "The river is blue.", "answer": "It is.", "evidence": "blue sister"}]}

    stub.answer = answer
    result = synthesize(config(stub, documents, kinds=("pairs",)))
    assert result.rows == {"pair": 12}
    assert result.dropped == {"with a number that is not in the passage": 12, "that ask nothing": 12}


def test_interrupted_anywhere_and_resumed(stub: Stub, documents: Path) -> None:
    """Every few answers the run is interrupted, and the cache loses half a line; nothing is asked twice."""
    expected = expected_rows(stub, documents)
    stub.requests.clear()
    options = config(stub, documents, concurrency=1)
    cache = documents.parent / "qa.jsonl.answers"
    interruptions = 0

    def interrupt(stage: str, done: int, total: int) -> None:
        if done >= min(total, 5 * interruptions + 5) and done < total:
            raise KeyboardInterrupt

    while True:
        try:
            result = synthesize(options, progress=interrupt)
            break
        except KeyboardInterrupt:
            interruptions += 1
            assert not options.out.exists()
            with cache.open("ab") as file:
                file.write(b'{"key": "half a li')
    assert interruptions >= 5 and options.out.read_text(encoding="utf-8") == expected
    assert result.asked.cached > 0 and len(stub.requests) <= 36 + interruptions
    bodies = [json.dumps(body, sort_keys=True) for body in stub.requests]
    assert len(set(bodies)) == 36
    requests = len(stub.requests)
    again = synthesize(options)
    assert len(stub.requests) == requests and again.asked.requests == 0 and again.asked.cached == 36
    assert options.out.read_text(encoding="utf-8") == expected


def start(stub: Stub, documents: Path, out: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llamita", "synthesize", str(documents), "-o", str(out), "--endpoint", stub.url,
               "--model", "m", "--val-fraction", "0", *words]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_killed_processes(stub: Stub, documents: Path) -> None:
    expected = expected_rows(stub, documents)
    out = documents.parent / "killed.jsonl"
    stub.seconds = 0.15
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        before = len(stub.requests)
        process = start(stub, documents, out, "--concurrency", "2")
        end = time.monotonic() + 30
        while len(stub.requests) < before + 6:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
        assert not out.exists()
        if number == signal.SIGINT:
            assert process.returncode == 130 and b"the same command goes on" in error and b"Traceback" not in error
    stub.seconds = 0.0
    process = start(stub, documents, out)
    assert process.wait(60) == 0 and out.read_text(encoding="utf-8") == expected
    assert len(stub.requests) < 36 + 36 + 4 * 3, "asked twice only what was on its way"


def test_two_at_once_exclude_each_other(stub: Stub, documents: Path) -> None:
    options = config(stub, documents)

    def nested(result: Result, estimate: Any) -> None:
        with pytest.raises(LlamitaError, match=r"cannot write .*qa.jsonl.answers: process \d+ .* is writing it"):
            synthesize(options)

    synthesize(options, before=nested)
    assert not options.out.with_name("qa.jsonl.answers.lock").exists()


def test_concurrency_has_a_limit(stub: Stub, documents: Path) -> None:
    stub.seconds = 0.02
    synthesize(config(stub, documents, concurrency=3))
    assert stub.most_at_once == 3


def test_an_endpoint_that_breaks_down(stub: Stub, documents: Path) -> None:
    expected = expected_rows(stub, documents)
    served = stub.requests.copy()
    stub.requests.clear()
    options = config(stub, documents, retries=0)
    good, count = stub.answer, 0

    def fail_later(prompt: str) -> Any:
        nonlocal count
        count += 1
        if count > 10:
            stub.fail(*[500] * 30)
        return good(prompt)

    stub.answer = fail_later
    with pytest.raises(
        NetworkError, match="answered 500: too much work, 1 times; 8 requests in a row failed; answers so far"
    ):
        synthesize(options)
    assert not options.out.exists()
    stub.answer, stub.faults[:] = good, []
    result = synthesize(options)
    assert result.asked.cached >= 10 and result.asked.requests <= len(served) - 10
    assert options.out.read_text(encoding="utf-8") == expected


def test_single_failures_are_counted_and_asked_again(
    stub: Stub, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = expected_rows(stub, documents)
    stub.fail(400, 413)
    words = ["synthesize", str(documents), "-o", str(documents.parent / "qa.jsonl"), "--endpoint", stub.url, "--model",
             "m", "--val-fraction", "0"]  # fmt: skip
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "note: 2 requests failed; the same command asks again; the first: http://127" in printed.err
    assert "34 answered, 0 sent again, 2 failed" in printed.out
    assert (documents.parent / "qa.jsonl").read_text(encoding="utf-8") != expected
    assert main(words) == 0 and "2 answered, 0 sent again, 0 failed, 34 in the cache" in capsys.readouterr().out
    assert (documents.parent / "qa.jsonl").read_text(encoding="utf-8") == expected


def test_all_requests_fail(stub: Stub, documents: Path) -> None:
    stub.fail(*[400] * 3)
    with pytest.raises(LlamitaError, match=r"no questions: 3 requests failed, the first: .*400: too much work"):
        synthesize(config(stub, documents, max_passages=1))
    assert not (documents.parent / "qa.jsonl").exists()


def test_what_is_printed_before_and_after(stub: Stub, documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["synthesize", str(documents), "-o", str(documents.parent / "qa.jsonl"), "--endpoint", stub.url, "--model",
             "m", "--val-fraction", "0", "--price", "2", "10"]  # fmt: skip
    assert main([*words, "--dry-run"]) == 0
    dry = capsys.readouterr()
    assert dry.out == "" and not stub.requests and not list(documents.parent.glob("qa*"))
    first, second = dry.err.splitlines()
    assert first.startswith("asking 36 of 36 requests about 12 passages; 0 are answered in ")
    assert "at most 36,864 to write, at most 0.38" in second
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[:2] == dry.err.splitlines()
    assert "3,600 read, 720 written; cost 0.0144" in printed.out and "24 pair, 12 refusal" in printed.out
    assert main([*words, "--dry-run"]) == 0 and "asking 0 of 36 requests" in capsys.readouterr().err
    stub.usage = None
    assert main([*words, "--questions", "4"]) == 0
    assert " about " in capsys.readouterr().out.partition("tokens")[2].partition("\n")[0]


def test_max_passages_takes_the_same_and_more(stub: Stub, documents: Path) -> None:
    asked = []
    for count in (2, 5, 100):
        stub.requests.clear()
        out = documents.parent / f"{count}.jsonl"
        synthesize(config(stub, documents, max_passages=count, kinds=("pairs",), out=out))
        asked.append({row["source"] for row in rows(out)})
    assert [len(each) for each in asked] == [2, 5, 12] and asked[0] < asked[1] < asked[2]


def test_keys(
    stub: Stub, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["synthesize", str(documents), "-o", str(tmp_path / "qa.jsonl"), "--endpoint", stub.url, "--model", "m"]
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    (tmp_path / "key").write_text("# mine\nfrom-file\n")
    from_file = ["--api-key-file", str(tmp_path / "key"), "--questions", "4"]
    for more, expected in (([], "from-environment"), (from_file, "from-file")):
        assert main([*words, *more]) == 0
        assert {each.get("Authorization") for each in stub.headers} == {f"Bearer {expected}"}
        stub.headers.clear()
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel 1")
    assert main(words) == 2 and "API key: expected ASCII letters" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert main([*words, "--questions", "9"]) == 0 and not any("Authorization" in each for each in stub.headers)
    everything = capsys.readouterr()
    written = "".join(path.read_text() for path in tmp_path.glob("qa*"))
    assert "from-" not in everything.out + everything.err + written, "a key is never printed or written"


def test_prompts_of_the_user(stub: Stub, documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = documents.parent / "prompts"
    words = ["synthesize", str(documents), "-o", str(documents.parent / "qa.jsonl"), "--endpoint", stub.url, "--model",
             "m", "--prompts", str(folder), "--kinds", "pairs"]  # fmt: skip
    assert main(words) == 0 and not stub.requests
    assert capsys.readouterr().out == f"{folder}: the built-in prompts; edit them, and run the same command again\n"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*")) == [
        f"{language}/{name}.txt" for language in ("en", "zh")
        for name in ("conversation", "pairs", "refusal", "refusals", "rules")
    ]  # fmt: skip
    (folder / "en" / "pairs.txt").write_text("Ask {count}! {not json}\n{passage}\n")
    assert main(words) == 0
    prompts = {each["messages"][0]["content"] for each in stub.requests}
    assert all(prompt.startswith("Ask 3! {not json}\nThe ") for prompt in prompts)


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("pairs.txt", "no place", "pairs.txt: expected {passage} where the passage goes, found none"),
        ("pairs.txt", "{passage} {nmae}", "expected the placeholders {passage}, {title}, {count}, found {nmae}"),
        ("pairs.txt", None, "pairs.txt: No such file or directory; write a folder of all prompts with --prompts NEW"),
        ("pairs.txt", b"\xff", "pairs.txt: byte 0: expected UTF-8 text"),
        ("refusals.txt", "\n\n", "refusals.txt: expected an answer on each line, found none"),
        ("rules.txt", "heading What?", "rules.txt:1: expected RULE: PHRASE with one of the rules heading, definition"),
        ("rules.txt", "\ntitel: x", "rules.txt:2: expected RULE: PHRASE"),
        ("rules.txt", "heading: only {title}", "rules.txt:1: expected {heading} in the phrase, found none"),
    ],
)
def test_wrong_prompts(
    stub: Stub, documents: Path, capsys: pytest.CaptureFixture[str], name: str, text: Any, error: str
) -> None:
    folder = documents.parent / "prompts"
    words = ["synthesize", str(documents), "-o", str(documents.parent / "qa.jsonl"), "--endpoint", stub.url, "--model",
             "m", "--prompts", str(folder)]  # fmt: skip
    assert main(words) == 0
    path = folder / "en" / name
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    capsys.readouterr()
    assert main(words) == 2
    assert error in capsys.readouterr().err and not stub.requests


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "expected --endpoint URL and --model NAME, or --rules"),
        (["--endpoint", "http://h/v1"], "expected --endpoint URL and --model NAME, or --rules"),
        (["--rules", "--model", "m"], "--rules use no model; remove --endpoint and --model"),
        (["--rules", "--kinds", "pairs"], "--kinds: expected faq, heading"),
        (
            ["--endpoint", "x", "--model", "m", "--kinds", "faq"],
            "--kinds: expected pairs, conversation, refusal by a model",
        ),
        (["--endpoint", "x", "--model", "m"], "--endpoint: expected a URL such as http://127.0.0.1:8000/v1, found 'x'"),
        (["--rules", "--body", "[1]"], "--body: expected a JSON object, found '[1]'"),
        (["--rules", "--body", '{"stream": true}'], "--body: stream cannot be set"),
        (["--rules", "--language", "../en"], "--language: expected a name such as en"),
        (["--rules", "--language", "de"], "de/pairs.txt: No such file"),
        (["--rules", "--turns", "1"], "--turns: expected 2 to 20, found 1"),
        (["--rules", "--held-out", "nowhere"], "--held-out: no such file or folder: nowhere"),
        (["--rules", "--val-fraction", "0.9"], "--val-fraction: expected 0 to 0.5"),
        (["--rules", "--dry-run"], "--dry-run: --rules send no requests"),
        (["--rules", "--out", "qa.txt"], "expected a name that ends with .jsonl, found qa.txt"),
        (["--rules", "--val-out", "v.json"], "expected a name that ends with .jsonl, found v.json"),
        (["--rules", "--kinds", "poem"], "--kinds: expected one of pairs, conversation, refusal, faq"),
        (["--rules", "--price", "1", "-1"], "--price: expected two numbers"),
    ],
)
def test_wrong_options(documents: Path, capsys: pytest.CaptureFixture[str], words: list[str], error: str) -> None:
    out = documents.parent / "qa.jsonl"
    assert main(["synthesize", str(documents), "-o", str(out), *words]) == 2
    assert error in capsys.readouterr().err and not list(documents.parent.glob("qa*"))


def test_files_of_others_are_not_overwritten(stub: Stub, documents: Path) -> None:
    options = config(stub, documents)
    options.out.write_text("mine")
    with pytest.raises(LlamitaError, match=r"qa.jsonl: it exists already; choose another name or remove it"):
        synthesize(options)
    assert options.out.read_text() == "mine"
    options.out.unlink()
    cache = documents.parent / "qa.jsonl.answers"
    cache.write_text("something else\n")
    with pytest.raises(LlamitaError, match=r"qa.jsonl.answers: it holds no answers; choose another --out"):
        synthesize(options)
    assert cache.read_text() == "something else\n"


def test_out_among_the_documents(documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", str(documents), "-o", str(documents / "qa.jsonl"), "--rules"]) == 2
    assert "qa.jsonl would be in " in capsys.readouterr().err


def test_hostile_texts_of_a_model(stub: Stub, documents: Path) -> None:
    """Halves of surrogate pairs, control characters and keys of other types give valid rows, or none."""
    good = stub.good_answer

    def answer(prompt: str) -> str:
        items = good(prompt)["items"]
        for each in items:
            each["question"] = "\ud800 \x00" + each["question"]
        return json.dumps({"items": [*items, {"question": None}, {"question": {"question": "a"}, "answer": []}]})

    stub.answer = answer
    result = synthesize(config(stub, documents))
    assert result.rows == {"pair": 24, "refusal": 12} and len(rows(documents.parent / "qa.jsonl")) == 36
    assert len(list(read_conversations(documents.parent / "qa.jsonl"))) == 36


def test_damaged_lines_of_the_cache(stub: Stub, documents: Path) -> None:
    options = config(stub, documents)
    synthesize(options)
    expected = options.out.read_text(encoding="utf-8")
    cache = documents.parent / "qa.jsonl.answers"
    lines = cache.read_bytes().split(b"\n")
    lines[3], lines[5] = b"\xff{", lines[5].replace(b'"text"', b'"test"')
    cache.write_bytes(b"\n".join(lines))
    stub.requests.clear()
    result = synthesize(options)
    assert result.damaged_lines == 2 and len(stub.requests) == 2
    assert options.out.read_text(encoding="utf-8") == expected


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(stub: Stub, documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits is kept; the error is one line."""
    write, count = AnswerCache._write, 0

    def fill_up(self: AnswerCache, line: bytes) -> None:
        nonlocal count
        count += 1
        if count > 5:
            assert self._file is not None
            os.dup2(os.open("/dev/full", os.O_WRONLY), self._file.fileno())
        write(self, line)

    options = config(stub, documents, concurrency=1)
    with monkeypatch.context() as patched:
        patched.setattr(AnswerCache, "_write", fill_up)
        with pytest.raises(LlamitaError, match=r"cannot write .*answers: No space left on device; the same"):
            synthesize(options)
    result = synthesize(options)
    assert result.asked.cached == 4 and result.rows["pair"] == 24


def test_the_same_passage_in_two_documents_is_asked_about_once(stub: Stub, documents: Path) -> None:
    """Documents that differ only in their title."""
    for path in documents.glob("*"):
        path.unlink()
    _, text = (
        "",
        "# One\n\nThe Aaabach is a river of 100 kilometers in Uplandia. Its source lies 2000 meters above the sea.",
    )
    (documents / "a.md").write_text(text)
    (documents / "b.md").write_text(text.replace("One", "Two"))
    (documents / "c.md").write_text(text)
    result = synthesize(config(stub, documents, kinds=("pairs",)))
    assert len(stub.requests) == 1 and result.documents.duplicates == 1 and result.rows == {"pair": 2}


def test_rows_of_held_out_documents(stub: Stub, documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are in a file of their own, and ask nothing that the other file asks."""
    val_out, out = documents.parent / "val.jsonl", documents.parent / "qa.jsonl"
    words = ["synthesize", str(documents), "-o", str(out), "--endpoint", stub.url, "--model", "m", "--val-fraction",
             "0.4", "--questions", "5"]  # fmt: skip
    assert main(words) == 0
    alone = out.read_text(encoding="utf-8")
    capsys.readouterr()
    good = stub.good_answer
    stub.answer = lambda prompt: {"items": [*good(prompt)["items"], COMMON]}
    assert main([*words, "--val-out", str(val_out)]) == 0, "goes on: only the held-out documents are asked about"
    assert f"held out      19 in {val_out}: 13 pair, 6 refusal" in capsys.readouterr().out
    held_out, used = {row["source"] for row in rows(val_out)}, {row["source"] for row in rows(out)}
    assert len(held_out) == len(used) == 6 and not held_out & used
    assert out.read_text(encoding="utf-8") == alone
    for path in (val_out, out, documents.parent / "qa.jsonl.answers"):
        path.unlink()
    result = synthesize(config(stub, documents, val_fraction=0.4, val_out=val_out))
    assert result.val_rows["pair"] == 13 and result.rows["pair"] == 12 and result.held_out_questions == 12, (
        "conversations too"
    )
    val_out.write_text("mine")
    with pytest.raises(LlamitaError, match=r"val.jsonl: it exists already"):
        synthesize(config(stub, documents, val_out=val_out, out=documents.parent / "other.jsonl"))


def test_all_documents_are_held_out(stub: Stub, documents: Path) -> None:
    with pytest.raises(LlamitaError, match="all 12 documents are held out"):
        synthesize(config(stub, documents, held_out=(documents,)))
