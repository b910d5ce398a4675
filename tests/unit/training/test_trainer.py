"""The trainer on a tiny store: learning, run directories, resuming, rollbacks, error messages."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_model, load_tensors, load_training_state  # noqa: E402
from llamita.cli import main  # noqa: E402
from llamita.config import TrainConfig  # noqa: E402
from llamita.data.token_store import TokenStore  # noqa: E402
from llamita.errors import CheckpointError, ConfigError, OutputError, TrainingError  # noqa: E402
from llamita.eval.bits_per_byte import bits_per_byte  # noqa: E402
from llamita.run_directory import read_metrics  # noqa: E402
from llamita.training import planner  # noqa: E402
from llamita.training import pretraining as pretraining_module  # noqa: E402
from llamita.training import speed as speed_module  # noqa: E402
from llamita.training import task as task_module  # noqa: E402
from llamita.training import trainer as trainer_module  # noqa: E402
from llamita.training.distributed import Ranks  # noqa: E402
from llamita.training.loss import SummedLoss  # noqa: E402
from llamita.training.prefetch import StepStream  # noqa: E402
from llamita.training.pretraining import train  # noqa: E402
from llamita.training.run import explain_out_of_memory, run_task  # noqa: E402
from llamita.training.trainer import Trainer  # noqa: E402
from llamita.training.trainer_state import MetricsAccumulator, TrainerState  # noqa: E402
from tests.training_runs import TINY, stop_at, untimed  # noqa: E402


def make_config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    values = {"steps": 12, "log_interval": 5, "eval_interval": 6}
    return TrainConfig(data=store, out=out, **(TINY | values | changes))


def weights(run: Path) -> bytes:
    return (run / "latest" / "model.safetensors").read_bytes()


def folder_state(run: Path) -> dict[str, tuple[int, bytes]]:
    """The modification time and content of each file."""
    files = [path for path in run.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_training_lowers_the_loss_and_fills_the_run_directory(story_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(make_config(story_store, run, steps=40, eval_interval=20, prompt="Once"))
    assert not result.interrupted and result.is_first
    lines = read_metrics(run)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(5, 41, 5))
    evaluated = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in evaluated] == [20, 40]
    assert evaluated[1]["bpb"] < evaluated[0]["bpb"] < 8 and evaluated[0]["sample"].startswith("Once")
    assert {path.name for path in run.iterdir() if not path.name.startswith("step-")} == {
        "best", "latest", "metrics.jsonl", "report.html", "run.json", "summary.json",
    }  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    assert summary["val"] == evaluated[1]["bpb"] and summary["steps"] == 40
    assert (run / "best").resolve() == (run / "latest").resolve() == (run / "step-00000040").resolve()
    store = TokenStore(story_store)
    score = bits_per_byte(SummedLoss(load_model(run)), store.split("val"), store.bos_id)
    assert math.isclose(score.bits_per_byte, evaluated[1]["bpb"], rel_tol=1e-6)


def test_best_and_latest_may_differ(story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([2.0, 3.0, 2.5])

    def fake(*args: Any, **kwargs: Any) -> Any:
        return dataclasses.replace(real(*args, **kwargs), nats=next(scores))

    real = bits_per_byte
    monkeypatch.setattr(pretraining_module, "bits_per_byte", fake)
    train(make_config(story_store, tmp_path / "run", steps=9, eval_interval=3))
    run = tmp_path / "run"
    assert (run / "best").readlink().name == "step-00000003" and (run / "latest").readlink().name == "step-00000009"
    assert sorted(path.name for path in run.glob("step-*")) == ["step-00000003", "step-00000009"]


def test_a_model_that_memorizes_stops_early(story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After --early-stopping-patience worse evaluations in a row, also when resumed; 0: never."""
    real = bits_per_byte
    for name, patience, steps in (("two", 2, 12), ("never", 0, 21)):
        scores = iter([2.0, 2.5, 1.0, 3.0, 3.0, 3.0, 3.0])
        monkeypatch.setattr(
            pretraining_module, "bits_per_byte",
            lambda *args, **kwargs: dataclasses.replace(real(*args, **kwargs), nats=next(scores)),  # noqa: B023
        )  # fmt: skip
        config = make_config(story_store, tmp_path / name, steps=21, eval_interval=3, early_stopping_patience=patience)
        if name == "two":
            with monkeypatch.context() as patched:
                stop_at(patched, 9)  # after the first worse one
                assert train(config).interrupted
            scores = iter([3.0, 3.0])
            config = dataclasses.replace(config, resume=True)
        result = train(config)
        assert not result.interrupted and result.summary["steps"] == (15 if name == "two" else steps)
        assert (tmp_path / name / "best").readlink().name == "step-00000009"


def test_accumulated_passes_equal_one_big_pass(story_store: Path, tmp_path: Path) -> None:
    train(make_config(story_store, tmp_path / "one", micro_batch_size=8))
    train(make_config(story_store, tmp_path / "four", micro_batch_size=2, grad_accum_steps=4))
    one, four = untimed(tmp_path / "one"), untimed(tmp_path / "four")
    for a, b in zip(one, four, strict=True):
        assert (a["step"], a["tokens"]) == (b["step"], b["tokens"])
        assert math.isclose(a["loss"], b["loss"], rel_tol=1e-5)


def test_epochs_count_every_token(story_store: Path, tmp_path: Path) -> None:
    result = train(make_config(story_store, tmp_path / "run", steps=None, epochs=0.2, micro_batch_size=64))
    tokens = TokenStore(story_store).split("train").num_tokens
    assert 0.2 * tokens <= result.summary["tokens"] < 0.2 * tokens + 64 * 64


def test_minutes_are_kept(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace_clock: Callable[..., None]
) -> None:
    """With a clock of its own, on which a step takes a tenth of a second."""
    clock, real = [0.0], Trainer._step

    def now() -> float:
        clock[0] += 1e-4
        return clock[0]

    def step(self: Trainer) -> None:
        clock[0] += 0.1
        real(self)

    replace_clock(monotonic=now)
    monkeypatch.setattr(planner, "PROBE_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(Trainer, "_step", step)
    changes = {"steps": None, "minutes": 0.15, "eval_interval": None, "dtype": "float32", "averaged_fraction": 0.0}
    result = train(make_config(story_store, tmp_path / "run", **changes))
    assert 5.0 < clock[0] < 9.1
    assert result.summary["steps"] > 1 and result.summary["val"] is not None
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert rates[-1] < 0.25 * max(rates), "the schedule ends when the time does"


def test_an_evaluation_that_is_not_a_number_is_no_best_one() -> None:
    state = TrainerState(MetricsAccumulator.empty(torch.device("cpu")))
    assert not state.note_evaluation(math.nan) and state.best is None and state.num_worse == 1
    assert state.note_evaluation(2.0) and state.num_worse == 0
    assert not state.note_evaluation(math.nan) and state.val is None and state.best is not None


def slowly(generate: Callable[..., Iterator[int]]) -> Callable[..., Iterator[int]]:
    """generate as on a busy machine: two seconds per token."""

    def slow(*arguments: Any, **settings: Any) -> Iterator[int]:
        for token in generate(*arguments, **settings):
            time.sleep(2.0)
            yield token

    return slow


def test_a_slow_evaluation_is_cut_to_the_minutes(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """All held-out rows would take longer than the minutes; a resumed run evaluates the same part."""
    real, shares = bits_per_byte, []

    def slow(*args: Any, share: float = 1.0, **options: Any) -> Any:
        shares.append(share)
        time.sleep(60 * share)
        return real(*args, share=share, **options)

    monkeypatch.setattr(pretraining_module, "bits_per_byte", slow)
    config = make_config(story_store, tmp_path / "run", steps=None, minutes=0.5, eval_interval=None)
    with monkeypatch.context() as patched:
        stop_at(patched, 0)
        assert train(config).interrupted
    said = capfd.readouterr().err
    assert "% of the held-out data, which takes 0:03 of --minutes 0.5" in said
    path = config.out / "latest" / "training" / "state.json"
    state = json.loads(path.read_text())
    chosen = state["trainer"]["val_share"]
    assert 0 < chosen < 0.1 and max(shares) < 0.2
    state["trainer"]["progress"]["seconds"] = 30.0  # the last step: evaluate, and end
    path.write_text(json.dumps(state))
    result = train(dataclasses.replace(config, resume=True))
    assert shares[-1] == chosen and result.summary["val"] is not None


def test_much_held_out_text_is_evaluated_in_part(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """5 % of 10 billion tokens took 8 minutes of an H100 each time. A resumed run evaluates the same
    part."""
    real, shares = bits_per_byte, []

    def watched(*args: Any, share: float = 1.0, **options: Any) -> Any:
        shares.append(share)
        return real(*args, share=share, **options)

    monkeypatch.setattr(pretraining_module, "bits_per_byte", watched)
    val_tokens = TokenStore(story_store).split("val").num_tokens
    monkeypatch.setattr(speed_module, "MAX_VAL_TOKENS", val_tokens // 4)
    config = make_config(story_store, tmp_path / "run", eval_interval=None, steps=8)
    with monkeypatch.context() as patched:
        stop_at(patched, 2)
        train(config)
    assert "evaluation: on 25 % of the held-out data" in capfd.readouterr().err
    train(dataclasses.replace(config, resume=True))
    assert abs(shares[-1] - 0.25) < 0.01 and max(shares) < 0.26


def test_time_decides_on_the_held_out_share_up_to_a_limit(replace_clock: Callable[..., None]) -> None:
    """Simulated: 500 million tokens, at a million a second and at ten thousand."""
    clock, timed = [0.0], []

    class Held:
        val_tokens, val_share, speed = 500_000_000, 1.0, 1e6

        def limit_evaluation(self, share: float) -> float:
            self.val_share = share
            return share

        def evaluate(self) -> None:
            timed.append(self.val_share * self.val_tokens)
            clock[0] += timed[-1] / self.speed

    replace_clock(monotonic=lambda: clock[0])
    task, ranks = Held(), Ranks(0, 1, torch.device("cpu"))
    share, seconds = speed_module.affordable_val_share(task, ranks, 10.0)  # type: ignore[arg-type]
    assert math.isclose(share, 0.02) and math.isclose(seconds, 10.0) and max(timed) <= 10_000_000
    task.speed = 1e4
    share, seconds = speed_module.affordable_val_share(task, ranks, 10.0)  # type: ignore[arg-type]
    assert math.isclose(share * 500_000_000, 600_000) and seconds == 60.0, "a tenth of the minutes"


def test_minutes_that_the_start_uses_up_are_refused(story_store: Path, tmp_path: Path) -> None:
    config = make_config(story_store, tmp_path / "run", steps=None, minutes=0.1)
    with pytest.raises(TrainingError, match=r"--minutes 0.1: the start alone took \d\d+ s, .* at least --minutes \d+"):
        train(config, started=time.monotonic() - 60)
    assert not config.out.exists()


@pytest.mark.slow
def test_minutes_are_kept_when_generating_is_slow(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole samples of 160 tokens would take five minutes each."""
    monkeypatch.setattr(task_module, "generate", slowly(task_module.generate))
    result = train(make_config(story_store, tmp_path / "run", steps=None, minutes=0.2, eval_interval=None))
    assert result.summary["seconds"] < 60.0 and result.summary["steps"] > 1


@pytest.mark.parametrize(
    ("step", "number", "optimizer"),
    [
        (0, signal.SIGTERM, "muon"),
        (5, signal.SIGINT, "adamw"),
        (7, signal.SIGINT, "muon"),
        pytest.param(0, signal.SIGTERM, "adamw", marks=pytest.mark.slow),
        pytest.param(5, signal.SIGINT, "muon", marks=pytest.mark.slow),
        pytest.param(7, signal.SIGINT, "adamw", marks=pytest.mark.slow),
        (7, signal.SIGINT, "muon in bfloat16"),
        (10, signal.SIGINT, "muon, rounded"),
    ],
)
def test_a_signal_saves_and_resuming_changes_nothing(
    story_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    number: signal.Signals,
    optimizer: str,
) -> None:
    """Bit for bit, with dropout, between two lines of metrics and before an evaluation (step 6)."""
    options: dict[str, Any] = {"dropout": 0.1, "optimizer": optimizer}
    if optimizer == "muon in bfloat16":  # without dropout, which the fused passes lack
        options = {"optimizer": "muon", "dtype": "bfloat16"}
    elif optimizer == "muon, rounded":
        options = {"optimizer": "muon", "qat": "q4_0"}
    train(make_config(story_store, tmp_path / "whole", **options))
    with monkeypatch.context() as patched:
        stop_at(patched, step, number)
        stopped = train(make_config(story_store, tmp_path / "parts", **options))
    assert stopped.interrupted and stopped.summary["steps"] == step + 1 and not stopped.summary["finished"]
    resumed = train(make_config(story_store, tmp_path / "parts", resume=True, **options))
    assert not resumed.interrupted
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    a, b = (load_training_state(tmp_path / name).tensors for name in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_batches_made_ahead_change_nothing(story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, interrupted and resumed."""
    train(make_config(story_store, tmp_path / "plain"))
    monkeypatch.setattr(trainer_module, "StepStream", lambda *arguments, ahead: StepStream(*arguments, ahead=True))
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        assert train(make_config(story_store, tmp_path / "ahead")).interrupted
    train(make_config(story_store, tmp_path / "ahead", resume=True))
    assert weights(tmp_path / "plain") == weights(tmp_path / "ahead")
    assert untimed(tmp_path / "plain") == untimed(tmp_path / "ahead")


def test_a_signal_cuts_an_evaluation_short(story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(make_config(story_store, tmp_path / "whole"))
    with monkeypatch.context() as patched:
        patched.setattr(
            trainer_module.TrainingDisplay, "show_stage", lambda self, *progress: os.kill(os.getpid(), signal.SIGINT)
        )
        stopped = train(make_config(story_store, tmp_path / "parts"))
    assert stopped.interrupted and stopped.summary["steps"] == 6
    assert not any(line["kind"] == "eval" for line in read_metrics(tmp_path / "parts"))
    train(make_config(story_store, tmp_path / "parts", resume=True))
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")


def test_resuming_a_finished_run_does_nothing(story_store: Path, tmp_path: Path) -> None:
    """It says so; no file of the run directory is written."""
    run = tmp_path / "run"
    first = train(make_config(story_store, run))
    before = folder_state(run)
    result = train(make_config(story_store, run, resume=True))
    assert folder_state(run) == before and result.was_finished and not first.was_finished
    assert result.summary == first.summary and result.summary["finished"]


def test_a_run_that_was_killed_before_its_summary_is_not_finished(story_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(make_config(story_store, run))
    (run / "summary.json").unlink()
    assert not train(make_config(story_store, run, resume=True)).was_finished
    assert json.loads((run / "summary.json").read_text())["steps"] == 12


def test_a_run_can_be_trained_longer(story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule begins anew at its end, the same for a run that is killed once more."""
    options = {"log_interval": 1, "warmup_fraction": 0.25, "decay_fraction": 0.5}
    for name in ("whole", "parts"):
        train(make_config(story_store, tmp_path / name, **options))
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["steps"] == 12
    train(make_config(story_store, tmp_path / "whole", steps=20, resume=True, **options))
    with monkeypatch.context() as patched:
        stop_at(patched, 15)
        assert train(make_config(story_store, tmp_path / "parts", steps=20, resume=True, **options)).interrupted
    result = train(TrainConfig(data=story_store, out=tmp_path / "parts", resume=True))
    assert result.summary["steps"] == 20 and result.config.warmup_fraction == 0.25
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "whole") if line["kind"] == "train"]
    peak = max(rates)
    assert len(rates) == 20 and rates[11] < 0.1 * peak
    assert rates[11] < rates[12] < rates[13] < rates[14] == peak and rates[19] < 0.15 * peak
    assert [line["step"] for line in read_metrics(tmp_path / "whole") if line["kind"] == "eval"] == [6, 12, 18, 20]
    settings = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert settings["config"]["steps"] == 20 and settings["extended_at"] == 12


@pytest.mark.parametrize("again", [[3.0, 2.5, 2.0, 1.5], [1.2, 3.0, 3.0, 2.0]])
def test_early_stopping_counts_from_the_new_schedule(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: list[float]
) -> None:
    """While the rate rises again, held-out loss is worse than the best, and that is no reason to stop."""
    real, scores = bits_per_byte, iter([2.0, 1.0, *again])
    monkeypatch.setattr(
        pretraining_module, "bits_per_byte",
        lambda *args, **kwargs: dataclasses.replace(real(*args, **kwargs), nats=next(scores)),
    )  # fmt: skip
    config = make_config(story_store, tmp_path / "run", steps=4, eval_interval=2, early_stopping_patience=2)
    train(config)
    result = train(dataclasses.replace(config, steps=12, resume=True))
    assert result.summary["steps"] == 12 and result.summary["best_step"] == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps=2"], "--steps: expected at least 3, as in run.json, found 2; a run can only get longer"),
        (["--epochs=9"], "its length is given by --steps 3; give a larger --steps instead of --epochs"),
        (["--schedule=wsd"], "--schedule: expected cosine, as in run.json, found wsd; leave it out or give the same"),
        (["--micro-batch-size=3"], "rows per step"),
    ],
)
def test_resume_takes_its_options_from_the_run(
    story_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    run = tmp_path / "run"
    train(make_config(story_store, run, steps=3, schedule="cosine"))
    assert main(["train", "--out", str(run), "--resume"]) == 0
    assert "to train longer, resume it with a larger --steps, such as --steps 6" in capfd.readouterr().err
    assert main(["train", "--out", str(run), "--resume", *flags]) == 2
    assert message in capfd.readouterr().err
    assert main(["train", "--out", str(run), "--resume", "--steps=5", "--save-minutes=9"]) == 0
    assert "the schedule is laid anew over steps 3 to 5: the learning rate rises from" in capfd.readouterr().err
    assert json.loads((run / "summary.json").read_text())["steps"] == 5


def test_a_damaged_option_in_run_json_is_named(story_store: Path, tmp_path: Path) -> None:
    config = make_config(story_store, tmp_path / "run", steps=2)
    train(config)
    settings = json.loads((config.out / "run.json").read_text())
    settings["config"]["hidden"] = "wide"
    (config.out / "run.json").write_text(json.dumps(settings))
    with pytest.raises(
        CheckpointError, match='hidden: expected a value of --hidden, found "wide"; the file is damaged'
    ):
        train(dataclasses.replace(config, resume=True))


def test_resuming_when_the_minutes_are_used_up_ends_the_run(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps since the last line of metrics are still logged, with their learning rate."""
    run = tmp_path / "run"
    options = {"steps": None, "minutes": 1.0, "eval_interval": None, "generations": 1}
    with monkeypatch.context() as patched:
        stop_at(patched, 2)
        assert train(make_config(story_store, run, **options)).interrupted
    path = run / "latest" / "training" / "state.json"
    state = json.loads(path.read_text())
    state["trainer"]["progress"]["seconds"] = 60.0
    path.write_text(json.dumps(state))
    result = train(make_config(story_store, run, resume=True, **options))
    assert result.summary["finished"] and result.summary["steps"] == 3
    line = next(line for line in read_metrics(run) if line["kind"] == "train")
    assert line["step"] == 3 and line["learning_rate"] > 0


def test_a_damaged_state_is_named(story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_at(patched, 2)
        train(make_config(story_store, run))
    path = run / "latest" / "training" / "state.json"
    for name in ("rollbacks", "pending", "progress"):
        state = json.loads(path.read_text())
        del state["trainer"][name]
        whole = path.read_text()
        path.write_text(json.dumps(state))
        with pytest.raises(CheckpointError, match=rf"cannot read .*state\.json: trainer\.{name} is missing"):
            train(make_config(story_store, run, resume=True))
        path.write_text(whole)


def test_resuming_with_another_flag_or_other_data_is_refused(story_store: Path, tmp_path: Path) -> None:
    train(make_config(story_store, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"--learning-rate: expected 0\.0\d+, as in run\.json, found 0\.1"):
        train(make_config(story_store, tmp_path / "run", resume=True, learning_rate=0.1))
    with pytest.raises(ConfigError, match="rows per step"):
        train(make_config(story_store, tmp_path / "run", resume=True, micro_batch_size=5))


def poison(monkeypatch: pytest.MonkeyPatch, steps: dict[int, int], value: float = math.inf) -> None:
    """Set weights to this value before each of these steps, the given number of times."""
    real = Trainer._step

    def poisoned(self: Trainer) -> None:
        if steps.get(self.state.progress.step, 0) > 0:
            steps[self.state.progress.step] -= 1
            self.model.model.norm.weight.data.fill_(value)
        real(self)

    monkeypatch.setattr(Trainer, "_step", poisoned)


@pytest.mark.parametrize(("step", "back_to"), [(8, 6), (3, 0)])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_after_divergence_training_goes_on_from_the_last_good_state(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, back_to: int, optimizer: str
) -> None:
    """From the checkpoint of step 6 or from the start, with other rows and half the rate."""
    poison(monkeypatch, {step: 1})
    run = tmp_path / "run"
    result = train(make_config(story_store, run, optimizer=optimizer, log_interval=1))
    assert result.summary["steps"] == 12 and not result.interrupted
    lines = read_metrics(run)
    rollback = next(line for line in lines if line["kind"] == "rollback")
    assert (rollback["step"], rollback["to_step"], rollback["learning_rate_factor"]) == (step + 1, back_to, 0.5)
    assert "expected a finite gradient" in rollback["reason"]
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [*range(1, step + 1), *range(back_to + 1, 13)]
    before, after = ([line for line in trained if line["step"] == back_to + 1][i] for i in (0, 1))
    assert math.isclose(after["learning_rate"], before["learning_rate"] / 2)
    assert after["loss"] != before["loss"], "the rows that led to divergence are not seen again"
    assert all(math.isfinite(line["loss"]) for line in trained)
    assert all(torch.isfinite(tensor).all() for tensor in load_tensors(run / "latest").values())


@pytest.mark.parametrize(("step", "back_to"), [(8, 6), (3, 0)])
def test_the_evaluated_part_is_the_same_after_a_rollback(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, back_to: int
) -> None:
    poison(monkeypatch, {step: 1})
    val_tokens = TokenStore(story_store).split("val").num_tokens
    monkeypatch.setattr(speed_module, "MAX_VAL_TOKENS", val_tokens // 4)
    train(make_config(story_store, tmp_path / "run"))
    assert any(line["kind"] == "rollback" and line["to_step"] == back_to for line in read_metrics(tmp_path / "run"))
    state = json.loads((tmp_path / "run" / "latest" / "training" / "state.json").read_text())
    assert abs(state["trainer"]["val_share"] - 0.25) < 0.01


def test_a_loss_worse_than_guessing_is_divergence_too(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {9: 1}, value=300.0)
    result = train(make_config(story_store, tmp_path / "run", log_interval=1, learning_rate=0.02))
    rollback = next(line for line in read_metrics(tmp_path / "run") if line["kind"] == "rollback")
    assert "below the uniform baseline" in rollback["reason"] and rollback["to_step"] == 6
    assert result.summary["val"] < 4.5, "blind guessing has 5.3"


def test_repeated_divergence_ends_the_run_and_keeps_the_last_checkpoint(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {8: 4})
    run = tmp_path / "run"
    message = r"diverged: step 9: .*after 3 rollbacks; .*--learning-rate below .*last checkpoint: .*latest"
    with pytest.raises(TrainingError, match=message):
        train(make_config(story_store, run))
    assert (run / "latest").readlink().name == "step-00000006"
    assert all(torch.isfinite(tensor).all() for tensor in load_tensors(run / "latest").values())


def test_training_in_a_thread_works(story_store: Path, tmp_path: Path) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(train(make_config(story_store, tmp_path / "run", steps=2))))
    thread.start()
    thread.join()
    assert results[0].summary["steps"] == 2


def test_a_folder_in_use_is_refused_before_anything_is_planned(story_store: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")
    config = make_config(story_store, tmp_path / "letters")
    with pytest.raises(OutputError, match="it exists and is not a run"):
        run_task(config, lambda config, ranks, say: pytest.fail("planned"), time.monotonic())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.07 GB, max allowed: 9.07 GB). Tried to allocate"),
    ],
)
def test_out_of_memory_is_a_one_line_error(error: RuntimeError) -> None:
    with (
        pytest.raises(TrainingError, match=r"out of memory: .*; lower --micro-batch-size") as found,
        explain_out_of_memory(),
    ):
        raise error
    assert "\n" not in str(found.value)
    with pytest.raises(RuntimeError, match="another"), explain_out_of_memory():
        raise RuntimeError("another")


def test_the_command_line(story_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Train, evaluate and resume; each mistake is one line and exit code 2."""
    shape = [
        "--layers=1",
        "--hidden=32",
        "--heads=2",
        "--context=64",
        "--micro-batch-size=4",
        "--log-interval=1",
        "--device=cpu",
    ]
    run = str(tmp_path / "run")
    assert main(["train", str(story_store), "--out", run, *shape, "--steps", "2"]) == 0
    output = capfd.readouterr()
    assert output.out == "" and "tokens per step: 256 (4 rows of 64)" in output.err and "bits per byte" in output.err
    assert main(["eval", run, str(story_store)]) == 0
    output = capfd.readouterr()
    assert output.out.split()[1:4] == ["bits", "per", "byte"] and output.err.startswith("next: llamita export ")
    assert main(["train", str(story_store), "--out", run, *shape, "--steps", "2", "--resume"]) == 0
    output = capfd.readouterr()
    assert output.err.count("\n") == 1 and "finished after 2 steps" in output.err and "larger --steps" in output.err
    mistakes = {
        "no such folder": ["train", str(tmp_path / "nowhere"), "--out", str(tmp_path / "none")],
        "it holds a run": ["train", str(story_store), "--out", run],
        "perhaps you meant --minutes": ["train", str(story_store), "--out", run, "--minute", "3"],
        "holds no run": ["train", str(story_store), "--out", str(tmp_path / "none"), "--resume"],
        "CUDA device": ["train", str(story_store), "--out", str(tmp_path / "none"), "--device", "cuda:99"],
    }
    for message, words in mistakes.items():
        assert main(words) == 2, words
        output = capfd.readouterr()
        assert output.err.count("\n") == 1 and message in output.err and output.out == "", output
    assert not (tmp_path / "none").exists()
