"""llamita report: where the page is written, and one line for every user error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamita.cli import main


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with runs a and b, a checkpoint in a, and a folder that is not a run."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"config": {"seed": name}}))
        line = {"kind": "train", "step": 1, "tokens": 10, "seconds": 1.0, "loss": 2.0, "bpb": 1.0}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "a" / "step-00000001").mkdir()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "page"),
    [
        (["a"], "a/report.html"),
        (["a", "b"], "comparison.html"),
        (["a", "b", "--out", "new/both.html"], "new/both.html"),
        (["a", "-o", "page.HTM"], "page.HTM"),
    ],
)
def test_where_the_page_goes(runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], page: str) -> None:
    assert main(["report", *words]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert (runs / page).read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no RUN given"),
        (["c"], "cannot report on c: no such folder; give the --out of `llamita train`"),
        (["empty"], "expected a run directory, found no run.json"),
        (["a/step-00000001"], "found no run.json in it; give a"),
        (["a/run.json"], "cannot report on a/run.json"),
        (["a", "b", "a/../a"], "expected each run once"),
        (["a", "--out", "b"], "expected a name that ends with .html, found b"),
        (["a", "--out", "a/run.json/page.html"], "cannot write a/run.json/page.html"),
        (["a", "--put", "x.html"], "perhaps you meant --out"),
    ],
)
def test_one_line_for_a_mistake(runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["report", *words]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""
    assert not (runs / "a" / "report.html").exists() and not (runs / "comparison.html").exists()
