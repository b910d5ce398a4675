"""Weights between those of a base and those that were trained from it, so that the model forgets
less (WiSE-FT, arXiv 2109.01903)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MAX_TRIES = 3  # after both ends
MIN_WIDTH = 1 / 64  # of a bracket worth another try


def largest_share(loss_at: Callable[[float], float], max_rise: float) -> float:
    """How far one can go from the base (0) to the trained weights (1) until the loss is higher than
    the base's by more than a share of `max_rise`. At most 2 + MAX_TRIES losses are computed."""
    limit = (1 + max_rise) * (base := loss_at(0.0))
    known = {0.0: base, 1.0: loss_at(1.0)}
    if known[1.0] <= limit:
        return 1.0
    low, high, share = 0.0, 1.0, 0.5
    for _ in range(MAX_TRIES):
        known[share] = loss_at(share)
        low, high = (share, high) if known[share] <= limit else (low, share)
        if high - low < MIN_WIDTH:
            break
        share = _crossing(known, limit, low, high)
    return low


def _crossing(known: dict[float, float], limit: float, low: float, high: float) -> float:
    """Where a parabola through three known points crosses the limit between low and high."""
    nearest = sorted(known, key=lambda share: abs(share - low) + abs(share - high))[:3]
    roots = np.roots(np.polyfit(nearest, [known[share] - limit for share in nearest], 2))
    margin = 0.1 * (high - low)
    inside = [root.real for root in roots if abs(root.imag) == 0 and low + margin < root.real < high - margin]
    return float(inside[0]) if inside else 0.5 * (low + high)
