"""The preview of training data."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from llamita.cli import main
from llamita.errors import (
    ConfigError,
)
from llamita.finetune.preview import preview_examples
from llamita.finetune.run import show_preview
from tests.unit.finetune.conftest import make_config, renderer, talk


def test_preview(checkpoint: Path) -> None:
    with renderer(checkpoint) as render:
        (example,) = render.render(talk("Why [b]?", "Because.", where="a.jsonl:9"))
        plain, colored = io.StringIO(), io.StringIO()
        preview_examples([example], render.tokenizer, Console(file=plain, width=80))
        preview_examples(
            [example],
            render.tokenizer,
            Console(file=colored, force_terminal=True, color_system="standard", width=80),
        )
    assert "<|im_start|>user\nWhy [b]?<|im_end|>" in plain.getvalue() and "«Because.<|im_end|>»" in plain.getvalue()
    assert "a.jsonl:9" in plain.getvalue()
    assert "\x1b[1;32mBecause.<|im_end|>" in colored.getvalue()


def test_the_preview_trains_nothing(
    chat_base: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", str(chat_base), str(questions), "--out", str(tmp_path / "run"), "--preview", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("«") == 3 and "<|im_end|>»" in shown and "36 kept" in shown
    assert not (tmp_path / "run").exists()
    text = tmp_path / "a.txt"
    text.write_text("Once")
    with pytest.raises(ConfigError, match="every token of plain text is trained on"):
        show_preview(make_config(chat_base, text, tmp_path / "x", preview=1), Console(file=io.StringIO()))
