"""`synthesize`: documents to conversations for fine-tuning, by an endpoint's model or by rules.

What is written depends only on the documents, the prompts and the answers in the cache, in the order
of the documents. So a run that was interrupted, and went on, writes what it would have written.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import queue
import threading
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llamita.atomic import atomic_file, check_parent
from llamita.config import ModelKind, SynthesizeConfig
from llamita.data.utf8_files import Conversions
from llamita.errors import NetworkError, OutputError, SourceError
from llamita.progress import Progress, no_progress
from llamita.synthesize.answers import Dropped, Item, PassageIndex, check_pair, check_question, find_items
from llamita.synthesize.cache import AnswerCache, request_key
from llamita.synthesize.duplicates import Questions
from llamita.synthesize.endpoint import Answer, Endpoint, RequestFailed
from llamita.synthesize.passages import (
    DocumentCounts,
    Origin,
    Passage,
    Text,
    cut_passages,
    held_out_questions,
    read_texts,
)
from llamita.synthesize.prompts import BUILT_IN, Prompts, fill, read_prompts
from llamita.synthesize.rules import RULES, choice, make_tasks
from llamita.synthesize.words import known_terms, squeezed, terms

MODEL_KINDS: Final[tuple[ModelKind, ...]] = typing.get_args(ModelKind)
ATTEMPTS: Final = 2  # requests for what no item can be taken of
MAX_FAILED_IN_A_ROW: Final = 8
ANSWER_TOKENS: Final = 1024
BYTES_PER_TOKEN: Final = 4  # about, in English and Chinese alike
SCHEMA_NAME: Final = "questions"


@dataclasses.dataclass
class Estimate:
    """What a run will ask for, and what is in the cache already."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    max_completion_tokens: int = 0


@dataclasses.dataclass
class Result:
    """What was read, asked and written. usage_known: whether the endpoint counted all tokens;
    otherwise they are estimates."""

    documents: DocumentCounts
    passages: int = 0
    rows: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    dropped: Dropped = dataclasses.field(default_factory=collections.Counter)
    duplicates: int = 0
    held_out_questions: int = 0
    requests: int = 0
    cached: int = 0
    retries: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_known: bool = True
    damaged_lines: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Row:
    kind: str
    turns: tuple[Item, ...]
    passage: str
    origin: Origin
    language: str

    def as_json(self, model: str | None) -> dict[str, Any]:
        messages = [
            {"role": role, "content": content}
            for turn in self.turns
            for role, content in (("user", turn.question), ("assistant", turn.answer))
        ]
        text = json.dumps([self.origin.document_id, messages], ensure_ascii=False)
        return {
            "id": hashlib.sha256(text.encode("utf-8")).hexdigest()[:16],
            "messages": messages,
            "type": self.kind,
            "source": self.origin.source,
            "language": self.language,
            **({} if model is None else {"model": model}),
            "metadata": {
                "document": self.origin.document_id,
                "position": self.origin.position,
                "title": self.origin.title,
                "passage": self.passage,
                "evidence": [turn.evidence for turn in self.turns if turn.evidence],
            },
        }


def synthesize(
    config: SynthesizeConfig,
    *,
    api_key: str | None = None,
    progress: Progress = no_progress,
    before: Callable[[Result, Estimate], None] = lambda result, estimate: None,
) -> Result:
    """Write --out. before: gets what will be asked for, before the first request.

    Raises LlamitaError. An answer that has arrived is in the cache, also after an error or Ctrl-C.
    """
    config.check_complete()
    check_parent(config.out)
    cache_path = cache_of(config.out)
    if os.path.lexists(config.out) and (config.rules or not cache_path.exists()):
        raise OutputError(f"cannot write {config.out}: it exists already; choose another name or remove it")
    conversions = Conversions(config.encoding)
    result = Result(DocumentCounts())
    texts = read_texts(config, result.documents, conversions)
    asked, held_out = Questions(), Questions()
    for question in held_out_questions(config):
        held_out.add(question)
    prompts = _PromptFiles(config)
    if config.rules:
        rows: Iterable[Row] = _rows_of_rules(config, texts, prompts, result)
        _write(config.out, _new_rows(rows, asked, held_out, result), None, result)
        result.notes = conversions.describe()
        return result
    assert config.endpoint is not None and config.model is not None
    endpoint = Endpoint(config.endpoint, api_key=api_key, timeout_seconds=config.timeout, attempts=config.retries + 1)
    passages = _chosen_passages(config, texts)
    result.passages, result.notes = len(passages), conversions.describe()
    if not passages:
        raise SourceError(_why_nothing(result))
    requests = [_Request(passage, kind) for passage in passages for kind in config.kinds or MODEL_KINDS]
    bodies = _Bodies(config, prompts)
    if config.dry_run and not cache_path.exists():
        before(result, _estimate(requests, bodies, lambda key: None))
        return result
    with AnswerCache(cache_path) as cache:
        result.damaged_lines = cache.damaged_lines
        before(result, _estimate(requests, bodies, cache.find))
        if config.dry_run:
            return result
        _ask_all(requests, bodies, cache, endpoint, config.concurrency, result, progress)
        rows = _rows_of_answers(config, passages, requests, bodies, cache, prompts, result)
        _write(config.out, _new_rows(rows, asked, held_out, result), config.model, result)
    return result


def cache_of(out: Path) -> Path:
    """Where the answers for --out are kept."""
    return out.with_name(f"{out.name}.answers")


class _PromptFiles:
    """The prompts of each language, read when they are first used."""

    def __init__(self, config: SynthesizeConfig) -> None:
        self._folder = config.prompts or BUILT_IN
        self._language = config.language
        self._read: dict[str, Prompts] = {}

    def of(self, language: str) -> Prompts:
        name = language if self._language == "auto" else self._language
        if name not in self._read:
            self._read[name] = read_prompts(self._folder, name)
        return self._read[name]


# ---- rows


def _new_rows(rows: Iterable[Row], asked: Questions, held_out: Questions, result: Result) -> Iterator[Row]:
    """Rows with a question that no row before them asks, and with none that is held out."""
    for row in rows:
        questions = [turn.question for turn in row.turns]
        by_rule = row.kind in RULES  # its phrases are alike, its subjects are not
        if any(map(held_out.has, questions)):
            result.held_out_questions += 1
        elif not any([asked.add(question, exact_only=by_rule) for question in questions]):
            result.duplicates += 1
        else:
            result.rows[row.kind] += 1
            yield row


def _write(out: Path, rows: Iterable[Row], model: str | None, result: Result) -> None:
    with atomic_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row.as_json(model), ensure_ascii=False) + "\n")
        if not result.rows:
            raise SourceError(_why_nothing(result))


def _why_nothing(result: Result) -> str:
    if result.documents.held_out == result.documents.documents:
        return f"no text: all {result.documents.held_out:,} documents are held out; --val-fraction 0 uses them"
    if result.failed:
        return f"no questions: {len(result.failed):,} requests failed, the first: {result.failed[0]}"
    if result.dropped:
        why, count = result.dropped.most_common(1)[0]
        return f"no questions: all were dropped, {count:,} {why}; try another model, or --min-support"
    return "no questions: the documents have nothing that they can be made of; give more text"


def _rows_of_rules(
    config: SynthesizeConfig, texts: Iterable[Text], prompts: _PromptFiles, result: Result
) -> Iterator[Row]:
    """The rows of all rules, without questions that two documents answer differently."""
    rows = list[Row]()
    for text in texts:
        tasks = make_tasks(
            text, prompts.of(text.language), config.passage_bytes, config.questions, config.kinds or RULES
        )
        for task in tasks:
            item = Item(task.question, task.answer, task.evidence)
            rows.append(Row(task.rule, (item,), task.evidence, text.origin, text.language))
    answers: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        answers[squeezed(row.turns[0].question)].add(squeezed(row.turns[0].answer))
    for row in rows:
        if len(answers[squeezed(row.turns[0].question)]) > 1:
            result.dropped["with several answers in the documents"] += 1
        else:
            yield row


def _rows_of_answers(
    config: SynthesizeConfig,
    passages: Sequence[Passage],
    requests: Sequence[_Request],
    bodies: _Bodies,
    cache: AnswerCache,
    prompts: _PromptFiles,
    result: Result,
) -> Iterator[Row]:
    """The rows of all answers in the cache that pass the checks."""

    def items(request: _Request) -> list[dict[str, Any]] | None:
        answers = [cache.find(bodies.key(request, attempt)) for attempt in range(ATTEMPTS)]
        answered = [answer for answer in answers if answer is not None]
        return [item for answer in answered for item in find_items(answer.text)] if answered else None

    left_open = (items(request) or [] for request in requests if request.kind == "refusal")
    questions = [str(values["question"]) for each in left_open for values in each]
    index = PassageIndex((passage.text for passage in passages), questions)
    for request in requests:
        text, title = request.passage.text, request.passage.origin.title
        refusals = prompts.of(request.passage.language).refusals
        found = items(request)
        if found is None:
            continue
        if not found:
            result.dropped["that are not in the form asked for"] += 1
        if request.kind == "conversation":
            turns = _checked_turns(found, text, title, config.min_support, result.dropped)
            if len(turns) > 1:
                yield request.row(turns)
            continue
        for values in found:
            if request.kind == "pairs":
                item = check_pair(values, text, config.min_support, title=title)
            else:
                item = _check_refusal(values, f"{title}\n{text}", index, refusals)
            if isinstance(item, str):
                result.dropped[item] += 1
            else:
                yield request.row((item,))


def _checked_turns(
    found: Sequence[dict[str, Any]], passage: str, title: str, min_support: float, dropped: Dropped
) -> tuple[Item, ...]:
    """The turns of a conversation up to the first that fails: what comes after may refer to it."""
    turns = list[Item]()
    for values in found:
        item = check_pair(values, passage, min_support, title=title, before=turns)
        if isinstance(item, str):
            dropped[item] += 1
            break
        turns.append(item)
    return tuple(turns)


def _check_refusal(values: dict[str, Any], passage: str, index: PassageIndex, refusals: Sequence[str]) -> Item | str:
    """A question about the subject that no passage answers, as far as its words show it."""
    question = values["question"].strip() if isinstance(values["question"], str) else ""
    if wrong := check_question(question):
        return wrong
    if not terms(question) & known_terms(passage):
        return "about something else"
    if index.may_answer(question):
        return "to refuse that a passage may answer"
    return Item(question, refusals[choice(question, len(refusals))], "")


# ---- requests


@dataclasses.dataclass(frozen=True)
class _Request:
    passage: Passage
    kind: str

    def row(self, turns: tuple[Item, ...]) -> Row:
        kind = "pair" if self.kind == "pairs" else self.kind
        return Row(kind, turns, self.passage.text, self.passage.origin, self.passage.language)


def _chosen_passages(config: SynthesizeConfig, texts: Iterable[Text]) -> list[Passage]:
    """All passages, or as many as --max-passages allows: those with the smallest hashes, so that a
    larger number asks about the same and more. A passage that occurs twice is asked about once."""
    found = {passage.text: passage for text in texts for passage in cut_passages(text, config.passage_bytes)}
    if config.max_passages is None or len(found) <= config.max_passages:
        return list(found.values())
    chosen = set(sorted(found, key=lambda text: choice(text, 1 << 64))[: config.max_passages])
    return [passage for text, passage in found.items() if text in chosen]


class _Bodies:
    """What is sent for each request."""

    def __init__(self, config: SynthesizeConfig, prompts: _PromptFiles) -> None:
        self._config, self._prompts = config, prompts

    def body(self, request: _Request) -> dict[str, Any]:
        config = self._config
        values = {
            "passage": request.passage.text, "title": request.passage.origin.title or "-",
            "count": str(config.questions), "turns": str(config.turns),
        }  # fmt: skip
        text = fill(self._prompts.of(request.passage.language).of_model[request.kind], values)
        body: dict[str, Any] = {
            "model": config.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": ANSWER_TOKENS,
            "response_format": _response_format(request.kind, config),
            **config.body_fields(),
        }
        return {name: value for name, value in body.items() if value is not None}

    def key(self, request: _Request, attempt: int) -> str:
        return request_key(self.body(request), attempt)


def _response_format(kind: str, config: SynthesizeConfig) -> dict[str, Any]:
    count = config.turns if kind == "conversation" else config.questions
    names = ("question",) if kind == "refusal" else ("question", "answer", "evidence")
    item = _object({name: {"type": "string"} for name in names})
    schema = _object({"items": {"type": "array", "items": item, "maxItems": count}})
    return {"type": "json_schema", "json_schema": {"name": SCHEMA_NAME, "strict": True, "schema": schema}}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _estimate(requests: Sequence[_Request], bodies: _Bodies, find: Callable[[str], Answer | None]) -> Estimate:
    found = Estimate(len(requests))
    for request in requests:
        body = bodies.body(request)
        if find(request_key(body, 0)) is not None:
            found.cached += 1
            continue
        found.prompt_tokens += _about_tokens(body["messages"][0]["content"])
        limit = next((body[name] for name in ("max_tokens", "max_completion_tokens") if name in body), ANSWER_TOKENS)
        found.max_completion_tokens += limit if isinstance(limit, int) else ANSWER_TOKENS
    return found


def _ask_all(
    requests: Sequence[_Request],
    bodies: _Bodies,
    cache: AnswerCache,
    endpoint: Endpoint,
    concurrency: int,
    result: Result,
    progress: Progress,
) -> None:
    """Put the answers to all requests into the cache; a request without a usable answer is sent
    again, at most ATTEMPTS times in all.

    The threads only ask. They are daemons: after Ctrl-C nobody waits for answers that are on their
    way. Raises NetworkError if the endpoint is gone.
    """
    jobs: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, Answer | Exception]] = queue.SimpleQueue()
    threads = [
        threading.Thread(target=_ask_jobs, args=(endpoint, jobs, done), daemon=True, name="synthesize")
        for _ in range(min(concurrency, len(requests)))
    ]
    for thread in threads:
        thread.start()
    waiting = iter(enumerate(requests))
    pending: dict[str, tuple[int, int]] = {}  # key → request, attempt
    finished, failed_in_a_row = 0, 0

    def send(number: int, attempt: int) -> bool:
        """Whether there was something to send."""
        body = bodies.body(requests[number])
        for each in range(attempt, ATTEMPTS):
            key = request_key(body, each)
            answer = cache.find(key)
            if answer is None:
                if key in pending:
                    return False  # the same question twice: one answer is enough
                pending[key] = number, each
                jobs.put((key, body))
                return True
            if each == 0:
                result.cached += 1
            if find_items(answer.text):
                return False
        return False

    progress("asking", 0, len(requests))
    try:
        while True:
            while len(pending) < len(threads) and (each := next(waiting, None)) is not None:
                finished += not send(each[0], 0)
            progress("asking", finished, len(requests))
            if not pending:
                return
            key, answer = _next(done)
            number, attempt = pending.pop(key)
            if isinstance(answer, RequestFailed):
                result.failed.append(str(answer))
                failed_in_a_row += 1
                finished += 1
                if failed_in_a_row >= MAX_FAILED_IN_A_ROW:
                    raise NetworkError(
                        f"{answer}; {failed_in_a_row:,} requests in a row failed; answers so far are kept: the same "
                        "command goes on"
                    )
                continue
            if isinstance(answer, Exception):
                raise answer
            failed_in_a_row = 0
            cache.add(key, answer)
            _count(answer, bodies.body(requests[number]), result)
            if find_items(answer.text) or not send(number, attempt + 1):
                finished += 1
    finally:
        result.retries = endpoint.num_retries
        for _ in threads:
            jobs.put(None)


def _ask_jobs(
    endpoint: Endpoint,
    jobs: queue.SimpleQueue[tuple[str, dict[str, Any]] | None],
    done: queue.SimpleQueue[tuple[str, Answer | Exception]],
) -> None:
    """What a thread does: ask, until there is nothing left to ask."""
    while (job := jobs.get()) is not None:
        key, body = job
        try:
            done.put((key, endpoint.ask(body)))
        except Exception as error:  # raised again in the main thread
            done.put((key, error))


def _next(done: queue.SimpleQueue[tuple[str, Answer | Exception]]) -> tuple[str, Answer | Exception]:
    while True:
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=0.5)  # Windows: Ctrl-C does not end a wait


def _count(answer: Answer, body: Mapping[str, Any], result: Result) -> None:
    """Add the tokens of an answer, as the endpoint counts them or about as many."""
    read, written = answer.prompt_tokens, answer.completion_tokens
    result.requests += 1
    result.usage_known &= read is not None and written is not None
    result.prompt_tokens += _about_tokens(body["messages"][0]["content"]) if read is None else read
    result.completion_tokens += _about_tokens(answer.text) if written is None else written


def _about_tokens(text: str) -> int:
    return len(text.encode()) // BYTES_PER_TOKEN
