"""benchmarks/form.py: texts that match patterns are counted."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from llamita.engine.model import PACKAGED_MODEL

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

from form import main, match_shares  # noqa: E402


def test_a_text_must_match_every_pattern() -> None:
    texts = ["# Soup\n- salt\n", "# Bread\n", "- salt\n# late", "nothing"]
    patterns = [re.compile(pattern, re.MULTILINE) for pattern in (r"^# \w+$", r"\A# ", r"^- ")]
    assert match_shares(texts, patterns) == [0.75, 0.5, 0.5, 0.25]
    assert match_shares([], patterns) == [0.0] * 4


def test_a_model_is_counted_beside_its_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Once upon a time.\n")
    (tmp_path / "texts" / "b.txt").write_text("Never.\n")
    words = [str(tmp_path / "texts"), str(PACKAGED_MODEL), "--pattern", r"\AOnce", "[0-9]{9}", "--prompt", "Once"]
    assert main([*words, "--samples", "4", "--shown", "1", "--max-new-tokens", "8"]) == 0
    out = capsys.readouterr().out
    assert "| corpus | 2 | 50 % | 0 % | 0 % |  |" in out
    assert f"| {PACKAGED_MODEL.name} | 4 | 100 % | 0 % | 0 % | " in out
    assert out.count("```text\nOnce") == 1
    assert main([str(tmp_path / "none"), str(PACKAGED_MODEL), "--pattern", "a"]) == 1
    assert main([*words[:2], "--pattern", "("]) == 1
    assert "--pattern: not a regular expression" in capsys.readouterr().err
