"""Builds the wheels of every system on this machine, with zig's C compiler (PyPI: ziglang): `make wheels`.

The library is loaded by ctypes, so one wheel of a system serves every Python 3 there. The same sources, zig and
scikit-build-core give the same bytes in any folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# zig's names of systems with the oldest C library or system that may run the wheel, and the platforms of its tag.
PLATFORMS = {
    "x86_64-linux-gnu.2.17": ("manylinux2014_x86_64", "manylinux_2_17_x86_64"),
    "aarch64-linux-gnu.2.17": ("manylinux2014_aarch64", "manylinux_2_17_aarch64"),
    "x86_64-linux-musl": ("musllinux_1_2_x86_64",),
    "aarch64-linux-musl": ("musllinux_1_2_aarch64",),
    "x86_64-macos.11.0": ("macosx_11_0_x86_64",),
    "aarch64-macos.11.0": ("macosx_11_0_arm64",),
    "x86_64-windows-gnu": ("win_amd64",),
    "aarch64-windows-gnu": ("win_arm64",),
}
SDIST = "sdist"


def find_zig() -> Path | None:
    """zig of the package ziglang."""
    found = importlib.util.find_spec("ziglang")
    if not found or not found.origin:
        return None
    return Path(found.origin).with_name("zig.exe" if os.name == "nt" else "zig")


def build_folder(target: str) -> Path:
    """Where the engine is built for a system; the tests marked `cross` share it."""
    return ROOT / "build" / "cross" / target


def cmake_options(target: str) -> dict[str, str]:
    """What CMake needs to build the engine for a system."""
    toolchain = ROOT / "engine" / "zig.cmake"
    return {
        "CMAKE_TOOLCHAIN_FILE": str(toolchain),
        "ZIG": str(find_zig()),
        "ZIG_TARGET": target,
        "LLAMITA_WERROR": "ON",
        "CMAKE_INSTALL_SO_NO_EXE": "ON",  # else the mode of the library depends on the Linux that builds it
    }


def build_wheel(target: str, out: Path, source: Path = ROOT, folder: Path | None = None) -> Path:
    """Build the wheel of a system into a folder. Raises CalledProcessError with the output of the build."""
    settings = {
        "build-dir": str(folder or build_folder(target)),
        "build.targets": "llamita;run",
        "wheel.tags": ";".join(f"py3-none-{platform}" for platform in PLATFORMS[target]),
        "wheel.reproducible": "true",
        **{f"cmake.define.{name}": value for name, value in cmake_options(target).items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            scratch,
            str(source),
        ]
        for name, value in settings.items():
            command += ["--config-settings", f"{name}={value}"]
        _run(command, env=dict(os.environ, PATH=path))
        (built,) = Path(scratch).glob("*.whl")
        return built.replace(out / built.name)


def build_sdist(out: Path) -> Path:
    """Build the archive of the sources into a folder. Raises CalledProcessError with the output."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        code = f"from scikit_build_core.build import build_sdist; build_sdist({scratch!r})"
        _run([sys.executable, "-c", code], cwd=ROOT)
        (built,) = Path(scratch).glob("*.tar.gz")
        return built.replace(out / built.name)


def _run(command: list[str], **options: Any) -> None:
    subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known = (*PLATFORMS, SDIST)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder for the wheels")
    flags = parser.parse_args()
    if unknown := [target for target in flags.targets if target not in known]:
        parser.error(f"target {unknown[0]}: expected one of {', '.join(known)}")
    if not find_zig():
        parser.error("zig is not installed; run `make wheels`, or pip install ziglang scikit-build-core")
    out = flags.out.resolve()
    for target in flags.targets or [*PLATFORMS, SDIST]:
        try:
            built = build_sdist(out) if target == SDIST else build_wheel(target, out)
        except subprocess.CalledProcessError as error:
            print(f"{error.stdout}\nbuild_wheels: {target}: the build failed", file=sys.stderr)
            return 1
        print(f"{built}  {built.stat().st_size:,} bytes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
