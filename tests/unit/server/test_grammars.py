"""Answers that a grammar limits always fit it, in Python and over HTTP; what cannot be enforced is
refused."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llguidance")

from llamita.batch_generate import SampleOptions, generate_batch
from llamita.cli.run import main as run
from llamita.engine import Grammar, Model, Request, Scheduler, encode_prompt
from llamita.errors import EngineError, LlamitaError
from llamita.sampling import SamplingParams
from llamita.server.serving import ServerLimits

Client = Any  # conftest.Client: the tests are not a package
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def is_person(text: str) -> bool:
    found = json.loads(text)
    return (
        isinstance(found, dict)
        and found.keys() == {"name", "age"}
        and isinstance(found["name"], str)
        and len(found["name"]) <= 20
        and type(found["age"]) is int
        and 1 <= found["age"] <= 99
    )


GRAMMARS: dict[str, tuple[Grammar, Callable[[str], Any]]] = {
    "json_schema": (Grammar.json_schema(PERSON), is_person),
    "json_schema as text": (Grammar.json_schema(json.dumps(PERSON)), is_person),
    "regex": (Grammar.regex("[A-Z][a-z]{2,8} (cat|dog)s?"), re.compile("[A-Z][a-z]{2,8} (cat|dog)s?").fullmatch),
    "choices": (Grammar.choices(["yes", "no", '"quoted"\n', "是的"]), {"yes", "no", '"quoted"\n', "是的"}.__contains__),
    "gbnf": (Grammar.of_text('root ::= "<" [a-c]{1,5} ">"'), re.compile("<[a-c]{1,5}>").fullmatch),
    "lark": (Grammar.of_text('start: "<" /[a-c]{1,5}/ ">"'), re.compile("<[a-c]{1,5}>").fullmatch),
}


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_generated_texts_fit(stories: Model, name: str, temperature: float) -> None:
    grammar, fits = GRAMMARS[name]
    for seed in range(5):
        generation = stories.generate("The answer: ", temperature=temperature, seed=seed, grammar=grammar)
        text = "".join(generation)
        assert fits(text), text
        assert generation.stop in ("grammar's end", "end token")


def test_alone_in_a_batch_and_in_the_scheduler(stories: Model) -> None:
    grammar, sampling = GRAMMARS["regex"][0], SamplingParams(temperature=1.0, seed=5)
    alone = ["".join(stories.generate("Look: ", sampling, seed=5 + number, grammar=grammar)) for number in range(6)]
    samples = generate_batch(stories, SampleOptions(6, ("Look: ",), None, sampling), grammar=grammar)
    assert [sample.text.decode() for sample in samples] == alone and all(sample.ended for sample in samples)
    scheduler = Scheduler(stories, num_parallel=4)
    ids = encode_prompt(stories, "Look: ")
    texts: dict[int, list[int]] = {}
    for number in range(6):
        seeded = SamplingParams(temperature=1.0, seed=5 + number)
        texts[scheduler.submit(Request(ids, 100, seeded, grammar=grammar.start(stories)))] = []
        scheduler.submit(Request(ids, 20, seeded))
    running = 12
    while running:
        for event in scheduler.step():
            if event.kind == "token" and event.request in texts:
                texts[event.request].append(event.id)
            running -= event.kind == "end"
    scheduler.close()
    for new, expected in zip(texts.values(), alone, strict=True):
        assert stories.decode([*ids, *new]).decode() == "Look: " + expected


def test_another_token_is_never_allowed(stories: Model) -> None:
    """Every allowed token keeps the text a beginning of one of the choices."""
    choices = ["Lily", "Lilliput", "Tom", "Timmy went home."]
    state = Grammar.choices(choices).start(stories)
    rng, text, last = random.Random(0), b"", None
    while (words := state.allowed(last)) is not None:
        bits = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        texts = [stories.decode_token(int(each), int(each)) for each in bits]
        for each, piece in zip(bits, texts, strict=True):
            fits = any(choice.encode().startswith(text + piece) for choice in choices)
            assert fits and (piece or (stories.token_ends(int(each)) and text.decode() in choices))
        pick = rng.choice([i for i, piece in enumerate(texts) if piece])
        text, last = text + texts[pick], int(bits[pick])
    assert text.decode() in choices


def test_probabilities_of_choices(stories: Model) -> None:
    prompt, choices = "Once upon a", [" time", " cat", " tim", " timeless"]
    found = stories.choose(prompt, choices)
    assert list(found) == choices and sum(found.values()) == pytest.approx(1)
    assert max(found, key=lambda choice: found[choice]) == " time"
    sums = []
    for choice in choices:
        ids = stories.encode(prompt + choice, bos=True)
        sums.append(-stories.score(ids).sum())
    weights = np.exp(np.array(sums) - max(sums))
    np.testing.assert_allclose(list(found.values()), weights / weights.sum(), rtol=1e-9)
    for wrong in ([], [""], ["a", "a"]):
        with pytest.raises(EngineError, match="choices: expected"):
            stories.choose(prompt, wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grammar.json_schema({"const": -(2**63)}),  # llguidance 1.9 overflows its stack
        lambda: Grammar.of_text("".join(f"r{i} ::= r{i + 1}\n" for i in range(5000)) + 'r5000 ::= "a"\nroot ::= r0'),
        lambda: Grammar.json_schema({"type": "integer", "multipleOf": 10_000_019}),  # it takes hours
    ],
    ids=["crash", "deep", "slow"],
)
def test_grammars_that_break_llguidance(
    stories: Model, make: Callable[[], Grammar], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read in another process, which is started again."""
    monkeypatch.setattr("llamita.engine.grammar.LIMIT_SECONDS", 1.0)
    with pytest.raises(EngineError, match="too complex"):
        make()
    assert Grammar.regex("[a-z]+").start(stories)


WRONG_SCHEMAS: list[Any] = [
    {"type": "array", "uniqueItems": True}, {"type": "object", "if": {"required": ["a"]}}, {"not": {"type": "null"}},
    {"type": "strin"}, {"type": "string", "format": "nonsense"}, {"type": "string", "pattern": "(?=a)b"},
    {"$ref": "http://127.0.0.1:1/x"}, {"$ref": "#/nothing"}, {"type": "string", "pattern": "("}, {"type": 7},
    {"type": "object", "if": {}, "x-guidance": {"lenient": True}}, {"type": "integer", "minimum": 5, "maximum": 3},
    False, {"enum": []},
]  # fmt: skip


@pytest.mark.parametrize("schema", WRONG_SCHEMAS, ids=range(len(WRONG_SCHEMAS)))
def test_a_schema_that_cannot_be_enforced_is_refused(client: Client, schema: Any) -> None:
    with pytest.raises(EngineError) as caught:
        Grammar.json_schema(schema)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    error = client.refused(COMPLETIONS, {"prompt": "x", "response_format": form})
    assert error["status"] == 400 and error["param"] == "response_format"


def test_unsupported_keywords_are_named() -> None:
    for keyword in ("uniqueItems", "if", "not", "unevaluatedProperties", "contains", "propertyNames"):
        with pytest.raises(EngineError, match=keyword):
            Grammar.json_schema({"type": ["object", "array"], keyword: True if keyword == "uniqueItems" else {}})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Grammar.regex("("), "regex: "),
        (lambda: Grammar.regex("(?=a)"), "regex: "),
        (lambda: Grammar.of_text("root ::= undefined"), "grammar: "),
        (lambda: Grammar.of_text("start: ("), "grammar: "),
        (lambda: Grammar.of_text("x" * (1 << 21)), "characters"),
        (lambda: Grammar.choices([]), "choices: expected"),
        (lambda: Grammar.choices(["a", ""]), "choices: expected"),
        (lambda: Grammar.json_schema("{"), "broken JSON"),
        (lambda: Grammar.json_schema("[1]"), "expected a JSON Schema"),
        (lambda: Grammar.json_schema({"const": float("nan")}), "expected a JSON Schema"),
    ],
    ids=range(10),
)
def test_broken_grammars(make: Callable[[], Grammar], said: str) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        make()
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_structured_outputs(client: Client) -> None:
    for limits, fits in (
        ({"choice": ["red", "green", "blue"]}, {"red", "green", "blue"}.__contains__),
        ({"regex": "[0-9]{3}"}, re.compile("[0-9]{3}").fullmatch),
        ({"grammar": 'root ::= [x-z]{2} "!"'}, re.compile("[x-z]{2}!").fullmatch),
        ({"json": PERSON}, is_person),
        ({"json": json.dumps(PERSON), "regex": None}, is_person),
    ):
        body = {"prompt": "The answer: ", "max_tokens": 100, "n": 3, "structured_outputs": limits}
        for choice in client.ok(COMPLETIONS, body)["choices"]:
            assert choice["finish_reason"] == "stop" and fits(choice["text"]), choice
        text = "".join(event["choices"][0]["text"] for event in client.events(COMPLETIONS, {**body, "n": 1, "seed": 1}))
        assert fits(text), text


def test_chat_answers(chat_client: Client) -> None:
    """Also with a model whose end of a turn is no end token of the file."""
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    for model in ("chatml", "jinja"):
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "n": 4, "seed": 3}
        for choice in chat_client.ok(CHAT, {**body, "response_format": form})["choices"]:
            assert choice["finish_reason"] == "length" or is_person(choice["message"]["content"]), choice
        for choice in chat_client.ok(CHAT, {**body, "structured_outputs": {"regex": "(ab?){1,3}"}})["choices"]:
            assert choice["finish_reason"] == "stop" and re.fullmatch("(ab?){1,3}", choice["message"]["content"])


def run_all(scheduler: Scheduler, requests: list[Request]) -> list[str]:
    """The texts of the requests."""
    ids: dict[int, list[int]] = {scheduler.submit(each): [] for each in requests}
    running = len(ids)
    while running:
        for event in scheduler.step():
            assert event.finish != "error", event
            if event.kind == "token":
                ids[event.request].append(event.id)
            running -= event.kind == "end"
    model = scheduler._model
    return [b"".join(model.decode_token(each, each) for each in new).decode() for new in ids.values()]


def test_a_state_serves_many_requests_of_its_model_only(stories: Model, make_chat_model: Callable[..., Any]) -> None:
    state = Grammar.regex("[a-z]{3} [0-9]{2}").start(stories)
    with contextlib.closing(Scheduler(stories)) as scheduler:
        requests = [Request([1], 50, SamplingParams(seed=seed), grammar=state) for seed in range(5)]
        for text in run_all(scheduler, requests):
            assert re.fullmatch("[a-z]{3} [0-9]{2}", text), text
    with Model(make_chat_model("chatml").path) as other, contextlib.closing(Scheduler(other)) as scheduler:
        with pytest.raises(EngineError, match="grammar: expected one that was started for the scheduler's model"):
            scheduler.submit(Request([1], 5, grammar=state))
        assert scheduler.stats.num_waiting == 0


def test_thousands_of_choices(client: Client, stories: Model) -> None:
    texts = [f"word {number}.*" for number in range(10_000)]
    assert "".join(stories.generate("x", seed=2, grammar=Grammar.choices(texts))) in texts
    answer = client.ok(COMPLETIONS, {"prompt": "x", "max_tokens": 30, "structured_outputs": {"choice": texts[:3000]}})
    assert answer["choices"][0]["text"] in texts[:3000]


def test_a_grammar_that_is_too_large_is_refused(client: Client, stories: Model) -> None:
    text = "start: " + " | ".join(f'"word {number}"' for number in range(3000))
    with pytest.raises(EngineError, match="grammar: ") as caught:
        "".join(stories.generate("x", grammar=Grammar.of_text(text)))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value) and "<state>" not in str(caught.value)
    error = client.refused(COMPLETIONS, {"prompt": "x", "structured_outputs": {"grammar": text}})
    assert error["status"] == 400 and "2000" in error["message"] and len(error["message"]) < 400


def test_halves_of_characters_are_refused(client: Client) -> None:
    for limits in ({"regex": "\ud83d"}, {"json": {"enum": ["\ud83d"]}}, {"choice": ["\ud83d"]}, {"grammar": "\ud83d"}):
        assert client.refused(COMPLETIONS, {"prompt": "x", "structured_outputs": limits})["status"] == 400


def test_messages_show_no_other_form_of_the_grammar() -> None:
    for make in (lambda: Grammar.regex("("), lambda: Grammar.regex("a{5,2}")):
        with pytest.raises(EngineError) as caught:
            make()
        assert "start:" not in str(caught.value) and "at 1(" not in str(caught.value)


def test_a_cut_answer_says_so(client: Client) -> None:
    body = {"prompt": "x", "max_tokens": 2, "response_format": {"type": "json_object"}}
    assert client.ok(COMPLETIONS, body)["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "change",
    [
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
        {"structured_outputs": {}},
        {"structured_outputs": 5},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"structured_outputs": {"regex": 5}},
        {"structured_outputs": {"choice": "a"}},
        {"structured_outputs": {"choice": [1]}},
        {"structured_outputs": {"structural_tag": "x"}},
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        *({name: {}} for name in ("grammar", "json_schema", "guided_json", "guided_regex", "guided_choice")),
    ],
    ids=range(15),
)
def test_wrong_limits(client: Client, change: dict[str, Any]) -> None:
    error = client.refused(COMPLETIONS, {"prompt": "x", **change})
    assert error["status"] == 400 and error["param"] in change


def test_without_llguidance_nothing_is_generated(stories: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(EngineError, match=r"pip install 'llamita\[grammar\]'"):
        Grammar.regex("a")


def test_run_limits_its_text(engine_build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "x.gbnf"
    schema.write_text(json.dumps(PERSON), encoding="utf-8")
    grammar.write_text('root ::= "<" [a-c]{1,5} ">"', encoding="utf-8")
    for words, fits in (
        (["--json-schema", str(schema)], is_person),
        (["--json-schema", json.dumps(PERSON)], is_person),
        (["--regex", "[0-9]{3}"], re.compile("[0-9]{3}").fullmatch),
        (["--choice", "yes", "--choice", "no"], {"yes", "no"}.__contains__),
        (["--grammar", str(grammar)], re.compile("<[a-c]{1,5}>").fullmatch),
    ):
        assert run(["-i", "Say: ", *words, "-s", "3"]) == 0
        printed = capsys.readouterr()
        assert fits(printed.out.removeprefix("Say: ").removesuffix("\n")), printed.out
        assert "stopped: grammar's end" in printed.err
    assert run(["-i", "Say: ", "-N", "3", "--choice", "yes", "--choice", "no"]) == 0
    assert len(re.findall("^Say: (yes|no)$", capsys.readouterr().out, re.MULTILINE)) == 3
    assert run(["-i", "Say: ", "-N", "2", "-n", "3", "--regex", "[a-z]{90}"]) == 0
    assert "2 of 2 texts were cut off" in capsys.readouterr().err
    assert run(["-i", "Say: ", "--json-schema", "true", "-n", "1", "-s", "1"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--regex", "a", "--choice", "b"], "--regex and --choice"),
        (["--regex", "("], "--regex: "),
        (["--json-schema", "none.json"], "--json-schema: cannot read none.json"),
        (["--json-schema", '{"not": {}}'], "not"),
        (["--grammar", "none.gbnf"], "--grammar: cannot read"),
        (["--choice", ""], "--choice: expected"),
        (["--json-schema", ""], "--json-schema: expected a JSON Schema, found broken JSON"),
        (["--json-schema", "[]"], "--json-schema: expected a JSON Schema"),
        (["--json-schema", '{"enum": ["\\ud83d"]}'], "--json-schema: "),
    ],
    ids=range(9),
)
def test_wrong_limits_of_run(engine_build: Path, words: list[str], said: str) -> None:
    with pytest.raises(LlamitaError, match=re.escape(said)) as caught:
        run(["-i", "x", *words])
    assert "\n" not in str(caught.value)


READ = {"type": "json_schema", "json_schema": {"schema": PERSON}}


@pytest.fixture
def held_grammar(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[threading.Event]]:
    """Reading a JSON Schema waits for the event `go`; `begun` has an entry for each that began."""
    begun: list[threading.Event] = []
    go = threading.Event()
    read = Grammar.json_schema

    def wait_and_read(*args: Any) -> Grammar:
        begun.append(go)
        assert go.wait(20)
        return read(*args)

    monkeypatch.setattr(Grammar, "json_schema", wait_and_read)
    yield begun
    go.set()


def test_grammars_that_are_read_count_as_requests_that_wait(
    stories: Model, running_server: Any, held_grammar: list[threading.Event]
) -> None:
    limited = {"prompt": "x", "max_tokens": 1, "response_format": READ}
    with (
        running_server({"stories": stories}, ServerLimits(num_parallel=1, max_queue=1)) as client,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        stage = client.server._serving["stories"]._num_in_stage
        sent = [threads.submit(client.send, COMPLETIONS, limited) for _ in range(2)]
        client.wait_until(lambda: stage["grammars"] == 2 and len(held_grammar) == 1)
        status, headers, answer = client.send(COMPLETIONS, limited)
        assert (status, answer["error"]["code"]) == (429, "queue_full") and int(headers["retry-after"]) > 0
        client.ok(COMPLETIONS, {"prompt": "x", "max_tokens": 1})  # needs no grammar
        held_grammar[0].set()
        assert [each.result()[0] for each in sent] == [200, 200]
        assert stage["grammars"] == 0
        client.ok(COMPLETIONS, limited)


def test_the_grammar_of_a_client_that_left_is_not_read(
    stories: Model, running_server: Any, held_grammar: list[threading.Event]
) -> None:
    raw = json.dumps({"prompt": "x", "max_tokens": 1, "response_format": READ}).encode()
    with running_server({"stories": stories}) as client:
        stage = client.server._serving["stories"]._num_in_stage
        for number in (1, 2):  # the second one waits for the first
            connection = socket.create_connection(("127.0.0.1", client.port))
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw
            )
            client.wait_until(lambda number=number: stage["grammars"] == number)
            if number == 1:
                client.wait_until(lambda: len(held_grammar) == 1)
                first = connection
        connection.close()
        client.wait_until(lambda: stage["grammars"] == 1)
        held_grammar[0].set()
        assert b" 200 OK" in first.recv(1000)
        first.close()
        assert len(held_grammar) == 1
