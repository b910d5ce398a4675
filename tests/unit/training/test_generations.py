"""--generations: several models in one run, each taught by the best one before it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_model, load_tensors  # noqa: E402
from llamita.config import TrainConfig  # noqa: E402
from llamita.errors import ConfigError, TrainingError  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.report.history import read_history  # noqa: E402
from llamita.report.outlook import run_outlook  # noqa: E402
from llamita.run_directory import read_metrics  # noqa: E402
from llamita.training import pretraining  # noqa: E402
from llamita.training.budget import Budget, Progress  # noqa: E402
from llamita.training.defaults import decay_for, noise_for  # noqa: E402
from llamita.training.distillation import DistillationLoss  # noqa: E402
from llamita.training.divergence import DivergenceError  # noqa: E402
from llamita.training.generations import TEACHER_COST, epochs_each, generations_for, stretch_of  # noqa: E402
from llamita.training.planner import apply_generations  # noqa: E402
from llamita.training.pretraining import SEED_STEP, train  # noqa: E402
from llamita.training.trainer import Trainer  # noqa: E402
from llamita.training.weight_rounding import WeightRounding  # noqa: E402
from tests.training_runs import TINY, hold_nothing_out, stop_at, untimed  # noqa: E402


def make_config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    values = {"steps": 12, "generations": 3, "log_interval": 1, "eval_interval": 2}
    return TrainConfig(data=store, out=out, **(TINY | values | changes))


def fake_scores(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Evaluations find these bits per byte, times a constant."""
    real, rest = pretraining.bits_per_byte, iter(scores)

    def fake(*arguments: Any, **options: Any) -> Any:
        return dataclasses.replace(real(*arguments, **options), nats=next(rest))

    monkeypatch.setattr(pretraining, "bits_per_byte", fake)


def test_generations_share_the_time_so_that_all_have_the_same_steps() -> None:
    left, lengths = 1.0, []
    for generation in range(3):
        stretch = stretch_of(generation, 3, is_timed=True)
        lengths.append(stretch.of_rest * left)
        assert math.isclose(lengths[-1], stretch.of_run)
        assert math.isclose(stretch.run_progress(0.0), 1 - left, abs_tol=1e-12)
        left -= lengths[-1]
        assert math.isclose(stretch.run_progress(1.0), 1 - left)
    assert math.isclose(left, 0.0, abs_tol=1e-12)
    assert math.isclose(lengths[1], TEACHER_COST * lengths[0]) and lengths[1] == lengths[2]
    assert [stretch_of(number, 4, is_timed=False).of_rest for number in range(4)] == [1 / 4, 1 / 3, 1 / 2, 1]
    assert math.isclose(epochs_each(30.0, 3) * (1 + 2 * TEACHER_COST), 30.0)


def test_more_epochs_are_for_more_generations() -> None:
    counts = [generations_for(epochs) for epochs in (0.5, 7, 7.1, 16, 25, 26, 1000)]
    assert counts == [1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("limit", [{"steps": 60}, {"epochs": 6.0}, {"minutes": 10}])
def test_the_budget_of_each_generation(limit: dict[str, Any]) -> None:
    """A step has 10 tokens of 100 and takes ten seconds, with a teacher too."""
    budget = Budget(TrainConfig(data=Path("store"), out=Path("run"), **limit), 10, epoch_tokens=100, val_tokens=0)
    at, begun, shown = Progress(), [], []
    for generation in range(3):
        at.first_step, at.first_tokens, at.first_second = at.step, at.tokens, at.seconds
        budget.begin(at, stretch_of(generation, 3, is_timed=budget.is_timed))
        begun.append(at.step)
        assert budget.progress(at) == 0.0
        while not budget.is_over(at):
            at.step, at.tokens, at.seconds = at.step + 1, at.tokens + 10, at.seconds + 9.967
            shown.append(budget.run_progress(at))
            budget.note_step(9.967)
        assert math.isclose(budget.progress(at), 1.0, abs_tol=0.04)
    assert begun == ([0, 16, 38] if budget.is_timed else [0, 20, 40]) and at.step == 60
    assert shown == sorted(shown) and math.isclose(shown[-1], 1.0, abs_tol=0.01)


def test_each_model_is_new_and_learns_from_the_best(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[tuple[int, dict[str, Any], dict[str, Any] | None]] = []
    real = Trainer._step

    def step(self: Trainer) -> None:
        if self.state.progress.step == self.state.progress.first_step:
            loss = self.task.loss
            assert isinstance(loss, DistillationLoss)
            teacher = loss.teacher and {name: each.clone() for name, each in loss.teacher.named_parameters()}
            weights = {name: each.detach().clone() for name, each in self.model.named_parameters()}
            assert not any(self.optimizer.state(each) for each in self.model.parameters())
            taught.append((self.state.progress.step, weights, teacher))
        real(self)

    monkeypatch.setattr(Trainer, "_step", step)
    fake_scores(monkeypatch, [3.0, 2.0, 2.5, 2.6, 1.5, 1.0])  # the second generation is no better than the first
    run = tmp_path / "run"
    result = train(make_config(story_store, run))
    assert [step for step, _, _ in taught] == [0, 4, 8]
    assert taught[0][2] is None
    for number, (_, weights, _) in enumerate(taught):
        model = Llama(load_model(run).config)
        generator = torch.Generator().manual_seed(SEED_STEP * number)
        expected = {
            name: model.fresh_weight(name, weight.shape, generator) for name, weight in model.named_parameters()
        }
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert taught[1][2] is not None and taught[2][2] is not None
    teacher = load_tensors(run / "teacher")
    assert (run / "teacher").readlink().name == "step-00000004"
    for each in (taught[1][2], taught[2][2]):
        assert all(torch.equal(each[name], teacher[name]) for name in teacher)
    assert (run / "best").readlink().name == "step-00000012"
    assert sorted(path.name for path in run.glob("step-*")) == ["step-00000004", "step-00000012"]
    assert result.summary["generations"] == 3 and not result.interrupted


@pytest.mark.parametrize("stops", [(3,), (4,), (5, 9), (8,)])
def test_an_interrupted_run_continues_bit_for_bit(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    """Also between two generations: the new one begins again."""
    config = make_config(story_store, tmp_path / "whole")
    train(config)
    for stop in stops:
        with monkeypatch.context() as patched:
            stop_at(patched, stop)
            config = dataclasses.replace(config, out=tmp_path / "parts", resume=stop != stops[0])
            assert train(config).interrupted
    assert not train(dataclasses.replace(config, resume=True)).interrupted
    assert untimed(tmp_path / "parts") == untimed(tmp_path / "whole")
    whole, parts = ((tmp_path / name / "latest" / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_a_generation_that_stops_learning_makes_room_for_the_next(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_scores(monkeypatch, [2.0, 2.1, 2.2, *[1.9 - 0.1 * number for number in range(7)]])
    train(make_config(story_store, tmp_path / "run", steps=20, generations=2, early_stopping_patience=2))
    begun = [line["step"] for line in read_metrics(tmp_path / "run") if line["kind"] == "generation"]
    assert begun == [6]
    rates = {line["step"]: line["learning_rate"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train"}
    assert max(rates) == 20 and rates[20] < 0.1 * max(rates.values()), "it takes all that is left"


def test_without_held_out_text_the_last_checkpoint_teaches(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_nothing_out(monkeypatch)
    train(make_config(story_store, tmp_path / "run", steps=8, generations=2))
    assert (tmp_path / "run" / "teacher").readlink().name == "step-00000004"


@pytest.mark.parametrize(("failing", "back_to"), [(5, 4), (7, 6)])
def test_a_divergence_of_a_later_generation(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, back_to: int
) -> None:
    """Before its first checkpoint it begins again, with the same teacher and lower rates."""
    real, failed = Trainer._step, []

    def step(self: Trainer) -> None:
        if self.state.progress.step == failing and not failed:
            failed.append(failing)
            raise DivergenceError("a test")
        real(self)

    monkeypatch.setattr(Trainer, "_step", step)
    train(make_config(story_store, tmp_path / "run", eval_interval=6 if failing == 5 else 2))
    lines = read_metrics(tmp_path / "run")
    (rollback,) = (line for line in lines if line["kind"] == "rollback")
    assert rollback["to_step"] == back_to
    begun = [line["step"] for line in lines if line["kind"] == "generation"]
    assert begun == ([4, 4, 8] if failing == 5 else [4, 8])
    trained = [line["step"] for line in lines[lines.index(rollback) :] if line["kind"] == "train"]
    assert trained == list(range(back_to + 1, 13))


def test_only_the_last_generation_rounds_its_weights(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, rounded = WeightRounding.applied, set()

    def applied(self: WeightRounding, step: int) -> Any:
        rounded.add(step)
        return real(self, step)

    monkeypatch.setattr(WeightRounding, "applied", applied)
    train(make_config(story_store, tmp_path / "run", generations=2, steps=20, qat="q8_0", eval_interval=10))
    assert rounded == {18, 19, 20}


def test_the_plan_divides_the_epochs() -> None:
    config = TrainConfig(data=Path("store"), out=Path("run"), minutes=10)
    planned = apply_generations(config, 30.0)
    each = epochs_each(30.0, 3)
    assert planned.generations == 3
    assert (planned.weight_decay, planned.token_noise) == (decay_for(each), noise_for(each))
    assert apply_generations(config, 3.0).generations == 1
    given = dataclasses.replace(config, generations=1)
    assert apply_generations(given, 30.0).weight_decay == decay_for(30.0)
    taught = dataclasses.replace(config, teacher=Path("teacher"))
    sharded = dataclasses.replace(config, fsdp=True)
    assert apply_generations(taught, 30.0).generations == apply_generations(sharded, 30.0).generations == 1


def test_what_several_generations_exclude(story_store: Path, tmp_path: Path) -> None:
    for name, value in (("teacher", Path("one")), ("from_", Path("one")), ("fsdp", True)):
        with pytest.raises(ConfigError, match=rf"--generations and --{name.rstrip('_')} exclude each other"):
            make_config(story_store, tmp_path, **{name: value})
    with pytest.raises(ConfigError, match="--generations 3: expected a step for each, found --steps 2"):
        make_config(story_store, tmp_path, steps=2)
    with pytest.raises(ConfigError, match="--generations: expected a positive number"):
        make_config(story_store, tmp_path, generations=0)
    run = tmp_path / "run"
    train(make_config(story_store, run, steps=3))
    with pytest.raises(TrainingError, match="found several generations"):
        run_outlook(read_history(run))


def test_a_finished_run_is_trained_longer_in_its_last_generation(story_store: Path, tmp_path: Path) -> None:
    config = make_config(story_store, tmp_path / "run")
    train(config)
    taught = (tmp_path / "run" / "teacher").readlink()
    result = train(dataclasses.replace(config, steps=16, resume=True))
    assert result.summary["steps"] == 16 and (tmp_path / "run" / "teacher").readlink() == taught
    begun = [line["step"] for line in read_metrics(tmp_path / "run") if line["kind"] == "generation"]
    assert begun == [4, 8]
