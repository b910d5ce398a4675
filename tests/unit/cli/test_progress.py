"""Progress bars: drawn on a terminal; nothing is written elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from llamita.cli.progress import progress_bars


@pytest.mark.parametrize("is_terminal", [False, True])
def test_bars_only_on_a_terminal(is_terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=80)
    with progress_bars(in_bytes=True, console=console) as progress:
        progress("importing", 500_000, 2_000_000)
        progress("importing", 2_000_000, 2_000_000)
    assert ("importing" in file.getvalue() and "2.0/2.0 MB" in file.getvalue()) == is_terminal
    assert is_terminal or file.getvalue() == ""


def test_a_bar_for_each_stage() -> None:
    file = io.StringIO()
    with progress_bars(console=Console(file=file, force_terminal=True, width=80)) as progress:
        progress("reading", 1, 4)
        progress("encoding", 4, 4)
    assert all(expected in file.getvalue() for expected in ("reading", "25%", "encoding", "100%"))
