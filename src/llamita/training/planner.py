"""Plans a run: which model shape reaches the lowest loss in the given minutes on this machine.

A few shapes are timed on random tokens; a scaling law fitted to runs of this recipe predicts the
loss of every shape on the ladder. If the user chose a shape, only that one is timed: its speed
decides the steps, the decay, the noise and the generations. Flags that the user set are never
changed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llamita.config import DEFAULT_MINUTES, ModelConfig, Shape, TrainConfig
from llamita.console import Rows, format_count
from llamita.data.mixture import open_documents
from llamita.errors import ConfigError, TrainingError
from llamita.model.device import gpu_name, synchronize
from llamita.model.llama import Llama
from llamita.report.outlook import Outlook, make_outlook
from llamita.scaling_law import SCALING_LAW, Forecast, effective_tokens, forecast
from llamita.training.budget import MIN_CLOSING_SECONDS
from llamita.training.cpu_dtype import (
    LOSSES_AGREE,
    MIN_STEP_SPEEDUP,
    Dtype,
    candidate_dtypes,
    is_worth_timing,
    product_speedup,
)
from llamita.training.defaults import (
    ffn_for,
    fill_defaults,
    fill_shape,
    fit_micro_batch,
    preset_context,
    regularize,
    resolve_dtype,
    row_token_bytes,
)
from llamita.training.distributed import Ranks, compute_type, start_ranks
from llamita.training.flops import flops_per_token
from llamita.training.generations import TEACHER_COST, epochs_each, generations_for
from llamita.training.loss import SummedLoss
from llamita.training.memory import free_bytes, is_out_of_memory, tokens_that_fit
from llamita.training.optimizer import build_optimizer

PROBE_SHARE = 0.01  # of the run, for each of at most three probes
MAX_PLANNING_SHARE = 0.1  # of the run: on a busy machine fewer shapes are timed
PROBE_SECONDS = (1.0, 3.0)  # minimum, maximum
MIN_TURNS, MAX_TURNS = 2, 4  # of each type on a CPU: in two, bfloat16 once looked slow (docs/experiments.md)
TRAINING_SHARE = 0.94  # of the run; the rest is startup, evaluation and saving
# Beyond this the law, which was fitted to small models, thinks too little of width: models of 42M
# and 110M weights gain three times as much from it as the law says (docs/experiments.md).
MAX_TOKENS_PER_WEIGHT, MAX_FITTED_WEIGHTS = 40, 2_500_000
NEGLIGIBLE = 0.003  # relative difference in bits; among such near ties the smallest shape wins
MAX_UNSHARED_WIDTH = 320  # up to here shared keys and values cost more than their speed gains (docs/experiments.md)
WIDTHS = (64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
CPU = torch.device("cpu")
CONTEXTS = {"cpu": (128, 512), "cuda": (256, 1024), "mps": (256, 512)}  # minimum, maximum
# Small shapes take seconds to measure on a CPU. On a GPU they measure how fast kernels are launched.
PROBE_WIDTHS = {"cpu": (128, 192), "cuda": (768, 384), "mps": (384, 192)}
STEP_TOKENS = {"cpu": (1024, 16384), "cuda": (16384, 65536), "mps": (4096, 16384)}  # minimum, maximum; per GPU
SHORT_TEXT_EPOCHS = 15  # from here on, a GPU's step is chosen by the text, not by its speed
FILLING_SECONDS = 0.03  # a GPU's time for a step, beside which launching its kernels takes little

# An embedding learns from the occurrences of its token in the text. Chinese characters are worth
# their weights however large their share (docs/experiments.md).
MIN_OCCURRENCES = 100


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The predicted outcome for one shape; bits: bits per byte by the scaling law."""

    shape: Shape
    num_parameters: int
    tokens_per_second: float
    tokens: float
    epochs: float
    bits: float


@dataclasses.dataclass(frozen=True)
class Timing:
    """The time of a shape's step in the type that is faster.

    seconds: per token. speedup: float32's seconds divided by bfloat16's; 0 if one type was timed.
    """

    seconds: float
    dtype: Dtype
    speedup: float = 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """filled: the complete configuration; best: the chosen estimate; step_tokens: tokens of a step,
    about; estimates: all of them; timing: of the timed shape that is nearest to the best;
    make_outlook: see outlook."""

    filled: TrainConfig
    best: Estimate
    step_tokens: int
    estimates: tuple[Estimate, ...]
    timing: Timing
    vocab_size: int
    device: str
    make_outlook: Callable[[], Outlook]

    @functools.cached_property
    def outlook(self) -> Outlook:
        """The best shapes' bits with more time or text. Training does not need them."""
        return self.make_outlook()


def wants_plan(config: TrainConfig) -> bool:
    """Whether a new model trains for --minutes, or for a length that is not given: how many epochs that
    is must be measured."""
    return config.steps is None and config.epochs is None and config.from_ is None and not config.resume


def has_shape(config: TrainConfig) -> bool:
    """Whether the user chose the shape."""
    return config.preset is not None or config.layers is not None


def choose_context(lengths: npt.NDArray[Any], device: torch.device) -> int:
    """Tokens per row: the power of two that holds three of four documents, within CONTEXTS.

    Shorter rows are cheaper and make a step's texts more varied. Longer documents continue in
    another row.
    """
    smallest, largest = CONTEXTS[device.type]
    typical = float(np.quantile(lengths, 0.75)) if len(lengths) else smallest
    return min(largest, max(smallest, 1 << math.ceil(math.log2(max(1.0, typical)))))


def ladder_shape(hidden: int, context: int) -> Shape:
    """The planner's shape for a width.

    Layers: hidden / 64 + 1, at least 4. Heads of size 64 where they divide a width of at least 128,
    else of size 32: attention in heads of 32 takes up to twice as long. Up to width 320 each head has
    its own keys and values, above two share them. FFN: 8/3 of the width, rounded up to a multiple of
    32.
    """
    heads = hidden // (64 if hidden % 64 == 0 and hidden >= 128 else 32)
    return Shape(
        num_hidden_layers=max(4, round(hidden / 64) + 1),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 if hidden > MAX_UNSHARED_WIDTH and heads % 2 == 0 else heads,
        intermediate_size=ffn_for(hidden),
        max_position_embeddings=context,
    )


def candidate_shapes(config: TrainConfig, context: int, device_type: str = "cpu") -> list[Shape]:
    """The ladder's shapes, with --kv-heads and --ffn where given; or only the shape that the user
    chose. Raises ConfigError if none fit."""
    if has_shape(config):
        return [filled_shape(fill_shape(dataclasses.replace(config, context=context), device_type))]
    shapes = [
        dataclasses.replace(
            shape,
            num_key_value_heads=config.kv_heads or shape.num_key_value_heads,
            intermediate_size=config.ffn or shape.intermediate_size,
        )
        for shape in (ladder_shape(width, context) for width in WIDTHS)
        if shape.num_attention_heads % (config.kv_heads or 1) == 0
    ]
    if not shapes:
        raise ConfigError(
            f"train: --kv-heads {config.kv_heads}: expected a divisor of the heads of a planned shape "
            f"({WIDTHS[0] // 32} to {WIDTHS[-1] // 64}); give another number, or --layers, --hidden and --heads as well"
        )
    return shapes


def shapes_that_fit(
    config: TrainConfig, shapes: list[Shape], vocab_size: int, free: float, device: torch.device
) -> list[Shape]:
    """The shapes that a GPU with this many free bytes can train, one row per pass; the smallest one
    always."""

    def fits(shape: Shape) -> bool:
        weights = model_shape(shape, vocab_size, untied=not config.tie_embeddings).num_parameters
        row_bytes = row_token_bytes(apply_shape(config, shape), device)
        return math.isinf(free) or tokens_that_fit(free, weights, 16, row_bytes) >= shape.max_position_embeddings

    return [shape for shape in shapes if shape is shapes[0] or fits(shape)]


def plan_run(
    config: TrainConfig,
    *,
    vocab_size: int,
    lengths: npt.NDArray[Any],
    device: torch.device,
    world_size: int = 1,
    free: float = math.inf,
) -> Plan:
    """Choose a shape for config.minutes on this machine, with a few seconds of probing.

    lengths: tokens of each training document. free: free bytes of GPU memory. Shape flags that are
    set are kept. Raises ConfigError if no shape fits them.
    """
    dtypes = candidate_dtypes(config, device)
    config = resolve_dtype(config, device)
    minutes = DEFAULT_MINUTES if config.minutes is None else config.minutes
    seconds = max(0.1 * 60 * minutes, 60 * minutes * TRAINING_SHARE - MIN_CLOSING_SECONDS)
    context = config.context or preset_context(config) or choose_context(lengths, device)
    unique_tokens = int(lengths.sum())
    fitting = shapes_that_fit(config, candidate_shapes(config, context, device.type), vocab_size, free, device)
    ladder = _Ladder(fitting, vocab_size, untied=not config.tie_embeddings)
    share = 0.0 if has_shape(config) else PROBE_SHARE  # nothing is compared with a given shape
    allowed = min(PROBE_SECONDS[1], max(PROBE_SECONDS[0], share * 60 * minutes))
    start = time.monotonic()

    def has_time() -> bool:
        return time.monotonic() - start < MAX_PLANNING_SHARE * 60 * minutes

    def time_shape(shape: Shape) -> Timing:
        found = time_dtypes(apply_shape(config, shape), dtypes, vocab_size, device, world_size, allowed, free)
        cost = 1.0 if config.teacher is None else TEACHER_COST  # of a teacher of the same shape
        return dataclasses.replace(found, seconds=cost * found.seconds)

    def predict(time_factor: float, text_factor: float) -> Forecast:
        best = ladder.choose(time_factor * seconds, text_factor * unique_tokens)[0]
        return forecast(best.num_parameters, best.tokens, text_factor * unique_tokens)

    for width in PROBE_WIDTHS[device.type]:
        if not ladder.timings or has_time():
            ladder.measure(width, time_shape)
    best = ladder.choose(seconds, unique_tokens)[0]
    if best.shape not in ladder.timings and has_time():  # measure the best shape itself
        ladder.measure(best.shape.hidden_size, time_shape)
    best, estimates = ladder.choose(seconds, unique_tokens)
    nearest = ladder.timings[nearest_shape(ladder.timings, best.shape.hidden_size)]
    config = apply_generations(dataclasses.replace(config, dtype=nearest.dtype), best.epochs)
    tokens = plan_step_tokens(best, config.generations or 1, device, world_size)
    chosen = apply_step_tokens(apply_shape(config, best.shape), tokens, world_size, free, device)
    filled = fill_defaults(chosen, device, world_size)
    outlook = functools.partial(make_outlook, predict, minutes, best.tokens, unique_tokens)
    return Plan(filled, best, tokens, estimates, nearest, vocab_size, describe_device(device), outlook)


class _Ladder:
    """The shapes to choose from, and timings of some, from which the speeds of all follow."""

    def __init__(self, shapes: list[Shape], vocab_size: int, *, untied: bool) -> None:
        self.shapes, self.vocab_size, self.untied = shapes, vocab_size, untied
        self.timings: dict[Shape, Timing] = {}

    def measure(self, width: int, time_shape: Callable[[Shape], Timing]) -> None:
        """Time the shape with the nearest width that was not timed yet. If it does not fit into the
        GPU's memory, larger ones do not either: drop them all, and time the next."""
        while others := [shape for shape in self.shapes if shape not in self.timings]:
            shape = nearest_shape(others, width)
            try:
                self.timings[shape] = time_shape(shape)
                return
            except RuntimeError as error:
                if shape is self.shapes[0] or not is_out_of_memory(error):
                    raise
                del self.shapes[self.shapes.index(shape) :]

    def choose(self, seconds: float, unique_tokens: float) -> tuple[Estimate, tuple[Estimate, ...]]:
        """The best estimate and all estimates, for this time of training and this text."""
        points = []
        for shape, timing in self.timings.items():
            model = model_shape(shape, self.vocab_size, untied=self.untied)
            points.append((flops_per_token(model, shape.max_position_embeddings), timing.seconds))
        return choose_shape(points, self.shapes, self.vocab_size, seconds, unique_tokens, untied=self.untied)


def nearest_shape(shapes: Iterable[Shape], width: int) -> Shape:
    """The shape with the nearest width."""
    return min(shapes, key=lambda shape: abs(shape.hidden_size - width))


def describe_device(device: torch.device) -> str:
    """Such as "2 CPU threads", or a GPU's name."""
    if device.type != "cpu":
        return gpu_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads != 1 else ''}"


def choose_shape(
    points: Sequence[tuple[float, float]],
    shapes: Sequence[Shape],
    vocab_size: int,
    seconds: float,
    unique_tokens: float,
    *,
    untied: bool = False,
) -> tuple[Estimate, tuple[Estimate, ...]]:
    """The best estimate and all estimates, from points of (FLOPs per token, seconds per token).

    untied: the classifier has its own weights.
    """
    estimates = []
    for shape in shapes:
        model = model_shape(shape, vocab_size, untied=untied)
        per_token = interpolate_seconds(points, flops_per_token(model, shape.max_position_embeddings))
        tokens = seconds / per_token
        bits = SCALING_LAW.bits(model.num_parameters, tokens, unique_tokens)
        estimates.append(
            Estimate(shape, model.num_parameters, 1 / per_token, tokens, tokens / unique_tokens, bits)
        )  # fmt: skip
    fewest_bits = min(estimate.bits for estimate in estimates)
    best = next(estimate for estimate in estimates if estimate.bits <= (1 + NEGLIGIBLE) * fewest_bits)
    enough = (each for each in estimates if not has_too_many_tokens(each))
    at_least = next(enough, estimates[-1])
    return max(best, at_least, key=lambda each: each.num_parameters), tuple(estimates)


def has_too_many_tokens(estimate: Estimate) -> bool:
    """Whether more tokens per weight are trained on than the law holds for; repeated ones are
    discounted."""
    tokens = effective_tokens(estimate.tokens, estimate.tokens / estimate.epochs)
    return tokens > MAX_TOKENS_PER_WEIGHT * estimate.num_parameters


def interpolate_seconds(points: Sequence[tuple[float, float]], operations: float) -> float:
    """Seconds per token, interpolated linearly between the logarithms of the measured points.

    Beyond the points the slope is limited to 0.5 to 1.1: small steps are bound by overhead, large
    ones by arithmetic. A single point scales in proportion.
    """
    known = sorted((math.log(x), math.log(y)) for x, y in points)
    at = math.log(operations)
    if len(known) == 1:
        return math.exp(known[0][1] + at - known[0][0])
    upper = min(max(1, sum(x < at for x, _ in known)), len(known) - 1)
    (x0, y0), (x1, y1) = known[upper - 1], known[upper]
    slope = (y1 - y0) / (x1 - x0)
    if not x0 <= at <= x1:
        slope = min(1.1, max(0.5, slope))
    anchor_x, anchor_y = (x0, y0) if at < x0 else (x1, y1)
    return math.exp(anchor_y + slope * (at - anchor_x))


def model_shape(shape: Shape, vocab_size: int, *, untied: bool = False) -> ModelConfig:
    """The network of a shape. The classifier shares the embeddings unless untied."""
    fields = dataclasses.asdict(shape)
    head_dim = shape.hidden_size // shape.num_attention_heads
    return ModelConfig(vocab_size=vocab_size, head_dim=head_dim, tie_word_embeddings=not untied, **fields)


def apply_shape(config: TrainConfig, shape: Shape) -> TrainConfig:
    """The configuration with this shape, except where flags set another value."""
    return dataclasses.replace(
        config,
        layers=shape.num_hidden_layers,
        hidden=config.hidden or shape.hidden_size,
        heads=config.heads or shape.num_attention_heads,
        kv_heads=config.kv_heads or shape.num_key_value_heads,
        ffn=config.ffn or shape.intermediate_size,
        context=config.context or shape.max_position_embeddings,
    )


def apply_generations(config: TrainConfig, epochs: float) -> TrainConfig:
    """The configuration with the generations, and with the decay and the noise of each of them, for a
    time that is enough for this many epochs of one model."""
    is_fixed = config.generations is not None or config.teacher is not None or config.fsdp
    generations = (config.generations or 1) if is_fixed else generations_for(epochs)
    return regularize(dataclasses.replace(config, generations=generations), epochs_each(epochs, generations))


def step_tokens(tokens: float, device: torch.device, world_size: int = 1, filling: float = 0.0) -> int:
    """Tokens per step for a run of this many tokens: a power of two for each GPU.

    It follows the best of docs/experiments.md (1,024 for 0.6 M tokens, 2,048 for 1.8 M, 4,096 for
    2.4 to 5 M, good for 11 M too), then grows with the power 0.383 (nanochat's runs). filling: how
    many tokens keep a GPU busy.
    """
    wanted = min(4096, 2048 * (tokens / 1.3e6) ** 0.6) * max(1.0, tokens / 8e6) ** 0.383
    smallest, largest = STEP_TOKENS[device.type]
    num_gpus = 1 if device.type == "cpu" else world_size
    power = max(round(math.log2(wanted / num_gpus)), math.ceil(math.log2(max(1.0, filling))))
    return num_gpus * min(largest, max(smallest, 1 << max(0, power)))


def plan_step_tokens(estimate: Estimate, generations: int, device: torch.device, world_size: int) -> int:
    """Tokens per step for an estimate whose tokens several generations share.

    On a GPU repeated tokens count less, and where the text is short, speed matters less than an
    epoch of enough steps.
    """
    epochs, filling = epochs_each(estimate.epochs, generations), 0.0
    tokens = estimate.tokens * epochs / estimate.epochs
    if device.type != "cpu":
        tokens = effective_tokens(tokens, tokens / epochs)
        if epochs < SHORT_TEXT_EPOCHS:
            filling = FILLING_SECONDS * estimate.tokens_per_second / world_size
    return step_tokens(tokens, device, world_size, filling)


def apply_step_tokens(
    config: TrainConfig, tokens: int, world_size: int, free: float = math.inf, device: torch.device = CPU
) -> TrainConfig:
    """The configuration with rows for about this many tokens per step, if none are given, in passes
    that fit into the free bytes of a GPU."""
    if config.micro_batch_size is not None or config.context is None:
        return config
    rows = max(1, tokens // (config.context * config.grad_accum_steps * world_size))
    return fit_micro_batch(dataclasses.replace(config, micro_batch_size=rows), free, device)


def time_dtypes(
    config: TrainConfig,
    dtypes: Sequence[Dtype],
    vocab_size: int,
    device: torch.device,
    world_size: int,
    seconds: float,
    free: float = math.inf,
) -> Timing:
    """Train on random tokens for about `seconds` in each of the types of candidate_dtypes, in turns:
    the machine may be busy. A model whose steps are slow gets fewer turns. bfloat16 is taken if it is
    faster by MIN_STEP_SPEEDUP."""

    def probe(dtype: Dtype, turns: int = 1) -> float:
        return probe_seconds_per_token(
            dataclasses.replace(config, dtype=dtype), vocab_size, device, world_size, seconds / turns, free
        )

    if len(dtypes) == 1:
        return Timing(probe(dtypes[0]), dtypes[0])
    turns: list[tuple[float, float]] = []
    start = time.monotonic()
    while len(turns) < MIN_TURNS or (len(turns) < MAX_TURNS and time.monotonic() - start < 4 * seconds):
        turns.append((probe("float32", MAX_TURNS), probe("bfloat16", MAX_TURNS)))
    in_float32, in_bfloat16 = (min(found) for found in zip(*turns, strict=True))
    speedup = in_float32 / in_bfloat16
    if speedup < MIN_STEP_SPEEDUP:
        return Timing(in_float32, "float32", speedup)
    return Timing(in_bfloat16, "bfloat16", speedup)


def describe_timing(timing: Timing) -> str:
    """The type that was taken, and why."""
    if timing.speedup == 0.0:
        return timing.dtype
    return f"{timing.dtype}: bfloat16 is {timing.speedup:.3g} times as fast here"


def probe_seconds_per_token(
    config: TrainConfig,
    vocab_size: int,
    device: torch.device,
    world_size: int,
    seconds: float,
    free: float = math.inf,
) -> float:
    """Seconds per token over all processes, from training on random tokens for about `seconds`."""
    config = fill_defaults(config, device, world_size, free=free)
    assert config.context and config.micro_batch_size
    shape = filled_shape(config)
    generator = torch.Generator().manual_seed(0)
    shape_config = model_shape(shape, vocab_size, untied=not config.tie_embeddings)
    model = Llama(shape_config, config.dropout).initialize(generator).to(device)
    loss = SummedLoss(model, compute_type(config.dtype))
    optimizer = build_optimizer(model, config)
    ids = torch.randint(vocab_size, (config.micro_batch_size, config.context + 1), generator=generator).to(device)
    num_tokens = config.micro_batch_size * config.context
    times: list[float] = []
    start, spent = time.monotonic(), 0.0
    enough = 1 if device.type == "cpu" else 2  # the first step on a GPU loads kernels
    while len(times) < enough or (len(times) < 3 and spent < 4 * seconds) or spent < seconds:
        began = time.monotonic()
        for _ in range(config.grad_accum_steps):
            (loss(ids[:, :-1], ids[:, 1:]) / num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        times.append(time.monotonic() - began)
        spent = time.monotonic() - start
    # The first step warms up. The lower quartile discounts what else runs on the machine.
    times = sorted(times[1:] or times)
    return times[len(times) // 4] / (num_tokens * config.grad_accum_steps * world_size)


def resolve_plan(
    config: TrainConfig,
    *,
    vocab_size: int,
    lengths: npt.NDArray[Any],
    ranks: Ranks,
    say: Callable[[str], None],
    free: float = math.inf,
) -> tuple[TrainConfig, Rows]:
    """The configuration with a shape, and the table of the plan if one was made now.

    The plan is the same in all processes. say: prints what takes some seconds. free: free bytes of
    GPU memory.
    """
    if config.dtype == "bfloat16" and ranks.device.type == "cpu" and (speedup := product_speedup()) < 1:
        say(
            f"dtype: bfloat16 products take {1 / speedup:.2g} times as long as float32's on this processor; --dtype "
            "auto takes the faster type"
        )
    if not wants_plan(config):
        return _choose_dtype(config, vocab_size, int(lengths.sum()), ranks, say), []
    is_open = not has_shape(config)
    say("measuring this machine to plan the run")
    plan = plan_run(
        config, vocab_size=vocab_size, lengths=lengths, device=ranks.device, world_size=ranks.world_size, free=free
    )
    best = plan.best
    hidden, tokens, epochs, is_bfloat16 = ranks.broadcast_from_first(
        best.shape.hidden_size, plan.step_tokens, best.epochs, plan.filled.dtype == "bfloat16"
    )
    assert plan.filled.context
    config = apply_generations(dataclasses.replace(config, dtype="bfloat16" if is_bfloat16 else "float32"), epochs)
    shapes = candidate_shapes(config, plan.filled.context, ranks.device.type)
    shape = next(each for each in shapes if each.hidden_size == round(hidden))
    config = apply_step_tokens(apply_shape(config, shape), round(tokens), ranks.world_size, free, ranks.device)
    if is_open:
        return config, describe_plan(plan)[0]
    _say_dtype(plan.timing, say)
    say(describe_length(plan))
    return config, []


def _choose_dtype(
    config: TrainConfig, vocab_size: int, epoch_tokens: int, ranks: Ranks, say: Callable[[str], None]
) -> TrainConfig:
    """The configuration of a run that is not planned, with --dtype resolved."""
    filled = fill_defaults(config, ranks.device, ranks.world_size, epoch_tokens=epoch_tokens)
    assert filled.context and filled.micro_batch_size
    model = model_shape(filled_shape(filled), vocab_size, untied=not filled.tie_embeddings)
    tokens_per_step = filled.micro_batch_size * filled.context * filled.grad_accum_steps * ranks.world_size
    is_long = is_worth_timing(filled, flops_per_token(model, filled.context), tokens_per_step, epoch_tokens)
    dtypes = candidate_dtypes(config, ranks.device) if is_long else ()
    timing = Timing(0.0, "float32")
    if len(dtypes) > 1:
        timing = time_dtypes(config, dtypes, vocab_size, ranks.device, ranks.world_size, PROBE_SECONDS[0])
    (is_bfloat16,) = ranks.broadcast_from_first(timing.dtype == "bfloat16")
    _say_dtype(timing, say, "" if config.minutes is not None else "; --dtype float32 makes runs repeatable")
    return dataclasses.replace(config, dtype="bfloat16") if is_bfloat16 else resolve_dtype(config, ranks.device)


def _say_dtype(timing: Timing, say: Callable[[str], None], note: str = "") -> None:
    """Print which type was taken, if there was a choice."""
    if timing.speedup:
        say(f"dtype: {describe_timing(timing)}" + (f"; {LOSSES_AGREE}" if timing.dtype == "bfloat16" else "") + note)


def filled_shape(config: TrainConfig) -> Shape:
    """The shape of a configuration in which it is set."""
    assert config.layers and config.hidden and config.heads and config.kv_heads and config.ffn and config.context
    return Shape(config.layers, config.hidden, config.heads, config.kv_heads, config.ffn, config.context)


def plan_store(config: TrainConfig) -> Plan:
    """The plan for a token store, in this process alone.

    Raises StoreError, TrainingError, ConfigError.
    """
    with start_ranks(config.device, config.threads) as ranks:
        data = open_documents(config.data)
        if data.train.num_documents == 0:
            raise TrainingError(f"cannot plan for {data.names}: it has no training documents; prepare more text")
        return plan_run(
            config, vocab_size=data.vocab_size, lengths=data.train.lengths, device=ranks.device,
            free=free_bytes(ranks.device),
        )  # fmt: skip


def describe_plan(plan: Plan) -> tuple[Rows, Rows]:
    """Two tables: the plan beside rules of thumb, and the shapes near the best one."""
    best, config, device = plan.best, plan.filled, plan.device
    shape = best.shape
    tables = 1 if config.tie_embeddings else 2
    embeddings = tables * plan.vocab_size * shape.hidden_size
    share = embeddings / best.num_parameters
    occurrences = best.tokens / best.epochs / plan.vocab_size
    ratio = best.tokens / best.num_parameters
    extrapolated = ""
    if best.num_parameters > MAX_FITTED_WEIGHTS:
        extrapolated = f"; extrapolated from models of up to {format_count(MAX_FITTED_WEIGHTS)} weights"
    assert config.micro_batch_size and config.context and config.learning_rate is not None
    step = config.micro_batch_size * config.context * config.grad_accum_steps
    chosen: Rows = [
        ("", "chosen", "rule of thumb"),
        ("minutes", f"{config.minutes:g} on {device}", ""),
        ("vocabulary", f"{plan.vocab_size:,}: {100 * share:.0f} % of the weights", f"{occurrences:,.0f} occurrences "
         + ("per token: fine" if occurrences >= MIN_OCCURRENCES or plan.vocab_size <= 512 else "per token: prepare "
         f"with --vocab-size {max(512, 64 * int(plan.vocab_size * occurrences / MIN_OCCURRENCES / 64))}")),
        ("layers × hidden", f"{shape.num_hidden_layers} × {shape.hidden_size}, ffn {shape.intermediate_size}", "deep "
         "and thin (MobileLLM)"),
        ("heads, kv heads", f"{shape.num_attention_heads}, {shape.num_key_value_heads}", "heads of 32 to 128"),
        ("weights", format_count(best.num_parameters), "tokens / 20 (Chinchilla): "
         + format_count(best.tokens / 20)),
        ("arithmetic", describe_timing(plan.timing), f"bfloat16: {LOSSES_AGREE}"),
        ("speed", f"{format_count(best.tokens_per_second)} tok/s", ""),
        ("tokens", f"{format_count(best.tokens)}: {ratio:.1f} per weight", "20 per weight (Chinchilla); fewer for "
         "small models in minutes" + extrapolated),
        ("epochs", f"{best.epochs:.2f}", "3 are worth 2.3 of new text, any number less than 3"),
        ("generations", describe_generations(best.epochs, config.generations or 1), "1; more for little text"),
        ("tokens per step", f"{step:,}", "100,000 for medium models (llama2.c); small steps learn more on CPUs"),
        ("context", f"{config.context}", "holds three of four documents"),
        ("learning rates", f"{config.optimizer} {config.learning_rate:.3g}, embeddings {config.embedding_lr:.3g}",
         "AdamW: 5e-4 (110M) to over 1e-3 (tiny)"),
        ("weight decay", f"{config.weight_decay:.2g}", "0.1; more for many epochs"),
        ("token noise", f"{config.token_noise:.2g}", "0; word dropout for many epochs"),
        ("schedule", f"{config.schedule}, decay over the last {100 * config.decay_fraction:.0f} %",
         "cosine to 10 % (llama2.c)"),
        ("averaged weights", f"{100 * (config.averaged_fraction or 0):.0f} % of the run", "0; the last 30 % for many "
         "epochs"),
        ("compile", "auto: measured at the start, on if it pays" if config.compile == "auto" else config.compile,
         "costs half a minute; pays in long runs"),
    ]  # fmt: skip
    weighed: Rows = [("layers × hidden", "weights", "tok/s", "tokens", "epochs", "expected")]
    for estimate in plan.estimates:
        gap = estimate.bits / best.bits - 1
        if gap < 0.15:
            weighed.append((
                f"{estimate.shape.num_hidden_layers} × {estimate.shape.hidden_size}",
                format_count(estimate.num_parameters), format_count(estimate.tokens_per_second),
                format_count(estimate.tokens), f"{estimate.epochs:.2f}",
                "best" if estimate is best else f"{100 * gap:+.1f} %",
            ))  # fmt: skip
    return chosen, weighed


def describe_length(plan: Plan) -> str:
    """What the minutes are enough for, and what follows from that, for a shape that the user chose."""
    best, config = plan.best, plan.filled
    return (
        f"plan: {format_count(best.tokens_per_second)} tok/s, about {format_count(best.tokens)} tokens or "
        f"{best.epochs:.2f} epochs; weight decay {config.weight_decay:.2g}, token noise {config.token_noise:.2g}, "
        f"generations: {describe_generations(best.epochs, config.generations or 1)}"
    )


def describe_generations(epochs: float, generations: int) -> str:
    """How many models share the epochs."""
    if generations == 1:
        return "1"
    return f"{generations} of {epochs_each(epochs, generations):.1f} epochs, each taught by the best before"


def plan_values(plan: Plan) -> dict[str, Any]:
    """A plan as JSON."""
    config = plan.filled
    names = ("layers", "hidden", "heads", "kv_heads", "ffn", "context", "micro_batch_size", "grad_accum_steps", "dtype",
             "learning_rate", "embedding_lr", "weight_decay", "token_noise", "averaged_fraction",
             "generations")  # fmt: skip
    return {
        "minutes": config.minutes, "device": plan.device, "vocab_size": plan.vocab_size,
        "config": {name: getattr(config, name) for name in names},
        "estimates": [
            {"layers": each.shape.num_hidden_layers, "hidden": each.shape.hidden_size,
             "num_parameters": each.num_parameters, "tokens_per_second": each.tokens_per_second,
             "tokens": round(each.tokens), "epochs": each.epochs, "bits_per_byte": each.bits,
             "chosen": each is plan.best}
            for each in plan.estimates
        ],
        "outlook": plan.outlook.values(),
    }  # fmt: skip
