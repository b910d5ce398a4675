"""Resolves --compile auto to on or off by timing one pass of the network, eager and compiled.

Results are kept in the user's cache under a key of everything they depend on: network, rows,
device, threads, torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import statistics
import time
from typing import Any

import torch

from llamita.atomic import atomic_write_bytes
from llamita.config import TrainConfig
from llamita.environment import describe_environment
from llamita.errors import OutputError, TrainingError
from llamita.json_file import Key, Schema, check_object, read_json_object
from llamita.model.device import synchronize
from llamita.model.llama import Llama
from llamita.run_directory import remembered_run
from llamita.training.distributed import Ranks, compute_type
from llamita.training.loss import SummedLoss
from llamita.user_cache import user_cache

NAME = "compile.json"
PASSES = 2  # part of the key: raised when the passes change, so that what was measured before is not used
RESULT: Schema = {name: Key("number", required=True, positive=True) for name in ("eager", "compiled")}
COLD_COMPILE_SECONDS = 30.0  # with an empty compiler cache, and the probe
WARM_COMPILE_SECONDS = 10.0  # with a filled compiler cache
# Share of a run that the cold compile may take. Compiling saves a few percent on a CPU, 40 % on an
# H200.
MAX_COMPILE_SHARE = {"cpu": 0.08, "cuda": 0.25}
SLOWDOWN_SECONDS = 0.05  # of processor time, to measure how busy the machine is
MIN_GAIN = 0.04  # of a pass's time; anything less is noise
PROBE_SECONDS, MIN_PASSES = {"cpu": 4.0, "cuda": 1.0}, 5


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Seconds per pass, forward and backward; error: one line on why compilation failed."""

    eager: float
    compiled: float
    error: str = ""

    @property
    def gain(self) -> float:
        """The share of an eager pass's time that compilation saves."""
        return 0.0 if self.error else 1 - self.compiled / self.eager


def resolve_compile(config: TrainConfig, model: Llama, ranks: Ranks, passes: float = 0.0) -> tuple[TrainConfig, str]:
    """The filled configuration with --compile on or off, and a line that explains it, or "".

    All processes call this together. passes: of a run counted in steps or epochs. A probe
    overwrites the model's weights and gradients.
    """
    if config.compile != "auto":
        return config, ""
    before = remembered_run(config.out) if config.resume else None
    if before is not None:
        return dataclasses.replace(config, compile=before["config"]["compile"]), ""
    off = dataclasses.replace(config, compile="off")
    # a CPU run counted in steps should give the same losses on every machine
    is_counted = config.minutes is None
    if (
        (is_counted and ranks.device.type == "cpu")
        or ranks.device.type == "mps"  # PyTorch calls its compiler for Metal a prototype
        or config.fsdp
        or config.activation_checkpointing
        or config.teacher is not None
        or (config.generations or 1) > 1
    ):
        return off, ""
    key = _key(config, model, ranks)
    found = _recall(key)
    (is_known,) = ranks.broadcast_from_first(float(found is not None))
    seconds = 60 * (config.minutes or 0.0)
    if is_counted:
        eager = found.eager if is_known and found is not None else eager_seconds(config, model, ranks.device)
        (seconds,) = ranks.broadcast_from_first(passes * eager)
    (slowdown,) = ranks.broadcast_from_first(processor_slowdown())
    if not is_known:
        if MAX_COMPILE_SHARE[ranks.device.type] * seconds < slowdown * COLD_COMPILE_SECONDS:
            return off, ""
        found = probe(config, model, ranks.device)
        if ranks.is_first and not found.error:
            _remember(key, found)
    (gain,) = ranks.broadcast_from_first(found.gain if found is not None else 0.0)
    if found is not None and found.error:
        return off, f"compile: off, compilation failed: {found.error}"
    if gain < MIN_GAIN or gain * seconds < 2 * slowdown * WARM_COMPILE_SECONDS:
        return off, f"compile: off, would save {100 * max(0.0, gain):.0f} % of a pass"
    how = "measured earlier" if is_known else "just measured"
    return dataclasses.replace(config, compile="on"), f"compile: on, saves {100 * gain:.0f} % of a pass ({how})"


def processor_slowdown() -> float:
    """How much longer a thread takes now, because it shares its processor: 1 on an idle machine.

    Compiling cannot be stopped once it has begun, and most of it runs in one thread.
    """
    start, used = time.perf_counter(), time.thread_time()
    while time.thread_time() - used < SLOWDOWN_SECONDS:
        pass
    return max(1.0, (time.perf_counter() - start) / SLOWDOWN_SECONDS)


def probe(config: TrainConfig, model: Llama, device: torch.device) -> ProbeResult:
    """Time passes of the network over random tokens, eager and compiled in turns."""
    passes = [_Pass(config, model, device, compiled=compiled) for compiled in (False, True)]
    times: list[list[float]] = [[], []]
    try:
        for each in passes:
            each.seconds()  # compile, warm up
        start = time.perf_counter()
        while len(times[0]) < MIN_PASSES or time.perf_counter() - start < PROBE_SECONDS[device.type]:
            for seconds, each in zip(times, passes, strict=True):
                seconds.append(each.seconds())
    except Exception as error:  # compilers raise many kinds of errors
        return ProbeResult(0.0, 0.0, (str(error).strip().splitlines() or [type(error).__name__])[0])
    finally:
        model.zero_grad()
    return ProbeResult(statistics.median(times[0]), statistics.median(times[1]))


def eager_seconds(config: TrainConfig, model: Llama, device: torch.device) -> float:
    """Seconds per pass without compilation."""
    eager = _Pass(config, model, device, compiled=False)
    eager.seconds()
    seconds = statistics.median(eager.seconds() for _ in range(3))
    model.zero_grad()
    return seconds


class _Pass:
    """Forward and backward over random tokens, with random weights."""

    def __init__(self, config: TrainConfig, model: Llama, device: torch.device, *, compiled: bool) -> None:
        assert config.micro_batch_size and config.context
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator).mul_(0.02)
                parameter.copy_(noise if parameter.dim() > 1 else torch.ones_like(noise))
        ids = torch.randint(model.config.vocab_size, (config.micro_batch_size, config.context + 1), generator=generator)
        # contiguous like a run's batches: other strides would be compiled again
        self.inputs, self.targets = ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)
        self.loss, self.device = SummedLoss(model, compute_type(config.dtype), compiled=compiled), device

    def seconds(self) -> float:
        start = time.perf_counter()
        self.loss(self.inputs, self.targets).backward()
        synchronize(self.device)
        return time.perf_counter() - start


def _key(config: TrainConfig, model: Llama, ranks: Ranks) -> str:
    environment = describe_environment(str(ranks.device))
    parts: dict[str, Any] = {
        name: environment.get(name) for name in ("llamita", "torch", "processor", "threads", "gpu")
    }
    parts |= {
        "passes": PASSES,
        "model": dataclasses.asdict(model.config),
        "world_size": ranks.world_size,
        "device": ranks.device.type,
    }
    parts |= {name: getattr(config, name) for name in ("micro_batch_size", "context", "dtype", "dropout")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _read_all() -> dict[str, Any]:
    """All results of this machine; none if the file is missing or damaged."""
    try:
        return read_json_object(user_cache(NAME), TrainingError)
    except TrainingError:
        return {}


def _recall(key: str) -> ProbeResult | None:
    try:
        entry = check_object(_read_all().get(key), RESULT, NAME, TrainingError)
    except TrainingError:
        return None
    return ProbeResult(entry["eager"], entry["compiled"])


def _remember(key: str, found: ProbeResult) -> None:
    entries = _read_all() | {key: {"eager": found.eager, "compiled": found.compiled}}
    with contextlib.suppress(OutputError):  # no writable cache: measured again next time
        atomic_write_bytes(user_cache(NAME), json.dumps(entries, indent=1).encode())
