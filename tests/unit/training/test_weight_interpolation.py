"""How far one can go from a base to trained weights until the loss has risen too much."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamita.training.weight_interpolation import MAX_TRIES, largest_share


@pytest.mark.parametrize(
    ("rise", "expected"),
    [
        (lambda share: 0.0, 1.0),
        (lambda share: -0.01 * share, 1.0),
        (lambda share: 0.01 * share, 0.5),
        (lambda share: -0.0464 * share + 0.074 * share**2, 0.7206),  # as measured
        (lambda share: 0.1 * share**4, 0.05**0.25),
        (lambda share: 9.0 if share else 0.0, 0.0),
    ],
)
def test_the_largest_share(rise: Callable[[float], float], expected: float) -> None:
    tried: list[float] = []

    def loss_at(share: float) -> float:
        tried.append(share)
        return 2.0 * (1 + rise(share))

    found = largest_share(loss_at, 0.005)
    assert expected - 0.04 < found < expected + 0.001
    assert rise(found) <= 0.005 + 1e-9 and found in tried and len(tried) <= 2 + MAX_TRIES
