"""Errors that the user can cause and fix. The command line prints them and exits with 2.

Every message says what failed, where (file, tensor, line), what was expected, what was found, and
what to do. A bug in llamita is an assert, not one of these.
"""

from __future__ import annotations

import re

UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


MAX_LINE_CHARS = 500


def clean_line(text: str, limit: int = MAX_LINE_CHARS) -> str:
    """The text as one line that is safe to print.

    As in the engine's messages, `?` replaces what a file or an argument could confuse a terminal
    with: control characters (also line ends and escape sequences), U+2028, U+2029, and bytes that
    are not UTF-8. A text longer than `limit` characters loses its middle.
    """
    if len(text) > limit:
        tail = limit // 3
        text = f"{text[: limit - tail - 3]} … {text[len(text) - tail :]}"
    return text if text.isprintable() else UNSAFE.sub("?", text)


class LlamitaError(Exception):
    """Base class of all errors that the user can cause and fix. Its text is one clean line."""

    def __str__(self) -> str:
        return clean_line(super().__str__())


class ConfigError(LlamitaError):
    """A flag or a configuration value is out of range, or two of them contradict each other."""


class SourceError(LlamitaError):
    """A text source cannot be read: missing, wrong encoding, broken JSON, wrong key, too small."""


class TokenizerError(LlamitaError):
    """A tokenizer file is damaged, of an unknown kind, or does not fit the model or the data."""


class StoreError(LlamitaError):
    """A token store is damaged, incomplete, or was made with another tokenizer."""


class CheckpointError(LlamitaError):
    """A checkpoint directory is missing, damaged, or does not suit the command."""


class FormatError(LlamitaError):
    """A model file (GGUF, llama2.c, Hugging Face, Meta) is damaged or not supported."""


class TrainingError(LlamitaError):
    """Training cannot start or continue: divergence, no training data, missing device."""


class EngineError(LlamitaError):
    """The C engine reported an error; the message is the engine's."""


class ChatError(LlamitaError):
    """A chat cannot continue: its template fails, or the text does not fit the context."""


class NetworkError(LlamitaError):
    """A download failed: offline, not found, or the bytes are not the expected ones."""


class OutputError(LlamitaError):
    """A result cannot be written: disk full, no permission, or the path already exists."""
