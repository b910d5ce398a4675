"""Describes the machine and the software of a run, for run.json."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

import llamita
from llamita.cores import num_cores
from llamita.model.device import gpu_name


def describe_environment(device: str) -> dict[str, str | int]:
    """Versions, processor, threads, --device and commit. Unknown entries are omitted."""
    found: dict[str, str | int | None] = {
        "started": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "llamita": llamita.__version__,
        "commit": _commit(Path(llamita.__file__).parent),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "system": platform.platform(terse=True),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpu": _gpu(device),
        "gpus": torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else None,
    }
    return {name: value for name, value in found.items() if value}


def _gpu(device: str) -> str | None:
    if device == "cpu":
        return None
    if torch.cuda.is_available():
        return gpu_name(torch.device("cuda"))
    return gpu_name(torch.device("mps")) if torch.backends.mps.is_available() else None


def _processor() -> str:
    """The processor's name as the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor()


def memory_bytes() -> int | None:
    """The machine's memory; None if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _memory_gib() -> int | None:
    found = memory_bytes()
    return None if found is None else round(found / (1 << 30))


def _commit(package: Path) -> str | None:
    """The commit of the checkout that contains the package, with -dirty if changed, or None."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # an installed package: any repository around it is another project's
    return _git(package, "describe", "--always", "--dirty", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
