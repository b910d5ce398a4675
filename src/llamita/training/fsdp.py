"""Shards a network over the processes with PyTorch's FSDP2.

Each process keeps its rows of every parameter, gradient and optimizer state. A layer's parameters
are gathered before it computes, forward and backward, and freed afterwards; its gradients are
reduced to the owners of the rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from llamita.checkpoint import TrainingState
from llamita.errors import CheckpointError
from llamita.model.llama import Llama
from llamita.training.optimizer import state_layout

# What torch.distributed.checkpoint's index of the shards, a pickle, is made of.
INDEX_CLASSES: Final = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "ChunkStorageMetadata",
        "BytesStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "collections": ("OrderedDict",),
}  # fmt: skip
DAMAGE: Final = (
    OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError, AttributeError, TypeError, LookupError,
    AssertionError, ImportError,
)  # fmt: skip


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        if name in INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the pickle contains code ({module}.{name}), which was not executed")


class _ShardReader(FileSystemReader):
    """Reads the index without executing code, where PyTorch's reader unpickles all it finds: that of all
    processes, and if it cannot use it, one of this process alone."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            index = _IndexUnpickler(file).load()
        if not isinstance(index, Metadata):
            raise ValueError(f"expected the index of shards, found {type(index).__name__}")
        return index


def shard(loss: nn.Module, model: Llama, device: torch.device, compute: torch.dtype) -> nn.Module:
    """Shard the network inside the loss, in place: one unit per layer, the rest with the loss.

    The embeddings and the last norm belong to the loss, whose forward uses the classifier's matrix.
    Before, all processes hold the same complete weights. compute: the type in which layers are
    gathered and computed; gradients are reduced, and everything is kept, in float32. Afterwards the
    network's load_state_dict takes complete tensors and shards them. Returns the loss.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if compute != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # a batch may have numbers that need their precision: DPO's reference
    fully_shard(loss, mesh=mesh, mp_policy=dataclasses.replace(policy, cast_forward_inputs=False))
    model.register_load_state_dict_pre_hook(_shard_loaded)  # type: ignore[no-untyped-call]
    return loss


def _shard_loaded(module: nn.Module, tensors: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Replace complete tensors that are about to be loaded by this process's rows."""
    for name, parameter in module.named_parameters(prefix.removesuffix(".")):
        full = tensors.get(name)
        if isinstance(parameter, DTensor) and isinstance(full, Tensor) and not isinstance(full, DTensor):
            tensors[name] = shard_like(full, parameter)


def shard_like(full: Tensor, parameter: Tensor) -> Tensor:
    """A complete tensor, the same in all processes, in a parameter's layout and on its device."""
    on_device = full.to(parameter.device, copy=True)
    if not isinstance(parameter, DTensor):
        return on_device
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)


def reshard_optimizer_state(state: TrainingState, model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's optimizer state, `STATE/PARAMETER` → tensor, in the layout of the parameters.

    The checkpoint may come from any number of processes. Raises CheckpointError if its shards are
    damaged.
    """
    parameters = dict(model.named_parameters())
    if state.shards is None:
        return {
            name: shard_like(value, parameters[name.partition("/")[2]]) if value.ndim > 0 else value
            for name, value in state.tensors.items()
            if name.partition("/")[2] in parameters
        }
    try:
        reader = _ShardReader(state.shards)
        tensors: dict[str, Any] = {}
        for name, stored in reader.read_metadata().state_dict_metadata.items():
            if not isinstance(stored, TensorStorageMetadata):
                raise ValueError(f"{name}: expected a tensor")
            key, _, of = name.partition("/")
            like: Tensor | None = state_layout(key, parameters[of]) if of in parameters else None
            if like is None or like.shape != stored.size:
                like = torch.empty(stored.size)
            tensors[name] = torch.zeros_like(like, dtype=stored.properties.dtype, requires_grad=False)
        with warnings.catch_warnings():
            # a single process may read shards
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except (*DAMAGE, CheckpointException) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise CheckpointError(
            f"cannot resume: {state.shards}: cannot read the optimizer's shards: {reason[0][:200]}"
        ) from error
    return tensors


@contextlib.contextmanager
def unsharded(loss: nn.Module) -> Iterator[None]:
    """While entered, all processes together can call the network without the loss around it.

    All get the first process's logits: if two differed in the last bit, one process might see an
    end of text where another goes on, and both would wait forever.
    """
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


@contextlib.contextmanager
def gathered(loss: nn.Module, model: Llama) -> Iterator[None]:
    """While entered, each process has the whole network in the type it computes in, and may call it
    as often as it likes, also in another loss: passes do not wait for other processes.

    All processes enter and leave together.
    """
    assert isinstance(loss, FSDPModule)
    loss._get_fsdp_state()._lazy_init()  # before a layer takes itself for the outermost module
    modules: list[FSDPModule] = [loss]
    for layer in model.model.layers:
        assert isinstance(layer, FSDPModule)
        modules.append(layer)
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(module is not modules[0], recurse=False)
            module.reshard()


def _first_process_logits(module: nn.Module, arguments: tuple[Any, ...], logits: Tensor) -> Tensor:
    shared = logits.contiguous()
    dist.broadcast(shared, src=0)
    return shared
