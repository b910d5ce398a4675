"""The bar of bytes: on a terminal it shows how far it is, elsewhere nothing is written."""

from __future__ import annotations

import io

from llamita.cli.byte_progress import byte_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_where_nobody_looks() -> None:
    file = io.StringIO()
    with byte_progress("importing", file) as progress:
        assert progress is None
    assert file.getvalue() == ""


def test_a_bar_on_a_terminal() -> None:
    file = Terminal()
    with byte_progress("importing", file) as progress:
        assert progress is not None
        progress(500_000, 2_000_000)
        progress(2_000_000, 2_000_000)
    assert "importing" in file.getvalue() and "2.0/2.0 MB" in file.getvalue()
