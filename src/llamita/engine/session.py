"""Sessions: the KV cache, scratch memory and threads that texts are computed with."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamita.engine.adapter import AdapterUses, adapter_structs
from llamita.engine.library import (
    KV_TYPES,
    ROPE_SCALINGS,
    SPECULATIONS,
    ChunkStruct,
    Ids,
    Owned,
    RopeParamsStruct,
    SessionParamsStruct,
    call,
    choice,
    floats_pointer,
    id_array,
    ids_pointer,
    int32,
    load_library,
)
from llamita.engine.model_file import ModelFile
from llamita.errors import EngineError
from llamita.sampling import DEFAULT_RUNTIME, ComputeOptions, RuntimeOptions


def rope_struct(runtime: ComputeOptions) -> RopeParamsStruct:
    """llamita_rope_params. Raises EngineError."""
    scaling = runtime.rope_scaling
    return RopeParamsStruct(
        0 if scaling is None else 1 + choice("rope_scaling", scaling, ROPE_SCALINGS),
        runtime.rope_scale,
        runtime.rope_freq_base,
        int32("yarn_orig_ctx", runtime.yarn_orig_ctx),
    )


class Session(Owned):
    """One or several texts in progress, each in a sequence with its own KV cache. For one thread.

    Methods that do not take a sequence work on sequence 0.
    """

    _kind = "session"

    def __init__(
        self, model: ModelFile, runtime: RuntimeOptions = DEFAULT_RUNTIME, *, num_sequences: int = 1, **overrides: Any
    ) -> None:
        """num_sequences: texts side by side. overrides: fields of runtime by name."""
        runtime = dataclasses.replace(runtime, **overrides)
        handle = ctypes.c_void_p()
        params = SessionParamsStruct(
            int32("num_threads", runtime.num_threads),
            int32("context_tokens", runtime.context_tokens),
            int32("num_sequences", num_sequences),
            choice("kv_type", runtime.kv_type, KV_TYPES),
            choice("speculation", runtime.speculation, SPECULATIONS),
            rope_struct(runtime),
        )
        call("session_open", model._handle, ctypes.byref(params), ctypes.byref(handle))
        self._own(handle.value, model)
        self._vocab_size, self._hidden_size = model.info.vocab_size, model.info.hidden_size
        model._users.add(self)

    @property
    def num_threads(self) -> int:
        """Number of threads that compute."""
        return int(load_library().llamita_session_num_threads(self._handle))

    @property
    def context_tokens(self) -> int:
        """Number of tokens that a sequence can hold."""
        return int(load_library().llamita_session_context_tokens(self._handle))

    @property
    def hidden_size(self) -> int:
        """Number of elements of a hidden state."""
        return self._hidden_size

    @property
    def position(self) -> int:
        """Number of tokens that sequence 0 holds."""
        return int(load_library().llamita_session_position(self._handle))

    @property
    def num_passes(self) -> int:
        """Number of passes over the weights so far; speculation needs fewer passes than tokens."""
        return int(load_library().llamita_session_num_passes(self._handle))

    def rewind(self, position: int) -> None:
        """Forget all tokens from this position on."""
        call("session_rewind", self._handle, int32("position", position))

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """A copy of the ids that sequence 0 holds: int32 [position]."""
        position = self.position
        pointer = load_library().llamita_session_ids(self._handle)
        return np.ctypeslib.as_array(pointer, shape=(position,)).copy() if position else np.empty(0, np.int32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokens of sequence 0, with their keys and values, to a file that only its owner
        may read. It appears complete or not at all."""
        call("session_save", self._handle, os.fsencode(path))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the tokens of sequence 0 by those of a file that `save` wrote; what is fed next
        gives the same logits as if they had been fed.

        Raises EngineError, and changes nothing, for a file of another model, other adapters or
        scales, or another KV type, and for one with any other bytes than were written.
        """
        call("session_load", self._handle, os.fsencode(path))

    def set_adapters(self, adapters: AdapterUses) -> None:
        """Apply these adapters, in this order, each with its scale (default: 1); () for none.

        If this changes the adapters, the session forgets its tokens: their keys and values depend
        on the adapters.
        """
        call("session_set_adapters", self._handle, *adapter_structs(adapters))

    def feed(self, ids: Ids) -> None:
        """Append one or more ids; `logits` then holds those after the last one."""
        array = id_array(ids)
        call("session_feed", self._handle, array.ctypes.data_as(ids_pointer), array.size)

    def feed_logits(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Append one or more ids; returns the logits after each: float32 [n, V]."""
        array = id_array(ids)
        logits = np.empty((array.size, self._vocab_size), dtype=np.float32)
        pointers = array.ctypes.data_as(ids_pointer), array.size, logits.ctypes.data_as(floats_pointer)
        call("session_feed_logits", self._handle, *pointers)
        return logits

    def score(self, ids: Ids) -> npt.NDArray[np.float64]:
        """float64 [n - 1], in nats: -ln p(ids[i + 1] | everything before it).

        The last id is not appended, so that a following row can start with it.
        """
        array = id_array(ids)
        nats = np.empty(max(array.size - 1, 0), dtype=np.float64)
        nats_pointer = nats.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
        call("session_score", self._handle, array.ctypes.data_as(ids_pointer), array.size, nats_pointer)
        return nats

    def decode(self, chunks: Sequence[tuple[int, Ids, int]]) -> npt.NDArray[np.float32]:
        """Append ids to several sequences in one pass; a chunk is (sequence, ids, number of
        logits).

        Returns the logits after the last ids of each chunk, in the order of the chunks: float32
        [sum of the numbers, V]. The result of a sequence does not depend on the others.
        """
        return self._decode("decode", chunks, self._vocab_size)

    def decode_hidden_states(self, chunks: Sequence[tuple[int, Ids, int]]) -> npt.NDArray[np.float32]:
        """The same, with hidden states after the last norm in place of logits: float32 [sum of the
        numbers, D]."""
        return self._decode("decode_hidden_states", chunks, self._hidden_size)

    def _decode(self, name: str, chunks: Sequence[tuple[int, Ids, int]], length: int) -> npt.NDArray[np.float32]:
        arrays = [id_array(ids) for _, ids, _ in chunks]
        if any(not 0 <= num_logits <= array.size for (_, _, num_logits), array in zip(chunks, arrays, strict=True)):
            raise EngineError("chunks: expected to ask for 0 logits to as many as there are ids")
        raw = (ChunkStruct * len(chunks))(
            *(
                ChunkStruct(int32("sequence", sequence), array.ctypes.data_as(ids_pointer), array.size, num_logits)
                for (sequence, _, num_logits), array in zip(chunks, arrays, strict=True)
            )
        )
        out = np.empty((sum(num_logits for _, _, num_logits in chunks), length), dtype=np.float32)
        call(name, self._handle, raw, len(chunks), out.ctypes.data_as(floats_pointer))
        return out

    def sequence_position(self, sequence: int) -> int:
        """Number of tokens that a sequence holds."""
        position = int(load_library().llamita_sequence_position(self._handle, int32("sequence", sequence)))
        if position < 0:
            raise EngineError(f"sequence: this session has no sequence {sequence}")
        return position

    def sequence_rewind(self, sequence: int, position: int) -> None:
        """Forget all tokens of a sequence from this position on."""
        call("sequence_rewind", self._handle, int32("sequence", sequence), int32("position", position))

    def sequence_set_adapters(self, sequence: int, adapters: AdapterUses) -> None:
        """Apply adapters to one sequence, as set_adapters does; sequences may have different
        ones."""
        call("sequence_set_adapters", self._handle, int32("sequence", sequence), *adapter_structs(adapters))

    def sequence_share(self, source: int, target: int, num_tokens: int) -> None:
        """Make the target start with the first num_tokens of the source, without computing or
        copying them. Both must have the same adapters."""
        numbers = int32("source", source), int32("target", target), int32("num_tokens", num_tokens)
        call("sequence_share", self._handle, *numbers)

    @property
    def logits(self) -> npt.NDArray[np.float32] | None:
        """A copy of the logits after the last id, float32 [V]; None before `feed` and after
        `rewind`."""
        pointer = load_library().llamita_session_logits(self._handle)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab_size,)).copy() if pointer else None
