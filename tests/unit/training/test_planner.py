"""The planner: interpolated speeds, the choice of a shape, and keeping it when a run resumes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamita.cli import main  # noqa: E402
from llamita.config import PRESETS, TrainConfig  # noqa: E402
from llamita.errors import ConfigError  # noqa: E402
from llamita.run_directory import remembered_run  # noqa: E402
from llamita.scaling_law import R_STAR, effective_tokens  # noqa: E402
from llamita.training import planner  # noqa: E402
from llamita.training.defaults import decay_for, fill_defaults  # noqa: E402
from llamita.training.distributed import Ranks  # noqa: E402
from llamita.training.flops import flops_per_token  # noqa: E402
from llamita.training.generations import TEACHER_COST  # noqa: E402
from llamita.training.planner import (  # noqa: E402
    WIDTHS,
    Estimate,
    apply_step_tokens,
    candidate_shapes,
    choose_context,
    choose_shape,
    describe_plan,
    interpolate_seconds,
    ladder_shape,
    model_shape,
    plan_run,
    plan_step_tokens,
    step_tokens,
)
from llamita.training.pretraining import train  # noqa: E402

SHAPES = [ladder_shape(width, 512) for width in WIDTHS]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_ladder_shapes_are_valid_and_grow() -> None:
    sizes = [model_shape(shape, 4096).num_parameters for shape in SHAPES]
    assert sizes == sorted(sizes) and sizes[0] < 1e6 and sizes[-1] > 5e8
    assert all(shape.hidden_size % shape.num_attention_heads == 0 for shape in SHAPES)


def test_heads_of_small_shapes_share_no_keys_and_values() -> None:
    found = {shape.hidden_size: (shape.num_attention_heads, shape.num_key_value_heads) for shape in SHAPES}
    assert found[64] == (2, 2) and found[128] == (2, 2) and found[320] == (5, 5)
    assert found[384] == (6, 3) and found[768] == (12, 6)


def test_speeds_pass_through_measured_points_and_are_monotonic() -> None:
    points = [(1e7, 1e-4), (4e7, 3.2e-4)]
    assert all(math.isclose(interpolate_seconds(points, x), y) for x, y in points)
    found = [interpolate_seconds(points, x) for x in (1e6, 5e6, 1e7, 2e7, 4e7, 1e8, 1e9)]
    assert all(a < b for a, b in itertools.pairwise(found))
    noisy = [(1e7, 4e-4), (4e7, 3e-4)]  # a busy moment: the slope beyond the points is limited
    assert interpolate_seconds(noisy, 4e8) > 3e-4 and interpolate_seconds(noisy, 1e6) < 4e-4


def test_repeated_tokens_count_less_up_to_a_limit() -> None:
    assert effective_tokens(500, 1000) == 500 and effective_tokens(1000, 1000) == 1000
    assert 2000 < effective_tokens(4000, 1000, 1.95) < 3000 < effective_tokens(4000, 1000, 15.4) < 4000
    assert effective_tokens(1e9, 1000) < 1000 * (2 + R_STAR)


def test_context_holds_most_documents() -> None:
    assert choose_context(np.array([100, 200, 250, 3000]), CPU) == 512
    assert choose_context(np.full(9, 256), CPU) == 256 and choose_context(np.full(9, 257), CPU) == 512
    assert choose_context(np.array([10**6]), CPU) == 512 and choose_context(np.array([3]), CPU) == 128
    assert choose_context(np.array([10**6]), torch.device("cuda")) == 1024


def test_steps_grow_with_the_run() -> None:
    assert [step_tokens(tokens, CPU) for tokens in (1e4, 6e5, 2e6, 5e6, 1e7, 1e9)] == [
        1024,
        1024,
        2048,
        4096,
        4096,
        16384,
    ]
    config = make_config(context=128, grad_accum_steps=2)
    assert (
        apply_step_tokens(config, 2048, world_size=2).micro_batch_size == 4
        and apply_step_tokens(config, 10, world_size=2).micro_batch_size == 1
    )
    assert apply_step_tokens(dataclasses.replace(config, micro_batch_size=3), 2048, world_size=2).micro_batch_size == 3


def gpu_step(tokens: float, unique_tokens: float, speed: float, world_size: int = 1) -> int:
    estimate = Estimate(SHAPES[0], 10**6, speed, tokens, tokens / unique_tokens, 1.0)
    return plan_step_tokens(estimate, 1, CUDA, world_size)


def test_steps_on_gpus_keep_them_busy_unless_the_text_is_short() -> None:
    """5 steps of 65,536 tokens were an epoch of a megabyte of text."""
    assert gpu_step(6e8, 3e5, 1e6) == 16384, "18 steps an epoch"
    assert gpu_step(2.4e9, 4.7e8, 4e6) == 65536, "4 million tok/s: 65,536 take 16 ms"
    assert gpu_step(6e7, 4.7e8, 3e5) == 16384 and gpu_step(6e7, 4.7e8, 6e5) == 32768, "slower: 16,384 take 55 ms"
    assert gpu_step(3e10, 1e11, 3e5) == 65536, "long runs take larger steps"
    assert gpu_step(2e10, 4e9, 3.2e7, 8) == 8 * 65536 and gpu_step(5e9, 3e5, 8e6, 8) == 8 * 16384, "each GPU fills"


def test_long_runs_get_wide_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law was fitted to small models; alone it gives an hour of an H100 53M weights."""
    shapes = [ladder_shape(width, 1024) for width in WIDTHS]
    points = [(6e8, 6e8 / 3.2e14), (2e8, 2e8 / 2.5e14)]  # 40 % of 800 TFLOP/s

    def best(seconds: float, unique_tokens: int) -> Estimate:
        return choose_shape(points, shapes, 4096, seconds, unique_tokens)[0]

    for seconds in (3600.0, 36000.0):
        assert 10 < best(seconds, 10**11).tokens / best(seconds, 10**11).num_parameters <= 40
    assert best(1e9, 10**15).shape == shapes[-1], "no shape is wide enough: the widest"
    short_text = best(3600.0, 3 * 10**5)
    monkeypatch.setattr(planner, "MAX_TOKENS_PER_WEIGHT", math.inf)
    assert best(3600.0, 10**11).num_parameters < 6e7
    assert best(3600.0, 3 * 10**5) == short_text, "a megabyte read a thousand times needs no wider model"


def test_the_table_says_what_is_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe_seconds_per_token", lambda config, *args: 1e-9 * config.hidden**2)
    monkeypatch.setattr(planner, "describe_device", str)
    rules = {}
    for minutes in (1.0, 600.0):
        config = make_config(minutes=minutes, dtype="bfloat16")
        plan = plan_run(config, vocab_size=4096, lengths=np.full(10**6, 1000), device=CUDA)
        rules[minutes] = {row[0]: row[2] for row in describe_plan(plan)[0]}["tokens"]
    assert "extrapolated" not in rules[1.0] and "extrapolated from models of up to 2.5M weights" in rules[600.0]


def test_heads_have_64_numbers_where_they_divide_the_width() -> None:
    """Attention in heads of 32 takes longer."""
    for width in WIDTHS:
        shape = ladder_shape(width, 512)
        assert width // shape.num_attention_heads == (64 if width % 64 == 0 and width > 64 else 32)
        assert shape.num_attention_heads % shape.num_key_value_heads == 0


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory (MPS allocated: 9.07 GB")],
)
def test_a_gpu_is_measured_with_a_large_shape_that_fits(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones measure how fast kernels are launched. A shape that runs out of memory is dropped,
    and planning goes on."""
    probed: list[int] = []
    limit = [10**6]

    def probe(config: TrainConfig, *args: Any) -> float:
        assert config.hidden
        probed.append(config.hidden)
        if config.hidden >= limit[0]:
            raise error
        return 1e-12 * config.hidden**2

    def plan(free: float = math.inf) -> planner.Plan:
        probed.clear()
        config = make_config(minutes=600.0, dtype="bfloat16")
        return plan_run(config, vocab_size=32000, lengths=np.full(10**6, 10**5), device=CUDA, free=free)

    monkeypatch.setattr(planner, "probe_seconds_per_token", probe)
    monkeypatch.setattr(planner, "describe_device", str)
    assert plan().best.shape.hidden_size > 768 and probed[:2] == [768, 384]
    limit[0] = 512
    assert plan().best.shape.hidden_size == 384 and probed[:4] == [768, 640, 512, 384]
    limit[0] = 64
    with pytest.raises(RuntimeError, match="out of memory"):
        plan()
    limit[0] = 10**6
    small = plan(free=4e9)
    assert max(each.shape.hidden_size for each in small.estimates) < 1024, "16 bytes a weight, and a row's activations"
    assert small.filled.grad_accum_steps > 1
    limit[0], error = 512, RuntimeError("a kernel is missing")
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        plan()


def test_a_slow_step_ends_the_measuring(monkeypatch: pytest.MonkeyPatch, replace_clock: Callable[..., None]) -> None:
    """A step of 16 seconds made planning of "some seconds" take 142."""
    clock = [0.0]

    class SlowLoss:
        def __init__(self, model: Any, *args: Any) -> None:
            self.weight = model.output_weight

        def __call__(self, *args: Any) -> Any:
            clock[0] += 16.0
            return self.weight.sum()

    monkeypatch.setattr(planner, "SummedLoss", SlowLoss)
    monkeypatch.setattr(planner, "WIDTHS", (32, 48, 64, 80, 96))
    replace_clock(monotonic=lambda: clock[0])
    config = make_config(minutes=1.0, context=16, micro_batch_size=1)
    plan = plan_run(config, vocab_size=512, lengths=np.full(50_000, 200), device=CPU)
    assert clock[0] == 16.0 and plan.estimates[-1].tokens_per_second == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [{"layers": 2, "hidden": 64, "heads": 2}, {"preset": "0.5M"}])
def test_a_given_shape_is_kept_and_the_rest_is_planned(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes are about 6 million tokens: of little text 30 epochs, of more 0.6."""
    monkeypatch.setattr(planner, "probe_seconds_per_token", lambda *args: 560 / 6e6)
    said: list[str] = []

    def plan(documents: int, **changes: Any) -> TrainConfig:
        config = make_config(**shape, minutes=10.0, **changes)
        lengths = np.full(documents, 200)
        resolved, table = planner.resolve_plan(
            config, vocab_size=512, lengths=lengths, ranks=Ranks(0, 1, CPU), say=said.append
        )
        assert table == [], "nothing to choose from"
        return fill_defaults(resolved, CPU, 1)

    short, long = plan(1000), plan(50_000)
    assert {name: getattr(short, name) for name in shape} == shape and short.hidden == long.hidden
    assert (short.generations, long.generations) == (3, 1)
    assert re.search(r"(29|30)\.\d\d epochs; .*, generations: 3 of 8\.\d epochs", said[1])
    assert re.search(r"0\.(59|60) epochs; weight decay 0\.1, token noise 0, generations: 1$", said[3])
    assert short.weight_decay == pytest.approx(8.1 / 30, 0.05) and short.token_noise == pytest.approx(0.1, 0.05)
    assert long.weight_decay == 0.1 and long.token_noise == 0.0
    assert long.micro_batch_size is not None and long.micro_batch_size * long.context == 4096
    given = plan(1000, generations=1, weight_decay=0.3, token_noise=0.0, micro_batch_size=3, context=32)
    assert (given.generations, given.weight_decay, given.token_noise) == (1, 0.3, 0.0)
    assert (given.micro_batch_size, given.context) == (3, 32)
    taught = plan(1000, teacher=Path("teacher"))
    assert taught.generations == 1 and taught.weight_decay == pytest.approx(decay_for(30 / TEACHER_COST), 0.05)
    assert long.context == (256 if "layers" in shape else PRESETS["0.5M"].max_position_embeddings)


def test_size_grows_with_time_and_text_and_falls_on_a_slow_machine() -> None:
    points = [(1e7, 1e-4), (4e7, 4e-4)]

    def size(seconds: float, text: int, slower: float = 1.0) -> int:
        slowed = [(x, slower * y) for x, y in points]
        return choose_shape(slowed, SHAPES, 4096, seconds, text)[0].num_parameters

    by_time = [size(seconds, 10**9) for seconds in (60, 600, 6000, 60000, 600000)]
    assert by_time == sorted(by_time) and by_time[0] < by_time[-1]
    assert size(6000, 10**9, slower=20) < size(6000, 10**9)
    assert size(60000, 10**5) <= size(60000, 10**9)


def make_config(**changes: Any) -> TrainConfig:
    """In float32, so that each shape is timed once on every machine."""
    return TrainConfig(data=Path("store"), out=Path("run"), **({"dtype": "float32"} | changes))


def test_plan_keeps_given_flags_and_describes_its_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[int] = []

    def probe(config: TrainConfig, *args: Any) -> float:
        assert config.hidden
        probed.append(config.hidden)
        return 1e-8 * config.hidden**2

    monkeypatch.setattr(planner, "probe_seconds_per_token", probe)
    config = make_config(minutes=10.0, context=128, micro_batch_size=3, learning_rate=0.01)
    plan = plan_run(config, vocab_size=2048, lengths=np.full(50_000, 200), device=CPU)
    assert 2 <= len(probed) <= 3 and plan.filled.hidden == plan.best.shape.hidden_size
    assert (plan.filled.context, plan.filled.micro_batch_size, plan.filled.learning_rate) == (128, 3, 0.01)
    assert plan.best.bits == min(estimate.bits for estimate in plan.estimates)
    chosen, considered = describe_plan(plan)
    cells = {row[0]: row[1] for row in chosen}
    assert cells["layers × hidden"].startswith(f"{plan.best.shape.num_hidden_layers} × {plan.best.shape.hidden_size},")
    assert cells["compile"].startswith("auto: measured at the start")
    compiled = {row[0]: row[1] for row in describe_plan(dataclasses.replace(
        plan, filled=dataclasses.replace(plan.filled, compile="on")))[0]}  # fmt: skip
    assert compiled["compile"] == "on"
    assert cells["tokens per step"] == "384" and "best" in {row[-1] for row in considered}


def test_untied_classifier_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In weights, FLOPs (as many as tied: embeddings are lookups), probes, and the table."""
    trained: list[tuple[bool, int]] = []
    real = planner.Llama

    def watched(shape: Any, *args: Any) -> Any:
        trained.append((shape.tie_word_embeddings, shape.num_parameters))
        return real(shape, *args)

    monkeypatch.setattr(planner, "Llama", watched)
    monkeypatch.setattr(planner, "WIDTHS", (32, 48, 64, 80, 96))
    monkeypatch.setattr(planner, "PROBE_SECONDS", (0.01, 0.01))
    lengths = np.full(50_000, 200)
    for untied in (False, True):
        config = make_config(minutes=1.0, context=16, micro_batch_size=1, threads=1, tie_embeddings=not untied)
        plan = plan_run(config, vocab_size=512, lengths=lengths, device=CPU)
        assert {tied for tied, _ in trained} == {not untied}
        for each in plan.estimates:
            one = model_shape(each.shape, 512).num_parameters
            assert each.num_parameters == one + (512 * each.shape.hidden_size if untied else 0)
        cells = {row[0]: row[1] for row in describe_plan(plan)[0]}
        tables = 512 * plan.best.shape.hidden_size * (2 if untied else 1)
        assert cells["vocabulary"] == f"512: {100 * tables / plan.best.num_parameters:.0f} % of the weights"
        rules = {row[0]: row[2] for row in describe_plan(plan)[0]}
        assert rules["vocabulary"] == f"{50_000 * 200 // 512:,} occurrences per token: fine"
        rare = describe_plan(dataclasses.replace(plan, vocab_size=1_000_000))[0][2][2]
        assert rare == "10 occurrences per token: prepare with --vocab-size 99968"
        trained.clear()
    shape, points = ladder_shape(256, 128), [(1e7, 1e-4), (4e7, 4e-4)]
    one, two = (choose_shape(points, [shape], 4096, 600, 10**9, untied=untied)[0] for untied in (False, True))
    assert two.num_parameters == one.num_parameters + 4096 * 256 and math.isclose(two.tokens, one.tokens)


def flags(**values: Any) -> TrainConfig:
    return TrainConfig(data=Path("store"), out=Path("run"), minutes=1.0, **values)


def test_given_shape_flags_restrict_the_candidates() -> None:
    wide = candidate_shapes(flags(ffn=2048), 128)
    assert [shape.hidden_size for shape in wide] == list(WIDTHS) and {each.intermediate_size for each in wide} == {2048}
    four = candidate_shapes(flags(kv_heads=4), 128)
    assert four and all(shape.num_key_value_heads == 4 and shape.num_attention_heads % 4 == 0 for shape in four)
    with pytest.raises(ConfigError, match="--kv-heads 7919: expected a divisor of the heads of a planned shape"):
        candidate_shapes(flags(kv_heads=7919), 128)


@pytest.mark.parametrize("values", [{"ffn": 512}, {"kv_heads": 4}])
def test_plan_uses_given_shape_flags(values: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate counts the weights of the network that will be trained."""
    monkeypatch.setattr(planner, "probe_seconds_per_token", lambda *args: 1e-4)
    plan = plan_run(flags(context=64, **values), vocab_size=320, lengths=np.full(1000, 100), device=CPU)
    assert all(getattr(plan.filled, name) == value for name, value in values.items())
    shape = plan.best.shape
    trained = (plan.filled.hidden, plan.filled.heads, plan.filled.kv_heads, plan.filled.ffn)
    estimated = (shape.hidden_size, shape.num_attention_heads, shape.num_key_value_heads, shape.intermediate_size)
    assert trained == estimated


def test_a_resumed_run_keeps_its_planned_shape(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the machine is faster by then."""
    run = tmp_path / "run"
    cost = {"seconds": 1e-3}
    monkeypatch.setattr(planner, "probe_seconds_per_token", lambda *args: cost["seconds"])
    config = TrainConfig(
        data=story_store, out=run, minutes=0.08, device="cpu", threads=1, context=32, save_minutes=0.01
    )
    train(config)
    planned = remembered_run(run)
    assert planned is not None and planned["rows_per_step"] == 32
    assert planned["config"]["layers"] and planned["config"]["hidden"]
    cost["seconds"] = 1e-9
    train(dataclasses.replace(config, resume=True))
    assert remembered_run(run) == planned
    with pytest.raises(ConfigError, match="--ffn: expected"):
        train(dataclasses.replace(config, resume=True, ffn=999))


def test_the_command_measures_this_machine(story_store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(story_store), "--minutes", "0.5", "--context", "64", "--threads", "1"]) == 0
    out = capfd.readouterr().out
    assert "tokens per step" in out and "Chinchilla" in out and "best" in out
    assert "bits per byte, * this text" in out and "x 4: 2 min" in out and "fitted to TinyStories" in out
    assert main(["plan", str(story_store / "none")]) == 2
    assert "cannot open store" in capfd.readouterr().err


def test_the_outlook_chooses_the_shape_again_for_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the minutes buy a wider model; more text helps where it is repeated, and only there."""
    monkeypatch.setattr(planner, "probe_seconds_per_token", lambda config, *args: 4e-9 * config.hidden**2)

    def plan(documents: int) -> planner.Plan:
        config = make_config(minutes=10.0, context=128)
        return plan_run(config, vocab_size=2048, lengths=np.full(documents, 200), device=CPU)

    fresh, repeated = plan(10**6), plan(1000)
    for each in (fresh, repeated):
        assert math.isclose(each.outlook.cells[1][1].bits, each.best.bits), "once the time and the text: the plan"
    alone = choose_shape([(1e7, 1e-4)], SHAPES, 4096, 600, 10**8)[0].num_parameters
    assert choose_shape([(1e7, 1e-4)], SHAPES, 4096, 2400, 10**8)[0].num_parameters > alone
    assert fresh.outlook.cells[1][3].bits < fresh.outlook.cells[1][1].bits
    assert fresh.outlook.cells[3][1].bits == fresh.outlook.cells[1][1].bits
    assert repeated.outlook.cells[3][1].bits < 0.95 * repeated.outlook.cells[1][1].bits


def test_a_plan_as_json(story_store: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe_seconds_per_token", lambda config, *args: 4e-9 * config.hidden**2)
    assert main(["plan", str(story_store), "--minutes", "2", "--threads", "1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["minutes"] == 2 and found["config"]["hidden"] in WIDTHS and found["outlook"]["minutes"] == 2
    (chosen,) = [each for each in found["estimates"] if each["chosen"]]
    (now,) = [each for each in found["outlook"]["forecasts"] if each["time_factor"] == each["text_factor"] == 1]
    assert now["bits_per_byte"] == chosen["bits_per_byte"] and now["low"] < chosen["bits_per_byte"] < now["high"]
    assert len(found["outlook"]["forecasts"]) == 16 and not found["outlook"]["from_run"]


@pytest.mark.parametrize("speeds", [(19_800, 6_090), (9_030, 2_510)])
@pytest.mark.parametrize("minutes", [2, 10, 40])
def test_the_choice_is_near_the_best_of_its_neighbors(speeds: tuple[float, float], minutes: int) -> None:
    """By the law, on 3.3 M tokens, at the speeds of docs/experiments.md: bfloat16 and float32."""
    shapes = [ladder_shape(width, 256) for width in WIDTHS]
    points = [
        (flops_per_token(model_shape(ladder_shape(width, 256), 4096), 256), 1 / speed)
        for width, speed in zip((160, 256), speeds, strict=True)
    ]
    best, estimates = choose_shape(points, shapes, 4096, 56.0 * minutes, 3_341_174)
    assert best.bits <= 1.02 * min(estimate.bits for estimate in estimates)
