"""Turns a network into shards, one a process, that are put together only where they are needed (PyTorch's FSDP2).

Each process keeps its rows of every parameter, of its gradient and of the optimizer's state. A layer's parameters are
gathered before it computes, forward and backward, and freed after; its gradients are summed into the rows' owners.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from llamita.checkpoint import TrainingState
from llamita.errors import CheckpointError
from llamita.model.llama import Llama


def shard(loss: nn.Module, model: Llama, device: torch.device, compute: torch.dtype) -> nn.Module:
    """Cut the network inside the loss, in place: each layer by itself, what is left with the loss. Returns the loss.

    The embeddings and the last norm belong to the loss, whose forward uses the classifier's matrix. All processes hold
    the same whole weights before. compute: the type that layers are gathered and computed in; gradients are summed in
    float32, and what is kept stays float32. From here on the network's load_state_dict takes whole tensors and cuts.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if compute != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(loss, mesh=mesh, mp_policy=policy)
    model.register_load_state_dict_pre_hook(_shard_loaded)  # type: ignore[no-untyped-call]
    return loss


def _shard_loaded(module: nn.Module, tensors: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Replace whole tensors that are about to be loaded by this process's rows of them."""
    for name, parameter in module.named_parameters(prefix.removesuffix(".")):
        whole = tensors.get(name)
        if isinstance(parameter, DTensor) and isinstance(whole, Tensor) and not isinstance(whole, DTensor):
            tensors[name] = shard_like(whole, parameter)


def shard_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, the same on all processes, laid out as a parameter is: cut, or on its device."""
    on_device = whole.to(parameter.device, copy=True)
    if not isinstance(parameter, DTensor):
        return on_device
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)


def reshard_optimizer_state(state: TrainingState, model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's optimizer state, `STATE/PARAMETER` → a tensor cut (or whole) as the parameter is, however many
    processes wrote it in whichever way. Raises CheckpointError if the shards are damaged."""
    parameters = dict(model.named_parameters())
    if state.shards is None:
        return {
            name: shard_like(value, parameters[name.partition("/")[2]]) if value.ndim > 0 else value
            for name, value in state.tensors.items()
            if name.partition("/")[2] in parameters
        }
    try:
        reader = FileSystemReader(state.shards)
        tensors: dict[str, Any] = {}
        for name, stored in reader.read_metadata().state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            parameter = parameters.get(name.partition("/")[2])
            fits = parameter is not None and parameter.shape == stored.size
            like = parameter if parameter is not None and fits else torch.empty(stored.size)
            tensors[name] = torch.zeros_like(like, dtype=stored.properties.dtype, requires_grad=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process may read shards
            load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except (OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError, CheckpointException) as error:
        said = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise CheckpointError(
            f"cannot resume: {state.shards}: expected the optimizer's shards: {said[0][:200]}"
        ) from error
    return tensors


@contextlib.contextmanager
def unsharded(loss: nn.Module) -> Iterator[None]:
    """While entered, the network can be called without the (sharded) loss, by all processes together, which then get
    the first one's logits: if two differed in the last bit, one might see an end of text where another goes on, and
    the two would wait for each other."""
    assert isinstance(loss, FSDPModule)
    model = loss.model
    assert isinstance(model, Llama)
    loss.unshard()
    hook = model.register_forward_hook(_first_process_logits)
    try:
        yield
    finally:
        hook.remove()
        loss.reshard()


def _first_process_logits(module: nn.Module, arguments: tuple[Any, ...], logits: Tensor) -> Tensor:
    shared = logits.contiguous()
    dist.broadcast(shared, src=0)
    return shared
