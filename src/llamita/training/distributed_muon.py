"""Divides work on whole matrices, such as Muon's orthogonalization, between processes.

Each matrix has an owner, the process that computes its result. Two layouts: every process holds
every matrix (DDP), or some rows of each (FSDP2). The function takes and returns lists of float
matrices, each result of its argument's shape; the results equal those of a single process.

Shape letters: R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

Shape = tuple[int, int]
# (this process's parts, shapes of the whole matrices) → this process's parts of the results
MatrixFunction = Callable[[Sequence[Tensor], Sequence[Shape]], list[Tensor]]
BatchFunction = Callable[[Sequence[Tensor]], list[Tensor]]


def assign_owners(shapes: Sequence[Shape], num_processes: int) -> list[int]:
    """The owner of each matrix: most expensive first, each to the least loaded process.

    Cost: R² C, with R the shorter side.
    """
    costs = [min(shape) ** 2 * max(shape) for shape in shapes]
    owners, loads = [0] * len(shapes), [0] * num_processes
    for index in sorted(range(len(shapes)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners


def shard_rows(rank: int, num_rows: int, num_processes: int) -> range:
    """A process's rows of a matrix, divided as torch.chunk and FSDP2 do."""
    size = -(-num_rows // num_processes)
    return range(min(rank * size, num_rows), min((rank + 1) * size, num_rows))


def distribute_replicated(function: BatchFunction, sent: torch.dtype) -> MatrixFunction:
    """For DDP: each process computes the matrices it owns, and all get all results.

    sent: the type in which results are sent.
    """

    def compute(matrices: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        rank, num_processes = dist.get_rank(), dist.get_world_size()
        owners = assign_owners(shapes, num_processes)
        sizes = [sum(r * c for (r, c), o in zip(shapes, owners, strict=True) if o == p) for p in range(num_processes)]
        gathered = matrices[0].new_empty((num_processes, max(sizes)), dtype=sent)
        own = function([matrix for matrix, owner in zip(matrices, owners, strict=True) if owner == rank])
        local = gathered.new_zeros(max(sizes))
        if own:
            torch.cat([result.reshape(-1).to(sent) for result in own], out=local[: sizes[rank]])
        dist.all_gather(list(gathered.unbind()), local)
        return _unpack(gathered, shapes, owners, matrices[0].dtype)

    return compute


def _unpack(gathered: Tensor, shapes: Sequence[Shape], owners: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """gathered [processes, elements], by process → the matrices in order."""
    starts, results = [0] * len(gathered), []
    for (rows, columns), owner in zip(shapes, owners, strict=True):
        end = starts[owner] + rows * columns
        results.append(gathered[owner, starts[owner] : end].view(rows, columns).to(dtype))
        starts[owner] = end
    return results


def distribute_row_sharded(function: BatchFunction) -> MatrixFunction:
    """For FSDP2: rows go to the matrix's owner, and the rows of its result come back.

    A process sends and receives its own bytes twice, for any number of processes.
    """

    def compute(parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        rank, num_processes = dist.get_rank(), dist.get_world_size()
        owners = assign_owners(shapes, num_processes)
        owned = [[i for i, owner in enumerate(owners) if owner == p] for p in range(num_processes)]
        own, like = owned[rank], parts[0]

        def part_shape(process: int, index: int) -> Shape:
            rows, columns = shapes[index]
            return len(shard_rows(process, rows, num_processes)), columns

        to_owners = [[part_shape(rank, i) for i in owned[p]] for p in range(num_processes)]
        to_holders = [[part_shape(p, i) for i in own] for p in range(num_processes)]
        received = _exchange([[parts[i] for i in owned[p]] for p in range(num_processes)], to_holders, like)
        results = function([torch.cat(pieces) for pieces in zip(*received, strict=True)])
        rows = [[_rows(result, p, num_processes) for result in results] for p in range(num_processes)]
        ordered = list(parts)
        for indices, pieces in zip(owned, _exchange(rows, to_owners, like), strict=True):
            for index, piece in zip(indices, pieces, strict=True):
                ordered[index] = piece
        return ordered

    return compute


def _rows(matrix: Tensor, process: int, num_processes: int) -> Tensor:
    rows = shard_rows(process, len(matrix), num_processes)
    return matrix[rows.start : rows.stop]


def _exchange(sent: list[list[Tensor]], shapes: list[list[Shape]], like: Tensor) -> list[list[Tensor]]:
    """Send tensors to each process, and receive tensors of `shapes` from each.

    All processes must call this together.
    """
    pieces = [piece.reshape(-1) for to_process in sent for piece in to_process]
    outgoing = torch.cat(pieces) if pieces else like.new_empty(0)
    sizes = [sum(rows * columns for rows, columns in from_process) for from_process in shapes]
    received = like.new_empty(sum(sizes))
    dist.all_to_all_single(
        received, outgoing, sizes, [sum(piece.numel() for piece in to_process) for to_process in sent]
    )
    result = []
    for flat, from_process in zip(torch.split(received, sizes), shapes, strict=True):
        parts = torch.split(flat, [rows * columns for rows, columns in from_process])
        result.append([part.view(shape) for part, shape in zip(parts, from_process, strict=True)])
    return result
