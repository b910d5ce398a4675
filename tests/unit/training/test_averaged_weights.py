"""--averaged-fraction: the weights after the last steps of a schedule are averaged; the average is the result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from llamita.checkpoint import load_tensors  # noqa: E402
from llamita.config import TrainConfig  # noqa: E402
from llamita.errors import CheckpointError  # noqa: E402
from llamita.run_directory import read_metrics  # noqa: E402
from llamita.training.defaults import AVERAGED_FRACTION, fill_defaults  # noqa: E402
from llamita.training.optimizer import AVERAGE  # noqa: E402
from llamita.training.pretraining import train  # noqa: E402
from llamita.training.schedule import AVERAGED_FINAL_RATE  # noqa: E402
from llamita.training.trainer import Trainer  # noqa: E402
from tests.training_runs import TINY, hold_nothing_out, stop_at, untimed  # noqa: E402


def make_config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    values = {"steps": 10, "averaged_fraction": 0.3, "log_interval": 1, "eval_interval": 5}
    return TrainConfig(data=store, out=out, **(TINY | values | changes))


@pytest.fixture
def after_steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights after each step of the runs of a test."""
    found: list[dict[str, Tensor]] = []
    real = Trainer._step

    def step(self: Trainer) -> None:
        real(self)
        found.append({name: each.detach().clone() for name, each in self.model.named_parameters()})

    monkeypatch.setattr(Trainer, "_step", step)
    return found


def is_mean(run: Path, weights: list[dict[str, Tensor]]) -> bool:
    """Whether the latest checkpoint holds the mean of these weights."""
    saved = load_tensors(run / "latest")
    means = {name: torch.stack([each[name] for each in weights]).mean(0) for name in weights[0]}
    return all(torch.allclose(saved[name], mean, atol=1e-6) for name, mean in means.items())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_result_is_the_mean_of_the_last_weights(
    story_store: Path, tmp_path: Path, after_steps: list[dict[str, Tensor]], optimizer: str
) -> None:
    run = tmp_path / "run"
    train(make_config(story_store, run, optimizer=optimizer))
    assert is_mean(run, after_steps[-3:]) and not is_mean(run, after_steps[-1:])
    rates = [line["learning_rate"] for line in read_metrics(run) if line["kind"] == "train"]
    assert AVERAGED_FINAL_RATE < rates[-1] / max(rates) < AVERAGED_FINAL_RATE + 0.1
    train(make_config(story_store, tmp_path / "other", optimizer=optimizer, final_lr_fraction=0.0))
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "other") if line["kind"] == "train"]
    assert rates[-1] / max(rates) < 0.1


@pytest.mark.parametrize("stops", [(3,), (7,), (8, 9), (9,)])
def test_an_interrupted_run_continues_bit_for_bit(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    config = make_config(story_store, tmp_path / "whole")
    train(config)
    for stop in stops:
        with monkeypatch.context() as patched:
            stop_at(patched, stop)
            config = dataclasses.replace(config, out=tmp_path / "parts", resume=stop != stops[0])
            assert train(config).interrupted
    assert not train(dataclasses.replace(config, resume=True)).interrupted
    whole, parts = (load_tensors(tmp_path / name / "latest") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    kinds = [[line for line in untimed(tmp_path / name) if line["kind"] == "train"] for name in ("whole", "parts")]
    assert kinds[0] == kinds[1]


def test_each_generation_has_its_own_average(
    story_store: Path, tmp_path: Path, after_steps: list[dict[str, Tensor]]
) -> None:
    run = tmp_path / "run"
    train(make_config(story_store, run, steps=8, generations=2, averaged_fraction=0.5, eval_interval=None))
    assert is_mean(run, after_steps[-2:])
    teacher = load_tensors(run / "teacher")
    for name, weights in after_steps[2].items():
        assert torch.allclose(teacher[name], (weights + after_steps[3][name]) / 2, atol=1e-6)


def test_without_held_out_text(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_steps: list[dict[str, Tensor]]
) -> None:
    hold_nothing_out(monkeypatch)
    assert train(make_config(story_store, tmp_path / "run", eval_interval=None)).summary["finished"]
    assert is_mean(tmp_path / "run", after_steps[-3:])


def test_a_finished_run_is_trained_longer(
    story_store: Path, tmp_path: Path, after_steps: list[dict[str, Tensor]]
) -> None:
    """Its next average begins anew."""
    run = tmp_path / "run"
    train(make_config(story_store, run))
    train(make_config(story_store, run, steps=20, resume=True))
    assert len(after_steps) == 20 and is_mean(run, after_steps[-3:])


def test_a_checkpoint_without_its_averages_is_refused(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(story_store, tmp_path / "run")
    with monkeypatch.context() as patched:
        stop_at(patched, 8)
        assert train(config).interrupted
    (path,) = (tmp_path / "run" / "latest" / "training").glob("*.safetensors")
    tensors = load_file(path)
    assert any(name.startswith(f"{AVERAGE}/") for name in tensors)
    save_file({name: each for name, each in tensors.items() if not name.startswith(f"{AVERAGE}/")}, path)
    with pytest.raises(CheckpointError, match=f"cannot resume: optimizer state lacks {AVERAGE}/"):
        train(dataclasses.replace(config, resume=True))


def test_the_default_is_for_text_that_is_read_many_times(story_store: Path, tmp_path: Path) -> None:
    def fraction(epochs: float, **changes: Any) -> float | None:
        values = {"averaged_fraction": None, "steps": None, "epochs": epochs} | changes
        return fill_defaults(make_config(story_store, tmp_path, **values), torch.device("cpu"), 1).averaged_fraction

    assert [fraction(epochs) for epochs in (1.0, 4.0, 5.0, 100.0)] == [0.0, 0.0, AVERAGED_FRACTION, AVERAGED_FRACTION]
    assert fraction(6.0, generations=2) == 0.0 and fraction(9.0, generations=2) == AVERAGED_FRACTION
    assert fraction(9.0, averaged_fraction=0.0) == 0.0 and fraction(1.0, averaged_fraction=0.5) == 0.5
    assert fraction(9.0, qat="q4_0") == 0.0, "not measured"
    assert fraction(9.0, resume=True) == 0.0, "the run began before there were averages"
