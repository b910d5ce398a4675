"""Each step of the engine's sampler against a plain one in numpy: the same picks for the same random numbers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import llamita
from llamita.cli.generation import check_generation
from llamita.engine import Sampler
from llamita.errors import ConfigError, EngineError
from llamita.sampling import DEFAULT_RUNTIME, SAMPLING_RANGES, SamplingParams

Floats = npt.NDArray[np.float64]
OFF = SamplingParams(top_p=1.0)
NUMBERS = ("typical_p", "top_p", "min_p", "xtc_threshold")
CLOSE = 2e-5  # where rounding may decide


def splitmix(seed: int) -> Iterator[float]:
    """The sampler's random numbers."""
    state, mask = seed, 2**64 - 1
    while True:
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        yield ((z ^ z >> 31) >> 11) * 2.0**-53


def penalized(logits: Floats, text: list[int], p: SamplingParams, breaks: frozenset[int]) -> Floats:
    logits = logits.copy()
    recent = text[-p.repetition_window :] if p.repetition_window else []
    for token in set(recent):
        value, count = logits[token], recent.count(token)
        value = value / p.repetition_penalty if value > 0 else value * p.repetition_penalty
        logits[token] = value - count * p.frequency_penalty - p.presence_penalty
    if p.dry_multiplier > 0:
        for token, length in repetitions(text[-p.dry_window :], p.dry_allowed_length, breaks).items():
            logits[token] -= p.dry_multiplier * p.dry_base ** min(length - p.dry_allowed_length, 50)
    return logits


def repetitions(text: list[int], allowed: int, breaks: frozenset[int]) -> dict[int, int]:
    """Of each token that would continue a repetition: the longest one, of at least `allowed` tokens."""
    found: dict[int, int] = {}
    limit = next((at for at, token in enumerate(reversed(text)) if token in breaks), len(text))
    for end in range(1, len(text)):
        length = 0
        while length < min(limit, end) and text[end - 1 - length] == text[-1 - length]:
            length += 1
        if length >= allowed and text[end] not in breaks:
            found[text[end]] = max(found.get(text[end], 0), length)
    return found if len(text) > allowed else {}


def kept(probabilities: Floats, keep: npt.NDArray[np.bool_]) -> Floats:
    left = np.where(keep, probabilities, 0)
    return left / left.sum()


def first_of(order: npt.NDArray[np.intp], probabilities: Floats, mass: float) -> npt.NDArray[np.bool_]:
    """The tokens in this order, up to the first with which their mass reaches `mass`."""
    count = int(np.searchsorted(np.cumsum(probabilities[order]), mass)) + 1
    keep = np.zeros(len(order), bool)
    keep[order[:count]] = True
    return keep


def filtered(q: Floats, p: SamplingParams, xtc: bool, mu: float | None) -> Floats:
    if mu is not None:
        return kept(q, (-np.log2(q) <= mu) | (q == q.max()))
    if 0 < p.top_k < len(q):
        q = kept(q, q >= np.sort(q)[-p.top_k])
    if p.typical_p < 1:
        there = q > 0
        surprise = np.where(there, -np.log(np.where(there, q, 1)), np.inf)
        entropy = float((q[there] * surprise[there]).sum())
        q = kept(q, there & first_of(np.argsort(np.abs(surprise - entropy)), q, p.typical_p))
    if p.top_p < 1:
        q = kept(q, first_of(np.argsort(-q), q, p.top_p))
    if p.min_p > 0:
        q = kept(q, q >= p.min_p * q.max())
    if xtc:
        reaching = q[(q >= p.xtc_threshold) & (q > 0)]
        if len(reaching) >= 2:
            q = kept(q, q <= reaching.min())
    return q


def check_picks(
    p: SamplingParams,
    logits: Floats,
    text: list[int],
    num_picks: int = 12,
    model: Any = None,
    breaks: Any = frozenset(),
) -> int:
    """Compare picks in a row, each of which the text goes on with. Returns how many were compared: the rest are so
    close to a limit that rounding may decide."""
    compared, seed, mu = 0, 11, 2 * p.mirostat_tau if p.mirostat_tau else None
    random, text = splitmix(seed), list(text)
    rows = np.random.default_rng(3).permuted(np.tile(logits, (4, 1)), axis=1).astype(np.float32)
    with Sampler(len(logits), p, seed=seed, model=model) as sampler:
        for token in text:
            sampler.accept(token)
        for number in range(num_picks):
            row = rows[number % 4].astype(np.float64)
            scaled = penalized(row, text, p, breaks) / p.temperature
            q = np.exp(scaled - scaled.max())
            q /= q.sum()
            xtc = p.xtc_probability > 0 and mu is None and next(random) <= p.xtc_probability
            left = filtered(q, p, xtc, mu)
            near = [
                dataclasses.replace(p, **{name: value * factor for name in NUMBERS if (value := getattr(p, name)) < 1})
                for factor in (1 - CLOSE, 1 + CLOSE)
            ]
            sure = all(
                ((filtered(q, each, xtc, None if mu is None else mu * (1 + sign * CLOSE)) > 0) == (left > 0)).all()
                for each, sign in zip(near, itertools.cycle((-1, 1)))
            )
            u = next(random)
            ends = np.cumsum(left)
            expected = int(np.searchsorted(ends, u, side="right"))
            found = sampler.pick(rows[number % 4])
            sure = sure and bool(np.abs(ends - u).min() > CLOSE)
            if sure:
                assert found == expected, f"{p}: pick {number}: {found}, expected {expected}"
            compared += sure
            if mu is not None:
                mu -= p.mirostat_eta * (-np.log2(left[found]) - p.mirostat_tau)
            sampler.accept(found)
            text.append(found)
    return compared


CASES = [
    {"top_k": 5},
    {"top_k": 40, "temperature": 0.7},
    {"typical_p": 0.9},
    {"typical_p": 0.3, "temperature": 1.5},
    {"typical_p": 0.05},
    {"typical_p": 0.999},
    {"top_k": 30, "typical_p": 0.5, "top_p": 0.8},
    {"top_p": 0.9},
    {"top_p": 0.5, "temperature": 0.5},
    {"min_p": 0.1},
    {"typical_p": 0.6, "min_p": 0.5},
    {"xtc_probability": 1.0},
    {"xtc_probability": 0.5, "xtc_threshold": 0.02, "top_p": 0.95},
    {"xtc_probability": 1.0, "xtc_threshold": 0.6},
    {"xtc_probability": 1.0, "xtc_threshold": 0.0},
    {"mirostat_tau": 3.0},
    {"mirostat_tau": 1.0, "mirostat_eta": 0.7, "temperature": 1.3},
    {"mirostat_tau": 5.0, "top_k": 1, "top_p": 0.1, "min_p": 0.9, "typical_p": 0.1, "xtc_probability": 1.0},
    {"repetition_penalty": 1.5, "repetition_window": 8},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7, "repetition_window": 20},
    {"frequency_penalty": -0.5, "presence_penalty": -1.0, "repetition_penalty": 1.2, "repetition_window": 5},
    {"dry_multiplier": 0.8},
    {"dry_multiplier": 2.0, "dry_base": 1.1, "dry_allowed_length": 1},
    {"dry_multiplier": 1.0, "dry_allowed_length": 3, "dry_window": 12},
    {"dry_multiplier": 1.0, "dry_base": 30.0, "repetition_penalty": 1.3, "top_p": 0.9},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_picks_are_those_of_numpy(case: dict[str, Any]) -> None:
    rng = np.random.default_rng(7)
    compared = 0
    for vocab_size, spread in ((60, 1.0), (700, 2.0), (5000, 3.0)):
        logits = spread * rng.normal(size=vocab_size)
        text = [*rng.integers(8, size=30).tolist(), 1, 2, 3, 4, 5, 1, 2, 3, 4, 6, 1, 2, 3]
        compared += check_picks(dataclasses.replace(OFF, **case), logits, text)
    assert compared >= 12


def test_long_repetitions(tiny_models: Any) -> None:
    """One token again and again is linear in its number, and its penalty stays finite."""
    p = dataclasses.replace(OFF, dry_multiplier=1e6, dry_base=100.0, dry_window=5000)
    assert check_picks(p, np.linspace(0, 1, 40), [3] * 1200, num_picks=2) == 2


def test_breaks_of_repetitions(tiny_models: Any) -> None:
    """A line end, colon, quotation mark or asterisk ends a repetition, and is not penalized."""
    tiny = tiny_models.random()
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
        size = model.info.vocab_size
        breaks = frozenset(id for id in range(size) if any(c in model.decode_token(id, 3) for c in b'\n:"*'))
        assert breaks
        rng, p = np.random.default_rng(5), dataclasses.replace(OFF, dry_multiplier=4.0)
        end = min(breaks)
        texts = [[5, 6, 7, 8, 9, 5, 6, 7], [5, 6, end, 7, 8, 5, 6, end, 7], [end, 9, end, 9, end], [5, 6, end, 5, 6]]
        compared = sum(check_picks(p, rng.normal(size=size), text, model=model, breaks=breaks) for text in texts)
        assert compared > 30


def test_the_engine_and_the_command_refuse_the_same() -> None:
    for name, (low, high) in SAMPLING_RANGES.items():
        step = 1 if name in ("dry_allowed_length", "dry_window") else 0.001
        for value in (low - max(step, abs(low) * 0.01), high + max(step, high * 0.01)):
            value = int(value) if step == 1 else value
            p = dataclasses.replace(OFF, dry_multiplier=1.0) if name.startswith("dry") else OFF
            p = dataclasses.replace(p, **{name: value})
            with pytest.raises(EngineError, match=f"{name}: expected .* found"):
                Sampler(10, p)
            with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}: expected .* found"):
                check_generation(1, p, DEFAULT_RUNTIME)
    with pytest.raises(EngineError, match="typical_p"):
        Sampler(10, OFF, typical_p=float("nan"))
