"""Lists the values of tokenizer.ggml.pre that the engine knows."""

from __future__ import annotations

import ctypes

from llamita.engine.library import PreTokenizerStruct, load_library


def pre_tokenizers() -> list[tuple[str, str, bool, bool]]:
    """name, the name that is written for it, ignore_merges and add_bos of each, as llamita.h
    explains them."""
    found: list[tuple[str, str, bool, bool]] = []
    info = PreTokenizerStruct()
    while load_library().llamita_pre_tokenizer(len(found), ctypes.byref(info)):
        found.append((info.name.decode(), info.written.decode(), info.ignore_merges, info.add_bos))
    return found
