"""Attention in packed rows by varlen_attn, without a GPU: PyTorch's operator, its checks and its
backward formula, around slow kernels for CPUs. The kernels of CUDA have not run here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.attention import varlen  # noqa: E402

from llamita.config import ModelConfig  # noqa: E402
from llamita.finetune.dpo_loss import DpoLoss  # noqa: E402
from llamita.finetune.lora import LoraConfig, add_lora  # noqa: E402
from llamita.finetune.loss import ConversationLoss  # noqa: E402
from llamita.finetune.packing import document_starts  # noqa: E402
from llamita.model import sdpa  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.training import loss as loss_module  # noqa: E402
from llamita.training.activation_checkpointing import checkpoint_activations  # noqa: E402
from llamita.training.distillation import DistillationLoss  # noqa: E402

SHAPE = ModelConfig(
    vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=3, head_dim=8, max_position_embeddings=32,
)  # fmt: skip
SEGMENTS = np.array([[0] * 7 + [1] * 8 + [2], [0] * 16, [0] * 3 + [2] * 2 + [1] * 4 + [2] * 7])
calls: list[tuple[int, int]] = []  # query heads, key heads


# ---------------------------------------------------------------- kernels for CPUs


def parts(query: Any, key: Any, value: Any, starts: Any, is_causal: bool) -> Iterator[tuple[slice, Any, Any, Any, Any]]:
    """Each document's rows, its q, k, v in whole heads [H, n, S], and the logarithms of its
    attention [H, n, n]."""
    assert starts.dtype == torch.int32 and starts[0] == 0 and starts[-1] == len(query) and is_causal
    assert all(x.ndim == 3 and x.stride(-1) == 1 for x in (query, key, value))
    for begin, end in itertools.pairwise(starts.tolist()):
        rows, copies = slice(begin, end), query.shape[1] // key.shape[1]
        q, k, v = (x[rows].transpose(0, 1).double() for x in (query, key, value))
        k, v = k.repeat_interleave(copies, 0), v.repeat_interleave(copies, 0)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        yield rows, q, k, v, scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)


def forward(query: Any, key: Any, value: Any, starts: Any, _: Any, max_q: int, max_k: int, *more: Any) -> Any:
    calls.append((query.shape[1], key.shape[1]))
    assert max_q == max_k >= starts.diff().max()
    out, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    for rows, _q, _k, v, scores in parts(query, key, value, starts, more[0]):
        out[rows] = (scores.softmax(-1) @ v).transpose(0, 1).to(out.dtype)
        lse[:, rows] = scores.logsumexp(-1).float()
    return out, lse, torch.zeros(2, dtype=torch.uint64)


def backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, starts: Any, _: Any, *more: Any
) -> tuple[Any, Any, Any]:
    found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for rows, q, k, v, scores in parts(query, key, value, starts, more[2]):
        above = grad[rows].transpose(0, 1).double()
        shares = (scores - lse[:, rows, None]).exp()
        delta = (above * out[rows].transpose(0, 1)).sum(-1, keepdim=True)
        by_scores = shares * (above @ v.mT - delta) / math.sqrt(q.shape[-1])
        for into, whole in zip(found, (by_scores @ k, by_scores.mT @ q, shares.mT @ above), strict=True):
            grouped = whole.view(into.shape[1], -1, *whole.shape[1:]).sum(1)  # over the query heads of a group
            into[rows] = grouped.transpose(0, 1).to(into.dtype)
    return found


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    varlen._varlen_attn.register_kernel("cpu")(forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(backward)


@pytest.fixture
def on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take varlen_attn on this machine, too."""
    monkeypatch.setattr(loss_module, "can_attend_packed", lambda *arguments: True)
    calls.clear()


# ---------------------------------------------------------------- the same losses and gradients


def network(seed: int = 0, dropout: float = 0.0) -> Llama:
    return Llama(SHAPE, dropout).initialize(torch.Generator().manual_seed(seed))


def make_loss(kind: str, model: Llama, dtype: Any) -> Any:
    if kind == "dpo":
        return DpoLoss(model, compute=dtype)
    if kind == "distillation":
        return DistillationLoss(model, network(5).to(dtype), dtype)
    return ConversationLoss(model, dtype)


def loss_and_gradient(kind: str, dtype: Any, *, use_starts: bool, checkpointed: bool = False) -> tuple[float, Any]:
    model = network()
    if kind == "lora":
        add_lora(model, LoraConfig(4), torch.Generator().manual_seed(2))
    if checkpointed:
        checkpoint_activations(model)
    segments = SEGMENTS[[0, 0]] if kind == "dpo" else SEGMENTS  # 2 pairs and padding in a row of each half
    ids = torch.randint(61, (len(segments), 17), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].masked_fill(torch.from_numpy(segments == 2), -100)
    arrays = [ids[:, :-1].contiguous(), targets, torch.from_numpy(segments)]
    if kind == "dpo":
        arrays.append(torch.zeros(2, 2, dtype=torch.float64))
    starts = torch.from_numpy(document_starts(segments)) if use_starts else None
    found = make_loss(kind, model, dtype)(*arrays, None, starts)
    found.backward()
    return found.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["conversations", "lora", "dpo", "distillation"])
def test_the_loss_and_gradient_of_a_mask(kind: str, on_cpus: None) -> None:
    expected, gradient = loss_and_gradient(kind, torch.float32, use_starts=False)
    assert not calls
    found, found_gradient = loss_and_gradient(kind, torch.float32, use_starts=True)
    assert calls[0] == (6, 3) and len(calls) == 2 * (1 + (kind == "distillation")), "each layer, in groups of heads"
    assert found == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=1e-5)
    calls.clear()
    again, again_gradient = loss_and_gradient(kind, torch.float32, use_starts=True, checkpointed=True)
    assert again == found and torch.equal(again_gradient, found_gradient)
    assert len(calls) == 4 + 2 * (kind == "distillation"), "a checkpointed layer is computed twice"
    half, half_gradient = loss_and_gradient(kind, torch.bfloat16, use_starts=True)
    assert half == pytest.approx(expected, rel=0.02)
    assert torch.nn.functional.cosine_similarity(half_gradient.float(), gradient, dim=0) > 0.99


def test_a_mask_where_varlen_attn_cannot_train(on_cpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention with dropout; no list of starts; a device without it."""
    segments, starts = torch.from_numpy(SEGMENTS), torch.from_numpy(document_starts(SEGMENTS))
    packed = loss_module.packed_attention
    assert packed(network(), torch.bfloat16, segments, starts) is starts
    assert packed(network(dropout=0.1), torch.bfloat16, segments, starts).dtype == torch.bool
    assert packed(network(), torch.bfloat16, segments, None).dtype == torch.bool
    monkeypatch.undo()
    assert packed(network(), torch.bfloat16, segments, starts).dtype == torch.bool


def test_document_starts() -> None:
    """A document never goes on in the next row, and gaps between documents count as documents."""
    assert document_starts(SEGMENTS).tolist() == [0, 7, 15, 16, 32, 35, 37, 41, 48]
    assert document_starts(SEGMENTS).dtype == np.int32


def test_gpus_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ampere and later, in 16 bits, heads that all cards train, the arguments of PyTorch 2.13."""
    capability = [(8, 0)]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(sdpa, "equals_a_mask", lambda *arguments: True)
    uncached = sdpa.can_attend_packed.__wrapped__
    cuda, half = torch.device("cuda"), torch.bfloat16
    assert uncached(cuda, half, 64) and uncached(cuda, torch.float16, 192)
    for refused in ((torch.device("cpu"), half, 64), (cuda, torch.float32, 64), (cuda, half, 256), (cuda, half, 20)):
        assert not uncached(*refused)
    capability[0] = (7, 5)
    assert not uncached(cuda, half, 64), "a T4"
    capability[0] = (9, 0)
    assert uncached(cuda, half, 64)
    with monkeypatch.context() as patched:
        patched.setattr(sdpa, "equals_a_mask", lambda *arguments: False)
        assert not uncached(cuda, half, 64)
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k: None)
    assert not uncached(cuda, half, 64), "PyTorch 2.10"
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert not uncached(cuda, half, 64)


def test_a_trial_finds_wrong_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a card that nobody has tried: one that raises, one that attends across documents, a wrong
    gradient."""

    def refuse(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    def across(query: Any, key: Any, value: Any, starts: Any, *rest: Any, **more: Any) -> Any:
        return plain(query, key, value, starts[[0, 2, 4]], *rest, **more)

    def forward_only(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
        return plain(query, key, 2 * value - value.detach(), *rest, **more)

    plain = varlen.varlen_attn
    for dtype in (torch.float32, torch.bfloat16):
        assert sdpa.equals_a_mask(torch.device("cpu"), dtype, 16)
        for wrong in (refuse, across, forward_only):
            with monkeypatch.context() as patched:
                patched.setattr(varlen, "varlen_attn", wrong)
                assert not sdpa.equals_a_mask(torch.device("cpu"), dtype, 16)


@pytest.mark.slow
def test_it_compiles(on_cpus: None) -> None:
    """Into one graph, with the operator whole, forward and backward."""
    model, ids = network(), torch.randint(61, (3, 16), generator=torch.Generator().manual_seed(1))
    starts = torch.from_numpy(document_starts(SEGMENTS))
    expected = model.hidden_states(ids, mask=starts)
    expected.square().sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    compiled = torch.compile(model.hidden_states, backend="aot_eager", fullgraph=True, dynamic=False)
    found = compiled(ids, mask=starts)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), gradient)
