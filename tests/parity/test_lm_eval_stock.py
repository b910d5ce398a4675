"""lm-evaluation-harness on a checkpoint, by the one command of docs/evaluation.md: its bits per byte are ours, and its
results are the same from `llamita serve`."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.checkpoint import load_model
from llamita.convert.export import export
from llamita.stories.generate import generate_stories
from llamita.tokenizer import load_tokenizer

pytestmark = pytest.mark.compat

ROOT = Path(__file__).resolve().parents[2]


def bits_without_eos(checkpoint: Path, texts: list[str]) -> float:
    """Bits per byte of the texts, each from BOS, as lm_eval counts them: the end of a text is not asked for."""
    model, tokenizer = load_model(checkpoint).eval(), load_tokenizer(checkpoint)
    assert tokenizer.bos_id is not None
    nats = 0.0
    for text in texts:
        ids = tokenizer.encode(text)
        assert len(ids) <= model.config.max_position_embeddings
        with torch.no_grad():
            logits = model(torch.tensor([[tokenizer.bos_id, *ids[:-1]]]))[0]
        nats += float(torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids), reduction="sum"))
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def test_bits_per_byte_and_endings(make_checkpoint: Callable[..., Path], tmp_path: Path, engine_build: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'lm_eval[hf]'")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", max_position_embeddings=1024)
    stories = list(generate_stories(6))
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    script = ROOT / "benchmarks" / "lm_eval_tasks.py"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}

    def run(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, *words], env=os.environ | offline, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr

    def results(model: str, arguments: str) -> dict[str, Any]:
        run(
            *("-m", "lm_eval", "--model", model, "--model_args", arguments),
            *("--include_path", str(tmp_path / "tasks"), "--tasks", "val_bits,endings"),
            *("--device", "cpu", "--output_path", str(tmp_path / model)),
        )
        (path,) = (tmp_path / model).rglob("results*.json")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"]
        return found

    run(str(script), str(tmp_path / "stories.txt"), "--model", str(checkpoint), "--out", str(tmp_path / "tasks"))
    hf = results("hf", f"pretrained={checkpoint},add_bos_token=False")
    theirs = hf["val_bits"]["bits_per_byte,none"]
    assert math.isclose(theirs, bits_without_eos(checkpoint, [story.strip() for story in stories]), rel_tol=1e-5)
    assert 0 <= hf["endings"]["acc,none"] <= 1

    export(checkpoint, tmp_path / "mine.gguf", "f32")
    command = [sys.executable, "-m", "llamita", "serve", str(tmp_path / "mine.gguf"), "--port", "0", "--quiet"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://[\d.:]+", line)))
            served = results(
                "local-completions",
                f"model=mine,base_url={address}/v1/completions,tokenizer={checkpoint},tokenizer_backend=huggingface,"
                "max_length=1024,add_bos_token=False",
            )
        finally:
            server.terminate()
    assert math.isclose(served["val_bits"]["bits_per_byte,none"], theirs, rel_tol=1e-5)
    assert served["endings"]["acc,none"] == hf["endings"]["acc,none"]
