"""Attention with a suitable kernel: PyTorch alone may pick one that stores all T² scores, or one
that compiles a plan for every new length.

Shape letters: B batch, H query heads, K kv heads, T time, S head size.
"""

from __future__ import annotations

import contextlib
import functools
import inspect

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# PyTorch prefers cuDNN on Hopper GPUs, which compiles a plan for each new shape (60 ms on an H200,
# 0.6 ms without it). A training run has one shape; evaluation and generation have hundreds.
KERNELS_FOR_MANY_SHAPES = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def shared_mask(mask: Tensor, like: Tensor) -> Tensor:
    """A bool mask in the form that GPU kernels take: 0 or -inf, in the type of `like`.

    PyTorch would make it in each layer, and keep each for the backward pass: T numbers a token.
    """
    zeros = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill_(~mask, -torch.inf)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(query keyᵀ / √S) value: query [B, H, T, S]; key, value [B, K, past + T, S] → [B, H,
    T, S].

    mask: True where a query may attend, or a shared_mask; None: causal, or all keys for a single
    query; int32 [N + 1]: see attend_packed, which has no dropout.
    """
    if mask is not None and mask.dtype == torch.int32:
        return attend_packed(query, key, value, mask)
    is_grouped = query.shape[1] != key.shape[1]
    if is_grouped and needs_whole_heads(query, mask):
        copies = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
        is_grouped = False
    many_shapes = query.is_cuda and not torch.is_grad_enabled()
    with sdpa_kernel(KERNELS_FOR_MANY_SHAPES) if many_shapes else contextlib.nullcontext():
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and query.shape[2] > 1,
            dropout_p=dropout,
            enable_gqa=is_grouped,
        )


def attend_packed(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Causal attention within each document of packed rows, by flash attention: no mask is stored, and
    nothing between documents is computed.

    Shapes: see attend. cu_seqlens: int32 [N + 1], where each document begins in the flattened rows,
    then B T.
    """
    from torch.nn.attention.varlen import varlen_attn  # loads the compiler

    batch, heads, time, size = query.shape
    query, key, value = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # [B T, heads, S]
    causal = (-1, 0)
    # a longer maximum than the longest document's costs nothing, and its number stays on the GPU
    out = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, time, time, window_size=causal, enable_gqa=True)
    assert isinstance(out, Tensor)
    return out.view(batch, time, heads, size).transpose(1, 2)


@functools.cache
def can_attend_packed(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether attend_packed trains here: on CUDA from Ampere on, in 16 bits, with the arguments that
    varlen_attn has in PyTorch 2.13, and if a trial equals a mask. For larger heads some cards have no
    backward pass."""
    if device.type != "cuda" or dtype == torch.float32 or head_dim > 192 or head_dim % 8:
        return False
    has_flash = torch.version.cuda is not None and torch.backends.cuda.is_flash_attention_available()
    if not has_flash or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    from torch.nn.attention.varlen import varlen_attn

    has_arguments = {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)
    return has_arguments and equals_a_mask(device, dtype, head_dim)


def equals_a_mask(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether attend_packed computes what attend does with a mask, forward and backward, for a few
    documents."""
    generator, found = torch.Generator(device).manual_seed(0), []
    shapes = [(2, heads, 64, head_dim) for heads in (4, 2, 2)]
    inputs = [torch.randn(shape, generator=generator, device=device, dtype=dtype) for shape in shapes]
    starts = torch.tensor([0, 5, 64, 90, 128], dtype=torch.int32, device=device)
    documents = (torch.arange(128, device=device)[:, None] >= starts).sum(1).view(2, 1, 64)
    mask = (documents[..., None] == documents[..., None, :]).tril()
    try:
        for each in (shared_mask(mask, inputs[0]), starts):
            leaves = [x.detach().requires_grad_() for x in inputs]
            with torch.enable_grad():
                out = attend(leaves[0], leaves[1], leaves[2], each)
                found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    except RuntimeError:  # no kernel for this card
        return False
    return all(((a - b).norm() < 0.03 * a.norm()).item() for a, b in zip(*found, strict=True))


def needs_whole_heads(query: Tensor, mask: Tensor | None) -> bool:
    """Whether no fused CUDA kernel takes grouped query heads here.

    Only flash attention takes them on every card, without a mask and not in float32. PyTorch would
    fall back to storing all T² scores for the backward pass.
    """
    return query.is_cuda and (mask is not None or query.dtype == torch.float32)
