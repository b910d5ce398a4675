"""Writes the results tables of the project's README, between <!-- results --> and <!-- /results
-->.

    python benchmarks/readme_table.py --check README.md    # exit status 1 if out of date
    python benchmarks/readme_table.py --write README.md

Speeds come from results/*.csv: the latest record of each model beside llama.cpp. Quality is in
results/quality.json, which is edited by hand; each entry names the command that gave it.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from pathlib import Path

from markdown_table import markdown_table

RESULTS = Path(__file__).with_name("results")
RECORD = RESULTS / "x86_64-2cores.csv"
QUALITY = RESULTS / "quality.json"
MODELS = ("15M Q8_0", "42M Q8_0", "110M Q8_0", "110M Q4_0", "1.1B Q4_0")
MARKED = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def quality_table(path: Path = QUALITY) -> str:
    keys = ("trainer", "minutes", "cores", "weights", "bits_per_byte")
    rows = ([entry[key] for key in keys] for entry in json.loads(path.read_text(encoding="utf-8")))
    return markdown_table([key.replace("_", " ") for key in keys], rows)


def speed_table(path: Path = RECORD) -> str:
    """Tokens per second of decoding and of a 512-token prompt: ours, llama.cpp's, and the ratio."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["peer"].startswith("llama.cpp") and row["unit"] == "tok/s"]
    latest = {row["what"].split(",")[0]: row for row in rows}
    lines = []
    for model in MODELS:
        cells = [model]
        for kind in ("decode", "prompt"):
            row = latest.get(f"{kind} {model}")
            numbers = [tokens(row["ours"]), tokens(row["peer_value"])] if row else ["", ""]
            cells += [*numbers, f"{float(row['ratio']):.1f}" if row else ""]
        lines.append(cells)
    return markdown_table(["model", "decode", "llama.cpp", "ratio", "prompt", "llama.cpp", "ratio"], lines)


def tokens(value: str) -> str:
    """Such as 4,135, 318 or 13.6."""
    number = float(value)
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"


def tables() -> str:
    return f"{quality_table()}\n\n{speed_table()}\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", type=Path, metavar="README")
    action.add_argument("--write", type=Path, metavar="README")
    arguments = parser.parse_args(argv)
    path: Path = arguments.check or arguments.write
    text = path.read_text(encoding="utf-8")
    found = MARKED.findall(text)
    if len(found) != 1:
        print(f"{path}: expected <!-- results --> and <!-- /results --> once, found {len(found)}", file=sys.stderr)
        return 2
    if found[0] == tables():
        return 0
    if arguments.check:
        print(f"{path}: the results are out of date; run benchmarks/readme_table.py --write {path}", file=sys.stderr)
        return 1
    path.write_text(MARKED.sub(lambda match: tables(), text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
