"""DPO runs: held-out pairs are preferred, a resumed run equals an uninterrupted one, errors."""

from __future__ import annotations

import io
import json
import math
import os
import random
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from llamita.checkpoint import load_tensors
from llamita.config import FinetuneConfig
from llamita.errors import CheckpointError, ConfigError, TrainingError
from llamita.finetune import dpo, dpo_evaluate
from llamita.finetune.dpo_evaluate import NAME, Reference, load_reference, save_reference
from llamita.finetune.run import finetune, show_preview
from llamita.training.trainer import Trainer
from tests.training_runs import stop_at, untimed
from tests.unit.finetune.conftest import WORDS, evaluations


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The better answers end in "yes", the worse ones in "no"."""
    chosen = random.Random(1)

    def some(most: int) -> str:
        return " ".join(chosen.choices(WORDS, k=chosen.randrange(1, most)))

    rows = [{"prompt": some(7), "chosen": some(5) + " yes", "rejected": some(5) + " no"} for _ in range(80)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def make_config(base: Path, data: Path, out: Path, **changes: Any) -> FinetuneConfig:
    values: dict[str, Any] = {
        "preference": "dpo", "steps": 10, "log_interval": 4, "eval_interval": 5, "device": "cpu", "threads": 1,
        "val_fraction": 0.25, "learning_rate": 2e-3, "micro_batch_size": 2,
    }  # fmt: skip
    return FinetuneConfig(checkpoint=base, data=data, out=out, **(values | changes))


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
@pytest.mark.parametrize("lora", [False, True])
def test_held_out_pairs_are_preferred(
    chat_checkpoint: Path, pairs: Path, tmp_path: Path, kind: str, lora: bool
) -> None:
    rate = 1e-2 if lora else 2e-3
    config = make_config(
        chat_checkpoint, pairs, tmp_path / "run", preference=kind, lora=lora, steps=30, eval_interval=15,
        learning_rate=rate, beta=0.2,
    )  # fmt: skip
    result = finetune(config)
    first, *_, last = evaluations(tmp_path / "run")
    assert first["step"] == 0 and first["loss"] == pytest.approx(math.log(2) if kind == "dpo" else 1 / (4 * 0.2**2))
    assert (first["margin"], first["accuracy"]) == (0, 0.5)
    assert last["margin"] > 0.1 and last["accuracy"] >= 0.9 and last["loss"] < 0.95 * first["loss"]
    assert last["margin"] == pytest.approx(last["chosen_reward"] - last["rejected_reward"], abs=1e-9)
    assert result.summary["val"] == last["loss"]
    adapter = (tmp_path / "run" / "latest" / "adapter_model.safetensors").is_file()
    assert adapter == lora
    if not lora:
        assert load_tensors(tmp_path / "run").keys() == load_tensors(chat_checkpoint).keys()


def test_the_terminal_and_the_run_count_pairs(
    chat_checkpoint: Path, pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    finetune(make_config(chat_checkpoint, pairs, tmp_path / "run", steps=2))
    said = capfd.readouterr().err
    assert "pairs/s" in said and "tok/s" not in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["targets"] == "pairs"


def test_resumed_equals_uninterrupted(
    chat_checkpoint: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, and the reference is the one of the beginning."""
    options: dict[str, Any] = {"label_smoothing": 0.1, "dropout": 0.1, "steps": 8, "eval_interval": 4}
    finetune(make_config(chat_checkpoint, pairs, tmp_path / "whole", **options))
    with monkeypatch.context() as patched:
        stop_at(patched, 5)
        assert finetune(make_config(chat_checkpoint, pairs, tmp_path / "parts", **options)).interrupted
    reference = (tmp_path / "parts" / NAME).read_bytes()
    (tmp_path / "parts" / NAME).write_bytes(reference[:100])
    with pytest.raises(CheckpointError, match=r"reference\.npz is damaged"):
        finetune(make_config(chat_checkpoint, pairs, tmp_path / "parts", resume=True, **options))
    (tmp_path / "parts" / NAME).write_bytes(reference)
    finetune(make_config(chat_checkpoint, pairs, tmp_path / "parts", resume=True, **options))
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    weights = [(tmp_path / name / "latest" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1] and (tmp_path / "parts" / NAME).read_bytes() == reference


def test_minutes_limit_the_reference(
    chat_checkpoint: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replace_clock: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Simulated: half a second for the log-probabilities of a pair, so that those of all would take
    40 of the 60 seconds. A resumed run uses the same pairs."""
    clock, real, computed = [0.0], dpo_evaluate.answer_log_probabilities, []
    replace_clock(monotonic=lambda: clock[0])

    def slow(loss: Any, part: Any, *args: Any, **options: Any) -> Any:
        computed.append(part.num_documents)
        clock[0] += 0.5 * part.num_documents
        return real(loss, part, *args, **options)

    real_backward = Trainer._backward

    def slow_backward(self: Trainer, *args: Any, **options: Any) -> None:
        clock[0] += 1.5
        if self.state.progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        real_backward(self, *args, **options)

    for module in (dpo, dpo_evaluate):
        monkeypatch.setattr(module, "answer_log_probabilities", slow)
    monkeypatch.setattr(Trainer, "_backward", slow_backward)
    options: dict[str, Any] = {"steps": None, "minutes": 1.0, "eval_interval": None, "save_minutes": 1e6}
    config = make_config(chat_checkpoint, pairs, tmp_path / "run", **options)
    assert finetune(config).interrupted
    said = capfd.readouterr().err
    assert "--minutes 1: training on 17 of 60 pairs, evaluating 6 of 20: the reference takes 20 %" in said
    assert computed[:2] == [4, 17]
    first = load_reference_of(tmp_path / "run")
    computed.clear()
    result = finetune(make_config(chat_checkpoint, pairs, tmp_path / "run", resume=True, **options))
    assert not result.interrupted and result.summary["seconds"] < 66 and result.summary["steps"] > 10
    assert 17 not in computed and [each.shape for each in first] == [(2, 17), (2, 6)]
    assert all(map(np.array_equal, first, load_reference_of(tmp_path / "run")))
    assert result.summary["epochs"] == result.summary["tokens"] / 17


def load_reference_of(run: Path) -> Reference:
    with np.load(run / NAME) as arrays:
        return Reference(arrays["learn"], arrays["val"])


def test_a_clock_that_stands_still_is_no_division_by_zero(
    chat_checkpoint: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """time.monotonic of Python before 3.13 advances in steps of 16 ms on Windows."""
    shares = []

    def still(*args: Any) -> float:
        with monkeypatch.context() as patched:
            patched.setattr(dpo_evaluate, "time", types.SimpleNamespace(monotonic=lambda: 1.0))
            shares.append(dpo_evaluate.affordable_share(*args))
        return shares[0]

    monkeypatch.setattr(dpo, "affordable_share", still)
    monkeypatch.setattr(Trainer, "run", lambda self, stop: True)
    finetune(make_config(chat_checkpoint, pairs, tmp_path / "run", steps=None, minutes=1.0))
    assert shares == [1.0]


def test_the_reference_file(tmp_path: Path) -> None:
    reference = Reference(np.array([[1.0, 2.0], [3.0, 4.0]]), np.zeros((2, 0)))
    assert load_reference(tmp_path, "a", (2, 0)) is None
    save_reference(tmp_path, reference, "a")
    with pytest.raises(CheckpointError, match="expected 4 pairs"):
        load_reference(tmp_path, "a", (4, 0))
    save_reference(tmp_path, reference, "a", (4, 0))
    part = load_reference(tmp_path, "a", (4, 0))
    assert part is not None and part.learn.shape == (2, 2), "of a part of the pairs"
    save_reference(tmp_path, reference, "a")
    found = load_reference(tmp_path, "a", (2, 0))
    assert found is not None and np.array_equal(found.learn, reference.learn) and found.val.shape == (2, 0)
    with pytest.raises(CheckpointError, match="computed from other pairs or another checkpoint"):
        load_reference(tmp_path, "b", (2, 0))
    with pytest.raises(CheckpointError, match="is damaged: expected 3 pairs"):
        load_reference(tmp_path, "a", (3, 0))
    save_reference(tmp_path, Reference(np.full((2, 2), math.nan), np.zeros((2, 0))), "a")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_reference(tmp_path, "a", (2, 0))


def test_pairs_of_a_prompt_are_on_one_side(chat_checkpoint: Path, tmp_path: Path) -> None:
    """With two pairs a prompt, half of the prompts held out: no prompt is learned and judged."""
    rows = [{"prompt": f"Who is {n}?", "chosen": f"{n} yes {m}", "rejected": "no"} for n in range(10) for m in range(2)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    result = finetune(make_config(chat_checkpoint, tmp_path / "a.json", tmp_path / "run", val_fraction=0.5, steps=2))
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert (data["pairs"], data["val"]) == (10, 10) and result.summary["steps"] == 2


def test_preview(chat_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    show_preview(make_config(chat_checkpoint, pairs, tmp_path / "run", preview=2), Console(file=shown, width=100))
    text = shown.getvalue()
    assert text.count(" yes<|im_end|>»") == text.count(" no<|im_end|>»") == 2 and "pairs: 60, 60 kept" in text
    for device in ("xpu", "tpu"):
        with pytest.raises(TrainingError, match=f"device '{device}': expected auto, cpu, cuda, cuda:N or mps"):
            show_preview(make_config(chat_checkpoint, pairs, tmp_path / "run", preview=2, device=device), Console())


def test_refusals(chat_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    def config(**changes: Any) -> FinetuneConfig:
        return make_config(chat_checkpoint, pairs, tmp_path / "run", **changes)

    with pytest.raises(ConfigError, match=r"--beta is a setting of --preference; give both"):
        config(preference=None, beta=0.1)
    with pytest.raises(ConfigError, match=r"--beta: expected a positive number, found 0"):
        config(beta=0.0)
    with pytest.raises(ConfigError, match=r"--label-smoothing: expected 0 to below 0.5, with --preference dpo, found"):
        config(label_smoothing=0.6)
    with pytest.raises(ConfigError, match=r"--label-smoothing: .* found 0.1 with ipo"):
        config(label_smoothing=0.1, preference="ipo")
    with pytest.raises(ConfigError, match=r"--preference and --teacher exclude each other"):
        config(teacher=chat_checkpoint)
    with pytest.raises(ConfigError, match=r"--columns names questions and answers"):
        finetune(config(columns=("a", "b")))
    with pytest.raises(TrainingError, match=r"nothing to train on: .*raise --context"):
        finetune(config(context=8))


def test_a_damaged_checkpoint_is_no_reference(
    make_checkpoint: Callable[..., Path], pairs: Path, tmp_path: Path
) -> None:
    from llamita.checkpoint import load_config, save_checkpoint

    base = make_checkpoint(tmp_path / "base", max_position_embeddings=256)
    tensors = load_tensors(base)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e38)
    save_checkpoint(tmp_path / "wild", load_config(base), tensors, base)
    with pytest.raises(TrainingError, match="expected finite log-probabilities of the answers"):
        finetune(make_config(tmp_path / "wild", pairs, tmp_path / "run"))
