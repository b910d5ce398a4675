"""Builds llamita.wasm and llamita-relaxed.wasm with zig's C compiler, for js/ and for pages."""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "src" / "llamita" / "web"
# Safari refuses a module with relaxed SIMD; llamita.js asks the browser which of the two it takes.
MODULES = {"llamita.wasm": "-msimd128", "llamita-relaxed.wasm": "-msimd128 -mrelaxed-simd"}


def build(name: str, *targets: str) -> Path:
    """build/wasm/NAME's folder with these CMake targets."""
    found = importlib.util.find_spec("ziglang")
    if not found or not found.origin:
        raise SystemExit("cannot build for WebAssembly: expected the package ziglang, found none; pip install ziglang")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=path) or "cmake"
    folder = ROOT / "build" / "wasm" / Path(name).stem
    options = [
        f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'engine' / 'zig.cmake'}",
        f"-DZIG={Path(found.origin).parent / 'zig'}",
        "-DZIG_TARGET=wasm32-wasi",
        f"-DCMAKE_C_FLAGS={MODULES[name]}",
        "-DLLAMITA_TESTS=ON",
        "-DLLAMITA_WERROR=ON",
    ]
    for command in (
        [cmake, "-S", str(ROOT / "engine"), "-B", str(folder), "-G", "Ninja", *options],
        [cmake, "--build", str(folder), "--target", *targets],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ, PATH=path))
    return folder


def build_module(name: str) -> Path:
    """build/wasm/NAME, which is also copied to js/ and to the Python package, for pages."""
    module = build(name, "llamita_wasm") / "llamita.wasm"
    built = ROOT / "build" / "wasm" / name
    for copy in (built, ROOT / "js" / name, WEB / name):
        shutil.copyfile(module, copy)
    return built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    shutil.copyfile(ROOT / "js" / "llamita.js", WEB / "llamita.js")
    for name in MODULES:
        module = build_module(name).read_bytes()
        packed = len(gzip.compress(module, 9))
        print(f"built build/wasm/{name}: {len(module):,} bytes, {packed:,} with gzip")


if __name__ == "__main__":
    main()
