"""Low-rank adapters (LoRA) from GGUF files."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

from llamita.engine.library import AdapterInfo, AdapterInfoStruct, AdapterUseStruct, Owned, call, load_library
from llamita.engine.model_file import ModelFile


class Adapter(Owned):
    """A low-rank change of one model's matrices. Immutable: threads may share it.

    Sessions that use an adapter keep it open after `close`; it just cannot be used in new ones.
    """

    _kind = "adapter"

    def __init__(self, model: ModelFile, path: str | os.PathLike[str]) -> None:
        """Open a GGUF adapter. Raises EngineError for a bad file, or an adapter of another
        model."""
        handle = ctypes.c_void_p()
        call("adapter_open", model._handle, os.fsencode(path), ctypes.byref(handle))
        self._own(handle.value, model)
        model._users.add(self)

    @functools.cached_property
    def info(self) -> AdapterInfo:
        """The properties of the adapter."""
        raw = AdapterInfoStruct()
        load_library().llamita_adapter_get_info(self._handle, ctypes.byref(raw))
        name = raw.name.decode("utf-8", "replace")
        return AdapterInfo(name, raw.num_parameters, raw.num_matrices, raw.rank, raw.alpha)


AdapterUses: TypeAlias = Sequence[Adapter | tuple[Adapter, float]]


def adapter_structs(adapters: AdapterUses) -> tuple[Any, int]:
    """The adapters and their scales (default: 1) as an array of C structures, and its length."""
    pairs = [(each, 1.0) if isinstance(each, Adapter) else each for each in adapters]
    return (AdapterUseStruct * len(pairs))(
        *(AdapterUseStruct(adapter._handle, scale) for adapter, scale in pairs)
    ), len(pairs)
