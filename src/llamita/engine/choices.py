"""The probabilities of given texts after a prompt, from the scores of their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llamita.errors import EngineError


def check_choices(choices: Sequence[str]) -> None:
    """Raise EngineError unless these are different texts that are not empty."""
    if not choices or not all(choices) or len(set(choices)) != len(choices):
        raise EngineError("choices: expected different texts that are not empty")


def num_shared_tokens(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with; the later ones have to be scored. Raises EngineError for
    none: the first token of a text has no score."""
    shared = next((i for i, ids in enumerate(zip(*texts, strict=False)) if len(set(ids)) > 1), min(map(len, texts)))
    if shared == 0:
        raise EngineError("prompt: expected at least one token before the choices; this model has no BOS token")
    return shared


def probabilities(scores: Sequence[float]) -> list[float]:
    """From the natural logarithms of the texts' probabilities: their shares of the sum."""
    weights = np.exp(np.array(scores) - max(scores))
    return (weights / weights.sum()).tolist()
