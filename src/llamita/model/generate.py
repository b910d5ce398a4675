"""A simple decoder in PyTorch, one id at a time. The engine is tested against it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from llamita.errors import CheckpointError
from llamita.model.kv_cache import KVCache
from llamita.model.llama import Llama


def filter_logits(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Logits [V] to probabilities [V] after temperature, top-k, top-p (arXiv 1904.09751) and min-p
    (arXiv 2407.01082).

    What is kept is renormalized. top_k 0, top_p 1 and min_p 0 disable each filter.
    """
    logits = logits.float()
    coldness = 1 / max(temperature, 1e-30)  # with the maximum at 0, no overflow at any temperature
    probabilities = ((logits - logits.max()) * coldness).softmax(dim=-1)
    ordered, order = probabilities.sort(descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k > 0:
        keep[top_k:] = False
    if top_p < 1.0:
        mass = ordered * keep
        before = mass.cumsum(0) - mass  # mass before each id: the id that reaches top_p is kept
        keep &= before < top_p * mass.sum()
    if min_p > 0.0:
        keep &= ordered >= min_p * ordered[0]
    filtered = torch.zeros_like(probabilities)
    filtered[order[keep]] = ordered[keep]
    return filtered / filtered.sum()


def penalize_repetition(logits: Tensor, recent: Collection[int], penalty: float) -> Tensor:
    """Divide positive logits [V] of recent ids by the penalty, multiply negative ones (arXiv
    1909.05858)."""
    if penalty == 1.0 or not recent:
        return logits
    ids = torch.tensor(sorted(set(recent)), device=logits.device)
    logits = logits.clone()
    chosen = logits[ids]
    logits[ids] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)
    return logits


def bounded_seed(seed: int) -> int:
    """A seed reduced to the range of PyTorch's generators."""
    return seed % (1 << 63)


@torch.inference_mode()
def generate(
    model: Llama,
    ids: Sequence[int],
    max_new_tokens: int | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    repetition_window: int = 64,
    seed: int | None = None,
    end_ids: Collection[int] = (),
    compute: torch.dtype | None = None,
) -> Iterator[int]:
    """Yield at most max_new_tokens ids after the prompt `ids` (BOS included), up to but excluding
    an end id.

    temperature 0 is greedy: the first maximum. compute: the type to compute in; default: that of
    the embeddings. Stops silently at the end of the model's context. Raises CheckpointError if
    logits are not finite.
    """
    assert ids, "the prompt needs at least one id: BOS"
    device = model.output_weight.device
    context = model.config.max_position_embeddings
    room = context - len(ids)
    count = room if max_new_tokens is None else min(room, max_new_tokens)
    random = torch.Generator(device=device)
    if seed is None:
        random.seed()
    else:
        random.manual_seed(bounded_seed(seed))
    model.eval()
    cache = KVCache(model.config, 1, len(ids) + max(count, 0), device, compute or model.output_weight.dtype)
    text = list(ids)
    fresh = text
    for _ in range(count):
        logits = model(torch.tensor([fresh], device=device), cache, compute)[0, -1].float()
        if not bool(torch.isfinite(logits).all()):
            raise CheckpointError("cannot generate: non-finite logits: the model's weights are damaged")
        logits = penalize_repetition(logits, text[-repetition_window:], repetition_penalty)
        if temperature == 0.0:
            new = int(logits.argmax())
        else:
            probabilities = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
            new = int(torch.multinomial(probabilities, 1, generator=random))
        if new in end_ids:
            return
        yield new
        text.append(new)
        fresh = [new]


def take_while(ids: Iterable[int], go_on: Callable[[], bool]) -> list[int]:
    """The ids up to and including the first after which go_on() is false."""
    taken = []
    for each in ids:
        taken.append(each)
        if not go_on():
            break
    return taken
