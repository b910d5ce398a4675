"""--dtype on CPUs: what is measured, what auto takes, what the plan and the log say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamita.config import TrainConfig  # noqa: E402
from llamita.run_directory import remembered_run  # noqa: E402
from llamita.training import cpu_dtype, planner  # noqa: E402
from llamita.training.cpu_dtype import candidate_dtypes, inherited_dtype, product_speedup  # noqa: E402
from llamita.training.distributed import Ranks  # noqa: E402
from llamita.training.planner import describe_plan, plan_run, resolve_plan  # noqa: E402
from llamita.training.pretraining import train  # noqa: E402

CPU = torch.device("cpu")
RANKS = Ranks(0, 1, CPU)
LENGTHS = np.full(50_000, 200)


def make_config(**changes: Any) -> TrainConfig:
    values = {"minutes": 10.0, "context": 128} | changes
    return TrainConfig(data=Path("store"), out=Path("run"), **values)


@pytest.mark.parametrize("times", [(1.0, 0.25), (1.0, 40.0)])
def test_products_are_timed_in_turns(times: tuple[float, float], replace_clock: Callable[..., None]) -> None:
    """The first of each warms up, and a delay of one does not count."""
    pairs = [(100.0, 100.0), *[times] * 3, (9.0, 300.0), *[times] * 5]
    clock = iter(np.cumsum([0.0, *(step for pair in pairs for seconds in pair for step in (seconds, 0.0))]))
    replace_clock(perf_counter=lambda: next(clock))
    assert product_speedup() == pytest.approx(times[0] / times[1])


@pytest.mark.parametrize(("cost", "turns"), [(0.4, 4), (10.0, 2)])
def test_slow_steps_are_timed_in_fewer_turns(
    cost: float, turns: int, monkeypatch: pytest.MonkeyPatch, replace_clock: Callable[..., None]
) -> None:
    """The type that is faster in its best turn wins."""
    probed: list[str] = []

    def probe(config: TrainConfig, *args: Any) -> float:
        probed.append(config.dtype)
        return 0.5 if probed == ["float32", "bfloat16", "float32", "bfloat16"] else 1.0

    monkeypatch.setattr(planner, "probe_seconds_per_token", probe)
    replace_clock(monotonic=lambda: cost * len(probed))
    timing = planner.time_dtypes(make_config(), ("float32", "bfloat16"), 4096, CPU, 1, 1.0)
    assert probed == ["float32", "bfloat16"] * turns
    assert timing == planner.Timing(0.5, "bfloat16", 2.0)


@pytest.mark.parametrize(
    ("changes", "speedup", "expected"),
    [
        ({}, 2.0, ("float32", "bfloat16")),
        ({}, 1.2, ("float32",)),
        ({}, 0.02, ("float32",)),
        ({"minutes": None}, 2.0, ("float32", "bfloat16")),  # ten minutes
        ({"minutes": None, "steps": 10}, 2.0, ("float32", "bfloat16")),
        ({"teacher": Path("teacher")}, 2.0, ("float32", "bfloat16")),
        ({"activation_checkpointing": True}, 2.0, ("float32",)),
        ({"dtype": "float32"}, 2.0, ("float32",)),
        ({"dtype": "bfloat16"}, 0.02, ("bfloat16",)),
    ],
)
def test_what_is_worth_timing(
    changes: dict[str, Any], speedup: float, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_dtype, "product_speedup", lambda: speedup)
    assert candidate_dtypes(make_config(**changes), CPU) == expected


@pytest.mark.parametrize(
    ("changes", "earlier", "speedup", "expected"),
    [
        ({}, "bfloat16", 2.0, "bfloat16"),
        ({}, "bfloat16", 1.2, "float32"),
        ({}, "float32", 2.0, "auto"),
        ({}, None, 2.0, "auto"),  # of a checkpoint from elsewhere
        ({"minutes": 1.0}, "bfloat16", 2.0, "auto"),  # the planner times steps
        ({"activation_checkpointing": True}, "bfloat16", 2.0, "auto"),  # float32 on every CPU
        ({"dtype": "float32"}, "bfloat16", 2.0, "float32"),
        ({"dtype": "bfloat16"}, "float32", 0.02, "bfloat16"),
    ],
)
def test_a_run_that_goes_on_keeps_the_type(
    changes: dict[str, Any], earlier: str | None, speedup: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_dtype, "product_speedup", lambda: speedup)
    assert inherited_dtype(make_config(**{"minutes": None} | changes), earlier, RANKS) == expected


@pytest.fixture
def bfloat16_from(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From this width on, steps in bfloat16 take half the time; below they take 5 % less."""
    width = [0]

    def probe(config: TrainConfig, *args: Any) -> float:
        assert config.hidden
        gain = 2.0 if config.hidden >= width[0] else 1.05
        return 1e-8 * config.hidden**2 / (gain if config.dtype == "bfloat16" else 1.0)

    monkeypatch.setattr(cpu_dtype, "product_speedup", lambda: 4.0)
    monkeypatch.setattr(planner, "probe_seconds_per_token", probe)
    return width


def test_the_plan_takes_bfloat16_where_its_steps_are_faster(bfloat16_from: list[int]) -> None:
    fast = plan_run(make_config(), vocab_size=2048, lengths=LENGTHS, device=CPU)
    assert fast.filled.dtype == "bfloat16"
    cells = {row[0]: row[1] for row in describe_plan(fast)[0]}
    assert cells["arithmetic"] == "bfloat16: bfloat16 is 2 times as fast here"
    bfloat16_from[0] = 10**6
    slow = plan_run(make_config(), vocab_size=2048, lengths=LENGTHS, device=CPU)
    assert slow.filled.dtype == "float32" and slow.best.tokens_per_second < fast.best.tokens_per_second
    cells = {row[0]: row[1] for row in describe_plan(slow)[0]}
    assert cells["arithmetic"] == "float32: bfloat16 is 1.05 times as fast here"
    given = plan_run(make_config(dtype="float32"), vocab_size=2048, lengths=LENGTHS, device=CPU)
    assert {row[0]: row[1] for row in describe_plan(given)[0]}["arithmetic"] == "float32"


def test_a_given_shape_is_timed_too(bfloat16_from: list[int]) -> None:
    said: list[str] = []
    resolve = {"vocab_size": 2048, "lengths": LENGTHS, "ranks": RANKS, "say": said.append}
    shape = {"layers": 2, "hidden": 128, "heads": 4}
    bfloat16_from[0] = 128
    assert resolve_plan(make_config(**shape), **resolve)[0].dtype == "bfloat16"
    assert said[1].startswith("dtype: bfloat16: bfloat16 is 2 times as fast here; loss within 0.2 %")
    said.clear()
    assert resolve_plan(make_config(**shape | {"hidden": 64}), **resolve)[0].dtype == "float32"
    assert said[1] == "dtype: float32: bfloat16 is 1.05 times as fast here"


@pytest.mark.parametrize(("long", "short"), [({"steps": 3000}, {"steps": 30}), ({"epochs": 0.5}, {"epochs": 0.01})])
def test_runs_counted_in_steps_or_epochs_are_timed_if_they_are_long(
    long: dict[str, float], short: dict[str, float], bfloat16_from: list[int]
) -> None:
    """They say how to repeat a run: the bits of a seed depend on the type."""
    said: list[str] = []
    resolve = {"vocab_size": 2048, "lengths": LENGTHS, "ranks": RANKS, "say": said.append}
    shape = {"layers": 2, "hidden": 128, "heads": 4, "minutes": None}
    assert resolve_plan(make_config(**shape, **short), **resolve)[0].dtype == "float32" and not said
    assert resolve_plan(make_config(**shape, **long), **resolve)[0].dtype == "bfloat16"
    assert said.pop().endswith("at equal tokens; --dtype float32 makes runs repeatable")
    assert resolve_plan(make_config(**shape, **long, dtype="float32"), **resolve)[0].dtype == "float32" and not said


def test_a_resumed_run_keeps_its_type(
    bfloat16_from: list[int], story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_dtype, "MIN_TIMED_FLOPS", 0.0)
    shape = {"layers": 1, "hidden": 32, "heads": 2, "context": 32, "micro_batch_size": 1, "threads": 1}
    config = TrainConfig(data=story_store, out=tmp_path / "run", steps=2, **shape)
    train(config)
    assert recorded_dtype(config.out) == "bfloat16"
    bfloat16_from[0] = 10**6
    train(dataclasses.replace(config, resume=True, steps=4))
    assert recorded_dtype(config.out) == "bfloat16"
    other = dataclasses.replace(config, out=tmp_path / "other")
    train(other)
    assert recorded_dtype(other.out) == "float32"


def recorded_dtype(run: Path) -> str:
    found = remembered_run(run)
    assert found is not None
    return str(found["config"]["dtype"])


def test_a_slow_bfloat16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(planner, "product_speedup", lambda: 1 / 44)
    config = make_config(dtype="bfloat16", layers=2, hidden=64, heads=2)
    resolved, _ = resolve_plan(config, vocab_size=2048, lengths=LENGTHS, ranks=RANKS, say=said.append)
    assert resolved.dtype == "bfloat16"
    assert said[0] == ("dtype: bfloat16 products take 44 times as long as float32's on this processor; --dtype auto "
                       "takes the faster type")  # fmt: skip
