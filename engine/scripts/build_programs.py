"""Builds the program for every system that `llamita export --as program` writes, with zig's C compiler (PyPI:
ziglang): python engine/scripts/build_programs.py FOLDER."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llamita.convert.program import ZIG_TARGETS

ENGINE = Path(__file__).resolve().parents[1]


def build(target: str, folder: Path) -> Path:
    """The program for one target, in the folder."""
    found = importlib.util.find_spec("ziglang")
    if not found or not found.origin:
        sys.exit("build_programs.py: zig is not installed (pip install ziglang)")
    zig = Path(found.origin).with_name("zig")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=path) or "cmake"
    suffix = ".exe" if target.startswith("windows") else ""
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ENGINE / 'zig.cmake'}"
    with tempfile.TemporaryDirectory() as build:
        options = ("-G", "Ninja", toolchain, f"-DZIG={zig}", f"-DZIG_TARGET={ZIG_TARGETS[target]}")
        for command in (
            [cmake, "-S", str(ENGINE), "-B", build, *options],
            [cmake, "--build", build, "--parallel", "2", "--target", "run"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, PATH=path))
            if done.returncode:
                sys.exit(f"build_programs.py: {target}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(build) / f"run{suffix}", folder / f".{target}{suffix}")
    os.replace(folder / f".{target}{suffix}", folder / f"{target}{suffix}")
    return folder / f"{target}{suffix}"


if __name__ == "__main__":
    for name in ZIG_TARGETS:
        print(f"wrote {build(name, Path(sys.argv[1]))}", flush=True)
