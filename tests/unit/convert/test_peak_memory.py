"""Importing and exporting need memory for about one tensor, for models of any size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("resource")

# Peak resident memory (file pages that are mapped included) before, after importing Meta's folder,
# and after exporting.
CODE = """
import re, resource, sys
from pathlib import Path
import numpy as np, torch
from llamita.convert.export import export
from llamita.convert.import_model import import_model
torch.set_num_threads(1)
def peak():
    if sys.platform == "linux":  # there ru_maxrss begins with that of the process that started this one
        return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
meta, out = Path(sys.argv[1]), Path(sys.argv[2])
import_model(sys.argv[3], out / "warm", verify=False)
peaks = [peak()]
import_model(meta, out / "checkpoint", verify=False)
peaks.append(peak())
for name in ("folder", "model.gguf", "model.bin"):
    export(out / "checkpoint", out / name, "f16" if name.endswith("gguf") else None, verify=False)
    peaks.append(peak())
import_model(out / "model.gguf", out / "again", verify=False)
peaks.append(peak())
print(*peaks)
"""


def test_peak_memory(make_meta: Callable[..., Any], make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Import and export of an 86 MB model, whose largest tensor has 3 MB, take less than 30 MB."""
    shape = {"hidden_size": 512, "head_dim": 64, "intermediate_size": 1376, "num_hidden_layers": 7}
    made = make_meta(tmp_path / "large", 2, **shape)
    size = sum(path.stat().st_size for path in made.path.glob("*.pth"))
    assert size > 80e6
    make_checkpoint(tmp_path / "small", "llama")
    command = [sys.executable, "-c", CODE, str(made.path), str(tmp_path / "out"), str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    peaks = [int(word) for word in done.stdout.split()]
    assert len(peaks) == 6 and max(peaks) - peaks[0] < 30e6, [f"{(p - peaks[0]) / 1e6:.0f} MB" for p in peaks]
