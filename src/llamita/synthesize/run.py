"""`synthesize`: documents to conversations for fine-tuning, by an endpoint's model or by rules.

What is written depends only on the documents, the prompts and the answers in the cache, in the order
of the documents. So a run that was interrupted, and went on, writes what it would have written.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llamita.atomic import atomic_file, check_parent
from llamita.config import SynthesizeConfig
from llamita.data.utf8_files import Conversions
from llamita.errors import ConfigError, OutputError, SourceError
from llamita.progress import Progress, no_progress
from llamita.synthesize.answers import Dropped, Item, PassageIndex, check_pair, check_question, clean_text, find_items
from llamita.synthesize.ask import (
    ATTEMPTS,
    MODEL_KINDS,
    AskCounts,
    Bodies,
    Estimate,
    PromptFiles,
    Request,
    ask_all,
    estimate,
)
from llamita.synthesize.cache import AnswerCache
from llamita.synthesize.duplicates import Questions
from llamita.synthesize.endpoint import Endpoint
from llamita.synthesize.passages import (
    DocumentCounts,
    Origin,
    Passage,
    Text,
    cut_passages,
    held_out_questions,
    read_texts,
)
from llamita.synthesize.rules import RULES, choice, make_tasks
from llamita.synthesize.words import known_terms, squeezed, terms


@dataclasses.dataclass
class Result:
    """What was read, asked and written. dropped: how many rows were, and why. duplicates: rows
    whose questions were all asked before. notes: what was to say about the files."""

    documents: DocumentCounts = dataclasses.field(default_factory=DocumentCounts)
    asked: AskCounts = dataclasses.field(default_factory=AskCounts)
    passages: int = 0
    rows: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    val_rows: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    dropped: Dropped = dataclasses.field(default_factory=collections.Counter)
    duplicates: int = 0
    held_out_questions: int = 0
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
    before: Callable[[Result, Estimate], None] = lambda result, planned: None,
) -> Result:
    """Write --out. before: gets what will be asked for, before the first request.

    Raises LlamitaError. An answer that has arrived is in the cache, also after an error or Ctrl-C.
    """
    config.check_complete()
    _check_paths(config)
    cache_path = cache_of(config.out)
    conversions = Conversions(config.encoding)
    result = Result()
    texts = read_texts(config, result.documents, conversions)
    held_out = Questions()
    for question in held_out_questions(config):
        held_out.add(question)
    prompts = PromptFiles(config)
    if config.rules:
        _write_rows(config, _rows_of_rules(config, texts, prompts, result), held_out, result)
        result.notes = conversions.describe()
        return result
    assert config.endpoint is not None and config.model is not None
    endpoint = Endpoint(config.endpoint, api_key=api_key, timeout_seconds=config.timeout, attempts=config.retries + 1)
    passages = _chosen_passages(config, texts)
    result.passages, result.notes = len(passages), conversions.describe()
    if not passages:
        raise SourceError(_why_nothing(result))
    requests = [Request(passage, kind) for passage in passages for kind in config.kinds or MODEL_KINDS]
    bodies = Bodies(config, prompts)
    if config.dry_run and not cache_path.exists():
        before(result, estimate(requests, bodies, lambda key: None))
        return result
    with AnswerCache(cache_path) as cache:
        result.damaged_lines = cache.damaged_lines
        before(result, estimate(requests, bodies, cache.find))
        if config.dry_run:
            return result
        ask_all(requests, bodies, cache, endpoint, config.concurrency, result.asked, progress)
        rows = _rows_of_answers(config, passages, requests, bodies, cache, prompts, result)
        _write_rows(config, rows, held_out, result)
    return result


def _check_paths(config: SynthesizeConfig) -> None:
    """Raise for an --out or --val-out that is in a folder of DATA, or that is there and not of a run
    that this one goes on with."""
    for path in (config.out, config.val_out):
        if path is None:
            continue
        check_parent(path)
        for source in map(Path, config.sources):
            if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
                raise ConfigError(
                    f"synthesize: {path} would be in {source}, so the next run would read it; choose another folder"
                )
        if os.path.lexists(path) and (config.rules or not cache_of(config.out).exists()):
            raise OutputError(f"cannot write {path}: it exists already; choose another name or remove it")


def cache_of(out: Path) -> Path:
    """Where the answers for --out are kept."""
    return out.with_name(f"{out.name}.answers")


# ---- rows


def _write_rows(config: SynthesizeConfig, rows: Iterable[Row], held_out: Questions, result: Result) -> None:
    """Write --val-out and --out. held_out: questions that rows must not ask."""
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        sides[row.origin.is_held_out].append(row)
    val = list(_new_rows(sides[True], held_out, result, result.val_rows))
    for row in val:
        for turn in row.turns:
            held_out.add(turn.question)
    train = list(_new_rows(sides[False], held_out, result, result.rows))
    if not train:
        raise SourceError(_why_nothing(result))
    for path, side in ((config.val_out, val), (config.out, train)):
        if path is not None:
            with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps(row.as_json(config.model), ensure_ascii=False) + "\n" for row in side)


def _new_rows(
    rows: Iterable[Row], held_out: Questions, result: Result, counts: collections.Counter[str]
) -> Iterator[Row]:
    """Rows with a question that no row before them asks, and with none that is held out."""
    asked = Questions()
    for row in rows:
        questions = [turn.question for turn in row.turns]
        by_rule = row.kind in RULES  # its phrases are alike, its subjects are not
        if any(map(held_out.has, questions)):
            result.held_out_questions += 1
        elif not any([asked.add(question, exact_only=by_rule) for question in questions]):
            result.duplicates += 1
        else:
            counts[row.kind] += 1
            yield row


def _why_nothing(result: Result) -> str:
    if result.documents.held_out == result.documents.documents:
        return f"no text: all {result.documents.held_out:,} documents are held out; --val-fraction 0 uses them"
    if result.asked.failed:
        return f"no questions: {len(result.asked.failed):,} requests failed, the first: {result.asked.failed[0]}"
    if result.dropped:
        why, count = result.dropped.most_common(1)[0]
        return f"no questions: all were dropped, {count:,} {why}; try another model, or --min-support"
    return "no questions: the documents have nothing that they can be made of; give more text"


def _rows_of_rules(
    config: SynthesizeConfig, texts: Iterable[Text], prompts: PromptFiles, result: Result
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
    requests: Sequence[Request],
    bodies: Bodies,
    cache: AnswerCache,
    prompts: PromptFiles,
    result: Result,
) -> Iterator[Row]:
    """The rows of all answers in the cache that pass the checks."""

    def items(request: Request) -> list[dict[str, Any]] | None:
        answers = [cache.find(bodies.key(request, attempt)) for attempt in range(ATTEMPTS)]
        answered = [answer for answer in answers if answer is not None]
        return [item for answer in answered for item in find_items(answer.text)] if answered else None

    left_open = (items(request) or [] for request in requests if request.kind == "refusal")
    questions = [clean_text(values["question"]) for each in left_open for values in each]
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
                yield _row(request, turns)
            continue
        for values in found:
            if request.kind == "pairs":
                item = check_pair(values, text, config.min_support, title=title)
            else:
                item = _check_refusal(values, f"{title}\n{text}", index, refusals)
            if isinstance(item, str):
                result.dropped[item] += 1
            else:
                yield _row(request, (item,))


def _row(request: Request, turns: tuple[Item, ...]) -> Row:
    passage = request.passage
    return Row(
        "pair" if request.kind == "pairs" else request.kind, turns, passage.text, passage.origin, passage.language
    )


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
    question = clean_text(values["question"])
    if wrong := check_question(question):
        return wrong
    if not terms(question) & known_terms(passage):
        return "about something else"
    if index.may_answer(question):
        return "to refuse that a passage may answer"
    return Item(question, refusals[choice(question, len(refusals))], "")


def _chosen_passages(config: SynthesizeConfig, texts: Iterable[Text]) -> list[Passage]:
    """All passages, or as many as --max-passages allows: those with the smallest hashes, so that a
    larger number asks about the same and more. A passage that occurs twice is asked about once; it
    is held out if one of its documents is."""
    found: dict[str, Passage] = {}
    for text in texts:
        for passage in cut_passages(text, config.passage_bytes):
            if passage.text not in found or text.origin.is_held_out:
                found[passage.text] = passage
    if config.max_passages is None or len(found) <= config.max_passages:
        return list(found.values())
    chosen = set(sorted(found, key=lambda text: choice(text, 1 << 64))[: config.max_passages])
    return [passage for text, passage in found.items() if text in chosen]
