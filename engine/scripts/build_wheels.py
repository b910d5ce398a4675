"""Builds the wheels of every system on this machine, with zig's C compiler (PyPI: ziglang): `make wheels`.

The library is loaded by ctypes, so one wheel of a system serves every Python 3 there. Each wheel also holds the engine
for browsers and the programs for all systems, which `llamita export` writes pages and programs with. The same sources,
zig and scikit-build-core give the same bytes in any folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from build_programs import ROOT, ZIG_TARGETS, build_folder, build_program, cmake_options, find_zig, run, search_path

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


def build_parts() -> None:
    """Build what `llamita export` writes pages and programs with, where build_wheel and build_sdist find it. Raises
    CalledProcessError with the output of the build."""
    run([sys.executable, str(ROOT / "js" / "build.py")])
    for name in ZIG_TARGETS:
        build_program(name)


def build_wheel(target: str, out: Path) -> Path:
    """Build the wheel of a system into a folder, after build_parts. Raises CalledProcessError with the output of the
    build."""
    settings = {
        "build-dir": str(build_folder(target)),
        "build.targets": "llamita",
        "install.components": "library",  # the program is among those that build_parts builds
        "wheel.tags": ";".join(f"py3-none-{platform}" for platform in PLATFORMS[target]),
        "wheel.reproducible": "true",
        **{f"cmake.define.{name}": value for name, value in cmake_options(target).items()},
    }
    out.mkdir(parents=True, exist_ok=True)
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
            str(ROOT),
        ]
        for name, value in settings.items():
            command += ["--config-settings", f"{name}={value}"]
        run(command, env=dict(os.environ, PATH=search_path()))
        (built,) = Path(scratch).glob("*.whl")
        return built.replace(out / built.name)


def build_sdist(out: Path) -> Path:
    """Build the archive of the sources into a folder, after build_parts. Raises CalledProcessError with the output."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        code = f"from scikit_build_core.build import build_sdist; build_sdist({scratch!r})"
        run([sys.executable, "-c", code], cwd=ROOT)
        (built,) = Path(scratch).glob("*.tar.gz")
        return built.replace(out / built.name)


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
    target = "the engine for browsers and the programs"
    try:
        build_parts()
        for target in flags.targets or [*PLATFORMS, SDIST]:
            built = build_sdist(out) if target == SDIST else build_wheel(target, out)
            print(f"{built}  {built.stat().st_size:,} bytes", flush=True)
    except subprocess.CalledProcessError as error:
        print(f"{error.stdout}\nbuild_wheels: {target}: the build failed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
