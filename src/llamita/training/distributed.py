"""Turns torchrun's environment into ranks that train one model together; without it, into a single process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import time
import uuid
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from llamita.environment import num_cores
from llamita.errors import TrainingError

RENDEZVOUS_TIMEOUT_SECONDS = 600  # in which all processes of a launch must have come


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device
    launch: str = ""  # which torchrun started it; the same for the processes of all its restarts
    restarts: int = 0  # how many times that torchrun has started all processes anew

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports and saves."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the device; in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def broadcast_from_first(self, *values: float) -> tuple[float, ...]:
        """The first process's values, in all of them: clocks and signals differ between processes."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, src=0)
        return tuple(tensor.tolist())

    def min(self, *values: float) -> tuple[float, ...]:
        """The least of all processes' values, each, in all of them."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return tuple(tensor.tolist())

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.world_size > 1:
            dist.barrier()

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all processes at each backward."""
        if self.world_size == 1:
            return module
        return nn.parallel.DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            broadcast_buffers=False,  # cos and sin are the same everywhere
            gradient_as_bucket_view=True,  # gradients live where they are sent from, once
        )

    @contextlib.contextmanager
    def local_gradients(self, module: nn.Module) -> Iterator[None]:
        """While entered, backward keeps the gradients of a parallel or sharded module to this process: more of the same
        step will follow."""
        if isinstance(module, nn.parallel.DistributedDataParallel):
            with module.no_sync():
                yield
            return
        synchronize: Any = getattr(module, "set_requires_gradient_sync", lambda wanted: None)  # a sharded one's
        synchronize(False)
        yield
        synchronize(True)

    def must_join(self, num_passes: int) -> bool:
        """Whether, of passes that were dealt in turn, this process had one less than the first: where the network is
        sharded, it must compute another, since all compute together."""
        return 0 < num_passes % self.world_size <= self.rank


@contextlib.contextmanager
def start_ranks(device: str, threads: int | None) -> Iterator[Ranks]:
    """Join the processes that torchrun started (gloo on CPUs, NCCL on CUDA); choose the device and the threads.

    Raises TrainingError if the device is not there.
    """
    rank, world_size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    chosen = choose_device(device, _number("LOCAL_RANK", 0), several=world_size > 1)
    if threads is None and world_size > 1:  # torchrun sets OMP_NUM_THREADS=1, which leaves cores idle
        threads = max(1, num_cores() // _number("LOCAL_WORLD_SIZE", world_size))
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")  # TF32
    if world_size > 1:
        # numbers that only steer the loop go through gloo, so that they never make a GPU wait
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=_fresh_store(rank, world_size), rank=rank, world_size=world_size,
            device_id=chosen if chosen.type == "cuda" else None,
        )  # fmt: skip
    try:
        yield Ranks(rank, world_size, chosen, _launch(), _number("TORCHELASTIC_RESTART_COUNT", 0))
    finally:
        torch.set_flush_denormal(False)  # leave the process as it was
        if world_size > 1:
            dist.destroy_process_group()


def _fresh_store(rank: int, world_size: int) -> Store:
    """The launcher's key-value store, under a prefix that no earlier start of these processes has used.

    torchrun keeps one store for all its restarts, and the counts of restarts differ between machines: a process that is
    started again would find the addresses of the dead (PyTorch 2.13). Raises TrainingError if a process does not come.
    """
    shared, _, _ = next(rendezvous("env://", rank, world_size))
    return PrefixStore(rendezvous_prefix(PrefixStore("llamita", shared), rank, world_size), shared)


def rendezvous_prefix(store: Store, rank: int, world_size: int, seconds: float = RENDEZVOUS_TIMEOUT_SECONDS) -> str:
    """A name that all processes of this start agree on, whatever earlier ones have left in the store.

    Each leaves a note; the first answers every note that it finds, until all have read an answer. A note of an earlier
    start is answered too, and nobody reads that. Raises TrainingError naming who has not come after so many seconds.
    """
    mine, deadline = uuid.uuid4().hex, time.monotonic() + seconds

    def wait_for(missing: int) -> None:
        if time.monotonic() > deadline:
            raise TrainingError(
                f"starting {world_size} processes failed: process {rank} has waited {seconds:g} s for process "
                f"{missing}; see what became of that one, and start all again"
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
    """A sharded tensor (a DTensor) put together from all processes, which call this together; any other as it is."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def local_tensor(tensor: Tensor) -> Tensor:
    """What this process has of a sharded tensor, in the same memory; any other tensor as it is."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def choose_device(name: str, local_rank: int = 0, *, several: bool = False) -> torch.device:
    """auto, cpu, cuda or cuda:N → the device; with several processes on a machine, cuda means the local rank's.

    Raises TrainingError if the name is unknown or the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"device {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    index = device.index if device.index is not None and not several else local_rank
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise TrainingError(f"device {name!r}: CUDA device {index} is not there, {found} found; use --device cpu")
    return torch.device("cuda", index)


def compute_type(dtype: str) -> torch.dtype:
    """A filled configuration's --dtype: bfloat16 or float32."""
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def _launch() -> str:
    """torchrun's id, which a Slurm job's number makes unique; without one, its process on its machine."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{platform.node()} {os.getppid()}" if name == "none" else name


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise TrainingError(f"environment variable {name}: expected a number (torchrun's), found {text!r}") from None
