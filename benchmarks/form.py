"""How many of a model's texts have the form of their corpus? Counts those that match patterns.

    python benchmarks/form.py recipes a.gguf b.gguf --pattern '^title: \\S' '^## Ingredients\\n+(- .+\\n){3}'

Each model writes --samples texts. A table says which share of them matches each pattern (of Python's
`re`, with ^ and $ at the ends of lines), which matches all, and which ended before it was cut off,
beside the documents of the corpus. --shown texts of each model follow: the first ones, not chosen.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from markdown_table import markdown_table

from llamita.batch_generate import SampleOptions, generate_batch
from llamita.data.documents import read_documents
from llamita.errors import LlamitaError
from llamita.eval.samples import opened_in_engine
from llamita.sampling import SamplingParams


def match_shares(texts: Sequence[str], patterns: Sequence[re.Pattern[str]]) -> list[float]:
    """The share of the texts that matches each pattern, and the share that matches all."""
    columns = [[pattern.search(text) is not None for text in texts] for pattern in patterns]
    columns.append([all(row) for row in zip(*columns, strict=True)])
    return [sum(column) / max(1, len(texts)) for column in columns]


def table_row(name: str, texts: Sequence[str], patterns: Sequence[re.Pattern[str]], ended: float | None) -> list[str]:
    shares = [f"{100 * share:.0f} %" for share in match_shares(texts, patterns)]
    return [name, f"{len(texts)}", *shares, "" if ended is None else f"{100 * ended:.0f} %"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="the documents, as for `llamita prepare`")
    parser.add_argument("models", type=Path, nargs="+", help="model files, checkpoints or run directories")
    parser.add_argument("--pattern", nargs="+", required=True, metavar="REGEX")
    parser.add_argument("--prompt", default="", help="beginning of each text")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--shown", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--max-new-tokens", type=int)
    flags = parser.parse_args(argv)
    try:
        patterns = [re.compile(pattern, re.MULTILINE) for pattern in flags.pattern]
    except re.error as error:
        print(f"--pattern: not a regular expression: {error}", file=sys.stderr)
        return 1
    head = ["", "texts", *(f"`{pattern}`" for pattern in flags.pattern), "all", "ended"]
    sampling = SamplingParams(temperature=flags.temperature, top_p=flags.top_p, seed=0)
    options = SampleOptions(flags.samples, (flags.prompt,), flags.max_new_tokens, sampling)
    try:
        corpus = [document.text for document in read_documents((flags.corpus,))]
        rows, shown = [table_row("corpus", corpus, patterns, None)], []
        for path in flags.models:
            with opened_in_engine(path) as model:
                samples = generate_batch(model, options)
            texts = [flags.prompt + sample.text.decode("utf-8", "replace") for sample in samples]
            ended = sum(sample.ended for sample in samples) / len(samples)
            rows.append(table_row(path.name, texts, patterns, ended))
            shown.append(f"\n{path.name}:\n" + "".join(f"\n```text\n{text}\n```\n" for text in texts[: flags.shown]))
    except LlamitaError as error:
        print(error, file=sys.stderr)
        return 1
    print(markdown_table(head, rows) + "\n" + "".join(shown), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
