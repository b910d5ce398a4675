"""Turns a function of whole matrices into one whose work the processes share: each matrix has one owner, who computes.

Two layouts: every process has every matrix (DDP), or every process has some rows of each (FSDP2). Either way a function
that takes and gives lists of float matrices, each result as large as its argument, gives what it would alone.

Shape letters: R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

Shape = tuple[int, int]
# (this process's parts, the whole matrices' shapes) → this process's parts of the results
MatrixFunction = Callable[[Sequence[Tensor], Sequence[Shape]], list[Tensor]]
BatchFunction = Callable[[Sequence[Tensor]], list[Tensor]]


def assign_owners(shapes: Sequence[Shape], num_processes: int) -> list[int]:
    """The owner of each matrix: the dearest first, each to who has least to do. Cost: R R C, R the shorter side."""
    costs = [min(shape) ** 2 * max(shape) for shape in shapes]
    owners, loads = [0] * len(shapes), [0] * num_processes
    for index in sorted(range(len(shapes)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners


def shard_rows(rank: int, num_rows: int, num_processes: int) -> range:
    """The rows of a matrix that a process has: as torch.chunk cuts them, and FSDP2 with it."""
    most = -(-num_rows // num_processes)
    return range(min(rank * most, num_rows), min((rank + 1) * most, num_rows))


def distribute_replicated(function: BatchFunction, sent: torch.dtype) -> MatrixFunction:
    """Every process has every matrix and computes its own ones; all get all results. sent: the type they travel in."""

    def compute(matrices: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        rank, num_processes = dist.get_rank(), dist.get_world_size()
        owners = assign_owners(shapes, num_processes)
        sizes = [sum(r * c for (r, c), o in zip(shapes, owners, strict=True) if o == p) for p in range(num_processes)]
        gathered = matrices[0].new_empty((num_processes, max(sizes)), dtype=sent)
        own = function([matrix for matrix, owner in zip(matrices, owners, strict=True) if owner == rank])
        mine = gathered.new_zeros(max(sizes))
        if own:
            torch.cat([result.reshape(-1).to(sent) for result in own], out=mine[: sizes[rank]])
        dist.all_gather(list(gathered.unbind()), mine)
        return _unpack(gathered, shapes, owners, matrices[0].dtype)

    return compute


def _unpack(gathered: Tensor, shapes: Sequence[Shape], owners: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """gathered [processes, most]: each one's matrices one after the other → all matrices in order."""
    starts, results = [0] * len(gathered), []
    for (rows, columns), owner in zip(shapes, owners, strict=True):
        end = starts[owner] + rows * columns
        results.append(gathered[owner, starts[owner] : end].view(rows, columns).to(dtype))
        starts[owner] = end
    return results


def distribute_row_sharded(function: BatchFunction) -> MatrixFunction:
    """Every process has its rows of every matrix: they travel to the owner, who computes, and the results' rows back.

    A process sends and gets as many bytes as it has, twice, whatever the number of processes.
    """

    def compute(parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        rank, num_processes = dist.get_rank(), dist.get_world_size()
        owners = assign_owners(shapes, num_processes)
        of = [[i for i, owner in enumerate(owners) if owner == p] for p in range(num_processes)]
        own, like = of[rank], parts[0]

        def part_shape(process: int, index: int) -> Shape:
            rows, columns = shapes[index]
            return len(shard_rows(process, rows, num_processes)), columns

        to_owners = [[part_shape(rank, i) for i in of[p]] for p in range(num_processes)]
        to_holders = [[part_shape(p, i) for i in own] for p in range(num_processes)]
        received = _exchange([[parts[i] for i in of[p]] for p in range(num_processes)], to_holders, like)
        results = function([torch.cat(pieces) for pieces in zip(*received, strict=True)])
        rows = [[_rows(result, p, num_processes) for result in results] for p in range(num_processes)]
        ordered = list(parts)
        for indices, pieces in zip(of, _exchange(rows, to_owners, like), strict=True):
            for index, piece in zip(indices, pieces, strict=True):
                ordered[index] = piece
        return ordered

    return compute


def _rows(matrix: Tensor, process: int, num_processes: int) -> Tensor:
    rows = shard_rows(process, len(matrix), num_processes)
    return matrix[rows.start : rows.stop]


def _exchange(sent: list[list[Tensor]], shapes: list[list[Shape]], like: Tensor) -> list[list[Tensor]]:
    """sent: what goes to each process; shapes: of what comes from each. All processes call this together."""
    pieces = [piece.reshape(-1) for to_one in sent for piece in to_one]
    out = torch.cat(pieces) if pieces else like.new_empty(0)
    sizes = [sum(rows * columns for rows, columns in of_one) for of_one in shapes]
    received = like.new_empty(sum(sizes))
    dist.all_to_all_single(received, out, sizes, [sum(piece.numel() for piece in to_one) for to_one in sent])
    result = []
    for flat, of_one in zip(torch.split(received, sizes), shapes, strict=True):
        parts = torch.split(flat, [rows * columns for rows, columns in of_one])
        result.append([part.view(shape) for part, shape in zip(parts, of_one, strict=True)])
    return result
