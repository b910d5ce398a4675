"""The engine as two files: it compiles without a warning everywhere, shares no name, and gives the same bits."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamita.engine.model import PACKAGED_MODEL

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "engine" / "scripts" / "amalgamate.py"
EMBED = ROOT / "examples" / "embed.c"
WARNINGS = ("-Wall", "-Wextra", "-Werror")
# zig's targets, and the command before the program; None: built only; "" is nothing.
TARGETS = {
    "x86_64-linux-gnu.2.28": "",
    "x86_64-linux-musl": "",
    "aarch64-linux-gnu.2.28": None,
    "aarch64-linux-musl": "qemu-aarch64-static",
    "x86_64-windows-gnu": "wine",
    "aarch64-windows-gnu": None,
    "x86_64-macos": None,
    "aarch64-macos": None,
    "wasm32-wasi": None,
}


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("amalgamate", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("amalgamation")
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["llamita.c", "llamita.h"]
    return folder


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    environment = dict(os.environ, WINEDEBUG="-all")
    return subprocess.run([*map(str, words)], capture_output=True, timeout=600, env=environment, **options)


def compile(folder: Path, *words: object) -> None:
    done = run(*words, cwd=folder)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def story(*program: object) -> bytes:
    done = run(*program, PACKAGED_MODEL, "Once upon a time")
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(b"\r\n", b"\n")  # stdout of Windows


@pytest.fixture(scope="module")
def story_of_run(engine_build: Path) -> bytes:
    done = run(engine_build / "run", PACKAGED_MODEL, "-s", 1, "-n", 0, "-i", "Once upon a time")
    assert done.stdout.count(b" ") > 50
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compiled_without_options(compiler: str, two_files: Path, story_of_run: bytes, engine_build: Path) -> None:
    """Also by gcc's own dialect, which fuses products and sums unless it is forbidden; every kernel has the bits of
    the build by CMake."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not on PATH")
    libraries = ("llamita.o", "-I.", "-lm", "-lpthread")
    compile(two_files, compiler, *WARNINGS, "-O2", "-c", "llamita.c")
    compile(two_files, compiler, *WARNINGS, "-O2", EMBED, *libraries, "-o", "embed")
    assert story(two_files / "embed") == story_of_run
    failed = run(two_files / "embed", "absent.gguf")
    assert (
        failed.returncode == 1
        and failed.stdout == b""
        and failed.stderr.startswith(b"embed: cannot open model absent.gguf: ")
    )
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full:
            assert subprocess.run([two_files / "embed", PACKAGED_MODEL], stdout=full, timeout=60).returncode == 1
    compile(two_files, compiler, "-O2", ROOT / "engine" / "tests" / "print_logits.c", *libraries, "-o", "print_logits")
    subprocess.run(["cmake", "--build", engine_build, "--target", "print_logits"], check=True, capture_output=True)
    for kernels in ("auto", "scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm"):
        words = (PACKAGED_MODEL, kernels, 2, 0, 1, 50, 70, 90, 110, 130)
        here, there = run(engine_build / "print_logits", *words), run(two_files / "print_logits", *words)
        assert (here.returncode, here.stdout, here.stderr) == (there.returncode, there.stdout, there.stderr), kernels


@pytest.mark.slow
def test_only_names_of_the_header_are_visible(two_files: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("gcc and nm are not on PATH")
    compile(two_files, "gcc", "-O0", "-c", "llamita.c", "-o", "names.o")
    names = [
        line.split()[-1]
        for line in run("nm", "-g", "--defined-only", two_files / "names.o").stdout.decode().splitlines()
    ]
    header = (two_files / "llamita.h").read_text("utf-8")
    assert len(names) > 50 and all(f"{name}(" in header for name in names)


@pytest.mark.slow
def test_from_cpp(two_files: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not on PATH")
    (two_files / "app.cpp").write_text(
        '#include <cstdio>\n#include "llamita.h"\nint main() { std::puts(llamita_version()); }\n', "utf-8"
    )
    compile(two_files, "gcc", "-O0", "-c", "llamita.c")
    compile(two_files, "g++", "-std=c++11", *WARNINGS, "-pedantic", "app.cpp", "llamita.o", "-lpthread", "-o", "app")
    assert run(two_files / "app").stdout == b"0.1.0\n"


def test_the_example_is_short() -> None:
    assert len(EMBED.read_text("utf-8").splitlines()) <= 25


def test_fast_math_is_refused(two_files: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not on PATH")
    done = run("gcc", "-ffast-math", "-fsyntax-only", two_files / "llamita.c")
    assert done.returncode != 0 and b"expected a build without -ffast-math" in done.stderr


@pytest.mark.cross
@pytest.mark.parametrize("target", TARGETS)
def test_by_zig(target: str, two_files: Path, story_of_run: bytes) -> None:
    if not importlib.util.find_spec("ziglang"):
        pytest.skip("zig is not installed (pip install ziglang)")
    libraries = () if "windows" in target else ("-lm",) if "wasm" in target else ("-lm", "-lpthread")
    program = two_files / (f"embed-{target}.exe" if "windows" in target else f"embed-{target}")
    zig = (sys.executable, "-m", "ziglang", "cc", "-target", target)
    compile(two_files, *zig, *WARNINGS, "-O2", "-s", EMBED, "llamita.c", "-I.", *libraries, "-o", program)
    runner = TARGETS[target]
    if runner is None:
        return
    if runner and shutil.which(runner) is None:
        pytest.skip(f"{runner} is not on PATH (Debian: wine wine64, qemu-user-static)")
    assert story(*([runner] if runner else []), program) == story_of_run


# ---------------------------------------------------------------- names that collide

HEADER = "#ifndef LLAMITA_{0}_H\n#define LLAMITA_{0}_H\n{1}\n#endif\n"


def amalgamate(folder: Path, files: dict[str, str], cmake: str = "") -> str:
    """The llamita.c of an engine of these files."""
    files = {"include/llamita.h": HEADER.format("API", "int llamita_all(void);"), "CMakeLists.txt": cmake, **files}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return str(load_script().Amalgamation(folder).source_text())


ONE = "static int twice(int a) { return 2 * a; }\n\n#define NUMBER 1\nint one(void) { return twice(NUMBER); }\n"
TWO = "static int twice(int a) { return a + a; }\n\n#define NUMBER 2\nint two(void) { return twice(NUMBER); }\n"
ALL = '#include "llamita.h"\n\n#include "a/numbers.h"\n\nint llamita_all(void) { return 10 * one() + two(); }\n'
NUMBERS = {"src/a/numbers.h": HEADER.format("NUMBERS", "int one(void);\nint two(void);")}


def test_private_names_and_macros_of_two_files(tmp_path: Path) -> None:
    """They are kept apart, and the result is right."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not on PATH")
    files = {**NUMBERS, "src/a/one.c": ONE, "src/a/two.c": TWO, "src/b/all.c": ALL}
    text = amalgamate(tmp_path, files)
    assert "twice_one(" in text and "twice_two(" in text and "static int one(" in text
    (tmp_path / "include" / "llamita.c").write_text(text, "utf-8")
    (tmp_path / "include" / "app.c").write_text('#include "llamita.h"\nint main(void) { return llamita_all(); }\n')
    compile(tmp_path / "include", "gcc", *WARNINGS, "app.c", "llamita.c", "-o", "app")
    assert run(tmp_path / "include" / "app").returncode == 24


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {
                "src/a/x.h": HEADER.format("X", "#define SIZE 8"),
                "src/a/x.c": '#include "a/x.h"\n',
                "src/a/y.c": "int SIZE;\n",
            },
            r"a/y\.c: SIZE: expected a name that is no macro of a/x\.h",
        ),
        (
            {
                "src/a/x.h": HEADER.format("X", "#define SIZE 8"),
                "src/a/x.c": '#include "a/x.h"\n',
                "src/a/y.c": "#define SIZE 9\n",
            },
            r"a/y\.c: SIZE: expected no macro of this name, which a/x\.h has",
        ),
        (
            {
                "src/a/x.h": HEADER.format("X", "typedef int word;"),
                "src/a/y.h": HEADER.format("Y", "typedef long word;"),
                "src/a/x.c": '#include "a/x.h"\n',
                "src/a/y.c": '#include "a/y.h"\n',
            },
            r"a/y\.h: word: expected a name of its own, found it in a/x\.h",
        ),
        (
            {"src/a/x.c": "static int f;\n", "src/b/x.c": "static int f;\n"},
            r"b/x\.c: f_x: expected a new name for f, found it in use",
        ),
    ],
)  # fmt: skip
def test_collisions_are_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message):
        amalgamate(tmp_path, files)


def test_instruction_sets_are_those_of_cmake(tmp_path: Path) -> None:
    """A file that CMakeLists.txt begins to compile for an instruction set must be known here, too."""
    cmake = "set_source_files_properties(src/a/fast.c PROPERTIES COMPILE_OPTIONS -msse4)\n"
    with pytest.raises(Exception, match=r"TARGETS: expected the files .*\(fast\.c\)"):
        amalgamate(tmp_path, {"src/a/fast.c": "int fast;\n"}, cmake)
