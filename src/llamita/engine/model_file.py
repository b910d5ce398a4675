"""A mapped model file: its properties, its tokenizer and its chat template."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from llamita.engine.library import (
    ENCODE_BOS,
    ENCODE_SPECIAL,
    Ids,
    ModelInfo,
    ModelInfoStruct,
    ModelParamsStruct,
    Owned,
    call,
    id_array,
    ids_pointer,
    load_library,
)
from llamita.engine.text import Message, TextSegment, message_structs, segment_structs


class ModelFile(Owned):
    """What a model file knows without computing. Immutable: threads may share it. `Model` adds
    sessions, adapters and generation."""

    _kind = "model"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        kernels: str | None = None,
        pre: str | None = None,
        pack_later: bool = False,
    ) -> None:
        """Open a GGUF or llama2.c file, recognized by its content.

        tokenizer: a llama2.c tokenizer.bin, or a GGUF to take the tokenizer from; None: the file's.
        kernels: "auto" (also None), "scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm".
        pre: how a byte-level tokenizer splits text, a value for tokenizer.ggml.pre of a GGUF that
        lacks it, such as "llama-bpe"; None: the file's.
        pack_later: for the fastest first token: the first pass reads the weights from the file, which
        must not change until the second one has packed them.
        Raises EngineError for a bad file.
        """
        params = ModelParamsStruct(
            os.fsencode(tokenizer) if tokenizer is not None else None,
            kernels and kernels.encode(),
            None if pre is None else pre.encode(),
            pack_later,
        )
        handle = ctypes.c_void_p()
        start = time.perf_counter()
        call("model_open", os.fsencode(path), ctypes.byref(params), ctypes.byref(handle))
        self._own(handle.value)
        self._users: weakref.WeakSet[Owned] = weakref.WeakSet()  # sessions and adapters
        self._token_bytes: dict[int, bytes] = {}  # decoded inside of a text
        self.load_seconds = time.perf_counter() - start

    def close(self) -> None:
        """Unmap the file; open sessions and adapters are closed first."""
        for user in list(self._users):
            user.close()
        super().close()

    @functools.cached_property
    def info(self) -> ModelInfo:
        """The properties of the model."""
        raw = ModelInfoStruct()
        load_library().llamita_model_get_info(self._handle, ctypes.byref(raw))
        values: dict[str, Any] = {}
        for field in dataclasses.fields(ModelInfo):
            value = getattr(raw, field.name)
            values[field.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return ModelInfo(**values)

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template in the file, if there is one."""
        template: bytes | None = load_library().llamita_model_chat_template(self._handle)
        return None if template is None else template.decode("utf-8", "replace")

    @property
    def system_prompt(self) -> str | None:
        """The system prompt that the model was trained with, if the file has one."""
        prompt: bytes | None = load_library().llamita_model_system_prompt(self._handle)
        return None if prompt is None else prompt.decode("utf-8", "replace")

    @property
    def chat_family(self) -> str | None:
        """ "chatml", "llama2", "llama3" or "zephyr" if the engine can render the chat template
        without Jinja."""
        family: bytes | None = load_library().llamita_chat_family(self._handle)
        return None if family is None else family.decode()

    def encode(self, text: str | bytes, bos: bool = False, special: bool = False) -> list[int]:
        """Encode a text. bos: start with BOS. special: control tokens spelled out in the text
        become tokens."""
        raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
        flags = (ENCODE_BOS if bos else 0) | (ENCODE_SPECIAL if special else 0)
        return self._encoded("encode", raw, len(raw), flags, max_ids=2 * len(raw) + 2)

    def encode_segments(self, segments: Sequence[TextSegment]) -> list[int]:
        """Encode the concatenated segments. Only trusted ones can contain control tokens; generated
        ids are kept."""
        num_bytes = sum(len(each.text) + len(each.ids) for each in segments)
        return self._encoded("encode_segments", segment_structs(segments), len(segments), max_ids=2 * num_bytes + 2)

    def chat_encode(self, messages: Sequence[Message]) -> list[int]:
        """Encode [system] user (assistant user)* by the chat template, up to where the answer
        starts. Raises EngineError unless `chat_family` knows the template."""
        num_bytes = sum(len(each.content) + len(each.ids) + 100 for each in messages)
        return self._encoded("chat_encode", message_structs(messages), len(messages), max_ids=2 * num_bytes + 2048)

    def _encoded(self, name: str, *arguments: Any, max_ids: int) -> list[int]:
        """The ids that an encoding function of the library writes; max_ids is an upper bound."""
        ids, num_ids = np.empty(max_ids, dtype=np.int32), ctypes.c_size_t()
        call(name, self._handle, *arguments, ids.ctypes.data_as(ids_pointer), ids.size, ctypes.byref(num_ids))
        return [int(i) for i in ids[: num_ids.value]]

    def decode(self, ids: Ids) -> bytes:
        """The bytes of a text; control tokens add none."""
        array = id_array(ids).tolist()
        return b"".join(self.decode_token(i, before) for before, i in zip([-1, *array], array, strict=False))

    def decode_token(self, id: int, previous_id: int = -1) -> bytes:
        """The bytes that a token adds to a text whose last token is previous_id (-1: no text)."""
        handle, begins = self._handle, previous_id < 0 or previous_id == self.info.bos_id
        raw = None if begins else self._token_bytes.get(id)
        if raw is None:
            start, num_bytes = ctypes.POINTER(ctypes.c_char)(), ctypes.c_size_t()
            call("token_bytes", handle, previous_id, id, ctypes.byref(start), ctypes.byref(num_bytes))
            raw = bytes(start[: num_bytes.value]) if num_bytes.value else b""
            if not begins:
                self._token_bytes[id] = raw
        return raw

    def token_text(self, id: int) -> str | None:
        """The token as the vocabulary spells it; None if there is no such id or no tokenizer."""
        text: bytes | None = load_library().llamita_token_text(self._handle, id)
        return None if text is None else text.decode("utf-8", "replace")

    def token_ends(self, id: int) -> bool:
        """Whether the id is an end token, which ends generation."""
        return bool(load_library().llamita_token_ends(self._handle, id))
