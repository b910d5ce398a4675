"""The signature of a macOS program with the model inside, against what Apple's format says of it."""

from __future__ import annotations

import hashlib
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

import llamita
from llamita.convert import mach_o, program
from llamita.engine.model import PACKAGED_MODEL
from llamita.errors import ConfigError, FormatError

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "engine" / "scripts"))

from build_programs import ZIG_TARGETS, build, find_zig

TEXT_BYTES, LINKEDIT_BYTES, PAGE_BYTES = 3 << 14, 1000, 1 << 14


def segment(name: bytes, start: int, num_bytes: int) -> bytes:
    memory = -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
    return struct.pack("<2I16s4Q4I", 0x19, 72, name, 2**32 + start, memory, start, num_bytes, 1, 1, 0, 0)


def code_directory(code: bytes, page_bits: int = 14) -> bytes:
    """As the linkers of zig and Apple write it."""
    pages = [code[at : at + (1 << page_bits)] for at in range(0, len(code), 1 << page_bits)]
    hashes = b"".join(hashlib.sha256(page).digest() for page in pages)
    num_bytes = 92 + len(hashes)
    fields = (0xFADE0C02, num_bytes, 0x20400, 0x20002, 92, 88, 0, len(pages), len(code), 32, 2, 0, page_bits)
    return struct.pack(">9I4B4I4Q", *fields, 0, 0, 0, 0, 0, 0, TEXT_BYTES, 1) + b"run\0" + hashes


def superblob(directory: bytes) -> bytes:
    return struct.pack(">5I", 0xFADE0CC0, 20 + len(directory), 1, 0, 20) + directory


def macos_program(page_bits: int = 14) -> bytes:
    """A small one with the slot for the model's mode: header, text, the linker's data, its signature."""
    text = program.SLOT + bytes(16) + bytes(range(256)) * (TEXT_BYTES // 256)
    code_bytes = TEXT_BYTES + LINKEDIT_BYTES + 8
    for signature_bytes in (0, len(superblob(code_directory(bytes(code_bytes), page_bits)))):
        commands = segment(b"__TEXT", 0, TEXT_BYTES) + segment(
            b"__LINKEDIT", TEXT_BYTES, LINKEDIT_BYTES + 8 + signature_bytes
        )
        commands += struct.pack("<6I", 0x2, 24, TEXT_BYTES, 10, TEXT_BYTES + 160, LINKEDIT_BYTES - 160)
        commands += struct.pack("<4I", 0x1D, 16, code_bytes, signature_bytes)
        header = struct.pack("<8I", 0xFEEDFACF, 0x100000C, 0, 2, 4, len(commands), 0x85, 0)
        code = (header + commands + text)[:TEXT_BYTES] + bytes(LINKEDIT_BYTES + 8)
    return code + superblob(code_directory(code, page_bits))


def check_layout(data: bytes) -> dict[int | bytes, int]:
    """__LINKEDIT is the end of the file, and the table of strings that of __LINKEDIT, but for a signature. Returns the
    offsets of the load commands."""
    commands: dict[int | bytes, int] = {}
    at = 32
    for _ in range(struct.unpack_from("<I", data, 16)[0]):
        kind, num_bytes = struct.unpack_from("<2I", data, at)
        commands[data[at + 8 : at + 24].rstrip(b"\0") if kind == 0x19 else kind] = at
        at += num_bytes
    address, memory, start, file_bytes = struct.unpack_from("<4Q", data, commands[b"__LINKEDIT"] + 24)
    assert start + file_bytes == len(data) and address % 4096 == 0
    assert memory % PAGE_BYTES == 0 and 0 <= memory - file_bytes < PAGE_BYTES
    strings, num_bytes = struct.unpack_from("<2I", data, commands[0x2] + 16)
    end = struct.unpack_from("<I", data, commands[0x1D] + 8)[0] if 0x1D in commands else len(data)
    assert 0 <= end - (strings + num_bytes) < 16
    return commands


def check_signed(data: bytes) -> None:
    """The signature has the hash of each page of all bytes before it, and nothing follows it but our trailer."""
    limit, signature_bytes = struct.unpack_from("<2I", data, check_layout(data)[0x1D] + 8)
    assert limit % 16 == 0 and limit + signature_bytes == len(data)
    magic, blob_bytes, count, kind, offset = struct.unpack_from(">5I", data, limit)
    assert (magic, count, kind) == (0xFADE0CC0, 1, 0) and blob_bytes in (signature_bytes, signature_bytes - 32)
    directory = data[limit + offset : limit + blob_bytes]
    magic, num_bytes, version, flags, hashes, name, special, slots, covered = struct.unpack_from(">9I", directory)
    assert (magic, num_bytes, version, special) == (0xFADE0C02, len(directory), 0x20400, 0)
    assert flags & 2 and covered == limit and directory[name:hashes] == b"run\0"
    hash_bytes, hash_type, _, page_bits = directory[36:40]
    assert (hash_bytes, hash_type) == (32, 2) and page_bits in (12, 14)
    pages = [data[at : min(at + (1 << page_bits), limit)] for at in range(0, limit, 1 << page_bits)]
    assert slots == len(pages)
    assert directory[hashes:] == b"".join(hashlib.sha256(page).digest() for page in pages)


@pytest.fixture
def make_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(data: bytes, model: Path = PACKAGED_MODEL) -> Path:
        (tmp_path / "run").write_bytes(data)
        monkeypatch.setattr(program, "program_path", lambda target: tmp_path / "run")
        program.write_program(model, tmp_path / "out", "macos-arm64")
        return tmp_path / "out"

    return make


@pytest.mark.parametrize("page_bits", [12, 14])
def test_signed_again(page_bits: int, make_program: Any) -> None:
    """The program without its signature, the model, and a signature of both; it opens as a model file."""
    data = macos_program(page_bits)
    check_signed(data)
    path = make_program(data)
    written = path.read_bytes()
    check_signed(written)
    assert written[TEXT_BYTES : TEXT_BYTES + LINKEDIT_BYTES] == bytes(LINKEDIT_BYTES)
    with llamita.load(path) as inside, llamita.load(PACKAGED_MODEL) as alone:
        assert inside.info.num_parameters == alone.info.num_parameters
        assert inside.encode("Once") == alone.encode("Once")


def test_one_changed_byte_is_found(make_program: Any) -> None:
    """By the check here: it can fail."""
    written = bytearray(make_program(macos_program()).read_bytes())
    written[len(written) // 2] ^= 1
    with pytest.raises(AssertionError):
        check_signed(bytes(written))


def test_without_a_signature_the_model_is_behind_it(make_program: Any) -> None:
    """As for Intel, where macOS needs none."""
    signed = macos_program()
    at = signed.index(struct.pack(">I", 0xFADE0CC0))
    data = bytearray(signed[:at].replace(struct.pack("<2I", 0x1D, 16), struct.pack("<2I", 0x1E, 16)))
    struct.pack_into("<Q", data, 32 + 72 + 48, at - TEXT_BYTES)  # the bytes of __LINKEDIT
    check_layout(bytes(data))
    written = make_program(bytes(data)).read_bytes()
    check_layout(written)
    assert written[-32:-16] == program.TRAILER
    assert written[len(data) :].lstrip(b"\0").startswith(b"GGUF")


@pytest.mark.parametrize("damage", ["cut", "another kind of hash", "more blobs", "no segment", "offset beyond the end"])
def test_signatures_of_no_linker(damage: str, make_program: Any, tmp_path: Path) -> None:
    data = bytearray(macos_program())
    at = data.index(struct.pack(">I", 0xFADE0CC0))
    if damage == "cut":
        del data[-1]
    elif damage == "another kind of hash":
        data[at + 20 + 37] = 1
    elif damage == "more blobs":
        data[at + 11] = 2
    elif damage == "no segment":
        data = bytearray(bytes(data).replace(b"__LINKEDIT", b"__OTHEREDI"))
    else:
        data = bytearray(bytes(data).replace(struct.pack("<3I", 0x1D, 16, at), struct.pack("<3I", 0x1D, 16, 2**31)))
    with pytest.raises(FormatError, match="expected a macOS program as its linker wrote it, found another"):
        make_program(bytes(data))
    assert not (tmp_path / "out").exists()


def test_too_large(make_program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mach_o, "MAX_BYTES", 1 << 20)
    with pytest.raises(ConfigError, match=r"expected at most 1,048,576 bytes, found .* choose a smaller --type"):
        make_program(macos_program())
    assert not (tmp_path / "out").exists()


@pytest.mark.cross
@pytest.mark.parametrize(("target", "zig_target"), [item for item in ZIG_TARGETS.items() if "macos" in item[0]])
def test_programs_that_zig_linked(target: str, zig_target: str, make_program: Any) -> None:
    """lief checks what Apple's tools check before they sign or strip a file."""
    lief = pytest.importorskip("lief", reason="lief is not installed")
    if find_zig() is None:
        pytest.skip("zig is not installed (pip install ziglang)")
    path = make_program((build(zig_target, "run") / "run").read_bytes())
    (check_signed if target == "macos-arm64" else check_layout)(path.read_bytes())
    assert lief.MachO.check_layout(lief.MachO.parse(str(path)).at(0)) == (True, "")
