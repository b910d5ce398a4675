"""How well formed are the poems that a model writes? Counts half-lines of Chinese poems.

    python benchmarks/poems.py poems.txt --minutes 10 --seeds 0,1,2 [--train '--hidden 160'] [--keep runs]
    python benchmarks/poems.py poems.txt --store tokens --runs runs/a runs/b model.gguf --out poems.md

The text has a blank line between poems; the first lines of each are its title and its author
(--header-lines). Without --runs, a model is trained for each seed, on --store or on a store that
`llamita prepare --split-on blank-lines` makes. Each model then writes --samples texts in the engine,
at temperature 0.8. A table counts those whose half-lines have five characters each, or seven each,
and those that also have four or eight half-lines, beside the corpus. The table goes to standard
output or --out, with the first ten poems of the first model.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from markdown_table import markdown_table
from measure import BenchmarkError, append_rows, results_path
from time_to_quality import run_ours

from llamita.batch_generate import SampleOptions, generate_batch
from llamita.data.documents import read_documents
from llamita.errors import LlamitaError
from llamita.eval.samples import opened_in_engine
from llamita.eval.score import Data, score_model_file
from llamita.sampling import RuntimeOptions, SamplingParams

LENGTHS = (5, 7)  # characters of a half-line
COUNTS = (4, 8)  # half-lines of a quatrain and of a regulated verse
SHOWN_POEMS = 10
_MARKS = re.compile(r"[，。、；：？！…「」『』《》〈〉“”‘’\s]+")
_NOTES = re.compile(r"（[^（）]*）|\([^()]*\)|〔[^〔〕]*〕|〖[^〖〗]*〗|【[^【】]*】|\[[^\[\]]*\]")


@dataclasses.dataclass(frozen=True)
class Form:
    """Poems by form. uniform: all half-lines have five, or all have seven characters. regular: these
    also have four or eight half-lines."""

    poems: int
    uniform: int
    regular: int

    def shares(self) -> tuple[float, float]:
        """Uniform and regular poems, in percent."""
        return 100 * self.uniform / max(1, self.poems), 100 * self.regular / max(1, self.poems)


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts of texts. as_is, without_notes: of those with at least one half-line."""

    texts: int
    as_is: Form
    without_notes: Form
    broken: int
    """Texts with a broken character."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A model's poems, how many were cut off at the context's end, and bits per byte of held-out
    poems."""

    name: str
    counts: Counts
    cut_off: int
    bits_per_byte: float
    shown: tuple[str, ...]


def half_lines(poem: str, header_lines: int, *, notes: bool = True) -> list[str]:
    """What is between punctuation marks and line ends, below the header. notes: keep what is in
    brackets."""
    body = "\n".join(poem.strip().split("\n")[header_lines:])
    return [part for part in _MARKS.split(body if notes else _NOTES.sub("", body)) if part]


def count_form(poems: Iterable[Sequence[str]]) -> Form:
    """Count poems, given as half-lines. A poem without any is not counted."""
    filled = [poem for poem in poems if poem]
    uniform = [poem for poem in filled if len(poem[0]) in LENGTHS and len({len(half) for half in poem}) == 1]
    return Form(len(filled), len(uniform), sum(len(poem) in COUNTS for poem in uniform))


def is_broken(text: bytes) -> bool:
    """Whether bytes are not UTF-8, or a character is U+FFFD."""
    return "\ufffd" in text.decode("utf-8", "replace")


def count_texts(texts: Sequence[bytes], header_lines: int) -> Counts:
    poems = [text.decode("utf-8", "replace") for text in texts]
    as_is, without_notes = (
        count_form(half_lines(poem, header_lines, notes=notes) for poem in poems) for notes in (True, False)
    )
    return Counts(len(texts), as_is, without_notes, sum(map(is_broken, texts)))


def measure(path: Path, name: str, store: Path, flags: argparse.Namespace) -> Measured:
    """Let a checkpoint, run directory or model file write, count its poems, and score it."""
    sampling = SamplingParams(temperature=flags.temperature, top_p=flags.top_p, seed=flags.sample_seed)
    runtime = RuntimeOptions(num_threads=flags.threads)
    with opened_in_engine(path) as model:
        samples = generate_batch(model, SampleOptions(flags.samples, sampling=sampling, runtime=runtime))
        bits = score_model_file(path, model, Data((str(store),)), num_threads=flags.threads).score.bits_per_byte
    texts = [sample.text for sample in samples]
    shown = tuple(text.decode("utf-8", "replace") for text in texts[:SHOWN_POEMS])
    counts = count_texts(texts, flags.header_lines)
    return Measured(name, counts, sum(not sample.ended for sample in samples), bits, shown)


def table(corpus: Counts, models: Sequence[Measured]) -> str:
    """A Markdown table: the corpus and one line per model, then their medians."""
    head = [
        "percent of poems", "texts", f"all {LENGTHS[0]} or {LENGTHS[1]}",
        f"… and {COUNTS[0]} or {COUNTS[1]} half-lines", "without notes", "… and 4 or 8", "empty", "broken", "cut off",
        "bits per byte",
    ]  # fmt: skip
    rows = [_table_row("corpus", corpus, "", "")]
    rows += [_table_row(each.name, each.counts, str(each.cut_off), f"{each.bits_per_byte:.4f}") for each in models]
    if len(models) > 1:
        columns = zip(*(_shares(each.counts) for each in models), strict=True)
        cells = [f"{statistics.median(column):.1f}" for column in columns]
        bits = statistics.median(each.bits_per_byte for each in models)
        rows.append(["median", "", *cells, "", "", "", f"{bits:.4f}"])
    return markdown_table(head, rows) + "\n"


def _shares(counts: Counts) -> tuple[float, ...]:
    return (*counts.as_is.shares(), *counts.without_notes.shares())


def _table_row(name: str, counts: Counts, cut_off: str, bits: str) -> list[str]:
    shares = [f"{share:.1f}" for share in _shares(counts)]
    empty = counts.texts - counts.as_is.poems
    return [name, f"{counts.texts:,}", *shares, str(empty), str(counts.broken), cut_off, bits]


def page(corpus: Counts, models: Sequence[Measured], flags: argparse.Namespace) -> str:
    """The table, and the first poems of the first model."""
    first = models[0]
    text = f"Temperature {flags.temperature:g}, top-p {flags.top_p:g}, seeds from {flags.sample_seed}.\n\n"
    text += table(corpus, models) + f"\nThe first {len(first.shown)} of {first.name}:\n"
    return text + "".join(f"\n```text\n{poem.strip()}\n```\n" for poem in first.shown)


def records(corpus: Counts, models: Sequence[Measured], minutes: float) -> list[list[str]]:
    """Rows for results/*.csv: medians over the seeds, beside the corpus."""
    runs, found = str(len(models)), []
    for number, what in enumerate(("all 5 or 7 characters", "and 4 or 8 half-lines")):
        shares = [each.counts.as_is.shares()[number] for each in models]
        ours, theirs = statistics.median(shares), corpus.as_is.shares()[number]
        spread = f"{min(shares):.1f}-{max(shares):.1f}"
        found.append([f"{what}, {minutes:g} minutes", f"{ours:.1f}", "% of poems", "corpus", f"{theirs:.1f}",
                      f"{ours / theirs:.3f}" if theirs else "", runs, spread])  # fmt: skip
    bits = [each.bits_per_byte for each in models]
    spread = f"{min(bits):.4f}-{max(bits):.4f}"
    found.append([f"poems, {minutes:g} minutes", f"{statistics.median(bits):.4f}", "bits per byte",
                  "", "", "", runs, spread])  # fmt: skip
    return found


def prepare(text: Path, out: Path, arguments: list[str]) -> None:
    """`llamita prepare`, one poem per block. Raises BenchmarkError."""
    command = [sys.executable, "-m", "llamita", "prepare", str(text), "--split-on", "blank-lines", "--out", str(out)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchmarkError(f"llamita prepare ended with code {done.returncode}: {done.stderr.strip()[-300:]}")


def measure_all(flags: argparse.Namespace, folder: Path) -> list[Measured]:
    """Measure the given runs, or train one per seed and measure it. Raises BenchmarkError, LlamitaError."""
    store = flags.store
    if store is None:
        store = folder / "tokens"
        prepare(flags.text, store, shlex.split(flags.prepare))
    found = []
    named = {str(path): path for path in flags.runs} or {f"seed {seed}": None for seed in flags.seeds.split(",")}
    for name, path in named.items():
        if path is None:
            seed = int(name.removeprefix("seed "))
            path = (flags.keep or folder) / f"poems-{seed}"
            run_ours(store, path, flags.minutes, seed, shlex.split(flags.train), 0.0)
        one = measure(path, name, store, flags)
        found.append(one)
        uniform, regular = one.counts.as_is.shares()
        print(f"{name}: {uniform:.1f} %, with 4 or 8 half-lines {regular:.1f} %, {one.counts.broken} broken, "
              f"{one.bits_per_byte:.4f} bits per byte", file=sys.stderr, flush=True)  # fmt: skip
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="the poems")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="run directories or model files; no training")
    parser.add_argument("--store", type=Path, help="token store (with --runs: or text) to train and to score on")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--prepare", default="", metavar="FLAGS", help="more flags for `llamita prepare`")
    parser.add_argument("--train", default="", metavar="FLAGS", help="more flags for `llamita train`")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the trained runs stay")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--sample-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="of the engine (default: its own choice)")
    parser.add_argument("--header-lines", type=int, default=2, help="lines above a poem (default: 2)")
    parser.add_argument("--out", type=Path, help="Markdown file for the table and ten poems")
    parser.add_argument("--quick", action="store_true", help="the first seed, half a minute, 50 poems, not recorded")
    flags = parser.parse_args(argv)
    if flags.quick:
        flags.minutes, flags.seeds, flags.samples = 0.5, flags.seeds.split(",")[0], 50
    try:
        documents = read_documents((str(flags.text),), split_on="blank-lines")
        corpus = count_texts([document.text.encode() for document in documents], flags.header_lines)
        with tempfile.TemporaryDirectory() as folder:
            models = measure_all(flags, Path(folder))
    except (BenchmarkError, LlamitaError) as error:
        print(error, file=sys.stderr)
        return 1
    written = page(corpus, models, flags)
    if flags.out is None:
        print(written, end="")
    else:
        flags.out.write_text(written, encoding="utf-8")
    if not flags.quick and not flags.runs:
        append_rows(results_path(), "poems.py", records(corpus, models, flags.minutes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
