"""The binding of engine/include/llamita.h: a model file to text, ids and logits, one method per C function.

Shapes: n ids of a text, V vocabulary size. Logits are float32, nats float64, ids int32. Errors are EngineError with the
engine's own line. The engine's promise holds here too: logits depend on (model file, adapters, ids) alone.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import secrets
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

import llamita
from llamita.errors import EngineError

Ids: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]
LIBRARY_NAMES = ("libllamita.so", "libllamita.dylib", "llamita.dll")
PACKAGED_MODEL = Path(__file__).parent / "assets" / "stories.gguf"


# ---------------------------------------------------------------------- the C structures, field by field


class _Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("message", ctypes.c_char * 512)]


class _ModelParams(ctypes.Structure):
    _fields_ = [("tokenizer_path", ctypes.c_char_p), ("kernels", ctypes.c_char_p)]


class _SessionParams(ctypes.Structure):
    _fields_ = [
        ("num_threads", ctypes.c_int32),
        ("context_tokens", ctypes.c_int32),
        ("num_sequences", ctypes.c_int32),
        ("kv_type", ctypes.c_int),
        ("speculation", ctypes.c_int),
    ]


class _AdapterUse(ctypes.Structure):
    _fields_ = [("adapter", ctypes.c_void_p), ("scale", ctypes.c_float)]


class _Chunk(ctypes.Structure):
    _fields_ = [
        ("sequence", ctypes.c_int32),
        ("ids", ctypes.POINTER(ctypes.c_int32)),
        ("num_tokens", ctypes.c_size_t),
        ("num_logits", ctypes.c_size_t),
    ]


class _Part(ctypes.Structure):
    _fields_ = [
        ("text", ctypes.c_char_p),
        ("num_bytes", ctypes.c_size_t),
        ("trusted", ctypes.c_bool),
        ("ids", ctypes.POINTER(ctypes.c_int32)),
        ("num_ids", ctypes.c_size_t),
    ]


class _Message(ctypes.Structure):
    _fields_ = [
        ("role", ctypes.c_char_p),
        ("content", ctypes.c_char_p),
        ("num_bytes", ctypes.c_size_t),
        ("ids", ctypes.POINTER(ctypes.c_int32)),
        ("num_ids", ctypes.c_size_t),
    ]


KV_TYPES = ("f16", "f32", "q8")  # llamita_kv_type, in its order
SPECULATIONS = ("auto", "off", "always")  # llamita_speculation, in its order


class _SamplerParams(ctypes.Structure):
    _fields_ = [
        ("temperature", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("repetition_penalty", ctypes.c_float),
        ("repetition_window", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
    ]


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a model file is: the fields of llamita_model_info, with its names. An id of -1 says that there is none."""

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


class _ModelInfo(ctypes.Structure):
    _fields_ = [(field.name, _INFO_TYPES.get(field.name, ctypes.c_int32)) for field in dataclasses.fields(ModelInfo)]


@dataclasses.dataclass(frozen=True)
class AdapterInfo:
    """What an adapter file is: the fields of llamita_adapter_info, with its names. rank: the largest."""

    name: str
    num_parameters: int
    num_matrices: int
    rank: int
    alpha: float


class _AdapterInfo(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 128),
        ("num_parameters", ctypes.c_int64),
        ("num_matrices", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("alpha", ctypes.c_float),
    ]


_ENCODE_BOS, _ENCODE_SPECIAL = 1, 2


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of a text. trusted: control tokens written out in it are meant; else they stay text.

    ids: what it was generated as, and stays; () if it was not generated."""

    text: bytes
    trusted: bool = False
    ids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Message:
    """What one side of a chat says. role: "system", "user" or "assistant".

    ids: what the content was generated as, and stays; () if it was not generated."""

    role: str
    content: bytes
    ids: tuple[int, ...] = ()


_pointer = ctypes.c_void_p
_ids = ctypes.POINTER(ctypes.c_int32)
_floats = ctypes.POINTER(ctypes.c_float)
_error = ctypes.POINTER(_Error)
_size_out = ctypes.POINTER(ctypes.c_size_t)
_handle_out = ctypes.POINTER(ctypes.c_void_p)
_bytes_out = ctypes.POINTER(ctypes.POINTER(ctypes.c_char))

# name -> (result, arguments), in the header's order.
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "version": (ctypes.c_char_p, []),
    "kernels": (ctypes.c_char_p, []),
    "model_open": (ctypes.c_int, [ctypes.c_char_p, ctypes.POINTER(_ModelParams), _handle_out, _error]),
    "model_close": (None, [_pointer]),
    "model_get_info": (None, [_pointer, ctypes.POINTER(_ModelInfo)]),
    "model_chat_template": (ctypes.c_char_p, [_pointer]),
    "adapter_open": (ctypes.c_int, [_pointer, ctypes.c_char_p, _handle_out, _error]),
    "adapter_close": (None, [_pointer]),
    "adapter_get_info": (None, [_pointer, ctypes.POINTER(_AdapterInfo)]),
    "encode": (
        ctypes.c_int,
        [_pointer, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, _ids, ctypes.c_size_t, _size_out, _error],
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
    "learner_open": (ctypes.c_int, [_handle_out, _error]),
    "learner_close": (None, [_pointer]),
    "learner_add": (ctypes.c_int, [_pointer, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, _error]),
    "learner_merge": (
        ctypes.c_int,
        [_pointer, ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p, ctypes.c_size_t, _size_out, _error],
    ),
    "encode_parts": (
        ctypes.c_int,
        [_pointer, ctypes.POINTER(_Part), ctypes.c_size_t, _ids, ctypes.c_size_t, _size_out, _error],
    ),
    "chat_family": (ctypes.c_char_p, [_pointer]),
    "chat_encode": (
        ctypes.c_int,
        [_pointer, ctypes.POINTER(_Message), ctypes.c_size_t, _ids, ctypes.c_size_t, _size_out, _error],
    ),
    "session_open": (ctypes.c_int, [_pointer, ctypes.POINTER(_SessionParams), _handle_out, _error]),
    "session_close": (None, [_pointer]),
    "session_num_threads": (ctypes.c_int32, [_pointer]),
    "session_context_tokens": (ctypes.c_int32, [_pointer]),
    "session_position": (ctypes.c_int32, [_pointer]),
    "session_num_passes": (ctypes.c_int64, [_pointer]),
    "session_rewind": (ctypes.c_int, [_pointer, ctypes.c_int32, _error]),
    "session_set_adapters": (ctypes.c_int, [_pointer, ctypes.POINTER(_AdapterUse), ctypes.c_size_t, _error]),
    "session_feed": (ctypes.c_int, [_pointer, _ids, ctypes.c_size_t, _error]),
    "session_feed_logits": (ctypes.c_int, [_pointer, _ids, ctypes.c_size_t, _floats, _error]),
    "session_score": (ctypes.c_int, [_pointer, _ids, ctypes.c_size_t, ctypes.POINTER(ctypes.c_double), _error]),
    "session_logits": (_floats, [_pointer]),
    "decode": (ctypes.c_int, [_pointer, ctypes.POINTER(_Chunk), ctypes.c_size_t, _floats, _error]),
    "sequence_position": (ctypes.c_int32, [_pointer, ctypes.c_int32]),
    "sequence_rewind": (ctypes.c_int, [_pointer, ctypes.c_int32, ctypes.c_int32, _error]),
    "sequence_set_adapters": (
        ctypes.c_int,
        [_pointer, ctypes.c_int32, ctypes.POINTER(_AdapterUse), ctypes.c_size_t, _error],
    ),
    "sequence_share": (ctypes.c_int, [_pointer, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, _error]),
    "sampler_open": (ctypes.c_int, [ctypes.POINTER(_SamplerParams), ctypes.c_int32, _handle_out, _error]),
    "sampler_close": (None, [_pointer]),
    "sampler_accept": (None, [_pointer, ctypes.c_int32]),
    "sampler_pick": (ctypes.c_int, [_pointer, _floats, ctypes.POINTER(ctypes.c_int32), _error]),
    "quantize": (
        ctypes.c_int,
        [
            *(ctypes.c_char_p, _floats, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_size_t),
            *(ctypes.POINTER(ctypes.c_double), _error),
        ],
    ),
}


def library_path() -> Path:
    """The engine's shared library: the most recently built of the package's own (`llamita/_engine`, put there by
    installing) and, in a source checkout, `engine/build` (put there by `make engine`)."""
    folders = [Path(folder) / "_engine" for folder in llamita.__path__]
    folders.append(Path(__file__).resolve().parents[2] / "engine" / "build")
    built = [folder / name for folder in folders for name in LIBRARY_NAMES if (folder / name).is_file()]
    if not built:
        looked = ", ".join(str(folder) for folder in folders)
        raise EngineError(
            f"the engine's library: in {looked}: expected {LIBRARY_NAMES[0]}, found none; "
            "run `make engine` in a source checkout, or install llamita again"
        )
    return max(built, key=lambda path: path.stat().st_mtime)


@functools.cache
def _library() -> ctypes.CDLL:
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, f"llamita_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise EngineError(
            f"the engine's library: {path}: cannot be loaded ({error}); "
            "run `make engine` in a source checkout, or install llamita again"
        ) from None
    return library


def _call(name: str, *arguments: Any) -> None:
    """Call a function that returns a status and takes an error last; raise EngineError unless it is OK."""
    error = _Error()
    if getattr(_library(), f"llamita_{name}")(*arguments, ctypes.byref(error)) != 0:
        raise EngineError(error.message.decode("utf-8", "replace"))


def _id_array(ids: Ids) -> npt.NDArray[np.int32]:
    """int32 [n], or EngineError."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size > 0 and not np.issubdtype(array.dtype, np.integer)):
        raise EngineError(f"token ids: expected a sequence of whole numbers, found {array.dtype} {list(array.shape)}")
    if array.size > 0 and not (int(array.min()) >= 0 and int(array.max()) < 2**31):
        raise EngineError(f"token ids: expected 0 or more, found {int(array.min())} to {int(array.max())}")
    return np.ascontiguousarray(array, dtype=np.int32)


def version() -> str:
    """The engine's version."""
    return str(_library().llamita_version().decode())


def kernels() -> str:
    """The kernels that are chosen on this processor: "avxvnni", "avx2", "dotprod" (ARM), "neon" or "scalar"."""
    return str(_library().llamita_kernels().decode())


def utf8_complete(raw: bytes) -> int:
    """How many of the leading bytes are whole characters; the rest may be completed by what follows."""
    return int(_library().llamita_utf8_complete(raw, len(raw)))


def quantize(rows: npt.NDArray[np.float32], type: str, out: npt.NDArray[np.uint8]) -> float:
    """Write the blocks of rows [N, row length] as GGUF's `type` ("Q4_K") into out, which has exactly their bytes;
    returns Σ(stored - x)².

    Both are contiguous. Other threads run meanwhile. EngineError for a type that is not written, rows that are not
    whole blocks, too little room, or a number that the type cannot hold."""
    assert rows.dtype == np.float32 and rows.ndim == 2 and rows.flags.c_contiguous
    assert out.dtype == np.uint8 and out.flags.c_contiguous and out.flags.writeable
    num_rows, row_length = rows.shape
    squared_error = ctypes.c_double()
    values = rows.ctypes.data_as(_floats)
    _call("quantize", type.encode(), values, row_length, num_rows, out.ctypes.data, out.nbytes, squared_error)
    return squared_error.value


Opened = TypeVar("Opened", bound="_Owned")


class _Owned:
    """Something the engine opened; closed by `close()`, at the end of a `with` block, or when nobody holds it."""

    _kind: str

    def _own(self, handle: int | None, *keep_alive: object) -> None:
        assert handle is not None
        close = getattr(_library(), f"llamita_{self._kind}_close")
        self._open_handle = handle
        # keep_alive is held until the handle is closed: a session must not outlive its model.
        self._finalizer = weakref.finalize(self, lambda handle, *kept: close(handle), handle, *keep_alive)

    @property
    def _handle(self) -> int:
        if not self._finalizer.alive:
            raise EngineError(f"{self._kind}: it has been closed; open another")
        return self._open_handle

    def close(self) -> None:
        """Give the memory back. Closing twice is fine; every other use after it is an EngineError."""
        self._finalizer()

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


# ---------------------------------------------------------------------- what a user sees


class DocumentTokenizer(_Owned):
    """A tokenizer without a model, for many documents at a time. Immutable: threads may share it, and other threads run
    while it encodes."""

    _kind = "tokenizer"

    def __init__(self, gguf: bytes, name: str) -> None:
        """gguf: the bytes of a GGUF file, of which only the tokenizer's keys matter. name: what errors call it."""
        handle = ctypes.c_void_p()
        _call("tokenizer_open", gguf, len(gguf), os.fsencode(name), ctypes.byref(handle))
        self._own(handle.value)

    def encode(
        self, text: bytes, ends: npt.NDArray[np.uint64], last_id: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        """Documents that stand one after another in `text`, document i up to byte ends[i] (all [documents]), to ids
        [tokens], last_id after each document's (-1: none), and where each document's end [documents].

        Control tokens written out in a text are text. EngineError: more than 2^30 bytes, a byte without a token."""
        assert ends.dtype == np.uint64 and ends.flags.c_contiguous and (ends.size == 0 or int(ends[-1]) == len(text))
        ids, token_ends = np.empty(2 * (len(text) + ends.size), np.int32), np.empty(ends.size, np.uint64)
        _call(
            "tokenizer_encode", self._handle, text, ends.ctypes.data, ends.size, last_id, ids.ctypes.data, ids.size,
            token_ends.ctypes.data,
        )  # fmt: skip
        return ids[: int(token_ends[-1]) if ends.size else 0], token_ends


class Learner(_Owned):
    """Counts the words of documents, cut by the `qwen2` expression, and learns a byte-level BPE's merges from them."""

    _kind = "learner"

    def __init__(self) -> None:
        handle = ctypes.c_void_p()
        _call("learner_open", ctypes.byref(handle))
        self._own(handle.value)

    def add(self, text: bytes, ends: npt.NDArray[np.uint64]) -> None:
        """Documents that stand one after another in `text`, document i up to byte ends[i]. Other threads run on."""
        assert ends.dtype == np.uint64 and ends.flags.c_contiguous and (ends.size == 0 or int(ends[-1]) == len(text))
        _call("learner_add", self._handle, text, ends.ctypes.data, ends.size)

    def merge(self, num_tokens: int, least_count: int) -> npt.NDArray[np.int32]:
        """[merges, 3]: left, right, what they become; until there are so many tokens, the 256 bytes included, or no
        pair stands least_count times in the text.

        Tokens 0 to 255 are the bytes in the order of GPT-2's alphabet, the others follow as they are made."""
        merges, num_merges = np.empty((4 * num_tokens, 3), np.int32), ctypes.c_size_t()
        _call(
            "learner_merge", self._handle, num_tokens, least_count, merges.ctypes.data, len(merges),
            ctypes.byref(num_merges),
        )  # fmt: skip
        return merges[: num_merges.value]


class Model(_Owned):
    """A model file, mapped: weights, configuration and tokenizer. Immutable; sessions in many threads may share it."""

    _kind = "model"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        kernels: str | None = None,
    ) -> None:
        """Open a GGUF or llama2.c file (found by content).

        tokenizer: a llama2.c tokenizer.bin, or a GGUF to take the tokenizer from; None: the one in the file.
        kernels: "auto" (also None), "scalar", "avx2", "avxvnni", "neon", "dotprod". EngineError: bad files.
        """
        params = _ModelParams(os.fsencode(tokenizer) if tokenizer is not None else None, kernels and kernels.encode())
        handle = ctypes.c_void_p()
        start = time.perf_counter()
        _call("model_open", os.fsencode(path), ctypes.byref(params), ctypes.byref(handle))
        self._own(handle.value)
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._adapters: weakref.WeakSet[Adapter] = weakref.WeakSet()
        self.load_seconds = time.perf_counter() - start

    def close(self) -> None:
        """Unmap the file; sessions and adapters that are still open are closed first."""
        for opened in [*self._sessions, *self._adapters]:
            opened.close()
        super().close()

    @functools.cached_property
    def info(self) -> ModelInfo:
        """What the file is."""
        raw = _ModelInfo()
        _library().llamita_model_get_info(self._handle, ctypes.byref(raw))
        values: dict[str, Any] = {}
        for field in dataclasses.fields(ModelInfo):
            value = getattr(raw, field.name)
            values[field.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return ModelInfo(**values)

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template in the file, if there is one."""
        template: bytes | None = _library().llamita_model_chat_template(self._handle)
        return None if template is None else template.decode("utf-8", "replace")

    def encode(self, text: str | bytes, bos: bool = False, special: bool = False) -> list[int]:
        """Text to ids. bos: put BOS first. special: recognise control tokens written out in the text."""
        raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
        ids = np.empty(2 * len(raw) + 2, dtype=np.int32)
        flags = (_ENCODE_BOS if bos else 0) | (_ENCODE_SPECIAL if special else 0)
        num_ids = ctypes.c_size_t()
        pointer = ids.ctypes.data_as(_ids)
        _call("encode", self._handle, raw, len(raw), flags, pointer, ids.size, ctypes.byref(num_ids))
        return [int(i) for i in ids[: num_ids.value]]

    @property
    def chat_family(self) -> str | None:
        """ "chatml", "llama2", "llama3" or "zephyr" if the engine itself can render the file's chat template."""
        family: bytes | None = _library().llamita_chat_family(self._handle)
        return None if family is None else family.decode()

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """The text that the parts make together, to ids: control tokens in trusted parts only, generated ids kept."""
        raw = (_Part * len(parts))(*(_Part(each.text, len(each.text), each.trusted, *_kept(each)) for each in parts))
        num_bytes = sum(len(each.text) + len(each.ids) for each in parts)
        return self._encoded("encode_parts", raw, len(parts), 2 * num_bytes + 2)

    def chat_encode(self, messages: Sequence[Message]) -> list[int]:
        """[system] user (assistant user)* to the ids that the file's chat template makes of them, the beginning of the
        answer included. EngineError unless `chat_family` knows the template."""
        raw = (_Message * len(messages))(
            *(_Message(each.role.encode(), each.content, len(each.content), *_kept(each)) for each in messages)
        )
        num_bytes = sum(len(each.content) + len(each.ids) + 100 for each in messages)
        return self._encoded("chat_encode", raw, len(messages), 2 * num_bytes + 2048)

    def _encoded(self, name: str, raw: Any, count: int, room: int) -> list[int]:
        """The ids that an encoding function writes into so much room: more than any of them needs."""
        ids, num_ids = np.empty(room, dtype=np.int32), ctypes.c_size_t()
        _call(name, self._handle, raw, count, ids.ctypes.data_as(_ids), ids.size, ctypes.byref(num_ids))
        return [int(i) for i in ids[: num_ids.value]]

    def decode(self, ids: Ids) -> bytes:
        """Ids to the bytes of their text; control tokens add none."""
        array = _id_array(ids).tolist()
        return b"".join(self.decode_token(i, before) for before, i in zip([-1, *array], array, strict=False))

    def decode_token(self, id: int, previous_id: int = -1) -> bytes:
        """The bytes that the id adds to a text in which previous_id came before it (-1: nothing did)."""
        start, num_bytes = ctypes.POINTER(ctypes.c_char)(), ctypes.c_size_t()
        _call("token_bytes", self._handle, previous_id, id, ctypes.byref(start), ctypes.byref(num_bytes))
        return bytes(start[: num_bytes.value]) if num_bytes.value else b""

    def token_text(self, id: int) -> str | None:
        """The token as the vocabulary writes it, for people; None if there is no such id or no tokenizer."""
        text: bytes | None = _library().llamita_token_text(self._handle, id)
        return None if text is None else text.decode("utf-8", "replace")

    def token_ends(self, id: int) -> bool:
        """Whether generation ends at this id."""
        return bool(_library().llamita_token_ends(self._handle, id))

    def load_adapter(self, path: str | os.PathLike[str]) -> Adapter:
        """Open a GGUF adapter that was made for this model (`llamita export --adapter`). EngineError: bad files."""
        return Adapter(self, path)

    def session(
        self,
        *,
        num_threads: int = 0,
        context_tokens: int = 0,
        num_sequences: int = 1,
        kv_type: str = "f16",
        speculation: str = "auto",
        adapters: AdapterUses = (),
    ) -> Session:
        """A new running text, or several side by side: see Session. adapters: of all sequences."""
        session = Session(
            self,
            num_threads=num_threads,
            context_tokens=context_tokens,
            num_sequences=num_sequences,
            kv_type=kv_type,
            speculation=speculation,
        )
        for sequence in range(num_sequences if adapters else 0):
            session.sequence_set_adapters(sequence, adapters)
        return session

    def logits(
        self, ids: Ids, *, num_threads: int = 0, kv_type: str = "f16", adapters: AdapterUses = ()
    ) -> npt.NDArray[np.float32]:
        """float32 [n, V]: row i are the logits of the token after ids[0..i]."""
        with self.session(num_threads=num_threads, kv_type=kv_type, adapters=adapters) as session:
            return session.feed_logits(ids)

    def score(
        self, ids: Ids, *, num_threads: int = 0, kv_type: str = "f16", adapters: AdapterUses = ()
    ) -> npt.NDArray[np.float64]:
        """float64 [n - 1], in nats: -ln p(ids[i + 1] | ids[0..i]); at least two ids."""
        with self.session(num_threads=num_threads, kv_type=kv_type, adapters=adapters) as session:
            return session.score(ids)

    def generate(
        self,
        prompt: str | bytes = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        repetition_window: int = 64,
        seed: int | None = None,
        num_threads: int = 0,
        context_tokens: int = 0,
        kv_type: str = "f16",
        speculation: str = "auto",
        adapters: AdapterUses = (),
    ) -> Generation:
        """Continue the prompt: an iterator of the new text's pieces (str), which never split a character.

        It ends at an end token, after max_new_tokens (None: no limit), or at the context's end. The same seed and the
        same model give the same text; None draws one. Temperature 0 takes the most probable token each time.
        Bytes that are no UTF-8 become U+FFFD; an unfinished character at the end is left out.
        adapters: act together, each with its scale (1 if none is given), in this order.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise EngineError(f"max_new_tokens: expected at least 1, or None for no limit, found {max_new_tokens}")
        begins = self.info.add_bos or not prompt
        if begins and not prompt and self.info.bos_id < 0:
            raise EngineError("prompt: this model has no token to begin an empty text with; give a prompt")
        sampler = Sampler(
            self.info.vocab_size,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            repetition_window=repetition_window,
            seed=seed,
        )
        prompt_ids = self.encode(prompt, bos=begins)
        session = self.session(
            num_threads=num_threads,
            context_tokens=context_tokens,
            kv_type=kv_type,
            speculation=speculation,
            adapters=adapters,
        )
        if len(prompt_ids) > session.context_tokens:
            raise EngineError(
                f"prompt: expected at most {session.context_tokens} tokens (the context), found {len(prompt_ids)}; "
                "shorten it"
            )
        return Generation(self, session, sampler, prompt_ids, max_new_tokens)


class Adapter(_Owned):
    """A low-rank change of one model's matrices. Immutable; sessions in many threads may share it.

    Sessions that use it keep it: closing it only means that it cannot be put to use again."""

    _kind = "adapter"

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        """Read a GGUF adapter. EngineError for a file that is none, is damaged, or was made for another model."""
        handle = ctypes.c_void_p()
        _call("adapter_open", model._handle, os.fsencode(path), ctypes.byref(handle))
        self._own(handle.value, model)
        model._adapters.add(self)

    @functools.cached_property
    def info(self) -> AdapterInfo:
        """What the file is."""
        raw = _AdapterInfo()
        _library().llamita_adapter_get_info(self._handle, ctypes.byref(raw))
        name = raw.name.decode("utf-8", "replace")
        return AdapterInfo(name, raw.num_parameters, raw.num_matrices, raw.rank, raw.alpha)


AdapterUses: TypeAlias = Sequence[Adapter | tuple[Adapter, float]]


class Session(_Owned):
    """Running texts: the ids so far (as keys and values), scratch memory and threads. One thread at a time.

    What does not take a sequence's number works on sequence 0."""

    _kind = "session"

    def __init__(
        self,
        model: Model,
        *,
        num_threads: int = 0,
        context_tokens: int = 0,
        num_sequences: int = 1,
        kv_type: str = "f16",
        speculation: str = "auto",
    ) -> None:
        """num_threads 0: chosen by the size of model and machine. context_tokens (of each sequence) 0: the model's.

        kv_type: how keys and values are stored, one of KV_TYPES. speculation: one of SPECULATIONS; computes along what
        a repetition in the text makes probable, with the same results.
        """
        handle = ctypes.c_void_p()
        params = _SessionParams(
            _int32("num_threads", num_threads),
            _int32("context_tokens", context_tokens),
            _int32("num_sequences", num_sequences),
            _choice("kv_type", kv_type, KV_TYPES),
            _choice("speculation", speculation, SPECULATIONS),
        )
        _call("session_open", model._handle, ctypes.byref(params), ctypes.byref(handle))
        self._own(handle.value, model)
        self._vocab_size = model.info.vocab_size
        model._sessions.add(self)

    @property
    def num_threads(self) -> int:
        """How many threads compute."""
        return int(_library().llamita_session_num_threads(self._handle))

    @property
    def context_tokens(self) -> int:
        """How many tokens it can hold."""
        return int(_library().llamita_session_context_tokens(self._handle))

    @property
    def position(self) -> int:
        """How many tokens it holds."""
        return int(_library().llamita_session_position(self._handle))

    @property
    def num_passes(self) -> int:
        """How often the weights were read so far: what is fed in fewer passes than tokens was guessed right."""
        return int(_library().llamita_session_num_passes(self._handle))

    def rewind(self, position: int) -> None:
        """Forget all tokens from this position on."""
        _call("session_rewind", self._handle, _int32("position", position))

    def set_adapters(self, adapters: AdapterUses) -> None:
        """Use these adapters, each with its scale (1 if none is given), in this order; () for the model alone.

        Unless they are those of before, the tokens held are forgotten: they were computed without them."""
        _call("session_set_adapters", self._handle, *_uses(adapters))

    def feed(self, ids: Ids) -> None:
        """Append at least one id; `logits` then holds those after the last one."""
        array = _id_array(ids)
        _call("session_feed", self._handle, array.ctypes.data_as(_ids), array.size)

    def feed_logits(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Append at least one id; returns the logits after each: float32 [n, V]."""
        array = _id_array(ids)
        logits = np.empty((array.size, self._vocab_size), dtype=np.float32)
        pointers = array.ctypes.data_as(_ids), array.size, logits.ctypes.data_as(_floats)
        _call("session_feed_logits", self._handle, *pointers)
        return logits

    def score(self, ids: Ids) -> npt.NDArray[np.float64]:
        """float64 [n - 1], in nats: -ln p(ids[i + 1] | all before). The last id is not appended: rows can follow."""
        array = _id_array(ids)
        nats = np.empty(max(array.size - 1, 0), dtype=np.float64)
        nats_pointer = nats.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
        _call("session_score", self._handle, array.ctypes.data_as(_ids), array.size, nats_pointer)
        return nats

    def decode(self, chunks: Sequence[tuple[int, Ids, int]]) -> npt.NDArray[np.float32]:
        """Append ids to several sequences at once: chunks of (sequence, ids, how many logits are wanted at its end).

        Returns them in this order: float32 [all of them, V]. What a sequence gives does not depend on the others."""
        arrays = [_id_array(ids) for _, ids, _ in chunks]
        if any(not 0 <= num_logits <= array.size for (_, _, num_logits), array in zip(chunks, arrays, strict=True)):
            raise EngineError("chunks: expected to ask for 0 logits to as many as there are ids")
        raw = (_Chunk * len(chunks))(
            *(
                _Chunk(_int32("sequence", sequence), array.ctypes.data_as(_ids), array.size, num_logits)
                for (sequence, _, num_logits), array in zip(chunks, arrays, strict=True)
            )
        )
        logits = np.empty((sum(num_logits for _, _, num_logits in chunks), self._vocab_size), dtype=np.float32)
        _call("decode", self._handle, raw, len(chunks), logits.ctypes.data_as(_floats))
        return logits

    def sequence_position(self, sequence: int) -> int:
        """How many tokens a sequence holds."""
        position = int(_library().llamita_sequence_position(self._handle, _int32("sequence", sequence)))
        if position < 0:
            raise EngineError(f"sequence: this session has no sequence {sequence}")
        return position

    def sequence_rewind(self, sequence: int, position: int) -> None:
        """Forget all tokens of a sequence from this position on."""
        _call("sequence_rewind", self._handle, _int32("sequence", sequence), _int32("position", position))

    def sequence_set_adapters(self, sequence: int, adapters: AdapterUses) -> None:
        """Use these adapters for one sequence: see set_adapters. Sequences with different ones run side by side."""
        _call("sequence_set_adapters", self._handle, _int32("sequence", sequence), *_uses(adapters))

    def sequence_share(self, source: int, target: int, num_tokens: int) -> None:
        """Make the target the first num_tokens of the source, without computing or copying them. Both must have the
        same adapters."""
        numbers = _int32("source", source), _int32("target", target), _int32("num_tokens", num_tokens)
        _call("sequence_share", self._handle, *numbers)

    @property
    def logits(self) -> npt.NDArray[np.float32] | None:
        """A copy of the logits after the last fed id, float32 [V]; None before the first feed and after a rewind."""
        pointer = _library().llamita_session_logits(self._handle)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab_size,)).copy() if pointer else None


class Sampler(_Owned):
    """How the next token is picked: penalty, temperature, softmax, top-k, top-p, min-p, draw. One thread at a time."""

    _kind = "sampler"

    def __init__(
        self,
        vocab_size: int,
        *,
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        repetition_window: int = 64,
        seed: int | None = None,
    ) -> None:
        """seed: 0 to 2**64 - 1, or None to draw one. The ranges of the others are the engine's (llamita.h)."""
        self.seed = secrets.randbits(64) if seed is None else seed
        self.is_greedy = temperature == 0
        if not 0 <= self.seed < 2**64:
            raise EngineError(f"seed: expected 0 to 2**64 - 1, found {self.seed}")
        params = _SamplerParams(
            temperature,
            _int32("top_k", top_k),
            top_p,
            min_p,
            repetition_penalty,
            _int32("repetition_window", repetition_window),
            self.seed,
        )
        handle = ctypes.c_void_p()
        _call("sampler_open", ctypes.byref(params), _int32("vocab_size", vocab_size), ctypes.byref(handle))
        self._own(handle.value)
        self._vocab_size = vocab_size

    def accept(self, id: int) -> None:
        """Tell that this token is part of the text, for the repetition penalty."""
        _library().llamita_sampler_accept(self._handle, _int32("id", id))

    def pick(self, logits: npt.NDArray[np.float32]) -> int:
        """The next id, from float32 [V]."""
        array = np.ascontiguousarray(logits, dtype=np.float32)
        if array.shape != (self._vocab_size,):
            raise EngineError(f"logits: expected [{self._vocab_size}], found {list(array.shape)}")
        picked = ctypes.c_int32()
        _call("sampler_pick", self._handle, array.ctypes.data_as(_floats), ctypes.byref(picked))
        return picked.value


def _uses(adapters: AdapterUses) -> tuple[Any, int]:
    pairs = [(each, 1.0) if isinstance(each, Adapter) else each for each in adapters]
    return (_AdapterUse * len(pairs))(*(_AdapterUse(adapter._handle, scale) for adapter, scale in pairs)), len(pairs)


def _kept(said: Part | Message) -> tuple[Any, int]:
    """The ids of a part or a message, for its structure: NULL and 0 if it was not generated."""
    array = _id_array(said.ids) if said.ids else None
    return (None if array is None else (ctypes.c_int32 * len(array))(*array.tolist())), len(said.ids)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> int:
    if value not in choices:
        raise EngineError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
    return choices.index(value)


def _int32(name: str, value: int) -> int:
    if not -(2**31) <= value < 2**31:
        raise EngineError(f"{name}: expected a number of 32 bits, found {value}")
    return value


class Generation(Iterator[str]):
    """Text as it is generated: pieces of str, then, when it has ended, why (`stop`) and how fast (`speed_line`).

    prompt_ids: the ids of the prompt, BOS included; ids: the new ones so far; seed: what tells the same text again.
    stop: "" while it runs, then "end token", "number of tokens" or "context's end".
    """

    def __init__(
        self, model: Model, session: Session, sampler: Sampler, prompt_ids: list[int], max_new_tokens: int | None
    ) -> None:
        self.prompt_ids = prompt_ids
        self.ids: list[int] = []
        self.seed = sampler.seed
        self.stop = ""
        self._model, self._session, self._sampler, self._max_new_tokens = model, session, sampler, max_new_tokens
        self._num_threads = session.num_threads
        self._prompt_seconds = self._decode_seconds = 0.0
        self._num_decoded = self._num_passes = 0
        self._pieces = self._generate()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End early and give the memory back."""
        self._pieces.close()
        self._session.close()
        self._sampler.close()

    def _generate(self) -> Generator[str, None, None]:
        pending = b""
        previous_id = self.prompt_ids[-1]
        try:
            for token_id in self._new_ids():
                pending += self._model.decode_token(token_id, previous_id)
                previous_id = token_id
                whole = utf8_complete(pending)
                if whole:
                    piece, pending = pending[:whole], pending[whole:]
                    yield piece.decode("utf-8", "replace")
        finally:
            self._session.close()
            self._sampler.close()

    def _new_ids(self) -> Iterator[int]:
        for token_id in self.prompt_ids:
            self._sampler.accept(token_id)
        start = time.perf_counter()
        token_id = self._step(self.prompt_ids)
        self._prompt_seconds = time.perf_counter() - start
        while True:
            if self._model.token_ends(token_id):
                self.stop = "end token"
                return
            self.ids.append(token_id)
            yield token_id
            if self._max_new_tokens is not None and len(self.ids) >= self._max_new_tokens:
                self.stop = "number of tokens"
                return
            if self._session.position >= self._session.context_tokens:
                self.stop = "context's end"
                return
            start, passes = time.perf_counter(), self._session.num_passes
            token_id = self._step([token_id])
            self._decode_seconds += time.perf_counter() - start
            self._num_passes += self._session.num_passes - passes
            self._num_decoded += 1

    def _step(self, ids: Sequence[int]) -> int:
        self._session.feed(ids)
        logits = self._session.logits
        assert logits is not None
        token_id = self._sampler.pick(logits)
        self._sampler.accept(token_id)
        return token_id

    def speed_line(self) -> str:
        """The line that engine/app/run.c prints last, with the same fields and units."""
        prompt_speed = len(self.prompt_ids) / self._prompt_seconds if self._prompt_seconds else 0.0
        speed = self._num_decoded / self._decode_seconds if self._decode_seconds else 0.0
        passes = self._num_passes / self._decode_seconds if self._decode_seconds else 0.0
        gigabytes = passes * self._model.info.decode_bytes * 1e-9
        return (
            f"prompt {len(self.prompt_ids)} tokens, {prompt_speed:.1f} tok/s | "
            f"generated {len(self.ids)} tokens, {speed:.1f} tok/s, {gigabytes:.2f} GB/s | "
            f"load {self._model.load_seconds * 1e3:.1f} ms, first token {self._prompt_seconds * 1e3:.1f} ms | "
            f"threads {self._num_threads}"
        )


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    kernels: str | None = None,
) -> Model:
    """Open a model file for the engine; with no path, the story model that comes with the package.

    tokenizer: a llama2.c tokenizer.bin (required for llama2.c models), or a GGUF to take the tokenizer from.
    kernels: "auto" (also None), "scalar", "avx2", "avxvnni", "neon", "dotprod". EngineError: the files are wrong.
    """
    if path is None and not PACKAGED_MODEL.is_file():
        raise EngineError(f"the packaged model: expected it at {PACKAGED_MODEL}, found nothing; name a model file")
    return Model(PACKAGED_MODEL if path is None else path, tokenizer=tokenizer, kernels=kernels)
