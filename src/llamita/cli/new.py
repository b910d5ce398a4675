"""`llamita new SOURCE`: from a folder of documents, or questions and answers, to a model, by the other
commands."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from llamita import __version__
from llamita.cli.command import parse, read_stdin_as_utf8, requires_extra
from llamita.cli.help import help_columns, wrap
from llamita.cli.progress import progress_bars
from llamita.cli.steps import (
    STATE,
    State,
    Step,
    describe_changes,
    is_free,
    list_files,
    lock_new,
    read_state,
    readable,
    remove,
    run_steps,
    say,
    start_over,
)
from llamita.commands import command_line
from llamita.config import DEFAULT_MINUTES, MAX_VALUES, Option, check, check_at_most
from llamita.console import count_of, format_bytes, print_table
from llamita.errors import UNSAFE, CheckpointError, ConfigError, OutputError, SourceError
from llamita.json_file import read_json_object

if TYPE_CHECKING:
    from llamita.cli.new_data import Found, TextCounts
    from llamita.report.history import History

TOKENS, EXAMPLES, PRETRAINED, FINETUNED, PREFERRED = "tokens", "examples", "pretrained", "finetuned", "preferred"
# Shares of the minutes: train, finetune, finetune --preference.
SHARES: Final = {(False, False): (1.0,), (True, False): (0.6, 0.4), (True, True): (0.5, 0.3, 0.2)}
NUM_SAMPLES, SHOWN_SAMPLES, TEMPERATURE = 24, 3, 0.8
EXAMPLE_SECONDS: Final = 3e-3  # to read and render a conversation
MAX_CONTEXT, CONTEXT_QUANTILE, TEMPLATE_TOKENS = 1024, 0.95, 8  # the last: of a turn, about
MAX_MEASURED = 2000  # conversations
MIN_BYTES, LITTLE_BYTES, ENOUGH_BYTES = 20_000, 1_000_000, 5_000_000
MIN_EXAMPLES: Final = 10
FEW_EXAMPLES: Final = 200
FEW_DOCUMENTS: Final = 200  # of which a larger share is held out
MAX_BAD_ROWS: Final = 100
DIVIDED: Final = {"blank-lines": "blank lines", "lines": "line ends"}
MAX_NAMED: Final = 4


@dataclasses.dataclass(frozen=True)
class NewFlags:
    """From a folder of documents, or of questions and answers, to a model: look at what is there, say
    what can be expected, then prepare, train, fine-tune, evaluate, export, and chat.

    Each step is a command that is printed and can be repeated. Ctrl-C stops; the same command goes on
    with the first step that is not done.
    """

    examples = ("llamita new my_texts", "llamita new qa.jsonl --minutes 30 --yes -o runs/qa")

    source: Annotated[Path, Option("SOURCE", positional=True)]
    """File or folder: documents as for `llamita prepare`, conversations and preference pairs as for
    `llamita finetune`, or all of these."""
    minutes: Annotated[float | None, Option("M", short="m")] = None
    """How long all training may take together; a larger number trains longer. Default: it asks; with
    --yes 10, more for many examples."""
    out: Annotated[Path | None, Option(short="o")] = None
    """Folder for the results, outside of SOURCE. Default: runs/NAME, by the name of SOURCE."""
    yes: Annotated[bool, Option(short="y")] = False
    """Ask nothing: take the default answers."""
    overwrite: bool = False
    """Begin anew: replace what an earlier `llamita new` made in --out."""
    split_on: Annotated[Literal["separator", "lines", "blank-lines", "file"] | None, Option("RULE")] = None
    """Where documents of text files end, as for `llamita prepare`. Default: it asks if most of the text
    is a single document."""
    text_key: Annotated[str, Option("NAME")] = "text"
    """Key or column that holds the text, in files of rows that are no examples."""
    encoding: Annotated[str | None, Option("NAME")] = None
    """Encoding of all files. Default: UTF-8, or what each file is recognized as."""

    def __post_init__(self) -> None:
        check(
            self.minutes is None or self.minutes > 0,
            f"new: --minutes: expected a positive number, found {self.minutes}",
        )
        check_at_most("new: --minutes", self.minutes, MAX_VALUES["minutes"])
        check(self.text_key != "", "new: --text-key: expected a name, found an empty one")


def main(argv: list[str]) -> int:
    flags = parse(NewFlags, argv, "llamita new")
    with requires_extra("train"):
        from llamita.cli import new_data  # noqa: F401
        from llamita.training import planner  # noqa: F401
    if not flags.source.exists():
        raise ConfigError(f"cannot begin: no such file or folder: {flags.source}")
    out = choose_folder(flags)
    if str(out).startswith("-"):
        out = out.absolute()  # what is in it must be no option
    again = command_line("new", _word(flags.source), "--out", _word(out))
    with lock_new(out):
        state = _begun(flags, out)
        if state is None or not state.done or flags.overwrite:
            state, texts = begin(flags, out, state)
        else:
            _check_same(flags, out, state)
            _say_changes(flags, out, state)
            state, texts = _longer(flags, out, state), []
        steps = make_steps(flags, out, state, texts)
        code = run_steps(steps, state, out, again)
    return code or finish(flags, out, state)


# ---- the folder


def choose_folder(flags: NewFlags) -> Path:
    """--out, or the first free runs/NAME, or the one where this source was begun.

    Raises ConfigError if it is inside the source, OutputError if something else is there.
    """
    source = readable(flags.source)
    name = model_name(flags.source)
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    candidates = [flags.out] if flags.out is not None else (Path("runs", each) for each in names)
    for out in candidates:
        folder = flags.source.resolve()
        if folder.is_dir() and folder in (out.resolve(), *out.resolve().parents):
            outside = os.path.normpath(os.path.join(os.path.relpath(folder.parent), f"{name}-model"))
            raise ConfigError(
                f"cannot write {out}: it is in the source folder {flags.source}, and would be read as text; choose "
                f"another, such as --out {_word(Path(outside))}"
            )
        if is_free(out):
            return out
        state = _begun(flags, out)
        if (state is not None and state.source == source) or (
            flags.overwrite and state is None and (out / STATE).exists()
        ):
            return out
        if flags.out is not None:
            what = "is not of `llamita new`" if state is None else f"was made from {state.source}"
            raise OutputError(f"cannot write {out}: it exists and {what}; choose another --out")
    raise AssertionError("names do not end")


def model_name(source: Path) -> str:
    """The name of the source without suffixes, as a name of files."""
    name = Path(os.path.realpath(source)).name
    if not source.is_dir():
        name = name.split(".")[0] or name.strip(".")
    return UNSAFE.sub("_", name)[:80].strip() or "model"


def _word(path: Path) -> str:
    """A path as an argument: no option, and no word such as `stories`."""
    text = str(path)
    return f"./{text}" if text.startswith("-") or text in ("stories", "tinystories") else text


def _begun(flags: NewFlags, out: Path) -> State | None:
    """What was begun in the folder; None if nothing, or if it is damaged and will be replaced."""
    with contextlib.suppress(*((ConfigError,) if flags.overwrite else ())):
        return read_state(out)
    return None


def _check_same(flags: NewFlags, out: Path, state: State) -> None:
    """Raise ConfigError for an option that differs from what was begun."""
    given = {"--split-on": flags.split_on, "--encoding": flags.encoding}
    if flags.text_key != NewFlags.text_key:
        given["--text-key"] = flags.text_key
    for name, value in given.items():
        if value is not None and value != state.options.get(name):
            raise ConfigError(
                f"cannot go on in {out}: {name}: it was begun with {state.options.get(name, 'nothing')}, found "
                f"{value}; leave it out, or begin anew with --overwrite"
            )
    if flags.minutes is not None and flags.minutes < state.minutes:
        raise ConfigError(
            f"cannot go on in {out}: --minutes: expected at least {state.minutes:g}, as it was begun with, found "
            f"{flags.minutes:g}; leave it out, or begin anew with --overwrite"
        )


def _longer(flags: NewFlags, out: Path, state: State) -> State:
    """The state with a larger --minutes: all steps but prepare are to be done again, where they go on."""
    if flags.minutes is None or flags.minutes == state.minutes:
        return state
    say(f"training goes on: {flags.minutes:g} minutes instead of {state.minutes:g}")
    state = dataclasses.replace(state, minutes=flags.minutes, done=state.done[:1])
    state.save(out)
    return state


def _say_changes(flags: NewFlags, out: Path, state: State) -> None:
    from llamita.data.documents import list_sources

    say(f"going on in {out}: done are {', '.join(state.done)}")
    if state.llamita != __version__:
        say(f"note: it was begun by llamita {state.llamita}; this is {__version__}")
    changes = describe_changes(state.files, list_files(list_sources([str(flags.source)], skip_unknown=True).files))
    if changes:
        say(
            f"note: {flags.source} has changed since ({changes}): this goes on with what was read then; --overwrite "
            "begins anew with the files of now"
        )


# ---- what is there, and the questions


def begin(flags: NewFlags, out: Path, before: State | None) -> tuple[State, list[str]]:
    """Look, say, ask, and gather the examples. Returns the state, and what prepare reads: its sources
    and options.

    before: of an earlier start whose first step is not done; its answers count. Raises SourceError,
    ConfigError, OutputError.
    """
    from llamita.cli.new_data import MAX_SHARE, gather_examples, look

    answers = None if flags.overwrite or before is None or before.done else before
    if answers is not None and flags.text_key == NewFlags.text_key:
        flags = dataclasses.replace(flags, text_key=answers.options["--text-key"])
    if answers is not None and flags.encoding is None:
        flags = dataclasses.replace(flags, encoding=answers.options.get("--encoding"))
    if flags.minutes is None and answers is None:
        check_can_ask(flags, "--minutes")
    with progress_bars() as progress:
        found = look(flags.source, flags.text_key, flags.encoding, progress)
    say(f"{flags.source}:")
    more = ("more", f"{command_line('inspect', _word(flags.source))} shows languages, repetitions and personal data")
    print_table([*describe(found), more], sys.stderr)
    check_enough(flags.source, found)
    say()
    for sentence in expectations(found):
        for line in wrap(f"- {sentence}", help_columns(), "  "):
            say(line)
    is_little = found.text.num_bytes < MAX_SHARE * found.example_bytes  # such as a README beside a data set
    split_on: str = "separator" if is_little else found.text.split_on()
    split_on = flags.split_on or (answers.options["--split-on"] if answers else split_on)
    if flags.split_on is None and answers is None and found.text.files and split_on != "separator":
        split_on = ask_split(flags, found.text, split_on)
    least = min_minutes(found)
    minutes = flags.minutes or (answers.minutes if answers else ask_minutes(flags, least))
    if minutes < least:
        raise ConfigError(
            f"new: --minutes: expected at least {least:g} for {count_of(_num_examples(found), 'conversation')}, found "
            f"{minutes:g}: reading them is part of it"
        )
    if found.text.files and split_on in DIVIDED:
        say(f"the text of a file is divided at {DIVIDED[split_on]} (--split-on)")
    options = {"--split-on": split_on, "--text-key": flags.text_key}
    if flags.encoding is not None:
        options["--encoding"] = flags.encoding
    state = State(
        __version__, readable(flags.source), minutes, options, found.num_questions, found.num_pairs,
        list_files(found.sources.files),
    )  # fmt: skip
    start_over(out, (TOKENS, EXAMPLES, PRETRAINED, FINETUNED, PREFERRED, f"{model_name(flags.source)}.gguf"))
    state.save(out)
    if found.example_files:
        gather_examples(found.example_files, out / EXAMPLES, flags.text_key, flags.encoding)
    return state, text_words(flags, out, found, options)


def describe(found: Found) -> list[tuple[str, str]]:
    """What is there, as rows of a table."""
    text, rows = found.text, list[tuple[str, str]]()
    if text.files:
        about = "about " if text.is_estimate else ""
        rows.append((
            "text", f"{about}{count_of(text.documents, 'document')} in {count_of(text.files, 'file')}, "
            f"{about}{format_bytes(text.num_bytes)}",
        ))  # fmt: skip
    if found.num_questions:
        rows.append(("questions", f"{count_of(found.num_questions, 'conversation')}: {_named(found.question_files)}"))
    if found.num_pairs:
        pairs = f"{count_of(found.num_pairs, 'pair')} of a better and a worse answer"
        rows.append(("preferences", f"{pairs}: {_named(found.pair_files)}"))
    rows += [("note", note) for note in found.notes]
    if found.bad_rows:
        rows.append(("bad rows", f"{len(found.bad_rows):,} are left out, the first: {found.bad_rows[0]}"))
    rows += [("left out", why) for why in list(found.unusable.values())[:MAX_NAMED]]
    if len(found.unusable) > MAX_NAMED:
        rows.append(("left out", f"{len(found.unusable) - MAX_NAMED:,} more files"))
    if found.sources.skipped:
        rows.append(("left out", f"{count_of(len(found.sources.skipped), 'file')} of unknown types: "
                     + _named(map(Path, found.sources.skipped))))  # fmt: skip
    return rows or [("text", "none")]


def check_enough(source: Path, found: Found) -> None:
    """Raise SourceError if there is too little to learn from."""
    examples = _num_examples(found)
    if not found.text.files and not found.example_files:
        why = next(iter(found.unusable.values()), next(iter(found.notes), "the files are empty"))
        raise SourceError(f"nothing to learn from in {source}: {why}")
    if found.example_files and examples < MIN_EXAMPLES:
        raise SourceError(
            f"too few examples in {source}: expected at least {MIN_EXAMPLES} questions and answers, found {examples}; "
            "write some more (a few hundred are enough to begin), or move them away to train on the text alone"
        )
    num_bytes = found.text.num_bytes + found.example_bytes
    if num_bytes < MIN_BYTES:
        raise SourceError(
            f"too little text in {source}: expected at least {MIN_BYTES:,} bytes, found {num_bytes:,}; add more of the "
            "same kind: a megabyte is a beginning"
        )


def expectations(found: Found) -> list[str]:
    """What can be expected, in sentences."""
    num_bytes, examples = found.text.num_bytes + found.example_bytes, _num_examples(found)
    sentences = [
        "A model that is trained here from scratch learns the form of these texts: their words, tone and layout. It "
        "does not learn facts: much of what it says will be invented."
    ]
    if num_bytes < LITTLE_BYTES:
        sentences.append(
            f"{format_bytes(num_bytes)} of text is little: it will be read many times, and the model will repeat parts "
            "of it. More text of the same kind helps most."
        )
    elif num_bytes < ENOUGH_BYTES:
        sentences.append(
            f"{format_bytes(num_bytes)} of text is a beginning; with more of the same kind it gets better."
        )
    if examples:
        sentences.append(
            "From questions and answers it learns to answer in their manner. For answers that can be relied on, "
            "fine-tune a model that knows the language, and check what it says (llamita import, llamita finetune)."
        )
    if 0 < examples < FEW_EXAMPLES:
        sentences.append(f"{examples:,} examples are few: a few hundred are enough to begin.")
    return sentences


def text_words(flags: NewFlags, out: Path, found: Found, options: dict[str, str]) -> list[str]:
    """What prepare reads: its sources and options. The text of the examples is among it."""
    sources = [_word(flags.source)] if found.text.files else []
    words = [*sources, *([str(out / EXAMPLES / "text.jsonl")] if found.example_files else [])]
    if sources and flags.source.is_dir():
        words += ["--skip-unknown"] if found.sources.skipped else []
        for path in (*found.example_files, *found.unusable):
            words += ["--exclude", _word(path)]
    if options["--split-on"] != "separator" and sources:
        words += ["--split-on", options["--split-on"]]
    if flags.text_key != NewFlags.text_key:
        words += ["--text-key", flags.text_key]
    if flags.encoding is not None:
        words += ["--encoding", flags.encoding]
    counts = {"separator": found.text.documents, "blank-lines": found.text.blocks, "lines": found.text.lines}
    documents = counts.get(options["--split-on"], found.text.files) + _num_examples(found)
    if documents < FEW_DOCUMENTS:
        words += ["--val-fraction", "0.2"]
    return words


def _num_examples(found: Found) -> int:
    return found.num_questions or found.num_pairs


def _named(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")


# ---- questions


def check_can_ask(flags: NewFlags, option: str) -> None:
    """Raise ConfigError if there is no terminal to answer."""
    check(
        flags.yes or sys.stdin.isatty(),
        f"new: cannot ask: expected a terminal, found none; give {option}, or --yes for the default answers",
    )


def min_minutes(found: Found) -> float:
    """Minutes in which fine-tuning has as much time to train as to read its examples."""
    minutes = 2 * _num_examples(found) * EXAMPLE_SECONDS / 60 / SHARES[True, found.num_pairs > 0][1]
    return math.ceil(10 * minutes) / 10


def ask_minutes(flags: NewFlags, least: float) -> float:
    """How long all training may take."""
    default = max(DEFAULT_MINUTES, math.ceil(2 * least))
    if flags.yes:
        return default
    while True:
        answer = _ask(f"How many minutes may the training take? [{default:g}] ")
        try:
            minutes = float(answer) if answer else default
        except ValueError:
            minutes = 0.0
        if max(least, 1e-9) <= minutes <= MAX_VALUES["minutes"]:
            return minutes
        say(f"expected a number of minutes, such as {default:g}" + (f", at least {least:g}" if least else ""))


def ask_split(flags: NewFlags, text: TextCounts, default: str) -> str:
    """Where documents end, if the separator leaves few, or one that is most of the text."""
    if flags.yes:
        return default
    check_can_ask(flags, "--split-on")
    choices = {"blank-lines": text.blocks, "lines": text.lines, "separator": text.documents}
    counts = ", ".join(f"{rule} ({count_of(count, 'text')})" for rule, count in choices.items())
    while True:
        answer = _ask(f"Where does one text end and the next begin? {counts} [{default}] ")
        if not answer or answer in choices:
            return answer or default
        say(f"expected one of {', '.join(choices)}")


def _ask(question: str) -> str:
    """Ask on stderr. The end of the input counts as Ctrl-C."""
    read_stdin_as_utf8()
    sys.stdout.flush()
    print(f"\n{question}", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise KeyboardInterrupt
    return line.strip()


# ---- the steps


def make_steps(flags: NewFlags, out: Path, state: State, texts: list[str]) -> list[Step]:
    """The steps, as commands. texts: what prepare reads."""
    talks, pairs = state.num_questions or state.num_pairs, state.num_pairs
    shares = SHARES[talks > 0, pairs > 0]
    minutes = [f"{share * state.minutes:.3g}" for share in shares]
    lasting = [f"{each} minute{'' if each == '1' else 's'} (Ctrl-C saves it)" for each in minutes]
    tokens, examples, runs = out / TOKENS, out / EXAMPLES, (out / PRETRAINED, out / FINETUNED, out / PREFERRED)

    def train() -> list[str]:
        context = ["--context", str(_context(tokens, examples))] if talks else []
        options = ["--out", str(runs[0]), "--minutes", minutes[0]]
        if (runs[0] / "run.json").is_file():
            return ["train", *options, "--resume"]
        return ["train", str(tokens), *options, *context]

    def finetune(number: int, data: str, val: str, *more: str) -> list[str]:
        if _can_resume(runs[number], runs[number - 1]):
            return ["finetune", "--out", str(runs[number]), "--minutes", minutes[number], "--resume"]
        remove(out, (runs[number].name,))
        return [
            "finetune", str(runs[number - 1]), str(examples / data), "--val", str(examples / val),
            "--out", str(runs[number]), "--minutes", minutes[number], "--skip-bad-rows", str(MAX_BAD_ROWS), *more,
        ]  # fmt: skip

    steps = [
        Step("prepare", "the text becomes tokens", lambda: ["prepare", *texts, "--out", str(tokens)]),
        Step("train", f"train a model, {lasting[0]}", train),
        Step(
            "evaluate", "how well does it know new text?",
            lambda: ["eval", str(runs[0]), str(tokens), "--samples", str(NUM_SAMPLES)],
        ),
    ]  # fmt: skip
    if talks:
        steps.append(Step(
            "finetune", f"teach it to answer, {lasting[1]}",
            lambda: finetune(1, "questions.jsonl", "held-out.jsonl", "--general-text", str(tokens)),
        ))  # fmt: skip
    if pairs:
        steps.append(Step(
            "prefer", f"teach it to prefer the better answers, {lasting[2]}",
            lambda: finetune(2, "pairs.jsonl", "pairs-held-out.jsonl", "--preference", "dpo"),
        ))  # fmt: skip
    last = runs[len(shares) - 1]
    steps.append(Step("export", "write one file", lambda: ["export", str(last), str(_model(flags, out))]))
    return steps


def _model(flags: NewFlags, out: Path) -> Path:
    return out / f"{model_name(flags.source)}.gguf"


def _can_resume(run: Path, base: Path) -> bool:
    """Whether a fine-tuning has begun, with the weights that its base still has."""
    from llamita.finetune.base_model import BaseModel
    from llamita.run_directory import RESUMABLE

    if not (run / "run.json").is_file():
        return False
    began = read_json_object(run / "run.json", CheckpointError, RESUMABLE)["data"].get("base")
    return bool(began == BaseModel(base).fingerprint())


def _context(tokens: Path, examples: Path) -> int:
    """Tokens of a context that holds most documents, as train would choose, and most conversations."""
    import numpy as np

    from llamita.data.file_formats import read_rows
    from llamita.data.token_store import TokenStore
    from llamita.finetune.conversations import read_conversation
    from llamita.tokenizer import load_tokenizer
    from llamita.training.distributed import named_device
    from llamita.training.planner import choose_context

    rows = list(read_rows(examples / "questions.jsonl"))
    tokenizer = load_tokenizer(tokens)
    lengths = []
    for row in rows[:: 1 + len(rows) // MAX_MEASURED]:
        turns = read_conversation(row).turns
        lengths.append(sum(len(tokenizer.encode(turn.text)) + TEMPLATE_TOKENS for turn in turns))
    longest = max(1.0, float(np.quantile(lengths, CONTEXT_QUANTILE)))
    chosen = choose_context(TokenStore(tokens).split("train").lengths, named_device("auto"))
    return max(chosen, min(MAX_CONTEXT, 1 << math.ceil(math.log2(longest))))


# ---- the end


def finish(flags: NewFlags, out: Path, state: State) -> int:
    """Say what came of it, and open a chat or show samples."""
    from llamita.cli import run_command
    from llamita.report.history import read_history

    model = _model(flags, out)
    runs = [run for run in (out / PRETRAINED, out / FINETUNED, out / PREFERRED) if (run / "run.json").is_file()]
    say()
    say("what came of it:")
    print_table([(run.name, " ".join(verdict(read_history(run)))) for run in runs], sys.stderr)
    say(f"files: {model} (the model); {', '.join(f'{run}/report.html' for run in runs)} (curves, samples)")
    can_chat = state.num_questions + state.num_pairs > 0
    longer = command_line("new", _word(flags.source), "--out", _word(out), "--minutes", f"{2 * state.minutes:g}")
    say(f"longer: {longer}")
    words = ["chat", str(model)] if can_chat else [
        "run", str(model), "-i", "", "-N", str(SHOWN_SAMPLES), "-t", f"{TEMPERATURE:g}"
    ]  # fmt: skip
    say()
    if can_chat and not sys.stdin.isatty():
        say(f"next: {command_line(*words)}")
        return 0
    say(f"  {command_line(*words)}")
    return run_command(words)


def verdict(history: History) -> list[str]:
    """The report's verdict on a run, without commands that would leave the later steps behind."""
    from llamita.report.verdict import sentences

    found = [re.sub(r" \(llamita .*\)(?=\.$)", "", sentence) for sentence in sentences(history)]
    if history.command == "train":
        found.append("(8 bits per byte would be blind guessing.)")
    return found
