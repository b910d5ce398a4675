"""The wheels of `make wheels`: what is inside, which systems they run on, the same bytes from another folder; installed
where no compiler is found, and their programs under wine and qemu, they generate the text of the build here."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from llamita.convert.page import write_page
from llamita.engine.library import FUNCTIONS
from llamita.engine.model import PACKAGED_MODEL

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "engine" / "scripts"))

from build_programs import ZIG_TARGETS, find_zig  # noqa: E402
from build_wheels import PLATFORMS, build_parts, build_sdist, build_wheel  # noqa: E402

pytestmark = pytest.mark.cross

MAX_WHEEL_BYTES = 10_000_000
NATIVE = "x86_64-linux-gnu.2.17"
PROGRAM_RUNNERS = {
    "x86_64-linux-musl": "",
    "aarch64-linux-musl": "qemu-aarch64-static",
    "x86_64-windows-gnu": "wine",
}
ONE_OF_A_FORMAT = ("aarch64-linux-gnu.2.17", "x86_64-windows-gnu", "aarch64-macos.11.0")  # ELF, PE, Mach-O
STORY = ("-i", "Once upon a time", "-s", "7", "-n", "60")


PROGRAMS = tuple(f"{name}.exe" if "windows" in name else name for name in ZIG_TARGETS)
# Built before any wheel, ignored by git, and alike in all.
PARTS = (
    *(f"llamita/web/{name}" for name in ("llamita.js", "llamita.wasm", "llamita-relaxed.wasm")),
    *(f"llamita/programs/{name}" for name in PROGRAMS),
)


@functools.cache
def parts() -> None:
    if not find_zig():
        pytest.skip("zig is not installed (pip install ziglang)")
    pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed")
    build_parts()


@functools.cache
def wheel(target: str) -> Path:
    parts()
    return build_wheel(target, ROOT / "build" / "wheels")


def library_name(target: str) -> str:
    return "llamita.dll" if "windows" in target else "libllamita.dylib" if "macos" in target else "libllamita.so"


def library_bytes(target: str) -> bytes:
    with zipfile.ZipFile(wheel(target)) as archive:
        return archive.read(f"llamita/_engine/{library_name(target)}")


def program_bytes(target: str) -> bytes:
    (name,) = (name for name, its in ZIG_TARGETS.items() if its == target)
    with zipfile.ZipFile(wheel(target)) as archive:
        return archive.read(f"llamita/programs/{name}{'.exe' if 'windows' in target else ''}")


def tracked_files(folder: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


# ---- what is inside


@pytest.mark.parametrize("target", PLATFORMS)
def test_contents(target: str) -> None:
    """The package with its data, the engine, what pages and programs are made of, and nothing else; no path of this
    machine."""
    version = importlib.metadata.version("llamita")
    assert wheel(target).name == f"llamita-{version}-py3-none-{'.'.join(PLATFORMS[target])}.whl"
    assert wheel(target).stat().st_size <= MAX_WHEEL_BYTES
    with zipfile.ZipFile(wheel(target)) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
    info = f"llamita-{version}.dist-info"
    sources = {name.removeprefix("src/"): (ROOT / name).read_bytes() for name in tracked_files("src/llamita")}
    sources |= {name: (ROOT / "src" / name).read_bytes() for name in PARTS}
    engine = f"llamita/_engine/{library_name(target)}"
    about = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert set(files) == {*sources, engine, *about}
    assert all(files[name] == content for name, content in sources.items())
    assert all(modes[name] == 0o644 for name in set(files) - {engine})
    words = files[f"{info}/WHEEL"].decode().splitlines()
    tags = {line.removeprefix("Tag: ") for line in words if line.startswith("Tag: ")}
    assert tags == {f"py3-none-{platform}" for platform in PLATFORMS[target]}
    assert "Root-Is-Purelib: false" in words
    for folder in {ROOT, Path.home(), Path(sys.prefix), Path(str(find_zig())).parent}:
        assert [name for name in files if f"{folder}{os.sep}".encode() in files[name]] == []


@pytest.fixture(scope="module")
def copied_wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by a copy of the sources in another folder."""
    parts()
    source = tmp_path_factory.mktemp("another place")
    for name in tracked_files("."):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    output([sys.executable, str(source / "engine" / "scripts" / "build_wheels.py"), *ONE_OF_A_FORMAT], timeout=3600)
    return source / "dist"


@pytest.mark.parametrize("target", ONE_OF_A_FORMAT)
def test_same_bytes_from_another_folder(target: str, copied_wheels: Path) -> None:
    with zipfile.ZipFile(wheel(target)) as here, zipfile.ZipFile(copied_wheels / wheel(target).name) as there:
        assert [info.filename for info in there.infolist()] == [info.filename for info in here.infolist()]
        assert [info.filename for info in here.infolist() if there.read(info.filename) != here.read(info)] == []
    assert (copied_wheels / wheel(target).name).read_bytes() == wheel(target).read_bytes()


# ---- which systems it runs on


@pytest.mark.parametrize("target", [target for target in PLATFORMS if "gnu.2" in target])
def test_manylinux(target: str) -> None:
    pytest.importorskip("auditwheel", reason="auditwheel is not installed")
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel(target))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f'the following platform tag:\n"{PLATFORMS[target][1]}"' in done.stdout, done.stdout


@pytest.mark.parametrize("target", [target for target in PLATFORMS if "linux" in target])
def test_elf(target: str, tmp_path: Path) -> None:
    """auditwheel looks for the libraries of musl on this machine; under musl the C library is the only one."""
    elf = pytest.importorskip("elftools.elf.elffile", reason="pyelftools is not installed (pip install auditwheel)")
    (tmp_path / "library").write_bytes(library_bytes(target))
    with open(tmp_path / "library", "rb") as stream:
        file = elf.ELFFile(stream)
        needed = {tag.needed for tag in file.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
        defined = {s.name for s in file.get_section_by_name(".dynsym").iter_symbols() if s["st_shndx"] != "SHN_UNDEF"}
        assert file.header.e_machine == {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}[target.split("-")[0]]
    glibc = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-aarch64.so.1"}
    assert needed <= ({"libc.so"} if "musl" in target else glibc)
    assert {f"llamita_{name}" for name in FUNCTIONS} <= defined


@pytest.mark.parametrize("target", [target for target in PLATFORMS if "windows" in target])
def test_pe(target: str) -> None:
    """It needs what every Windows 10 has."""
    pefile = pytest.importorskip("pefile", reason="pefile is not installed")
    for data in (library_bytes(target), program_bytes(target)):
        image = pefile.PE(data=data)
        assert image.FILE_HEADER.Machine == {"x86_64": 0x8664, "aarch64": 0xAA64}[target.split("-")[0]]
        names = {entry.dll.decode().lower() for entry in image.DIRECTORY_ENTRY_IMPORT}
        assert {name for name in names if not name.startswith("api-ms-win-crt-")} <= {"kernel32.dll", "shell32.dll"}
    exported = {symbol.name.decode() for symbol in pefile.PE(data=library_bytes(target)).DIRECTORY_ENTRY_EXPORT.symbols}
    assert {f"llamita_{name}" for name in FUNCTIONS} <= exported


@pytest.mark.parametrize("target", [target for target in PLATFORMS if "macos" in target])
def test_mach_o(target: str) -> None:
    """macOS 11 or later, the system's library only; on ARM each file has the signature that macOS demands."""
    lc_symtab, lc_load_dylib, lc_id_dylib, lc_code_signature, lc_build_version = 0x2, 0xC, 0xD, 0x1D, 0x32
    for data, is_library in ((library_bytes(target), True), (program_bytes(target), False)):
        magic, processor, _, file_type, num_commands = struct.unpack_from("<5I", data)
        assert (magic, processor) == (0xFEEDFACF, {"x86_64": 0x1000007, "aarch64": 0x100000C}[target.split("-")[0]])
        assert file_type == (6 if is_library else 2)
        commands: dict[int, list[bytes]] = {}
        offset = 32
        for _ in range(num_commands):
            kind, num_bytes = struct.unpack_from("<2I", data, offset)
            commands.setdefault(kind, []).append(data[offset : offset + num_bytes])
            offset += num_bytes
        ((platform, minimum),) = (struct.unpack_from("<2I", body, 8) for body in commands[lc_build_version])
        assert (platform, minimum >> 16, minimum >> 8 & 0xFF) == (1, 11, 0)
        names = [body[struct.unpack_from("<I", body, 8)[0] :].split(b"\0")[0] for body in commands[lc_load_dylib]]
        assert names == [b"/usr/lib/libSystem.B.dylib"]
        if "aarch64" in target:
            where = struct.unpack_from("<I", commands[lc_code_signature][0], 8)[0]
            assert data[where : where + 4] == b"\xfa\xde\x0c\xc0"  # the magic of an embedded signature
        if is_library:
            assert commands[lc_id_dylib][0][24:].startswith(b"@rpath/libllamita.dylib\0")
            start, num_bytes = struct.unpack_from("<2I", commands[lc_symtab][0], 16)
            names = data[start : start + num_bytes].split(b"\0")
            assert {b"_llamita_" + name.encode() for name in FUNCTIONS} <= set(names)


# ---- it runs


Environment: TypeAlias = tuple[Path, dict[str, str]]


@pytest.fixture
def bare_environment(tmp_path: Path) -> Environment:
    """A virtual environment with NumPy and rich but not our package, and the variables of a shell in which no compiler
    is found."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, capture_output=True, timeout=300)
    (packages,) = venv.glob("lib/python3*/site-packages")
    # A folder that a .pth file names is searched, but the .pth files in it, as of our editable install, are not read.
    homes = {str(importlib.metadata.distribution(name).locate_file("")) for name in ("numpy", "rich")}
    (packages / "dependencies.pth").write_text("\n".join(homes), encoding="utf-8")
    variables = {"PATH": str(venv / "bin"), "HOME": str(tmp_path), "PIP_NO_INDEX": "1", "LC_ALL": "C.UTF-8"}
    assert not any(shutil.which(name, path=variables["PATH"]) for name in ("cc", "gcc", "clang", "cmake", "ninja"))
    return venv, variables


def output(command: list[str], timeout: int = 900, **options: object) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=timeout, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-4000:]
    return done.stdout  # type: ignore[no-any-return]


def check_installed(venv: Path, variables: dict[str, str], engine_build: Path, tmp_path: Path) -> None:
    """The package in a virtual environment is complete: its library, its programs, its model, its other data."""
    options: dict[str, Any] = {"cwd": tmp_path, "env": variables}
    here = output([str(engine_build / "run"), str(PACKAGED_MODEL), *STORY])
    llamita = str(venv / "bin" / "llamita")
    version = importlib.metadata.version("llamita")
    assert version in output([llamita, "--version"], **options).decode()
    assert output([llamita, "run", *STORY], **options) == here
    (engine,) = venv.glob("lib/python3*/site-packages/llamita/_engine")
    code = "import llamita.engine.library as l; print(l.library_path())"
    assert output([str(venv / "bin" / "python"), "-c", code], **options).decode().strip().startswith(str(engine))
    code = "from llamita.stories.generate import generate_story; print(len(generate_story(0, 0)))"
    assert int(output([str(venv / "bin" / "python"), "-c", code], **options)) > 100
    check_exports([llamita, "export", str(engine.parent / "assets" / "stories.gguf")], options, here)


def check_exports(export: list[str], options: dict[str, Any], story: bytes) -> None:
    """The page has the bytes of one that is written here; the programs of other systems generate the same text."""
    folder = options["cwd"]
    output([*export, "stories.html"], **options)
    (folder / "here").mkdir()
    write_page(PACKAGED_MODEL, folder / "here" / "stories.html")
    assert (folder / "stories.html").read_bytes() == (folder / "here" / "stories.html").read_bytes()
    for name, target in ZIG_TARGETS.items():
        program = f"stories-{name}{'.exe' if 'windows' in name else ''}"
        output([*export, program, "--as", "program", "--target", name], **options)
        runner = PROGRAM_RUNNERS.get(target)
        if runner is not None and (not runner or shutil.which(runner)):
            words = [*([runner] if runner else []), str(folder / program), *STORY]
            assert output(words, cwd=folder, env=dict(os.environ, WINEDEBUG="-all")) == story


@pytest.mark.skipif(sysconfig.get_platform() != "linux-x86_64", reason="the wheel is for Linux on x86-64")
def test_wheel_without_a_compiler(bare_environment: Environment, engine_build: Path, tmp_path: Path) -> None:
    venv, variables = bare_environment
    output([str(venv / "bin" / "pip"), "install", "--no-deps", str(wheel(NATIVE))], env=variables)
    check_installed(venv, variables, engine_build, tmp_path)


def test_sdist_with_a_compiler(bare_environment: Environment, engine_build: Path, tmp_path: Path) -> None:
    """The build tools come from here; the sources and the package's data come from the archive."""
    pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed")
    parts()
    archive = build_sdist(tmp_path)
    with tarfile.open(archive) as names:
        assert not [name for name in names.getnames() if "/runs/" in name or "/build/" in name or "/.venv/" in name]
    venv, variables = bare_environment
    (packages,) = venv.glob("lib/python3*/site-packages")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    home = importlib.metadata.distribution("scikit_build_core").locate_file("")
    command = [str(venv / "bin" / "pip"), "install", "--no-deps", "--no-build-isolation", str(archive)]
    output(command, env={**os.environ, "PATH": path, "PYTHONPATH": str(home), "PIP_NO_INDEX": "1"})
    check_installed(venv, variables, engine_build, tmp_path)
    words = [str(PACKAGED_MODEL), *STORY]
    here = output([str(engine_build / "run"), *words])
    assert output([str(packages / "llamita" / "_engine" / "run"), *words]) == here


@pytest.mark.parametrize("target", PROGRAM_RUNNERS)
def test_program(target: str, engine_build: Path, tmp_path: Path) -> None:
    runner = PROGRAM_RUNNERS[target]
    if runner and shutil.which(runner) is None:
        pytest.skip(f"{runner} is not on PATH (Debian: wine wine64, qemu-user-static)")
    program = tmp_path / ("run.exe" if "windows" in target else "run")
    program.write_bytes(program_bytes(target))
    program.chmod(0o755)
    environment = dict(os.environ, WINEDEBUG="-all")
    words = [str(PACKAGED_MODEL), *STORY]
    here = output([str(engine_build / "run"), *words])
    assert output([*([runner] if runner else []), str(program), *words], env=environment) == here


LOADER = r"""
#include <stdio.h>
#include <windows.h>
int main(int argc, char **argv) {
    HMODULE library = argc == 2 ? LoadLibraryA(argv[1]) : NULL;
    const char *(*version)(void) = library ? (const char *(*)(void))GetProcAddress(library, "llamita_version") : NULL;
    if (version == NULL)
        return 1;
    puts(version());
    return 0;
}
"""


def test_library_on_windows(tmp_path: Path) -> None:
    """Loaded as ctypes loads it."""
    if shutil.which("wine") is None:
        pytest.skip("wine is not on PATH (Debian: wine wine64)")
    (tmp_path / "llamita.dll").write_bytes(library_bytes("x86_64-windows-gnu"))
    (tmp_path / "load.c").write_text(LOADER, encoding="utf-8")
    output([str(find_zig()), "cc", "-target", "x86_64-windows-gnu", "load.c", "-o", "load.exe"], cwd=tmp_path)
    environment = dict(os.environ, WINEDEBUG="-all")
    version = output(["wine", "load.exe", "llamita.dll"], cwd=tmp_path, env=environment)
    assert version.decode().strip() == importlib.metadata.version("llamita")
