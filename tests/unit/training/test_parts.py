"""The loop's parts, one by one: schedule, budget, optimizer, loss, metrics, run directory, defaults, signals."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from llamita.cli.finetune import Finetune  # noqa: E402
from llamita.cli.train import Train  # noqa: E402
from llamita.config import PRESETS, FinetuneConfig, ModelConfig, RunConfig, TrainConfig, fields_by_resume  # noqa: E402
from llamita.console import format_count, format_seconds  # noqa: E402
from llamita.errors import CheckpointError, ConfigError, OutputError, TrainingError  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.run_directory import (  # noqa: E402
    check_same_run,
    describe_run,
    open_run,
    read_metrics,
    resumes_run,
)
from llamita.training import loss as loss_module  # noqa: E402
from llamita.training.budget import Budget, Progress  # noqa: E402
from llamita.training.defaults import decay_for, fill_defaults, model_config  # noqa: E402
from llamita.training.distributed import choose_device, rendezvous_prefix, start_ranks  # noqa: E402
from llamita.training.flops import flops_per_token, peak_flops  # noqa: E402
from llamita.training.loss import SummedLoss  # noqa: E402
from llamita.training.metrics import MetricsLog  # noqa: E402
from llamita.training.schedule import Schedule  # noqa: E402
from llamita.training.signals import StopSignal  # noqa: E402

CPU = torch.device("cpu")
TINY = ModelConfig(50, 16, 24, 2, 4, 2, 4, 32)


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(data=Path("store"), out=Path("run"), **changes)


# ---------------------------------------------------------------- schedule


def test_wsd_rises_stays_and_falls_in_straight_lines() -> None:
    schedule = Schedule("wsd", warmup_fraction=0.1, decay_fraction=0.4, final=0.1)
    expected = {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.6: 1.0, 0.8: 0.55, 1.0: 0.1, 1.5: 0.1}
    assert all(math.isclose(schedule.factor(at), value, abs_tol=1e-12) for at, value in expected.items())


def test_cosine_is_half_a_wave() -> None:
    schedule = Schedule("cosine", warmup_fraction=0.2, decay_fraction=0.4, final=0.0)
    expected = {0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}
    assert all(math.isclose(schedule.factor(at), value, abs_tol=1e-12) for at, value in expected.items())


def test_linear_falls_from_the_end_of_the_warmup() -> None:
    schedule = Schedule("linear", warmup_fraction=0.2, decay_fraction=0.65, final=0.5)
    expected = {0.1: 0.5, 0.2: 1.0, 0.6: 0.75, 1.0: 0.5}
    assert all(math.isclose(schedule.factor(at), value, abs_tol=1e-12) for at, value in expected.items())


def test_without_warmup_and_cooldown_the_peak_holds() -> None:
    assert [Schedule("wsd", 0.0, 0.0, 0.0).factor(at) for at in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]


# ---------------------------------------------------------------- budget


def test_steps_end_the_run_and_the_learning_rate_is_never_zero() -> None:
    budget = Budget(make_config(steps=4), tokens_per_step=10, epoch_tokens=1000, val_tokens=10)
    middles = [budget.midpoint(Progress(step=step)) for step in range(4)]
    assert middles == [0.125, 0.375, 0.625, 0.875]
    assert not budget.is_over(Progress(step=3)) and budget.is_over(Progress(step=4))


def test_epochs_are_counted_in_tokens() -> None:
    budget = Budget(make_config(epochs=1.5), tokens_per_step=10, epoch_tokens=100, val_tokens=10)
    assert not budget.is_over(Progress(step=9, tokens=149)) and budget.is_over(Progress(step=9, tokens=150))


def test_minutes_leave_room_for_the_last_evaluation() -> None:
    budget = Budget(make_config(minutes=10), tokens_per_step=10, epoch_tokens=100, val_tokens=10)
    budget.plan_evaluations(20.0, Progress())
    budget.step_seconds = 2.0
    assert budget.training_seconds == 600 - 20 - 2 and budget.evaluations == 2
    assert not budget.is_over(Progress(step=1, seconds=576.9)) and budget.is_over(Progress(step=1, seconds=577.1))
    assert math.isclose(budget.progress(Progress(seconds=289)), 0.5)


def test_a_guess_made_on_a_busy_machine_is_made_again() -> None:
    budget = Budget(make_config(minutes=10), tokens_per_step=10, epoch_tokens=100, val_tokens=10)
    assert budget.wants_probe(Progress(step=1, seconds=1))
    budget.plan_evaluations(500.0, Progress(step=1, seconds=1))
    assert not budget.wants_probe(Progress(step=2, seconds=5)) and budget.wants_probe(Progress(step=3, seconds=45))
    budget.plan_evaluations(20.0, Progress(step=3, seconds=45))
    assert math.isclose(budget.progress(Progress(seconds=289)), 0.5)
    budget.note_evaluation(18.0, 1)
    assert not budget.wants_probe(Progress(seconds=570))


def test_minutes_leave_room_for_what_follows_several_epochs() -> None:
    budget = Budget(make_config(minutes=10), 10, epoch_tokens=1000, val_tokens=10, reserved_seconds=8.0)
    assert budget.training_seconds == 598
    budget.update_forecast(Progress(step=1, tokens=1000, seconds=3.0))
    assert budget.training_seconds == 598, "too early to tell"
    budget.update_forecast(Progress(step=2, tokens=160, seconds=59.8))
    assert budget.training_seconds == 590, "1.6 epochs at this pace"
    budget.update_forecast(Progress(step=3, tokens=700, seconds=295.0))
    assert budget.training_seconds == 598, "1.4 epochs at this pace"
    budget.update_forecast(Progress(step=4, tokens=1500, seconds=650.0))
    assert budget.training_seconds == 590, "1.5 epochs were seen"


def test_evaluations_cost_a_twentieth_of_the_run() -> None:
    budget = Budget(make_config(steps=100), tokens_per_step=1000, epoch_tokens=100, val_tokens=7500)
    assert budget.evaluations == 3  # 100,000 tokens trained, 2,500 an evaluation: 2 of them are 5 %
    due = [step for step in range(100) if budget.wants_evaluation(Progress(step=step), done=1 if step > 40 else 0)]
    assert due[0] == 34 and 67 in due and 66 not in due


def test_an_interval_of_steps_is_kept() -> None:
    budget = Budget(make_config(steps=100, eval_interval=7), tokens_per_step=1, epoch_tokens=1, val_tokens=1)
    assert [step for step in range(20) if budget.wants_evaluation(Progress(step=step), 0)] == [7, 14]


# ---------------------------------------------------------------- loss


@pytest.mark.parametrize("tied", [True, False])
def test_chunked_loss_and_gradients_equal_whole_logits(monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    monkeypatch.setitem(loss_module.CHUNK_LOGITS, "cpu", 3 * TINY.vocab_size)  # 7 chunks, the last one smaller
    torch.manual_seed(0)
    model = Llama(dataclasses.replace(TINY, tie_word_embeddings=tied)).initialize()
    inputs, targets = torch.randint(0, 50, (4, 5)), torch.randint(0, 50, (4, 5))
    targets[1, 2:] = -100
    (SummedLoss(model)(inputs, targets) * 0.3).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    total = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")
    (total * 0.3).backward()
    torch.testing.assert_close(SummedLoss(model)(inputs, targets), total)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_loss_without_gradient_is_the_same_number() -> None:
    model = Llama(TINY).initialize(torch.Generator().manual_seed(0))
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        quiet = SummedLoss(model)(ids, ids)
    assert quiet.item() == SummedLoss(model)(ids, ids).item() and not quiet.requires_grad


def test_bfloat16_is_close_and_its_gradients_are_float32() -> None:
    model = Llama(TINY).initialize(torch.Generator().manual_seed(0))
    ids = torch.arange(12).view(2, 6)
    total = SummedLoss(model, torch.bfloat16)(ids, ids)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, SummedLoss(model)(ids, ids), rtol=1e-2, atol=0)
    total.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in model.parameters())


# ---------------------------------------------------------------- configuration


def test_presets_have_the_sizes_that_their_names_say() -> None:
    for name, size in {"0.5M": 0.5e6, "1.5M": 1.5e6, "3M": 3e6, "7M": 7e6}.items():
        filled = fill_defaults(make_config(preset=name), CPU, 1)
        shape = model_config(filled, SimpleNamespace(vocab_size=4096, bos_id=0, eos_id=0))  # type: ignore[arg-type]
        assert abs(shape.num_parameters / size - 1) < 0.1, (name, shape.num_parameters)
        assert shape.head_dim in (32, 64)
    assert len(PRESETS) == 8


def test_defaults_leave_nothing_open_and_flags_win() -> None:
    filled = fill_defaults(make_config(), CPU, 1)
    assert filled.minutes == 10 and filled.micro_batch_size and filled.micro_batch_size * filled.context == 2048
    assert filled.dtype == "float32" and filled.learning_rate and filled.beta2
    shared = fill_defaults(make_config(steps=5), CPU, 2)
    assert shared.minutes is None and shared.micro_batch_size * 2 == filled.micro_batch_size
    own = fill_defaults(make_config(layers=3, hidden=96, heads=3, learning_rate=0.5, micro_batch_size=7), CPU, 1)
    assert (own.layers, own.kv_heads, own.ffn, own.learning_rate, own.micro_batch_size) == (3, 3, 256, 0.5, 7)
    wider = fill_defaults(make_config(preset="3M", layers=2, context=64), CPU, 1)
    assert (wider.layers, wider.hidden, wider.context) == (2, 192, 64)


def test_a_text_that_is_read_many_times_decays_more() -> None:
    assert [decay_for(epochs) for epochs in (0.1, 2, 3, 15, 1000)] == [0.1, 0.1, 0.1, 0.5, 1.0]
    assert fill_defaults(make_config(epochs=9.0), CPU, 1).weight_decay == 0.3
    steps = make_config(steps=100, context=64, micro_batch_size=4)
    assert fill_defaults(steps, CPU, 1, epoch_tokens=100 * 256 // 9).weight_decay == pytest.approx(0.3, abs=1e-3)
    assert fill_defaults(dataclasses.replace(steps, weight_decay=0.2), CPU, 1, epoch_tokens=10).weight_decay == 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5, "minutes": 1.0}, "--minutes and --steps exclude each other"),
        ({"minutes": 0.0}, "--minutes: expected a positive number, found 0"),
        ({"minutes": math.nan}, "--minutes: expected a positive number, found nan"),
        ({"learning_rate": -1.0}, "--learning-rate: expected a positive number"),
        ({"dropout": 1.0}, "--dropout: expected a share between 0 and 1, found 1.0"),
        ({"beta2": 1.5}, "--beta2: expected a share between 0 and 1"),
        (
            {"warmup_fraction": 0.5, "decay_fraction": 0.6},
            "--warmup-fraction 0.5 and --decay-fraction 0.6: expected a sum of at most 1",
        ),
        ({"weight_decay": -0.1}, "--weight-decay: expected 0 or more"),
        ({"hidden": 64}, "also needs --layers, --heads"),
    ],
)
def test_flags_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


def test_shapes_and_types_that_cannot_be_are_refused() -> None:
    tokenizer = SimpleNamespace(vocab_size=99, bos_id=0, eos_id=0)
    odd = fill_defaults(make_config(layers=1, hidden=30, heads=4), CPU, 1)
    with pytest.raises(ConfigError, match="--hidden 30 and --heads 4: expected heads of the same even size"):
        model_config(odd, tokenizer)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="bfloat16 needs CUDA"):
        fill_defaults(make_config(dtype="bfloat16"), CPU, 1)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == CPU
    for name in ("tpu", "mps", "nonsense:3"):
        with pytest.raises(TrainingError, match="expected auto, cpu, cuda or cuda:N"):
            choose_device(name)
    with pytest.raises(TrainingError, match="CUDA device 99 is not there"):
        choose_device("cuda:99")
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(TrainingError, match="environment variable RANK"), start_ranks("cpu", None):
        pass


def test_processes_that_start_again_meet_each_other_and_not_the_dead() -> None:
    """torchrun keeps its store: what three earlier starts left there, one of them broken off, misleads nobody."""
    store, names = torch.distributed.HashStore(), []
    store.set("note/1", "of a process that died before it had an answer")
    with ThreadPoolExecutor(3) as pool:
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):  # who comes first
            meetings = [pool.submit(rendezvous_prefix, store, rank, 3) for rank in order]
            (name,) = {meeting.result(timeout=60) for meeting in meetings}
            names.append(name)
    assert len(set(names)) == 3


@pytest.mark.parametrize(("rank", "absent"), [(0, 1), (2, 0)])
def test_who_does_not_come_is_named(rank: int, absent: int) -> None:
    with pytest.raises(TrainingError, match=rf"process {rank} has waited 0\.05 s for process {absent}; see"):
        rendezvous_prefix(torch.distributed.HashStore(), rank, 3, seconds=0.05)


# ---------------------------------------------------------------- the run directory


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


def test_a_run_directory_is_neither_overwritten_nor_made_up(tmp_path: Path) -> None:
    config = dataclasses.replace(make_config(steps=3), out=tmp_path / "run")
    again, description = dataclasses.replace(config, resume=True), describe_run(config, TINY, 8, {"tokens": 5})
    with pytest.raises(CheckpointError, match="holds no run"):
        open_run(again, description)
    assert not config.out.exists()
    assert open_run(config, description) is False
    with pytest.raises(OutputError, match="it holds a run; --resume it, or choose another --out"):
        open_run(config, description)
    assert open_run(again, description) is False, "killed before its first checkpoint: starts from the beginning"
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("…")
    with pytest.raises(OutputError, match="exists and is not a run"):
        open_run(dataclasses.replace(config, out=tmp_path / "letters"), description)
    (config.out / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*run\.json"):
        open_run(again, description)


def test_a_run_is_resumed_by_its_own_command(tmp_path: Path) -> None:
    trained = dataclasses.replace(make_config(steps=3), out=tmp_path / "run")
    tuned = FinetuneConfig(checkpoint=Path("base"), data=Path("a.jsonl"), out=tmp_path / "tuned", lora=True)
    for config in (trained, tuned):
        open_run(config, describe_run(config, TINY, 8, {}))
    with pytest.raises(
        ConfigError, match="expected a run of llamita finetune, found one of llamita train; use llamita train"
    ):
        resumes_run(dataclasses.replace(tuned, out=trained.out, resume=True), "")
    with pytest.raises(ConfigError, match="expected a run of llamita train, found one of llamita finetune"):
        resumes_run(dataclasses.replace(trained, out=tuned.out, resume=True), "")
    with pytest.raises(ConfigError, match="--lora: expected True"):
        resumes_run(dataclasses.replace(tuned, lora=False, resume=True), "")


@pytest.mark.parametrize(
    ("command", "fields"), [(Train, {"data", "out", "compile"}), (Finetune, {"checkpoint", "val"})]
)
def test_resume_rules_hold_where_a_command_annotates_a_field_anew(command: type[RunConfig], fields: set[str]) -> None:
    assert fields <= set(fields_by_resume(command, "may change"))
    assert {"seed", "steps", "learning_rate"}.isdisjoint(fields_by_resume(command, "may change"))
    assert "weight_decay" in fields_by_resume(command, "planned")


def test_what_a_resumed_run_may_not_change_is_named(tmp_path: Path) -> None:
    config = make_config(steps=3)
    before = describe_run(config, TINY, 8, {"tokens": 5})
    check_same_run(config, before, describe_run(make_config(steps=3, resume=True, threads=3), TINY, 8, {"tokens": 5}))
    for now, message in (
        (describe_run(make_config(steps=4), TINY, 8, {"tokens": 5}), "--steps: expected 3, as in run.json, found 4"),
        (describe_run(make_config(steps=3, seed=1), TINY, 8, {"tokens": 5}), "--seed: expected 0"),
        (
            describe_run(make_config(steps=3), TINY, 9, {"tokens": 5}),
            "rows per step .* expected 8, as in run.json, found 9",
        ),
        (describe_run(make_config(steps=3), TINY, 8, {"tokens": 6}), "tokens of the data: expected 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_same_run(config, before, now)


def test_first_signal_asks_second_insists() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignal() as stop:
        assert not stop.is_set
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


# ---------------------------------------------------------------- what is shown


def test_counts_and_times_are_short() -> None:
    assert [format_count(n) for n in (7, 999, 12_345, 123_456, 2_500_000)] == ["7", "999", "12.3k", "123k", "2.5M"]
    assert [format_seconds(s) for s in (0.2, 65, 3723)] == ["0:00", "1:05", "1:02:03"]


def test_flops_count_the_classifier_once_and_no_lookups() -> None:
    weights = TINY.num_parameters
    assert flops_per_token(TINY, 32) == 6 * weights + 6 * 2 * 4 * 4 * 32
    untied = dataclasses.replace(TINY, tie_word_embeddings=False)
    assert flops_per_token(untied, 32) == flops_per_token(TINY, 32)
    peak = peak_flops(CPU, torch.float32)
    assert peak is not None and peak > 1e8
