"""The processes that train one model together: started by torchrun, or a single one without it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from llamita.cores import num_cores
from llamita.errors import TrainingError
from llamita.training.malloc import keeping_freed_memory

RENDEZVOUS_TIMEOUT_SECONDS = 600  # for all processes of a launch to start


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process among those that train together, and its device."""

    rank: int
    world_size: int
    device: torch.device
    launch: str = ""  # identifies the torchrun that started it; the same after restarts
    restarts: int = 0  # how often torchrun has restarted processes, of one that it restarted most often

    @property
    def is_first(self) -> bool:
        """Whether this process reports and saves."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def broadcast_from_first(self, *values: float) -> tuple[float, ...]:
        """The first process's values, in all processes (clocks and signals differ)."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, src=0)
        return tuple(tensor.tolist())

    def min(self, *values: float) -> tuple[float, ...]:
        """The minimum of each value over all processes."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return tuple(tensor.tolist())

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.world_size > 1:
            dist.barrier()

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, wrapped so that each backward averages its gradients over all processes."""
        if self.world_size == 1:
            return module
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # its heir came in 2.13
            return nn.parallel.DistributedDataParallel(
                module,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                broadcast_buffers=False,  # cos and sin are constants
                gradient_as_bucket_view=True,  # no second copy of the gradients
            )

    @contextlib.contextmanager
    def local_gradients(self, module: nn.Module) -> Iterator[None]:
        """Skip the exchange of gradients in backward, for all but the last pass of a step."""
        if isinstance(module, nn.parallel.DistributedDataParallel):
            with module.no_sync():
                yield
            return
        synchronize: Any = getattr(module, "set_requires_gradient_sync", lambda wanted: None)  # FSDP2's
        synchronize(False)
        yield
        synchronize(True)

    def must_join(self, num_passes: int) -> bool:
        """Whether this process got one of `num_passes` passes less than the first.

        Passes are dealt in turn. With a sharded network it must then run another pass, because all
        processes compute together.
        """
        return 0 < num_passes % self.world_size <= self.rank


@contextlib.contextmanager
def start_ranks(device: str, threads: int | None) -> Iterator[Ranks]:
    """Join the processes that torchrun started (gloo on CPUs, NCCL on CUDA).

    Also chooses the device and the number of threads. Raises TrainingError if the device does not
    exist.
    """
    rank, world_size = _environment_int("RANK", 0), _environment_int("WORLD_SIZE", 1)
    chosen = choose_device(device, _environment_int("LOCAL_RANK", 0), one_per_process=world_size > 1)
    if threads is None and world_size > 1:  # torchrun sets OMP_NUM_THREADS=1, leaving cores idle
        threads = max(1, num_cores() // _environment_int("LOCAL_WORLD_SIZE", world_size))
    threads_before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    matmul_precision = torch.get_float32_matmul_precision()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")  # TF32
    if world_size > 1:
        # Numbers that only control the loop go through gloo, so that no GPU waits for them.
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=_fresh_store(rank, world_size), rank=rank, world_size=world_size,
            device_id=chosen if chosen.type == "cuda" else None,
        )  # fmt: skip
    try:
        restarts = torch.tensor(_environment_int("TORCHELASTIC_RESTART_COUNT", 0))
        if world_size > 1:  # a machine that was started again counts from 0
            dist.all_reduce(restarts, op=dist.ReduceOp.MAX)
        with keeping_freed_memory() if chosen.type == "cpu" else contextlib.nullcontext():
            yield Ranks(rank, world_size, chosen, _launch(), int(restarts))
    finally:
        torch.set_flush_denormal(False)  # leave the process as it was
        torch.set_num_threads(threads_before)
        torch.set_float32_matmul_precision(matmul_precision)
        if world_size > 1:
            dist.destroy_process_group()


def _fresh_store(rank: int, world_size: int) -> Store:
    """The launcher's key-value store, under a prefix that no earlier start has used.

    torchrun keeps one store for all its restarts, and machines count restarts differently: a
    restarted process would find the addresses of dead ones (PyTorch 2.13). Raises TrainingError if
    a process is missing.
    """
    shared, _, _ = next(rendezvous("env://", rank, world_size))
    return PrefixStore(rendezvous_prefix(PrefixStore("llamita", shared), rank, world_size), shared)


def rendezvous_prefix(store: Store, rank: int, world_size: int, timeout: float = RENDEZVOUS_TIMEOUT_SECONDS) -> str:
    """Agree on a name for this start; the store may hold keys of earlier starts.

    Each process leaves a note. The first one answers every note it finds until all processes have
    read an answer. It answers notes of earlier starts too; nobody reads those answers. Raises
    TrainingError with the rank of a process that does not come in time.
    """
    mine, deadline = uuid.uuid4().hex, time.monotonic() + timeout

    def wait_for(missing: int) -> None:
        if time.monotonic() > deadline:
            raise TrainingError(
                f"cannot start {world_size} processes: process {rank} waited {timeout:g} s for process "
                f"{missing}; check that process and start all of them again"
            )
        time.sleep(0.01)

    if rank > 0:
        store.set(f"note/{rank}", mine)
        while not store.check([f"answer/{mine}"]):
            wait_for(0)
        name = store.get(f"answer/{mine}").decode()
        store.set(f"{name}/read/{rank}", "")
        return name
    absent = list(range(1, world_size))
    while absent:
        for other in absent:
            if store.check([f"note/{other}"]):
                store.set(f"answer/{store.get(f'note/{other}').decode()}", mine)
        absent = [other for other in absent if not store.check([f"{mine}/read/{other}"])]
        if absent:
            wait_for(absent[0])
    return mine


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor (DTensor) gathered from all processes; other tensors unchanged.

    All processes must call this together.
    """
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, in the same memory; other tensors unchanged."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def choose_device(name: str, local_rank: int = 0, *, one_per_process: bool = False) -> torch.device:
    """The device for auto, cpu, cuda, cuda:N or mps.

    With several processes on a machine, cuda means the one of the local rank. Raises TrainingError
    if the name is unknown or the device does not exist.
    """
    device = named_device(name, one_per_process=one_per_process)
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type == "mps":
        if one_per_process:
            raise TrainingError("device 'mps': expected a single process, found several; use --device cpu")
        if not torch.backends.mps.is_available():
            raise TrainingError(
                "device 'mps': expected a Mac with an Apple GPU and macOS 14 or later, found none that PyTorch can "
                "use; use --device cpu"
            )
        return torch.device("mps")
    index = device.index if device.index is not None and not one_per_process else local_rank
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise TrainingError(f"device {name!r}: expected CUDA device {index}, found {found} devices; use --device cpu")
    return torch.device("cuda", index)


def named_device(name: str, *, one_per_process: bool = False) -> torch.device:
    """The device of this name, which may not exist here; auto is CUDA, else an Apple GPU for a single
    process, else the CPU. Raises TrainingError if the name is unknown."""
    if name == "auto":
        has_mps = torch.backends.mps.is_available() and not one_per_process
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise TrainingError(f"device {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    return device


def reshard_all(module: nn.Module) -> None:
    """Drop the whole weights that FSDP keeps after a forward pass, before the shards are changed."""
    for part in module.modules():
        reshard: Any = getattr(part, "reshard", lambda: None)  # FSDP2's
        reshard()


def compute_type(dtype: str) -> torch.dtype:
    """The dtype of a filled configuration's --dtype: bfloat16 or float32."""
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def _launch() -> str:
    """torchrun's run id, which is unique under Slurm; without one, its host and process id."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{platform.node()} {os.getppid()}" if name == "none" else name


def _environment_int(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise TrainingError(
            f"environment variable {name}: expected an integer, as torchrun sets it, found {text!r}"
        ) from None
