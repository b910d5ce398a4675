"""The scaling law: repetition, and its fit to the curve of a run."""

from __future__ import annotations

import math

import pytest

from llamita.scaling_law import AT_PEAK, SCALING_LAW, SLOPE, SLOPE_AT_PEAK, Evaluation, RunCurve, forecast

SIZE, TEXT = 1_000_000, 2_000_000


def curve(level: float, slope: float, at_peak: float, points: int) -> list[Evaluation]:
    """The evaluations of a run that follows the law, scaled, tilted and raised by the learning rate."""
    found = []
    for point in range(1, points + 1):
        tokens, rate = TEXT * point / points, 1.0 - point / points
        fall = -math.log(tokens / TEXT)
        raised = math.exp(slope * fall + rate * (at_peak + SLOPE_AT_PEAK[0] * fall))
        bits = level * raised * SCALING_LAW.bits(SIZE, tokens, TEXT)
        found.append(Evaluation(tokens, bits, rate))
    return found


def test_more_of_everything_is_better_and_repeated_text_less_so() -> None:
    now = forecast(SIZE, TEXT, TEXT)
    assert now.low < now.bits < now.high
    repeated, fresh = forecast(SIZE, 8 * TEXT, TEXT), forecast(SIZE, 8 * TEXT, 8 * TEXT)
    assert fresh.bits < repeated.bits < now.bits
    assert forecast(SIZE, 1e4 * TEXT, TEXT).bits == pytest.approx(forecast(SIZE, 1e5 * TEXT, TEXT).bits)
    assert repeated.high / repeated.bits > fresh.high / fresh.bits, "how much repetition helps is not known exactly"


@pytest.mark.parametrize("level", [1.0, 2.4])
@pytest.mark.parametrize("at_peak", [0.05, 0.1])
def test_a_run_shows_its_level_and_what_the_learning_rate_hides(level: float, at_peak: float) -> None:
    """Before its end too: the first half of a run is above the runs that end there."""
    evaluations = curve(level, SLOPE[0], at_peak, 10)
    for part, accuracy in ((evaluations, 0.04), (evaluations[:7], 0.06)):
        found = RunCurve(part, SIZE, TEXT)
        for factor in (1, 4):
            expected = level * SCALING_LAW.bits(SIZE, factor * TEXT, factor * TEXT) * factor ** -SLOPE[0]
            cell = found.forecast(factor * TEXT, factor * TEXT)
            assert cell.low < expected < cell.high and cell.bits == pytest.approx(expected, rel=accuracy)


def test_runs_of_the_log_are_predicted_from_others() -> None:
    """Two of docs/experiments.md, of 4 layers of 64: on an eighth of the text, and on all of it."""
    size, tokens = 475_712, 1_200_000
    little = RunCurve([Evaluation(tokens, 1.2857, 0.0)], size, 149_810)
    more = little.forecast(tokens, tokens)
    assert more.low < 1.0373 < more.high
    fresh = RunCurve([Evaluation(tokens, 1.0373, 0.0)], size, tokens)
    less = fresh.forecast(tokens, 149_810)
    assert less.low < 1.2857 < less.high and less.bits > 1.15


def test_few_evaluations_leave_a_wide_range() -> None:
    reach = {}
    for points in (1, 3, 10):
        cell = RunCurve(curve(1.0, 0.0, AT_PEAK[0], points), SIZE, TEXT).forecast(4 * TEXT, 4 * TEXT)
        reach[points] = cell.high / cell.low
    assert reach[1] > reach[3] > reach[10]
    ends, begun = (
        RunCurve([Evaluation(TEXT, 1.0, rate)], SIZE, TEXT).forecast(TEXT, TEXT) for rate in (0.0, 1.0)
    )  # fmt: skip
    assert begun.bits < ends.bits == pytest.approx(1.0), "a run at its peak rate has the decay before it"
    assert begun.high / begun.low > ends.high / ends.low


def test_noise_widens_the_range() -> None:
    exact = curve(1.0, 0.0, AT_PEAK[0], 10)
    noisy = [Evaluation(each.tokens, each.bits * (1.05 if i % 2 else 0.95), each.rate) for i, each in enumerate(exact)]
    one, other = (RunCurve(found, SIZE, TEXT).forecast(2 * TEXT, 2 * TEXT) for found in (exact, noisy))
    assert math.log(other.high / other.low) > 2 * math.log(one.high / one.low)


def test_a_finished_run_predicts_itself() -> None:
    """One of docs/experiments.md, which fell faster than the law."""
    tokens = (2.7e6, 5.3e6, 7.7e6, 10.3e6, 12.6e6, 15.4e6, 17.8e6)
    bits = (0.9057, 0.8557, 0.8257, 0.7858, 0.7471, 0.6889, 0.6372)
    evaluations = [
        Evaluation(each, value, min(1.0, (1 - each / 17.8e6) / 0.65))
        for each, value in zip(tokens, bits, strict=True)
    ]  # fmt: skip
    size, text = 6_491_808, 3_341_174
    cell = RunCurve(evaluations, size, text).forecast(tokens[-1], text)
    assert cell.bits == pytest.approx(bits[-1], rel=0.005) and cell.high / cell.low < 1.03
    assert cell.low < bits[-1] < cell.high
    longer = RunCurve(evaluations, size, text).forecast(2 * tokens[-1], text)
    assert longer.high / longer.low > cell.high / cell.low
