"""--compile auto: the decision, the cache, and (with the stock runtimes' tests) the real probe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.config import ModelConfig, TrainConfig
from llamita.model.llama import Llama
from llamita.training import compile
from llamita.training.compile import ProbeResult, probe, resolve_compile
from llamita.training.distributed import Ranks

RANKS = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def model() -> Llama:
    shape = ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=16,
    )  # fmt: skip
    return Llama(shape)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ProbeResult]:
    """Results that probes will return, last first; the cache is in tmp_path."""
    results: list[ProbeResult] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compile, "probe", lambda *_: results.pop())
    monkeypatch.setattr(compile, "processor_slowdown", lambda: 1.0)
    return results


def flags(tmp_path: Path, **values: Any) -> TrainConfig:
    defaults: dict[str, Any] = {"minutes": 10.0, "micro_batch_size": 2, "context": 16, "dtype": "float32"}
    return TrainConfig(data=Path("store"), out=tmp_path / "run", **(defaults | values))


def test_given_flag_is_kept(model: Llama, probes: list[ProbeResult], tmp_path: Path) -> None:
    for value in ("on", "off"):
        assert resolve_compile(flags(tmp_path, compile=value), model, RANKS)[0].compile == value


@pytest.mark.parametrize(
    "values",
    [
        {"minutes": None, "steps": 1000000},
        {"activation_checkpointing": True},
        {"minutes": 6.0},
        {"teacher": Path("teacher")},
    ],
)
def test_nothing_is_probed(values: dict[str, Any], model: Llama, probes: list[ProbeResult], tmp_path: Path) -> None:
    # a probe would pop from the empty list
    resolved, line = resolve_compile(flags(tmp_path, **values), model, RANKS)
    assert (resolved.compile, line) == ("off", "")


@pytest.mark.parametrize(
    ("found", "chosen"), [(ProbeResult(1.0, 0.9), "on"), (ProbeResult(1.0, 0.98), "off"), (ProbeResult(1, 2), "off")]
)
def test_the_probe_decides_once(
    found: ProbeResult, chosen: str, model: Llama, probes: list[ProbeResult], tmp_path: Path
) -> None:
    probes.append(found)
    resolved, line = resolve_compile(flags(tmp_path), model, RANKS)
    assert resolved.compile == chosen and line.startswith(f"compile: {chosen}")
    # cached: no probe is left
    assert resolve_compile(flags(tmp_path), model, RANKS)[0].compile == chosen
    with pytest.raises(IndexError):  # other rows need their own probe
        resolve_compile(flags(tmp_path, micro_batch_size=3), model, RANKS)


def test_cached_result_serves_shorter_runs(model: Llama, probes: list[ProbeResult], tmp_path: Path) -> None:
    probes.append(ProbeResult(1.0, 0.8))
    resolve_compile(flags(tmp_path), model, RANKS)
    assert resolve_compile(flags(tmp_path, minutes=3.0), model, RANKS)[0].compile == "on"
    # saving 12 s is not worth it
    assert resolve_compile(flags(tmp_path, minutes=1.0), model, RANKS)[0].compile == "off"


def test_a_busy_machine_compiles_in_longer_runs_only(
    model: Llama, probes: list[ProbeResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling takes one thread four times as long, and cannot be stopped."""
    monkeypatch.setattr(compile, "processor_slowdown", lambda: 4.0)
    assert resolve_compile(flags(tmp_path, minutes=24.0), model, RANKS)[0].compile == "off"
    probes.append(ProbeResult(1.0, 0.9))
    assert resolve_compile(flags(tmp_path, minutes=26.0), model, RANKS)[0].compile == "on"
    assert resolve_compile(flags(tmp_path, minutes=12.0), model, RANKS)[0].compile == "off", "72 s saved, 80 s needed"
    monkeypatch.setattr(compile, "processor_slowdown", lambda: 1.0)
    assert resolve_compile(flags(tmp_path, minutes=12.0), model, RANKS)[0].compile == "on"


def test_the_slowdown_is_that_of_the_clock(replace_clock: Callable[..., None]) -> None:
    """Simulated: of each 3 ms the thread gets 1."""
    clock = [0.0]

    def thread_time() -> float:
        clock[0] += 0.003
        return clock[0] / 3

    replace_clock(thread_time=thread_time, perf_counter=lambda: clock[0])
    assert 2.8 < compile.processor_slowdown() < 3.3


def test_no_compiler(model: Llama, probes: list[ProbeResult], tmp_path: Path) -> None:
    probes.append(ProbeResult(0.0, 0.0, "no g++"))
    resolved, line = resolve_compile(flags(tmp_path), model, RANKS)
    assert resolved.compile == "off" and line.endswith("no g++")
    probes.append(ProbeResult(1.0, 0.5))  # not cached: a compiler may be installed
    assert resolve_compile(flags(tmp_path), model, RANKS)[0].compile == "on"


@pytest.mark.parametrize("damaged", ["{", "[]", '{"x": 1}', "zero"])
def test_a_damaged_cache_is_rewritten(damaged: str, model: Llama, probes: list[ProbeResult], tmp_path: Path) -> None:
    path = tmp_path / "cache" / "llamita" / "compile.json"
    path.parent.mkdir(parents=True)
    path.write_text(damaged)
    if damaged == "zero":
        probes.append(ProbeResult(1.0, 0.9))
        resolve_compile(flags(tmp_path), model, RANKS)
        path.write_text(path.read_text().replace("1.0", "0"))
    probes.append(ProbeResult(1.0, 0.5))
    assert resolve_compile(flags(tmp_path), model, RANKS)[0].compile == "on"
    assert any(entry == {"eager": 1.0, "compiled": 0.5} for entry in json.loads(path.read_text()).values())


def test_a_resumed_run_keeps_its_setting(model: Llama, probes: list[ProbeResult], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"config": {"compile": "on"}, "rows_per_step": 2, "data": {}}))
    assert resolve_compile(flags(tmp_path, resume=True), model, RANKS)[0].compile == "on"


@pytest.mark.compat
def test_the_real_probe(model: Llama, tmp_path: Path) -> None:
    found = probe(flags(tmp_path), model, RANKS.device)
    assert not found.error and found.eager > 0 and found.compiled > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_compiler_error_is_reported(model: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        def compiled(*_: Any, **__: Any) -> torch.Tensor:
            raise RuntimeError("no C++ compiler\nsecond line")

        return compiled

    monkeypatch.setattr(torch, "compile", refuse)
    assert dataclasses.astuple(probe(flags(tmp_path), model, RANKS.device)) == (0.0, 0.0, "no C++ compiler")
