"""Makes room for a model in a macOS program: its header covers the model, and a signature is made
again.

The model comes behind the table of strings, the last of what the segment __LINKEDIT holds, and both
grow over it: so tools that check or sign programs accept the file. macOS on ARM runs only programs
whose signature has the hash of each page; a linker's, "ad hoc", names nobody. Intel's need none. A
signature is the end of the segment and of the file:

    superblob: magic, bytes, number of blobs; for each its kind and offset
      code directory: fields, the identifier, then a SHA-256 for each page before the signature

All numbers of the signature are big endian, those of the program little endian.
"""

from __future__ import annotations

import hashlib
import struct
from typing import BinaryIO, Final

from llamita.errors import ConfigError, FormatError

MAGIC: Final = struct.pack("<I", 0xFEEDFACF)  # of programs of 64 bits
SYMBOLS, SEGMENT, CODE_SIGNATURE = 0x2, 0x19, 0x1D  # load commands
SUPERBLOB, CODE_DIRECTORY = 0xFADE0CC0, 0xFADE0C02
AD_HOC: Final = 0x2
SHA256: Final = 2
HEADER_BYTES, SUPERBLOB_BYTES = 32, 20
SEGMENT_ALIGNMENT: Final = 1 << 14
SIGNATURE_ALIGNMENT: Final = 16
MAX_BYTES: Final = (1 << 32) - 1  # load commands have offsets of 32 bits


class MachO:
    """Where the header of a program describes its end. Raises FormatError for a program that no linker left as it
    is."""

    def __init__(self, program: bytes | bytearray, name: str) -> None:
        try:
            is_known = self._read(program)
        except (struct.error, KeyError):
            is_known = False
        if not is_known:
            raise FormatError(
                f"cannot make a program of {name}: expected a macOS program as its linker wrote it, found another"
            )

    def _read(self, program: bytes | bytearray) -> bool:
        self._commands = load_commands(program)
        self._directory, self._page_bytes = b"", 1
        self.end = len(program)  # of all but the signature
        if CODE_SIGNATURE in self._commands:
            self.end, num_bytes = struct.unpack_from("<2I", program, self._commands[CODE_SIGNATURE] + 8)
            magic, _, num_blobs, _, offset = struct.unpack_from(">5I", program, self.end)
            directory = self.end + offset
            fields = struct.unpack_from(">9I4B", program, directory)
            kind, _, _, flags, hashes_at, _, num_special, _, limit, hash_bytes, hash_type, _, page_bits = fields
            expected = (SUPERBLOB, 1, CODE_DIRECTORY, AD_HOC, 0, self.end, 32, SHA256, len(program))
            end = self.end + num_bytes
            if expected != (magic, num_blobs, kind, flags & AD_HOC, num_special, limit, hash_bytes, hash_type, end):
                return False
            self._page_bytes = 1 << (page_bits & 31)
            self._directory = bytes(program[directory : directory + hashes_at])
        start, num_bytes = struct.unpack_from("<2Q", program, self._commands[SEGMENT] + 40)
        strings, num_string_bytes = struct.unpack_from("<2I", program, self._commands[SYMBOLS] + 16)
        is_last = 0 <= self.end - (strings + num_string_bytes) < SIGNATURE_ALIGNMENT
        return is_last and start + num_bytes == len(program)

    def code_bytes(self, num_bytes: int) -> int:
        """Where the signature behind num_bytes bytes starts."""
        return -(-num_bytes // SIGNATURE_ALIGNMENT) * SIGNATURE_ALIGNMENT

    def signature_bytes(self, code_bytes: int) -> int:
        if not self._directory:
            return 0
        return SUPERBLOB_BYTES + len(self._directory) + 32 * -(-code_bytes // self._page_bytes)

    def change_header(self, program: bytearray, code_bytes: int, num_after: int) -> None:
        """Say in the load commands that the signature starts at code_bytes, with num_after bytes behind it. Raises
        ConfigError."""
        num_bytes = self.signature_bytes(code_bytes) + num_after
        total = code_bytes + num_bytes
        if total > MAX_BYTES:
            raise ConfigError(
                f"cannot make a program for macOS: expected at most {MAX_BYTES:,} bytes, found {total:,}; choose a "
                "smaller --type such as q4_0"
            )
        segment, symbols = self._commands[SEGMENT], self._commands[SYMBOLS]
        (start,) = struct.unpack_from("<Q", program, segment + 40)
        memory_bytes = -(-(total - start) // SEGMENT_ALIGNMENT) * SEGMENT_ALIGNMENT
        struct.pack_into("<Q", program, segment + 32, memory_bytes)
        struct.pack_into("<Q", program, segment + 48, total - start)
        (strings,) = struct.unpack_from("<I", program, symbols + 16)
        if self._directory:
            struct.pack_into("<I", program, symbols + 20, code_bytes - strings)
            struct.pack_into("<2I", program, self._commands[CODE_SIGNATURE] + 8, code_bytes, num_bytes)
        else:
            struct.pack_into("<I", program, symbols + 20, total - strings)

    def signature(self, file: BinaryIO, code_bytes: int) -> bytes:
        """That of the first code_bytes bytes of a file; empty if the program had none."""
        if not self._directory:
            return b""
        file.seek(0)
        hashes = []
        for start in range(0, code_bytes, self._page_bytes):
            page = file.read(min(self._page_bytes, code_bytes - start))
            hashes.append(hashlib.sha256(page).digest())
        directory = bytearray(self._directory)
        num_bytes = self.signature_bytes(code_bytes)
        struct.pack_into(">I", directory, 4, num_bytes - SUPERBLOB_BYTES)
        struct.pack_into(">2I", directory, 28, len(hashes), code_bytes)
        return struct.pack(">5I", SUPERBLOB, num_bytes, 1, 0, SUPERBLOB_BYTES) + directory + b"".join(hashes)


def load_commands(program: bytes | bytearray) -> dict[int, int]:
    """The offsets of the load commands by kind; of the segments that of __LINKEDIT. Raises struct.error for a file that
    is cut."""
    (num_commands,) = struct.unpack_from("<I", program, 16)
    commands, at = {}, HEADER_BYTES
    for _ in range(num_commands):
        kind, num_bytes = struct.unpack_from("<2I", program, at)
        if kind != SEGMENT or program[at + 8 : at + 24].rstrip(b"\0") == b"__LINKEDIT":
            commands[kind] = at
        at += num_bytes
    return commands
