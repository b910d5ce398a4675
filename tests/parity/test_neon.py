"""The engine built for 64-bit ARM, run under qemu, gives the bits that it gives here: kernels and whole models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llamita

ROOT = Path(__file__).resolve().parents[2]
COMPILER, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
# Processors that qemu knows: the newest, one without the i8mm extension, and one without dot products either.
NEWEST, DOTPROD, PLAIN = "max", "cortex-a76", "cortex-a72"
KV_TYPES = ("f16", "f32", "q8")  # in the order of llamita_kv_type
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_1", "q4_k", "q5_k", "q6_k")


@pytest.fixture(scope="module")
def arm_build() -> Path:
    """build/aarch64 with static programs: `test_kernels` and `print_logits`. What changed is compiled again."""
    missing = [name for name in (COMPILER, QEMU) if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"not on PATH: {', '.join(missing)} (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static)"
        )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=path)
    assert cmake, "cmake is needed: pip install 'llamita[dev]'"
    build = ROOT / "build" / "aarch64"
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_C_COMPILER={COMPILER}")
    options = ("-DCMAKE_EXE_LINKER_FLAGS=-static", "-DLLAMITA_TESTS=ON", "-DLLAMITA_WERROR=ON")
    for command in (
        [cmake, "-S", str(ROOT / "engine"), "-B", str(build), "-G", "Ninja", *target, *options],
        [cmake, "--build", str(build), "--parallel", "2", "--target", "test_kernels", "print_logits"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=dict(os.environ, PATH=path))
        assert done.returncode == 0, done.stdout + done.stderr
    return build


def run_on(processor: str, *words: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([QEMU, "-cpu", processor, *map(str, words)], capture_output=True, timeout=300)


def logits_on(processor: str, build: Path, model: Path, kernels: str, kv_type: str, ids: list[int]) -> np.ndarray:
    """[T, V], computed by two threads."""
    done = run_on(processor, build / "print_logits", model, kernels, 2, KV_TYPES.index(kv_type), *ids)
    assert done.returncode == 0, done.stderr.decode()
    return np.frombuffer(done.stdout, np.float32).reshape(len(ids), -1)


def test_every_kernel_gives_the_bits_of_the_oracle(arm_build: Path) -> None:
    """Of all tables: which of them exist on this processor is asked below."""
    done = run_on(NEWEST, arm_build / "test_kernels")
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("type", TYPES)
def test_the_same_logits_as_here(
    type: str, arm_build: Path, engine_build: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", hidden_size=256, intermediate_size=256, head_dim=64)
    llamita.export(checkpoint, tmp_path / "model.gguf", type, verify=False)
    ids = [0, *np.random.default_rng(1).integers(3, 250, 79).tolist()]
    kv_type = KV_TYPES[TYPES.index(type) % len(KV_TYPES)]
    with llamita.load(tmp_path / "model.gguf") as model:
        assert model.info.weight_type == type.upper()
        expected = model.logits(ids, kv_type=kv_type)
    assert np.abs(expected).max() > 1  # the comparison is of something
    for kernels in ("i8mm", "dotprod", "neon"):
        found = logits_on(NEWEST, arm_build, tmp_path / "model.gguf", kernels, kv_type, ids)
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32), err_msg=kernels)


def test_kernels_are_those_that_the_processor_has(
    arm_build: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Without an extension there are the kernels that do without it; the name of what is missing is refused."""
    llamita.export(make_checkpoint(tmp_path / "checkpoint"), tmp_path / "model.gguf", "q8_0", verify=False)
    expected = logits_on(PLAIN, arm_build, tmp_path / "model.gguf", "scalar", "f16", [0, 5, 6])
    found_kernels = {NEWEST: "i8mm", DOTPROD: "dotprod", PLAIN: "neon"}
    for processor, kernels in [*found_kernels.items(), *((processor, "auto") for processor in found_kernels)]:
        found = logits_on(processor, arm_build, tmp_path / "model.gguf", kernels, "f16", [0, 5, 6])
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32), err_msg=f"{processor} {kernels}")
    for processor, kernels in ((DOTPROD, "i8mm"), (PLAIN, "dotprod"), (NEWEST, "avx2")):
        done = run_on(processor, arm_build / "print_logits", tmp_path / "model.gguf", kernels, 1, 0, 0)
        assert done.returncode == 2 and b"kernels: expected auto, scalar or" in done.stderr
