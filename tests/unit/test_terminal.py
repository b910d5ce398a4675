"""Tables and bars on terminals of several widths, and where there is no terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from llamita.cli.help import in_columns
from llamita.cli.progress import make_bars
from llamita.console import format_bytes, format_count, format_seconds, print_table, shorten
from llamita.training.progress import TrainingDisplay, fit

ROWS = [("wrote", "a-name-of-a-file" * 4 + ", 123 bytes"), ("床前", "[bold] 明月光"), ("error", "0.1 % of \\")]


def terminal(columns: int) -> Console:
    return Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None, highlight=False)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue()).splitlines()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_table_fits_the_terminal(columns: int) -> None:
    console = terminal(columns)
    print_table(ROWS, console)
    shown = lines(console)
    assert max(map(cell_len, shown)) <= columns and all(line.startswith("  ") for line in shown)
    assert "[bold] 明月光" in shown[-2] and shown[-1].rstrip().endswith("0.1 % of \\")


def test_a_table_without_a_terminal_is_a_line_a_row() -> None:
    file = io.StringIO()
    print_table(ROWS, file)
    shown = file.getvalue().splitlines()
    assert len(shown) == 3 and "\x1b" not in file.getvalue() and len(shown[0]) > 60
    assert shown[1] == "  床前   [bold] 明月光", "a wide character has two columns"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (60, "loss 1.234 · 12:34 left"),
        (80, "loss 1.234 · bpb 0.812 · 12.3k tok/s · 12:34 left"),
        (120, "step 12345 · loss 1.234 · bpb 0.812 · held-out 0.7654 · 12.3k tok/s · 12:34 left"),
    ],
)
def test_the_bar_of_training_keeps_what_matters(columns: int, expected: str) -> None:
    console = terminal(columns)
    display = TrainingDisplay(console=console)
    display.update(
        0.42, step=12345, loss=1.234, bits_per_byte=0.812, val=0.7654, tokens_per_second=12345, targets="tokens",
        mfu=0.31, seconds_left=754,
    )  # fmt: skip
    display.show_stage("evaluating", 8, 8)
    console.print(display._progress.get_renderable())
    (line,) = lines(console)
    assert line.startswith("evaluating 100 %") and line.rstrip().endswith(f"42 % {expected}")
    assert cell_len(line) <= columns


def test_training_without_a_terminal_is_one_whole_line() -> None:
    console = Console(file=io.StringIO(), width=60, highlight=False)
    TrainingDisplay(console=console).update(
        0.42, step=7, loss=1.5, bits_per_byte=0.5, val=0.75, tokens_per_second=1000, targets="tokens", mfu=0.31,
        seconds_left=61,
    )  # fmt: skip
    expected = " 42 % | step 7 | loss 1.500 · bpb 0.500 (held-out 0.7500) | 1.0k tok/s, MFU 31 % | 1:01 left"
    assert lines(console) == [expected]


def test_fit() -> None:
    assert fit(("a", "bb", "c"), ("c", "bb", "a"), 100) == "c · bb · a"
    assert fit(("a", "bb", "c"), ("c", "bb", "a"), 5) == "c · a"
    assert fit(("a", ""), ("", "a"), 0) == ""


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_bars_of_bytes_fit_the_terminal(columns: int) -> None:
    console = terminal(columns)
    bars = make_bars(console, in_bytes=True, transient=False)
    for name in ("TinyStoriesV2-GPT4-train.txt", "encoding"):
        bars.update(bars.add_task(name, total=2_200_000_000), completed=800_000_000)
    console.print(bars.get_renderable())
    shown = lines(console)
    assert len(shown) == 2 and all("0.8/2.2 GB" in line and cell_len(line) <= columns for line in shown)


def test_counts_and_times_are_short() -> None:
    assert [format_count(n) for n in (7, 999, 12_345, 123_456, 2_500_000)] == ["7", "999", "12.3k", "123k", "2.5M"]
    assert [format_bytes(n) for n in (0, 35_499, 1_234_567, 2e9)] == ["0 kB", "35 kB", "1.2 MB", "2,000.0 MB"]
    assert [format_seconds(s) for s in (0.2, 65, 3723)] == ["0:00", "1:05", "1:02:03"]


def test_a_sample_keeps_its_lines_on_the_screen() -> None:
    for console in (terminal(60), Console(file=io.StringIO(), width=60)):
        TrainingDisplay(console=console).show_sample("靜夜思\n李白\n\n床前明月光，\n\u3000\u3000疑是[b]\x1b[31m\n")
        shown = [line.rstrip() for line in lines(console)]
        assert shown == ["  靜夜思", "  李白", "", "  床前明月光，", "  \u3000\u3000疑是[b] [31m"]


def test_help_counts_wide_characters() -> None:
    text = in_columns([("--a 名稱", "床前明月光 疑是地上霜 word"), ("--long-name-of-a-flag", "x")], 40, 20)
    assert text.split("\n") == [
        "  --a 名稱          床前明月光", " " * 20 + "疑是地上霜 word", "  --long-name-of-a-flag", " " * 20 + "x",
    ]  # fmt: skip
    assert all(cell_len(line) <= 40 for line in text.split("\n"))


def test_a_poem_keeps_its_lines() -> None:
    poem = "\n床前明月光，\n\n\n  疑是地上霜。\r\n\x1b[31mred\x07\n"
    assert shorten(poem) == "床前明月光，\n\n  疑是地上霜。\n [31mred"
    assert shorten("a\n" * 13, max_lines=12) == "\n".join("a" * 12) + " …"
    assert shorten("word " * 100, 12) == "word word …" and shorten("春" * 300, 11) == "春春春春春 …"
    assert shorten(f"床前 {'春' * 300}", 24) == f"床前 {'春' * 9} …"  # not at the space far back
    assert shorten("\u3000\u3000疑是") == "\u3000\u3000疑是"
    assert shorten("") == "" and shorten("one") == "one"
