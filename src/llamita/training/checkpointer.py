"""Turns the state of a run that goes on into checkpoints: copied between two steps, written while the next ones run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llamita.checkpoint import TrainingState, sharded_state_directory
from llamita.training.distributed import Ranks, whole

# Writes the weights and the state as a checkpoint, points the links at it, deletes older ones.
CheckpointWriter = Callable[[Mapping[str, Tensor], TrainingState], None]


class Checkpointer:
    """Writes one checkpoint at a time, in a thread of the first process. Use it as a context: leaving it waits.

    The copies live in memory of their own that is kept: 12 bytes a weight with AdamW, 8 with Muon, on the first
    process. Where the network is sharded, its weights are put together there tensor by tensor, and each process writes
    its own part of the optimizer's state (torch.distributed.checkpoint).
    """

    def __init__(self, ranks: Ranks, *, sharded: bool) -> None:
        self.ranks = ranks
        self.stalled_seconds = 0.0  # how long training stood still
        self.writing_seconds = 0.0  # how long the last checkpoint took, while training went on
        self._copies: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Any] | None = None
        # a group of its own: the writers of all processes talk while training does
        self._group = dist.new_group(backend="gloo") if sharded else None

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)

    def save(
        self,
        checkpoint: Path,
        weights: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        values: dict[str, Any],
        write: CheckpointWriter,
    ) -> None:
        """Copy everything, and return; `write` follows in the first process. All processes call this together.

        Waits for the checkpoint before, whose error it raises.
        """
        start = time.monotonic()
        self.wait()
        copies = self._copy("weights", weights)
        if self._group is None:
            state = TrainingState(values, self._copy("state", optimizer_state))
            shards: Future[Any] | None = None
        else:
            self.ranks.wait()  # the first process has moved the shards of the checkpoint before
            folder = sharded_state_directory(checkpoint)
            state = TrainingState(values, {}, folder)
            shards = _save_shards(optimizer_state, folder, self._group)
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        self._writing = (
            self._thread.submit(self._finish, write, copies, state, shards) if self.ranks.is_first else shards
        )
        self.stalled_seconds += time.monotonic() - start

    def check(self) -> None:
        """Raise what went wrong with the last checkpoint, if that is known by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Go on when the last checkpoint is written; raises what went wrong."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _finish(
        self, write: CheckpointWriter, weights: Mapping[str, Tensor], state: TrainingState, shards: Future[Any] | None
    ) -> None:
        start = time.monotonic()
        if shards is not None:
            shards.result()
        write(weights, state)
        self.writing_seconds = time.monotonic() - start

    def _copy(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors in the CPU's memory, by name; on the first process (the others only give their parts)."""
        copies: dict[str, Tensor] = {}
        for name, part in tensors.items():
            tensor = whole(part.detach())
            if not self.ranks.is_first:
                continue
            key = f"{kind}/{name}"
            if key not in self._copies:
                pinned = tensor.is_cuda
                self._copies[key] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
            copies[name] = self._copies[key].copy_(tensor, non_blocking=True)
        return copies


def _save_shards(tensors: Mapping[str, Tensor], folder: Path, group: dist.ProcessGroup) -> Future[Any]:
    """Each process's shards into files of its own in the folder, in the background; the tensors are copied first."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import async_save

    writer = FileSystemWriter(folder, sync_files=False)  # they are synced with the whole checkpoint
    future = async_save(dict(tensors), storage_writer=writer, process_group=group)
    assert isinstance(future, Future)
    return future
