"""Lists the keys of GGUF files that the engine knows."""

from __future__ import annotations

import ctypes

from llamita.engine.library import GgufKeyStruct, load_library


def gguf_keys() -> list[tuple[str, str, str, float, float, float, str]]:
    """name, kind, use, low, high, default, feature of each key; engine/src/formats/gguf_keys.h
    explains them."""
    found: list[tuple[str, str, str, float, float, float, str]] = []
    info = GgufKeyStruct()
    while load_library().llamita_gguf_key(len(found), ctypes.byref(info)):
        name, kind, use, feature = (text.decode() for text in (info.name, info.kind, info.use, info.feature))
        found.append((name, kind, use, info.low, info.high, info.fallback, feature))
    return found
