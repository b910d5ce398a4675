"""The generated results tables: which records they show, and --check and --write."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme_table  # noqa: E402
from measure import COLUMNS  # noqa: E402


def test_the_latest_record_beside_llama_cpp_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "machine.csv"
    tail = ["5", "", ""]
    rows = [
        ["2026-01-01", "bench.py", "decode 15M Q8_0, 2 threads", "1", "tok/s", "llama.cpp 1, fa on", "1", "1", *tail],
        ["2026-01-02", "bench.py", "decode 15M Q8_0, 1 thread", "4135", "tok/s", "llama.cpp 1", "99.81", "41.4", *tail],
        ["2026-01-02", "bench.py", "decode 15M Q8_0, 1 thread", "30", "GB/s", "reading, 1 thread", "50", "0.6", *tail],
        ["2026-01-02", "bench.py", "decode 15M Q8_0, 1 thread", "7", "tok/s", "reference/run.c", "9", "0.8", *tail],
        ["2026-01-02", "bench.py", "prompt 42M Q8_0", "811.5", "tok/s", "llama.cpp 1", "400.2", "2.03", *tail],
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    lines = readme_table.speed_table(path).splitlines()
    assert lines[2] == "| 15M Q8_0 | 4,135 | 99.8 | 41.4 |  |  |  |"
    assert lines[3] == "| 42M Q8_0 |  |  |  | 812 | 400 | 2.0 |"


def test_every_quality_entry_names_its_command() -> None:
    entries = json.loads(readme_table.QUALITY.read_text(encoding="utf-8"))
    assert all(entry["command"] and entry["source"] and float(entry["bits_per_byte"]) > 0 for entry in entries)
    assert len(readme_table.quality_table().splitlines()) == 2 + len(entries)


def test_write_then_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n", encoding="utf-8")
    assert readme_table.main(["--check", str(readme)]) == 1
    assert "out of date" in capsys.readouterr().err
    assert readme_table.main(["--write", str(readme)]) == 0
    assert readme_table.main(["--check", str(readme)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- results -->\n|") and text.endswith("|\n<!-- /results -->\nafter\n")
    assert readme_table.tables() in text
    readme.write_text("no markers\n", encoding="utf-8")
    assert readme_table.main(["--check", str(readme)]) == 2
