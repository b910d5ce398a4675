"""Builds the program for every system that `llamita export --target` knows, with zig's C compiler (PyPI: ziglang), into
src/llamita/programs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "src" / "llamita" / "programs"
# Names of systems: those of `llamita export --target`, and zig's.
ZIG_TARGETS = {
    "linux-x86_64": "x86_64-linux-musl",
    "linux-arm64": "aarch64-linux-musl",
    "windows-x86_64": "x86_64-windows-gnu",
    "windows-arm64": "aarch64-windows-gnu",
    "macos-arm64": "aarch64-macos.11.0",
    "macos-x86_64": "x86_64-macos.11.0",
}


def find_zig() -> Path | None:
    """zig of the package ziglang."""
    found = importlib.util.find_spec("ziglang")
    if not found or not found.origin:
        return None
    return Path(found.origin).with_name("zig.exe" if os.name == "nt" else "zig")


def build_folder(target: str) -> Path:
    """Where the engine is built for a system of zig: for its wheel, its program and the tests marked `cross`."""
    return ROOT / "build" / "cross" / target


def cmake_options(target: str) -> dict[str, str]:
    """What CMake needs to build the engine for a system of zig."""
    return {
        "CMAKE_TOOLCHAIN_FILE": str(ROOT / "engine" / "zig.cmake"),
        "ZIG": str(find_zig()),
        "ZIG_TARGET": target,
        "LLAMITA_WERROR": "ON",
        "CMAKE_INSTALL_SO_NO_EXE": "ON",  # else the mode of the library depends on the Linux that builds it
    }


def search_path() -> str:
    """PATH with the programs of this Python's packages: cmake, ninja."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def build(target: str, *names: str, **options: str) -> Path:
    """build_folder(target) with these targets of CMake. Raises CalledProcessError with the output of the build."""
    folder, path = build_folder(target), search_path()
    cmake = shutil.which("cmake", path=path) or "cmake"
    defines = [f"-D{name}={value}" for name, value in {**cmake_options(target), **options}.items()]
    for command in (
        [cmake, "-S", str(ROOT / "engine"), "-B", str(folder), "-G", "Ninja", *defines],
        [cmake, "--build", str(folder), "--parallel", "2", "--target", *names],
    ):
        # The first use of a target compiles its C library.
        run(command, timeout=1800, env=dict(os.environ, PATH=path))
    return folder


def run(command: list[str], **options: object) -> None:
    """Raises CalledProcessError with the output."""
    subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)  # type: ignore[call-overload]


def build_program(name: str) -> Path:
    """The program for a target of `llamita export`, where it is found. Raises CalledProcessError."""
    suffix = ".exe" if name.startswith("windows") else ""
    built = build(ZIG_TARGETS[name], "run") / f"run{suffix}"
    program = PROGRAMS / f"{name}{suffix}"
    PROGRAMS.mkdir(exist_ok=True)
    new = program.with_name(f".{program.name}")
    shutil.copyfile(built, new)
    new.chmod(0o644)  # in every wheel alike; only the export runs
    new.replace(program)
    return program


def main() -> int:
    if not find_zig():
        sys.exit("build_programs.py: zig is not installed; run `make programs`, or pip install ziglang")
    for name in ZIG_TARGETS:
        try:
            program = build_program(name)
        except subprocess.CalledProcessError as error:
            print(f"{error.stdout}\nbuild_programs.py: {name}: the build failed", file=sys.stderr)
            return 1
        print(f"{program}  {program.stat().st_size:,} bytes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
