"""Loads the engine's shared library and declares its functions and structures to ctypes.

`call` turns a status into an EngineError; `Owned` closes what the engine opened.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

import llamita
from llamita.errors import EngineError

Ids: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]
LIBRARY_NAMES = ("libllamita.so", "libllamita.dylib", "llamita.dll")


# ---- the C structures, field by field


class ErrorStruct(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("message", ctypes.c_char * 512)]


class ModelParamsStruct(ctypes.Structure):
    _fields_ = [
        ("tokenizer_path", ctypes.c_char_p),
        ("kernels", ctypes.c_char_p),
        ("pre_tokenizer", ctypes.c_char_p),
        ("pack_later", ctypes.c_bool),
    ]


class RopeParamsStruct(ctypes.Structure):
    _fields_ = [
        ("scaling", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("freq_base", ctypes.c_float),
        ("yarn_orig_ctx", ctypes.c_int32),
    ]


class SessionParamsStruct(ctypes.Structure):
    _fields_ = [
        ("num_threads", ctypes.c_int32),
        ("context_tokens", ctypes.c_int32),
        ("num_sequences", ctypes.c_int32),
        ("kv_type", ctypes.c_int),
        ("speculation", ctypes.c_int),
        ("rope", RopeParamsStruct),
        ("context_full", ctypes.c_int),  # of llamita_generate, which Python does not use
        ("num_keep", ctypes.c_int32),
    ]


class AdapterUseStruct(ctypes.Structure):
    _fields_ = [("adapter", ctypes.c_void_p), ("scale", ctypes.c_float)]


class ChunkStruct(ctypes.Structure):
    _fields_ = [
        ("sequence", ctypes.c_int32),
        ("ids", ctypes.POINTER(ctypes.c_int32)),
        ("num_tokens", ctypes.c_size_t),
        ("num_logits", ctypes.c_size_t),
    ]


class TextSegmentStruct(ctypes.Structure):
    _fields_ = [
        ("text", ctypes.c_char_p),
        ("num_bytes", ctypes.c_size_t),
        ("trusted", ctypes.c_bool),
        ("ids", ctypes.POINTER(ctypes.c_int32)),
        ("num_ids", ctypes.c_size_t),
    ]


class MessageStruct(ctypes.Structure):
    _fields_ = [
        ("role", ctypes.c_char_p),
        ("content", ctypes.c_char_p),
        ("num_bytes", ctypes.c_size_t),
        ("ids", ctypes.POINTER(ctypes.c_int32)),
        ("num_ids", ctypes.c_size_t),
    ]


KV_TYPES = ("f16", "f32", "q8")  # llamita_kv_type, in its order
SPECULATIONS = ("auto", "off", "always")  # llamita_speculation, in its order
ROPE_SCALINGS = ("none", "linear", "ntk", "yarn")  # llamita_rope_scaling, in its order after that of the model


class SamplerParamsStruct(ctypes.Structure):
    _fields_ = [
        ("temperature", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("repetition_penalty", ctypes.c_float),
        ("repetition_window", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_float) for name in ("presence_penalty", "frequency_penalty", "typical_p")),
        *((name, ctypes.c_float) for name in ("xtc_probability", "xtc_threshold", "mirostat_tau", "mirostat_eta")),
        *((name, ctypes.c_float) for name in ("dry_multiplier", "dry_base")),
        *((name, ctypes.c_int32) for name in ("dry_allowed_length", "dry_window")),
        ("model", ctypes.c_void_p),
    ]


MAX_TOP_LOGPROBS = 20


class SchedulerParamsStruct(ctypes.Structure):
    _fields_ = [
        ("num_threads", ctypes.c_int32),
        ("context_tokens", ctypes.c_int32),
        ("kv_type", ctypes.c_int),
        ("num_parallel", ctypes.c_int32),
        ("num_cached", ctypes.c_int32),
        ("rope", RopeParamsStruct),
    ]


class LogitBiasStruct(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("bias", ctypes.c_float)]


# llamita_constraint, and the results that it gives


class PieceStruct(ctypes.Structure):
    """llamita_piece"""

    _fields_ = (
        ("id", ctypes.c_int32),
        ("finish", ctypes.c_int),
        ("text", ctypes.POINTER(ctypes.c_char)),
        ("num_bytes", ctypes.c_size_t),
        ("num_held_bytes", ctypes.c_size_t),
    )


PieceCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.POINTER(PieceStruct))

Constraint = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_uint32))
CONSTRAINT_FAILED, CONSTRAINT_ALLOWS, CONSTRAINT_COMPLETE = 0, 1, 2


class RequestStruct(ctypes.Structure):
    _fields_ = [
        ("ids", ctypes.POINTER(ctypes.c_int32)),
        ("num_tokens", ctypes.c_size_t),
        ("max_new_tokens", ctypes.c_int32),
        ("sampling", SamplerParamsStruct),
        ("presence_penalty", ctypes.c_float),
        ("frequency_penalty", ctypes.c_float),
        ("biases", ctypes.POINTER(LogitBiasStruct)),
        ("num_biases", ctypes.c_size_t),
        ("num_top_logprobs", ctypes.c_int32),
        ("score_prompt", ctypes.c_bool),
        ("adapters", ctypes.POINTER(AdapterUseStruct)),
        ("num_adapters", ctypes.c_size_t),
        ("constraint", Constraint),
        ("constraint_state", ctypes.c_void_p),
    ]


class EventStruct(ctypes.Structure):
    _fields_ = [
        ("request", ctypes.c_uint64),
        ("kind", ctypes.c_int),
        ("finish", ctypes.c_int),
        ("status", ctypes.c_int),
        ("id", ctypes.c_int32),
        ("num_shared_tokens", ctypes.c_int32),
        ("num_top", ctypes.c_int32),
        ("top_ids", ctypes.c_int32 * MAX_TOP_LOGPROBS),
        ("logprob", ctypes.c_double),
        ("top_logprobs", ctypes.c_double * MAX_TOP_LOGPROBS),
    ]


class SchedulerStatsStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("num_running", "num_waiting")),
        *((name, ctypes.c_int64) for name in ("num_steps", "num_prompt_tokens", "num_shared_tokens", "num_new_tokens")),
    ]


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """The properties of a model: the fields of llamita_model_info. An id of -1: there is none."""

    architecture: str
    format: str
    name: str
    weight_type: str
    kernels: str
    num_parameters: int
    weight_bytes: int
    decode_bytes: int
    kv_bytes_per_token: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    context_tokens: int
    rope_theta: float
    rms_norm_eps: float
    tied_embeddings: bool
    has_tokenizer: bool
    add_bos: bool
    bos_id: int
    eos_id: int


_INFO_TYPES: dict[str, Any] = {
    "architecture": ctypes.c_char * 32,
    "format": ctypes.c_char * 32,
    "name": ctypes.c_char * 128,
    "weight_type": ctypes.c_char * 16,
    "kernels": ctypes.c_char * 16,
    **dict.fromkeys(("num_parameters", "weight_bytes", "decode_bytes", "kv_bytes_per_token"), ctypes.c_int64),
    **dict.fromkeys(("rope_theta", "rms_norm_eps"), ctypes.c_float),
    **dict.fromkeys(("tied_embeddings", "has_tokenizer", "add_bos"), ctypes.c_bool),
}


class ModelInfoStruct(ctypes.Structure):
    _fields_ = [(field.name, _INFO_TYPES.get(field.name, ctypes.c_int32)) for field in dataclasses.fields(ModelInfo)]


@dataclasses.dataclass(frozen=True)
class AdapterInfo:
    """The properties of an adapter: the fields of llamita_adapter_info. rank: the largest."""

    name: str
    num_parameters: int
    num_matrices: int
    rank: int
    alpha: float


class AdapterInfoStruct(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 128),
        ("num_parameters", ctypes.c_int64),
        ("num_matrices", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("alpha", ctypes.c_float),
    ]


class TensorTypeStruct(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("id", ctypes.c_int32),
        ("block_elements", ctypes.c_int32),
        ("block_bytes", ctypes.c_int32),
    ]


class PreTokenizerStruct(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("written", ctypes.c_char_p),
        ("ignore_merges", ctypes.c_bool),
        ("add_bos", ctypes.c_bool),
    ]


class IndexedTextStruct(ctypes.Structure):
    _fields_ = [
        ("ids", ctypes.c_void_p),
        ("num_tokens", ctypes.c_void_p),
        ("num_parts", ctypes.c_size_t),
        ("id_bytes", ctypes.c_int32),
        ("vocab_size", ctypes.c_int32),
        ("eos_id", ctypes.c_int32),
        ("token_bytes", ctypes.c_char_p),
        ("token_ends", ctypes.c_void_p),
    ]


class TextPlaceStruct(ctypes.Structure):
    _fields_ = [("token", ctypes.c_uint64), ("offset", ctypes.c_uint32)]


class GgufKeyStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_char_p) for name in ("name", "kind", "use")),
        *((name, ctypes.c_double) for name in ("low", "high", "fallback")),
        ("feature", ctypes.c_char_p),
    ]


ENCODE_BOS, ENCODE_SPECIAL = 1, 2


_pointer = ctypes.c_void_p
ids_pointer = ctypes.POINTER(ctypes.c_int32)
floats_pointer = ctypes.POINTER(ctypes.c_float)
_error = ctypes.POINTER(ErrorStruct)
_size_out = ctypes.POINTER(ctypes.c_size_t)
_handle_out = ctypes.POINTER(ctypes.c_void_p)
_bytes_out = ctypes.POINTER(ctypes.POINTER(ctypes.c_char))

# name -> (result, arguments), in the header's order.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "version": (ctypes.c_char_p, []),
    "kernels": (ctypes.c_char_p, []),
    "model_open": (ctypes.c_int, [ctypes.c_char_p, ctypes.POINTER(ModelParamsStruct), _handle_out, _error]),
    "model_close": (None, [_pointer]),
    "model_get_info": (None, [_pointer, ctypes.POINTER(ModelInfoStruct)]),
    "model_chat_template": (ctypes.c_char_p, [_pointer]),
    "model_system_prompt": (ctypes.c_char_p, [_pointer]),
    "adapter_open": (ctypes.c_int, [_pointer, ctypes.c_char_p, _handle_out, _error]),
    "adapter_close": (None, [_pointer]),
    "adapter_get_info": (None, [_pointer, ctypes.POINTER(AdapterInfoStruct)]),
    "encode": (
        ctypes.c_int,
        [_pointer, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, ids_pointer, ctypes.c_size_t, _size_out, _error],
    ),
    "token_bytes": (ctypes.c_int, [_pointer, ctypes.c_int32, ctypes.c_int32, _bytes_out, _size_out, _error]),
    "token_text": (ctypes.c_char_p, [_pointer, ctypes.c_int32]),
    "token_ends": (ctypes.c_bool, [_pointer, ctypes.c_int32]),
    "utf8_complete": (ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]),
    "tokenizer_open": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, _handle_out, _error]),
    "tokenizer_close": (None, [_pointer]),
    "tokenizer_encode": (
        ctypes.c_int,
        [
            *(_pointer, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32),
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, _error),
        ],
    ),
    "bpe_trainer_open": (ctypes.c_int, [_handle_out, ctypes.c_int, _error]),
    "bpe_trainer_close": (None, [_pointer]),
    "bpe_trainer_add": (ctypes.c_int, [_pointer, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, _error]),
    "bpe_trainer_train": (
        ctypes.c_int,
        [_pointer, ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p, ctypes.c_size_t, _size_out, _error],
    ),
    "encode_segments": (
        ctypes.c_int,
        [_pointer, ctypes.POINTER(TextSegmentStruct), ctypes.c_size_t, ids_pointer, ctypes.c_size_t, _size_out, _error],
    ),
    "chat_family": (ctypes.c_char_p, [_pointer]),
    "chat_encode": (
        ctypes.c_int,
        [_pointer, ctypes.POINTER(MessageStruct), ctypes.c_size_t, ids_pointer, ctypes.c_size_t, _size_out, _error],
    ),
    "session_open": (ctypes.c_int, [_pointer, ctypes.POINTER(SessionParamsStruct), _handle_out, _error]),
    "session_close": (None, [_pointer]),
    "session_num_threads": (ctypes.c_int32, [_pointer]),
    "session_context_tokens": (ctypes.c_int32, [_pointer]),
    "session_position": (ctypes.c_int32, [_pointer]),
    "session_num_passes": (ctypes.c_int64, [_pointer]),
    "session_rewind": (ctypes.c_int, [_pointer, ctypes.c_int32, _error]),
    "session_set_adapters": (ctypes.c_int, [_pointer, ctypes.POINTER(AdapterUseStruct), ctypes.c_size_t, _error]),
    "session_feed": (ctypes.c_int, [_pointer, ids_pointer, ctypes.c_size_t, _error]),
    "session_feed_logits": (ctypes.c_int, [_pointer, ids_pointer, ctypes.c_size_t, floats_pointer, _error]),
    "session_score": (ctypes.c_int, [_pointer, ids_pointer, ctypes.c_size_t, ctypes.POINTER(ctypes.c_double), _error]),
    "session_logits": (floats_pointer, [_pointer]),
    "session_ids": (ids_pointer, [_pointer]),
    "session_save": (ctypes.c_int, [_pointer, ctypes.c_char_p, _error]),
    "session_load": (ctypes.c_int, [_pointer, ctypes.c_char_p, _error]),
    "decode": (ctypes.c_int, [_pointer, ctypes.POINTER(ChunkStruct), ctypes.c_size_t, floats_pointer, _error]),
    "decode_hidden_states": (
        ctypes.c_int,
        [_pointer, ctypes.POINTER(ChunkStruct), ctypes.c_size_t, floats_pointer, _error],
    ),
    "sequence_position": (ctypes.c_int32, [_pointer, ctypes.c_int32]),
    "sequence_rewind": (ctypes.c_int, [_pointer, ctypes.c_int32, ctypes.c_int32, _error]),
    "sequence_set_adapters": (
        ctypes.c_int,
        [_pointer, ctypes.c_int32, ctypes.POINTER(AdapterUseStruct), ctypes.c_size_t, _error],
    ),
    "sequence_share": (ctypes.c_int, [_pointer, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, _error]),
    "sampler_open": (ctypes.c_int, [ctypes.POINTER(SamplerParamsStruct), ctypes.c_int32, _handle_out, _error]),
    "sampler_close": (None, [_pointer]),
    "sampler_begin_text": (None, [_pointer]),
    "sampler_accept": (None, [_pointer, ctypes.c_int32]),
    "sampler_pick": (ctypes.c_int, [_pointer, floats_pointer, ctypes.POINTER(ctypes.c_int32), _error]),
    "generate": (
        ctypes.c_int,
        [
            _pointer,
            _pointer,
            ids_pointer,
            ctypes.c_size_t,
            ctypes.c_int32,
            PieceCallback,
            ctypes.c_void_p,
            _error,
        ],
    ),
    "generate_text": (
        ctypes.c_int,
        [
            _pointer,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.POINTER(SamplerParamsStruct),
            ctypes.c_int32,
            PieceCallback,
            ctypes.c_void_p,
            _error,
        ],
    ),
    "scheduler_open": (ctypes.c_int, [_pointer, ctypes.POINTER(SchedulerParamsStruct), _handle_out, _error]),
    "scheduler_close": (None, [_pointer]),
    "scheduler_context_tokens": (ctypes.c_int32, [_pointer]),
    "scheduler_get_stats": (None, [_pointer, ctypes.POINTER(SchedulerStatsStruct)]),
    "scheduler_submit": (
        ctypes.c_int,
        [_pointer, ctypes.POINTER(RequestStruct), ctypes.POINTER(ctypes.c_uint64), _error],
    ),
    "scheduler_cancel": (ctypes.c_bool, [_pointer, ctypes.c_uint64]),
    "scheduler_step": (ctypes.c_int, [_pointer, _error]),
    "scheduler_run": (ctypes.c_int, [_pointer, ctypes.c_double, _error]),
    "scheduler_interrupt": (None, [_pointer]),
    "scheduler_events": (ctypes.POINTER(EventStruct), [_pointer, _size_out]),
    "tensor_type": (ctypes.c_bool, [ctypes.c_size_t, ctypes.POINTER(TensorTypeStruct)]),
    "dequantize": (ctypes.c_int, [ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, floats_pointer, _error]),
    "quantize": (
        ctypes.c_int,
        [
            *(ctypes.c_char_p, floats_pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_size_t),
            *(ctypes.POINTER(ctypes.c_double), _error),
        ],
    ),
    "text_index_measure": (ctypes.c_int, [ctypes.POINTER(IndexedTextStruct), ctypes.POINTER(ctypes.c_uint64), _error]),
    "text_index_build": (
        ctypes.c_int,
        [ctypes.POINTER(IndexedTextStruct), ctypes.c_uint64, *3 * (ctypes.c_void_p,), _error],
    ),
    "text_index_open": (
        ctypes.c_int,
        [ctypes.POINTER(IndexedTextStruct), ctypes.c_uint64, *3 * (ctypes.c_void_p,), _handle_out, _error],
    ),
    "text_index_close": (None, [_pointer]),
    "text_index_match": (
        ctypes.c_int,
        [_pointer, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p, _error],
    ),
    "text_index_find": (
        ctypes.c_int,
        [
            *(_pointer, ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(TextPlaceStruct), ctypes.c_size_t),
            *(ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_bool), _error),
        ],
    ),
    "pre_tokenizer": (ctypes.c_bool, [ctypes.c_size_t, ctypes.POINTER(PreTokenizerStruct)]),
    "gguf_key": (ctypes.c_bool, [ctypes.c_size_t, ctypes.POINTER(GgufKeyStruct)]),
}


def library_path() -> Path:
    """The path of the shared library: in `llamita/_engine` (by pip install) or, in a source
    checkout, in `engine/build` (by `make engine`); the newer one."""
    folders = [Path(folder) / "_engine" for folder in llamita.__path__]
    folders.append(Path(__file__).resolve().parents[3] / "engine" / "build")
    built = [folder / name for folder in folders for name in LIBRARY_NAMES if (folder / name).is_file()]
    if not built:
        looked = ", ".join(str(folder) for folder in folders)
        raise EngineError(
            f"the engine's library: in {looked}: expected {LIBRARY_NAMES[0]}, found none; "
            "run `make engine` in a source checkout, or install llamita again"
        )
    return max(built, key=lambda path: path.stat().st_mtime)


@functools.cache
def load_library() -> ctypes.CDLL:
    """The library, loaded once. Raises EngineError if it is missing or of another version."""
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(loaded, f"llamita_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise EngineError(
            f"the engine's library: {path}: cannot be loaded ({error}); "
            "run `make engine` in a source checkout, or install llamita again"
        ) from None
    return loaded


def call(name: str, *arguments: Any) -> None:
    """Call a function that returns a status and takes an error last; raise EngineError unless
    OK."""
    error = ErrorStruct()
    if getattr(load_library(), f"llamita_{name}")(*arguments, ctypes.byref(error)) != 0:
        raise EngineError(error.message.decode("utf-8", "replace"))


def id_array(ids: Ids) -> npt.NDArray[np.int32]:
    """int32 [n], or EngineError."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size > 0 and not np.issubdtype(array.dtype, np.integer)):
        raise EngineError(f"token ids: expected a sequence of integers, found {array.dtype} {list(array.shape)}")
    if array.size > 0 and not (int(array.min()) >= 0 and int(array.max()) < 2**31):
        raise EngineError(f"token ids: expected 0 or more, found {int(array.min())} to {int(array.max())}")
    return np.ascontiguousarray(array, dtype=np.int32)


Opened = TypeVar("Opened", bound="Owned")


class Owned:
    """An object of the engine; closed by `close()`, by a `with` block, or by garbage collection."""

    _kind: str

    def _own(self, handle: int | None, *keep_alive: object) -> None:
        assert handle is not None
        close = getattr(load_library(), f"llamita_{self._kind}_close")
        self._open_handle = handle
        # keep_alive is held until the handle is closed: a session must not outlive its model.
        self._finalizer = weakref.finalize(self, lambda handle, *kept: close(handle), handle, *keep_alive)

    @property
    def _handle(self) -> int:
        if not self._finalizer.alive:
            raise EngineError(f"{self._kind}: it has been closed; open another")
        return self._open_handle

    def close(self) -> None:
        """Free the memory. Closing twice is fine; any other use of a closed object is an
        EngineError."""
        self._finalizer()

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def choice(name: str, value: str, choices: tuple[str, ...]) -> int:
    """The index of a value among the names of an enumeration. Raises EngineError."""
    if value not in choices:
        raise EngineError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
    return choices.index(value)


def int32(name: str, value: int) -> int:
    """The value. Raises EngineError where ctypes would truncate it."""
    if not -(2**31) <= value < 2**31:
        raise EngineError(f"{name}: expected a number of 32 bits, found {value}")
    return value


def version() -> str:
    """The engine's version."""
    return str(load_library().llamita_version().decode())


def kernels() -> str:
    """The kernels chosen on this machine: "amx", "avx512", "avxvnni", "avx2", "i8mm" (ARM), "dotprod",
    "neon" or "scalar"."""
    return str(load_library().llamita_kernels().decode())


def utf8_complete(raw: bytes) -> int:
    """Number of leading bytes that are whole characters; later bytes may complete the rest."""
    return int(load_library().llamita_utf8_complete(raw, len(raw)))
