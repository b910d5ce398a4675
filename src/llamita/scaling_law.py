"""The scaling law: bits per byte by weights, tokens and the text that they repeat, with a range."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

# R* of tokens and of weights: after this many repetitions, one more adds 1/e of the first one's
# value. Fitted here to models of 0.5 to 2 million weights; models of billions have 15.4 of tokens and
# 5.3 of weights (Muennighoff et al., arXiv 2305.16264).
R_STAR = 1.95
R_STAR_FACTOR = 1.3  # one standard deviation of R*, up and down


def effective_tokens(amount: float, unique_tokens: float, r_star: float = R_STAR) -> float:
    """Tokens (or weights) discounted for repetition: U + U R* (1 - exp(-R / R*)).

    U: unique tokens of the text; R = amount / U - 1 (arXiv 2305.16264, equations 5 and 6, with one
    weight per unique token as the balance).
    """
    if amount <= unique_tokens:
        return amount
    excess = amount / unique_tokens - 1
    return unique_tokens * (1 + r_star * (1 - math.exp(-excess / r_star)))


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """bits(N, D) = floor + a / N^alpha + b / D^beta for N weights and D tokens (the form of
    Chinchilla, arXiv 2203.15556), both discounted for repetition.

    Fitted to runs of this recipe on TinyStories (docs/experiments.md); the floor and the unit are
    those of that text. The best N for a given time depends only on the two exponents and on a / b,
    which vary little between texts. scatter: relative, of the runs about the law.
    """

    floor: float
    a: float
    alpha: float
    b: float
    beta: float
    scatter: float

    def bits(self, num_parameters: float, tokens: float, unique_tokens: float, r_star_factor: float = 1.0) -> float:
        """Bits per byte. r_star_factor: multiplies R* of tokens."""
        weights = effective_tokens(num_parameters, unique_tokens)
        seen = effective_tokens(tokens, unique_tokens, r_star_factor * R_STAR)
        return self.floor + self.a / weights**self.alpha + self.b / seen**self.beta


SCALING_LAW = ScalingLaw(floor=0.25, a=127.5, alpha=0.4829, b=42.8, beta=0.3096, scatter=0.01)

NINE_IN_TEN = 1.645  # standard deviations


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Predicted bits per byte; nine in ten are expected from low to high."""

    bits: float
    low: float
    high: float


def _forecast(log_bits: float, variance: float) -> Forecast:
    reach = NINE_IN_TEN * math.sqrt(variance)
    return Forecast(math.exp(log_bits), math.exp(log_bits - reach), math.exp(log_bits + reach))


def forecast(num_parameters: float, tokens: float, unique_tokens: float) -> Forecast:
    """By the law alone."""
    log_bits, repeated = _log_bits(num_parameters, tokens, unique_tokens)
    return _forecast(log_bits, SCALING_LAW.scatter**2 + repeated**2)


def _log_bits(num_parameters: float, tokens: float, unique_tokens: float) -> tuple[float, float]:
    """By the law, and how much one standard deviation of R* changes it."""
    log_bits = math.log(SCALING_LAW.bits(num_parameters, tokens, unique_tokens))
    return log_bits, log_bits - math.log(SCALING_LAW.bits(num_parameters, tokens, unique_tokens, R_STAR_FACTOR))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A point of a run's curve. rate: the learning rate, as a share of its peak."""

    tokens: float
    bits: float
    rate: float


# What is known of a run before its first evaluation, as means and standard deviations over the runs
# of docs/experiments.md: how much steeper than the law bits fall with the tokens of whole runs (the
# exponent's difference); how much higher they are at the peak of the learning rate than at its end;
# and how much steeper they fall at the peak than from run to run.
SLOPE, AT_PEAK, SLOPE_AT_PEAK = (-0.03, 0.05), (0.07, 0.03), (-0.08, 0.05)
NOISE = 0.005  # of an evaluation, between seeds
ENDED = 0.02  # of the peak: from this rate on down, an evaluation is the end of a run


class RunCurve:
    """The law, scaled and tilted to a run's own evaluations: a linear fit of log bits / law by log
    tokens and the learning rate, with the means above as a prior.

    Raised or lowered as a whole, the curve of a finished run goes through its end: there only the
    noise of a seed is left.
    """

    def __init__(self, evaluations: Sequence[Evaluation], num_parameters: float, unique_tokens: float) -> None:
        """The run's weights, and the tokens of its text. Needs an evaluation."""
        self.num_parameters, self.unique_tokens = num_parameters, unique_tokens
        self._end, self._has_ended = evaluations[-1].tokens, evaluations[-1].rate <= ENDED
        factors = np.array([self._factors(each.tokens, unique_tokens, each.rate) for each in evaluations])
        found = np.array([
            math.log(each.bits) - _log_bits(num_parameters, each.tokens, unique_tokens)[0] for each in evaluations
        ])  # fmt: skip
        priors = (SLOPE, AT_PEAK, SLOPE_AT_PEAK)
        means = np.array([0.0, *(mean for mean, _ in priors)])
        precisions = np.diag([0.0, *(deviation**-2 for _, deviation in priors)])
        self.noise = NOISE
        for _ in range(2):  # then with the noise that the residuals show
            weighted = factors.T / self.noise**2
            self._covariance = np.linalg.inv(weighted @ factors + precisions)
            self._fit = self._covariance @ (weighted @ found + precisions @ means)
            residuals = found - factors @ self._fit
            self.noise = max(NOISE, float(np.sqrt(np.mean(residuals**2))))
        self._raised = float(residuals[-1]) if self._has_ended else 0.0

    def _factors(self, tokens: float, unique_tokens: float, rate: float) -> tuple[float, ...]:
        seen, end = (effective_tokens(*pair) for pair in ((tokens, unique_tokens), (self._end, self.unique_tokens)))
        fall = -math.log(seen / end)
        return 1.0, fall, rate, rate * fall

    def forecast(self, tokens: float, unique_tokens: float) -> Forecast:
        """At the end of a run of this many tokens, on this many of such text."""
        factors = np.array(self._factors(tokens, unique_tokens, 0.0))
        log_bits, repeated = _log_bits(self.num_parameters, tokens, unique_tokens)
        repeated -= _log_bits(self.num_parameters, self._end, self.unique_tokens)[1]
        octaves = abs(factors[1]) / math.log(2) if self._has_ended else 1.0  # from what is measured
        noise = max(NOISE, min(1.0, octaves) * self.noise)
        variance = float(factors @ self._covariance @ factors) + noise**2 + repeated**2
        return _forecast(log_bits + float(factors @ self._fit) + self._raised, variance)
