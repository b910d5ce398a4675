"""Writes one program with the model inside: the engine's program for a system, then a GGUF, then a
trailer.

    the program, with "chat" or "generate" behind SLOT, the mode that it starts in
    zeros up to a multiple of ALIGNMENT, which every system can map
    the GGUF
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
from llamita.errors import ConfigError
from llamita.formats.gguf import read_keys

SLOT: Final = b"llamita program mode:"
TRAILER: Final = b"llamita-program\n"
ALIGNMENT: Final = 1 << 16  # Windows maps files at multiples of 64 KiB
# zig's name of each target, for engine/scripts/build_programs.py.
ZIG_TARGETS: Final = {
    "linux-x86_64": "x86_64-linux-musl",
    "linux-arm64": "aarch64-linux-musl",
    "windows-x86_64": "x86_64-windows-gnu",
    "windows-arm64": "aarch64-windows-gnu",
}
# Their programs need a signature over all bytes, which nothing here writes.
SIGNED: Final = ("macos-arm64", "macos-x86_64")


def this_target() -> str:
    """The target that runs this Python."""
    system = {"win32": "windows", "darwin": "macos"}.get(sys.platform, sys.platform)
    processor = platform.machine().lower()
    return f"{system}-{ {'amd64': 'x86_64', 'aarch64': 'arm64'}.get(processor, processor) }"


def program_path(target: str) -> Path:
    """The program for a target: of `make programs`, or for this machine the installed one. Raises
    ConfigError."""
    if target in SIGNED:
        raise ConfigError(
            f"cannot make a program for {target}: macOS runs only signed programs, and llamita does not sign; "
            f"write a .gguf, or choose one of {', '.join(ZIG_TARGETS)}"
        )
    if target not in ZIG_TARGETS and target != this_target():
        nearest = difflib.get_close_matches(target.lower(), [*ZIG_TARGETS, *SIGNED], n=1, cutoff=0.4)
        hint = f"; perhaps you meant {nearest[0]}" if nearest else ""
        raise ConfigError(
            f"cannot make a program for {target[:100]}: expected --target {', '.join(ZIG_TARGETS)}, found another{hint}"
        )
    suffix = ".exe" if target.startswith("windows") else ""
    folders = [Path(folder) for folder in reversed(llamita.__path__)]  # a checkout's own first
    found = [folder / "programs" / f"{target}{suffix}" for folder in folders]
    if target == this_target():
        installed = [folder / "_engine" / f"run{suffix}" for folder in folders]
        checkout = Path(__file__).resolve().parents[3] / "engine" / "build" / f"run{suffix}"
        present = [path for path in [*installed, checkout] if path.is_file()]
        found = [*sorted(present, key=lambda path: -path.stat().st_mtime), *found]
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
    program += bytes(-len(program) % ALIGNMENT)
    num_bytes = model.stat().st_size
    with atomic_file(out) as temporary:
        with open(model, "rb") as source, open(temporary, "wb") as file:
            file.write(program)
            shutil.copyfileobj(source, file, 1 << 20)
            file.write(TRAILER + struct.pack("<QQ", len(program), num_bytes))
            total = file.tell()
        if total != len(program) + num_bytes + len(TRAILER) + 16:
            raise ConfigError(f"cannot make a program of {model}: the file was changed while it was read; start again")
        temporary.chmod(0o755)
    return total


def can_chat(model: Path) -> bool:
    """Whether the program can chat with a .gguf: its chat template is of a family that the engine
    knows."""
    if not read_keys(model, ("tokenizer.chat_template",)):
        return False
    with llamita.load(model) as opened:
        return opened.chat_family is not None
