"""--track: names and numbers sent to trackers, resumed runs, and trackers that fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamita.errors import ConfigError, TrainingError
from llamita.run_directory import read_metrics, scalars
from llamita.training.metrics_log import MetricsLog, check_trackers

TRAIN = {
    "kind": "train", "tokens": 100, "epoch": 0.5, "loss": 3.0, "bpb": 1.5, "learning_rate": 0.01, "gradient_norm": 0.7,
    "tokens_per_second": 50.0, "mfu": None, "seconds": 2.0,
}  # fmt: skip
NAMES = {"train/epoch", "train/loss", "train/bpb", "train/lr", "train/grad_norm", "train/tok_s"}


def train_line(step: int, **changes: Any) -> dict[str, Any]:
    return {**TRAIN, "step": step, "tokens": 100 * step, **changes}


def eval_line(step: int) -> dict[str, Any]:
    return {
        "kind": "eval", "step": step, "tokens": 100 * step, "bpb": 1.4, "sample": "One day", "seconds": 3.0,
        "samples": {"distinct_2": 0.9},
    }  # fmt: skip


class FakeTracker:
    """Replaces wandb and trackio and records calls; `fails_at`: the name of a call that raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, fails_at: str = "") -> None:
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.finished, self.fails_at = 0, fails_at
        module = SimpleNamespace(
            init=self.init,
            log=self.log,
            finish=self.finish,
            Settings=lambda **settings: settings,
            define_metric=self.define_metric,
        )
        self.module = module
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]

    def _maybe_fail(self, call: str) -> None:
        if self.fails_at == call:
            raise RuntimeError(f"no network\nin {call}")

    def init(self, **arguments: Any) -> Any:
        self._maybe_fail("init")
        self.inits.append(arguments)
        print("a greeting")
        return self.module

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        assert (name, step_metric) in (("step", None), ("*", "step"))

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self._maybe_fail("log")
        assert step in (None, values["step"])
        self.logged.append(values)

    def finish(self) -> None:
        self._maybe_fail("finish")
        self.finished += 1


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"config": {"steps": 30, "seed": 7}}))
    return folder


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_names_and_numbers(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    fake = FakeTracker(monkeypatch, name)
    log = MetricsLog(run, track=(name,))
    log.append(train_line(10))
    log.append(eval_line(10))
    log.close()
    assert fake.inits[0]["project"] == "llamita" and fake.inits[0]["config"] == {"steps": 30, "seed": 7}
    assert fake.inits[0]["name"].startswith("my-run") and fake.inits[0]["resume"] == "allow"
    trained, evaluated = fake.logged
    assert trained.keys() == NAMES | {"step", "tokens", "seconds"}
    assert (trained["step"], trained["tokens"], trained["train/lr"]) == (10, 1000, 0.01)
    assert (
        evaluated["val/bpb"] == 1.4
        and evaluated["val/sample"] == "One day"
        and evaluated["val/samples.distinct_2"] == 0.9
    )
    assert fake.finished == 1
    if name == "trackio":
        assert capsys.readouterr().out == "", "greetings do not go to stdout"


def test_a_resumed_run_sends_no_step_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after step 30, resumed from step 10: steps 20 and 30 are not sent again."""
    fake = FakeTracker(monkeypatch, "wandb")
    log = MetricsLog(run, track=("wandb",))
    log.append(train_line(10))
    saved = log.num_bytes
    log.append(train_line(20))
    log.append(train_line(30))
    again = MetricsLog(run, saved, ("wandb",))
    for step in (20, 30, 40):
        again.append(train_line(step))
    assert [values["step"] for values in fake.logged] == [10, 20, 30, 40]
    assert fake.inits[0]["id"] == fake.inits[1]["id"]
    assert [line["step"] for line in read_metrics(run)] == [10, 20, 30, 40]


def test_a_tracker_that_comes_late_gets_what_was_before(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(run)
    log.append(train_line(10))
    saved = log.num_bytes
    log.append(train_line(20))
    fake = FakeTracker(monkeypatch, "trackio")
    again = MetricsLog(run, saved, ("trackio",))
    again.append(train_line(20))
    assert [values["step"] for values in fake.logged] == [10, 20]


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_failing_tracker_is_reported_once_and_dropped(run: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    FakeTracker(monkeypatch, "wandb", fails_at=call)
    other, messages = FakeTracker(monkeypatch, "trackio"), []
    log = MetricsLog(run, track=("wandb", "trackio"), say=messages.append)
    for step in (10, 20):
        log.append(train_line(step))
    log.close()
    assert messages == [f"wandb failed, training continues without it: no network in {call}"]
    assert len(other.logged) == 2 and other.finished == 1 and len(read_metrics(run)) == 2


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append({"kind": "train", "step": 1})
    kept = log.num_bytes
    log.append({"kind": "train", "step": 2, "text": "é"})
    again = MetricsLog(tmp_path, kept)
    again.append({"kind": "train", "step": 3})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tr')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]
    with pytest.raises(TrainingError, match="expected at least 999999 bytes"):
        MetricsLog(tmp_path, 999999)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(
        ConfigError, match="cannot track with wandb: the package is not installed; run pip install wandb"
    ):
        check_trackers(("wandb",))
    check_trackers(())


def test_a_missing_package_leaves_nothing_behind(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from llamita.cli import main

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    assert main(["train", str(story_store), "--out", str(tmp_path / "run"), "--steps", "1", "--track", "trackio"]) == 2
    messages = capsys.readouterr().err
    assert "pip install trackio" in messages and messages.count("\n") == 1 and not (tmp_path / "run").exists()


def test_numbers_are_finite_and_flat() -> None:
    line = {"kind": "eval", "step": 1, "bpb": float("nan"), "ok": True, "a": {"b": 2, "c": {"d": 0.5}}, "mfu": None}
    assert scalars(line) == {"step": 1, "a.b": 2, "a.c.d": 0.5}


def tensorboard_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-not-found]

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.compat
def test_tensorboard_reads_what_was_written(run: Path) -> None:
    """A killed and resumed run that diverged: each step once, as computed last."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    pytest.importorskip("torch")
    messages: list[str] = []
    log = MetricsLog(run, track=("tensorboard",), say=messages.append)
    log.append(train_line(10))
    saved = log.num_bytes
    log.append(train_line(20, loss=9.0))
    again = MetricsLog(run, saved, ("tensorboard",), messages.append)
    again.append(train_line(20))
    again.append(eval_line(20))
    again.append(train_line(30, loss=99.0))
    again.append({"kind": "rollback", "step": 35, "to_step": 20, "reason": "inf", "learning_rate_factor": 0.5})
    again.append(train_line(30, loss=2.5))
    again.close()
    log.close()
    assert messages == []
    scalars = tensorboard_scalars(run)
    assert scalars["train/loss"] == [(10, 3.0), (20, 3.0), (30, 2.5)]
    assert [step for step, _ in scalars["val/bpb"]] == [20] and scalars["progress/tokens"][0] == (10, 1000.0)
    assert scalars.keys() >= NAMES
