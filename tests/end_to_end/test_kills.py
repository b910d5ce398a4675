"""Every command that writes, killed before each change of the file system, and with a loss of power.

LLAMITA_MAX_KILLS bounds the kills of a command, by default 40.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llamita.cli import main

pytest.importorskip("torch")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")]

PROGRAM = Path(__file__).resolve().parents[1] / "kill_everywhere.py"
MAX_KILLS = os.environ.get("LLAMITA_MAX_KILLS", "40")
SMALL = "--steps 2 --micro-batch-size 2 --context 32 --threads 1 --device cpu --eval-interval 1 --log-interval 1"
COMMANDS = {
    "prepare": ("store", "prepare texts --split-on blank-lines --vocab-size 280 --num-workers 1 -o store"),
    "import": ("imported", "import model -o imported"),
    "export gguf": ("m.gguf", "export model m.gguf --verify no"),
    "export bin": ("m.bin", "export llama m.bin --verify no"),
    "export folder": ("folder", "export model folder --dtype float16 --verify no"),
    "export adapter": ("adapter.gguf", "export model adapter.gguf --adapter lora"),
    "export merged": ("merged.gguf", "export lora merged.gguf --verify no"),
    "quantize": ("q.gguf", "quantize f32.gguf q.gguf --type q8_0"),
    "merge": ("merged", "merge model lora -o merged"),
    "train": ("run", f"train store0 -o run --layers 1 --hidden 16 --heads 2 {SMALL}"),
    "finetune": ("run", f"finetune model texts/a.txt -o run --lora {SMALL}"),
    "report": ("page.html", "report lora_run -o page.html"),
}


@pytest.fixture(scope="module")
def folder(story_store: Path, make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read."""
    out = tmp_path_factory.mktemp("kills") / "folder"
    (out / "texts").mkdir(parents=True)
    text = "\n\n".join(f"Once upon a time number {i} a llama counted {i * i} sheep." for i in range(600))
    (out / "texts" / "a.txt").write_text(text)
    make_checkpoint(out / "model", "gpt2")
    make_checkpoint(out / "llama", "llama")
    shutil.copytree(story_store, out / "store0")
    before = Path.cwd()
    os.chdir(out)
    try:
        assert main(["export", "model", "f32.gguf", "--type", "f32", "--verify", "no"]) == 0
        words = f"finetune {out / 'model'} texts/a.txt -o lora_run --lora {SMALL}".split()
        assert main(words) == 0
    finally:
        os.chdir(before)
    shutil.copytree((out / "lora_run" / "latest").resolve(), out / "lora")
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_killed_anywhere(folder: Path, command: str) -> None:
    result, words = COMMANDS[command]
    kills = min(int(MAX_KILLS), 15) if command in ("train", "finetune") else int(MAX_KILLS)  # each takes seconds
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(kills), str(folder), result, *words.split()],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) >= 5, "too few changes were seen"
