"""What differs between CPUs, CUDA and Apple's GPUs (MPS) for code that computes on any of them."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch


class Event(Protocol):
    """A point in a GPU's queue."""

    def synchronize(self) -> None:
        """Wait until the GPU has reached it."""


def gpu_name(device: torch.device) -> str:
    """The name of a GPU; PyTorch does not know those of Apple's."""
    return "Apple GPU" if device.type == "mps" else torch.cuda.get_device_name(device)


def accumulator_type(device: torch.device) -> torch.dtype:
    """The type for sums over many tokens: float64, which Apple's GPUs lack."""
    return torch.float32 if device.type == "mps" else torch.float64


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def record_event(device: torch.device) -> Event:
    """An event after everything that is queued on this GPU."""
    event: Any = torch.mps.Event() if device.type == "mps" else torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return cast(Event, event)
