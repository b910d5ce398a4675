"""Writes one program with the model inside: the engine's program for a system, then a GGUF, then a
trailer.

    the program, with "chat" or "generate" behind SLOT, the mode that it starts in
    zeros up to a multiple of ALIGNMENT, which every system can map
    the GGUF
    for macOS zeros, and on ARM a new signature of all above
    TRAILER, the offset and the number of bytes of the GGUF (uint64, little endian)

`engine/app/inside.c` finds the model, and `engine/src/formats/file.c` opens it: such a program is a
model file, too.
"""

from __future__ import annotations

import difflib
import platform
import shutil
import struct
import sys
from pathlib import Path
from typing import Final

import llamita
from llamita.atomic import atomic_file
from llamita.convert import mach_o
from llamita.errors import ConfigError
from llamita.formats.gguf import read_keys

SLOT: Final = b"llamita program mode:"
TRAILER: Final = b"llamita-program\n"
ALIGNMENT: Final = 1 << 16  # Windows maps files at multiples of 64 KiB
# Those of engine/scripts/build_programs.py.
TARGETS: Final = ("linux-x86_64", "linux-arm64", "windows-x86_64", "windows-arm64", "macos-arm64", "macos-x86_64")


def this_target() -> str:
    """The target that runs this Python."""
    system = {"win32": "windows", "darwin": "macos"}.get(sys.platform, sys.platform)
    processor = platform.machine().lower()
    return f"{system}-{ {'amd64': 'x86_64', 'aarch64': 'arm64'}.get(processor, processor) }"


def program_path(target: str) -> Path:
    """The program for a target. For this machine's, a checkout has one that is newer than that of
    `make programs`; of a package, the one that runs on every Linux comes first. Raises
    ConfigError."""
    if target not in TARGETS and target != this_target():
        nearest = difflib.get_close_matches(target.lower(), TARGETS, n=1, cutoff=0.4)
        hint = f"; perhaps you meant {nearest[0]}" if nearest else ""
        raise ConfigError(
            f"cannot make a program for {target[:100]}: expected --target {', '.join(TARGETS)}, found another{hint}"
        )
    suffix = ".exe" if target.startswith("windows") else ""
    folders = [Path(folder) for folder in reversed(llamita.__path__)]  # a checkout's own first
    found = [folder / "programs" / f"{target}{suffix}" for folder in folders]
    if target == this_target():
        installed = [folder / "_engine" / f"run{suffix}" for folder in folders]
        engine = Path(__file__).resolve().parents[3] / "engine"
        if (engine / "CMakeLists.txt").is_file():
            present = [path for path in [*installed, engine / "build" / f"run{suffix}"] if path.is_file()]
            found = [*sorted(present, key=lambda path: -path.stat().st_mtime), *found]
        else:
            found += installed
    for path in found:
        if path.is_file():
            return path
    raise ConfigError(
        f"cannot make a program for {target}: {found[0].parent}: expected its program there, found none; "
        "build it in a checkout of llamita: make programs"
    )


def write_program(model: Path, out: Path, target: str | None = None) -> int:
    """Write the program for a target (default: this machine) with a .gguf inside; returns its
    bytes.

    Raises ConfigError and OutputError.
    """
    with open(model, "rb") as source:
        if source.read(4) != b"GGUF":
            raise ConfigError(f"cannot make a program of {model}: expected a .gguf, found another format")
    path = program_path(target or this_target())
    program = bytearray(path.read_bytes())
    places = program.count(SLOT)
    if places != 1:
        raise ConfigError(
            f"cannot make a program of {path}: expected the program of this version of llamita, found another; "
            "build it again: `make programs`"
        )
    mode = b"chat" if can_chat(model) else b"generate"
    at = program.index(SLOT) + len(SLOT)
    program[at : at + len(mode) + 1] = mode + b"\0"
    macos = mach_o.MachO(program, str(path)) if program.startswith(mach_o.MAGIC) else None
    if macos is not None:
        del program[macos.end :]
    program += bytes(-len(program) % ALIGNMENT)
    num_bytes = model.stat().st_size
    end = len(program) + num_bytes
    trailer = TRAILER + struct.pack("<QQ", len(program), num_bytes)
    if macos is not None:
        end = macos.code_bytes(end)
        macos.change_header(program, end, len(trailer))
    with atomic_file(out) as temporary:
        with open(model, "rb") as source, open(temporary, "w+b") as file:
            file.write(program)
            shutil.copyfileobj(source, file, 1 << 20)
            if file.tell() != len(program) + num_bytes:
                raise ConfigError(
                    f"cannot make a program of {model}: the file was changed while it was read; start again"
                )
            file.write(bytes(end - file.tell()))
            if macos is not None:
                file.write(macos.signature(file, end))
            file.write(trailer)
            total = file.tell()
        temporary.chmod(0o755)
    return total


def can_chat(model: Path) -> bool:
    """Whether the program can chat with a .gguf: its chat template is of a family that the engine
    knows."""
    if not read_keys(model, ("tokenizer.chat_template",)):
        return False
    with llamita.load(model) as opened:
        return opened.chat_family is not None
