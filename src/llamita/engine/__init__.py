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
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llamita.engine.library import (
    ENCODE_BOS,
    ENCODE_SPECIAL,
    KV_TYPES,
    SPECULATIONS,
    AdapterInfo,
    AdapterInfoStruct,
    AdapterUseStruct,
    ChunkStruct,
    Ids,
    MessageStruct,
    ModelInfo,
    ModelInfoStruct,
    ModelParamsStruct,
    Owned,
    SamplerParamsStruct,
    SessionParamsStruct,
    TensorTypeStruct,
    TextSegmentStruct,
    call,
    choice,
    floats_pointer,
    id_array,
    ids_pointer,
    int32,
    load_library,
)
from llamita.errors import EngineError
from llamita.sampling import DEFAULT_RUNTIME, DEFAULT_SAMPLING, RuntimeOptions, SamplingParams, with_overrides

PACKAGED_MODEL = Path(__file__).parents[1] / "assets" / "stories.gguf"


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


def version() -> str:
    """The engine's version."""
    return str(load_library().llamita_version().decode())


def kernels() -> str:
    """The kernels that are chosen on this processor: "avxvnni", "avx2", "dotprod" (ARM), "neon" or "scalar"."""
    return str(load_library().llamita_kernels().decode())


def utf8_complete(raw: bytes) -> int:
    """How many of the leading bytes are whole characters; the rest may be completed by what follows."""
    return int(load_library().llamita_utf8_complete(raw, len(raw)))


def quantize(rows: npt.NDArray[np.float32], type: str, out: npt.NDArray[np.uint8]) -> float:
    """Write the blocks of rows [N, row length] as GGUF's `type` ("Q4_K") into out, which has exactly their bytes;
    returns Σ(stored - x)².

    Both are contiguous. Other threads run meanwhile. EngineError for a type that is not written, rows that are not
    whole blocks, too little room, or a number that the type cannot hold."""
    assert rows.dtype == np.float32 and rows.ndim == 2 and rows.flags.c_contiguous
    assert out.dtype == np.uint8 and out.flags.c_contiguous and out.flags.writeable
    num_rows, row_length = rows.shape
    squared_error = ctypes.c_double()
    values = rows.ctypes.data_as(floats_pointer)
    call("quantize", type.encode(), values, row_length, num_rows, out.ctypes.data, out.nbytes, squared_error)
    return squared_error.value


def tensor_types() -> list[tuple[str, int, int, int]]:
    """The tensor types that the engine reads: name, GGUF's id, elements and bytes of a block."""
    found: list[tuple[str, int, int, int]] = []
    info = TensorTypeStruct()
    while load_library().llamita_tensor_type(len(found), ctypes.byref(info)):
        found.append((info.name.decode(), info.id, info.block_elements, info.block_bytes))
    return found


def dequantize(blocks: npt.NDArray[np.uint8], type_id: int, out: npt.NDArray[np.float32]) -> None:
    """Convert blocks of the type with this id to floats; out, contiguous, has exactly their number."""
    assert blocks.dtype == np.uint8 and blocks.flags.c_contiguous
    assert out.dtype == np.float32 and out.flags.c_contiguous and out.flags.writeable
    call("dequantize", type_id, blocks.ctypes.data, out.size, out.ctypes.data_as(floats_pointer))


# ---------------------------------------------------------------------- what a user sees


class DocumentTokenizer(Owned):
    """A tokenizer without a model, for many documents at a time. Immutable: threads may share it, and other threads run
    while it encodes."""

    _kind = "tokenizer"

    def __init__(self, gguf: bytes, name: str) -> None:
        """gguf: the bytes of a GGUF file, of which only the tokenizer's keys matter. name: what errors call it."""
        handle = ctypes.c_void_p()
        call("tokenizer_open", gguf, len(gguf), os.fsencode(name), ctypes.byref(handle))
        self._own(handle.value)

    def encode(
        self, text: bytes, ends: npt.NDArray[np.uint64], last_id: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        """Documents that stand one after another in `text`, document i up to byte ends[i] (all [documents]), to ids
        [tokens], last_id after each document's (-1: none), and where each document's end [documents].

        Control tokens written out in a text are text. EngineError: more than 2^30 bytes, a byte without a token."""
        assert ends.dtype == np.uint64 and ends.flags.c_contiguous and (ends.size == 0 or int(ends[-1]) == len(text))
        ids, token_ends = np.empty(2 * (len(text) + ends.size), np.int32), np.empty(ends.size, np.uint64)
        call(
            "tokenizer_encode", self._handle, text, ends.ctypes.data, ends.size, last_id, ids.ctypes.data, ids.size,
            token_ends.ctypes.data,
        )  # fmt: skip
        return ids[: int(token_ends[-1]) if ends.size else 0], token_ends


class BpeTrainer(Owned):
    """Counts the words of documents, cut by the `qwen2` expression, and learns a byte-level BPE's merges from them."""

    _kind = "bpe_trainer"

    def __init__(self) -> None:
        handle = ctypes.c_void_p()
        call("bpe_trainer_open", ctypes.byref(handle))
        self._own(handle.value)

    def add(self, text: bytes, ends: npt.NDArray[np.uint64]) -> None:
        """Documents that stand one after another in `text`, document i up to byte ends[i]. Other threads run on."""
        assert ends.dtype == np.uint64 and ends.flags.c_contiguous and (ends.size == 0 or int(ends[-1]) == len(text))
        call("bpe_trainer_add", self._handle, text, ends.ctypes.data, ends.size)

    def merge(self, num_tokens: int, least_count: int) -> npt.NDArray[np.int32]:
        """[merges, 3]: left, right, what they become; until there are so many tokens, the 256 bytes included, or no
        pair stands least_count times in the text.

        Tokens 0 to 255 are the bytes in the order of GPT-2's alphabet, the others follow as they are made."""
        merges, num_merges = np.empty((4 * num_tokens, 3), np.int32), ctypes.c_size_t()
        call(
            "bpe_trainer_train", self._handle, num_tokens, least_count, merges.ctypes.data, len(merges),
            ctypes.byref(num_merges),
        )  # fmt: skip
        return merges[: num_merges.value]


class Model(Owned):
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
        params = ModelParamsStruct(
            os.fsencode(tokenizer) if tokenizer is not None else None, kernels and kernels.encode()
        )
        handle = ctypes.c_void_p()
        start = time.perf_counter()
        call("model_open", os.fsencode(path), ctypes.byref(params), ctypes.byref(handle))
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

    def encode(self, text: str | bytes, bos: bool = False, special: bool = False) -> list[int]:
        """Text to ids. bos: put BOS first. special: recognize control tokens written out in the text."""
        raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
        ids = np.empty(2 * len(raw) + 2, dtype=np.int32)
        flags = (ENCODE_BOS if bos else 0) | (ENCODE_SPECIAL if special else 0)
        num_ids = ctypes.c_size_t()
        pointer = ids.ctypes.data_as(ids_pointer)
        call("encode", self._handle, raw, len(raw), flags, pointer, ids.size, ctypes.byref(num_ids))
        return [int(i) for i in ids[: num_ids.value]]

    @property
    def chat_family(self) -> str | None:
        """ "chatml", "llama2", "llama3" or "zephyr" if the engine itself can render the file's chat template."""
        family: bytes | None = load_library().llamita_chat_family(self._handle)
        return None if family is None else family.decode()

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """The text that the parts make together, to ids: control tokens in trusted parts only, generated ids kept."""
        raw = (TextSegmentStruct * len(parts))(
            *(TextSegmentStruct(each.text, len(each.text), each.trusted, *_kept(each)) for each in parts)
        )
        num_bytes = sum(len(each.text) + len(each.ids) for each in parts)
        return self._encoded("encode_segments", raw, len(parts), 2 * num_bytes + 2)

    def chat_encode(self, messages: Sequence[Message]) -> list[int]:
        """[system] user (assistant user)* to the ids that the file's chat template makes of them, the beginning of the
        answer included. EngineError unless `chat_family` knows the template."""
        raw = (MessageStruct * len(messages))(
            *(MessageStruct(each.role.encode(), each.content, len(each.content), *_kept(each)) for each in messages)
        )
        num_bytes = sum(len(each.content) + len(each.ids) + 100 for each in messages)
        return self._encoded("chat_encode", raw, len(messages), 2 * num_bytes + 2048)

    def _encoded(self, name: str, raw: Any, count: int, room: int) -> list[int]:
        """The ids that an encoding function writes into so much room: more than any of them needs."""
        ids, num_ids = np.empty(room, dtype=np.int32), ctypes.c_size_t()
        call(name, self._handle, raw, count, ids.ctypes.data_as(ids_pointer), ids.size, ctypes.byref(num_ids))
        return [int(i) for i in ids[: num_ids.value]]

    def decode(self, ids: Ids) -> bytes:
        """Ids to the bytes of their text; control tokens add none."""
        array = id_array(ids).tolist()
        return b"".join(self.decode_token(i, before) for before, i in zip([-1, *array], array, strict=False))

    def decode_token(self, id: int, previous_id: int = -1) -> bytes:
        """The bytes that the id adds to a text in which previous_id came before it (-1: nothing did)."""
        start, num_bytes = ctypes.POINTER(ctypes.c_char)(), ctypes.c_size_t()
        call("token_bytes", self._handle, previous_id, id, ctypes.byref(start), ctypes.byref(num_bytes))
        return bytes(start[: num_bytes.value]) if num_bytes.value else b""

    def token_text(self, id: int) -> str | None:
        """The token as the vocabulary writes it, for people; None if there is no such id or no tokenizer."""
        text: bytes | None = load_library().llamita_token_text(self._handle, id)
        return None if text is None else text.decode("utf-8", "replace")

    def token_ends(self, id: int) -> bool:
        """Whether generation ends at this id."""
        return bool(load_library().llamita_token_ends(self._handle, id))

    def load_adapter(self, path: str | os.PathLike[str]) -> Adapter:
        """Open a GGUF adapter that was made for this model (`llamita export --adapter`). EngineError: bad files."""
        return Adapter(self, path)

    def session(
        self,
        runtime: RuntimeOptions = DEFAULT_RUNTIME,
        *,
        num_sequences: int = 1,
        adapters: AdapterUses = (),
        **overrides: Any,
    ) -> Session:
        """A new running text, or several side by side: see Session. adapters: of all sequences.

        overrides: fields of runtime by name, as in session(num_threads=2)."""
        session = Session(self, runtime, num_sequences=num_sequences, **overrides)
        for sequence in range(num_sequences if adapters else 0):
            session.sequence_set_adapters(sequence, adapters)
        return session

    def logits(self, ids: Ids, *, adapters: AdapterUses = (), **overrides: Any) -> npt.NDArray[np.float32]:
        """float32 [n, V]: row i are the logits of the token after ids[0..i].

        overrides: as in session()."""
        with self.session(adapters=adapters, **overrides) as session:
            return session.feed_logits(ids)

    def score(self, ids: Ids, *, adapters: AdapterUses = (), **overrides: Any) -> npt.NDArray[np.float64]:
        """float64 [n - 1], in nats: -ln p(ids[i + 1] | ids[0..i]); at least two ids.

        overrides: as in session()."""
        with self.session(adapters=adapters, **overrides) as session:
            return session.score(ids)

    def generate(
        self,
        prompt: str | bytes = "",
        sampling: SamplingParams = DEFAULT_SAMPLING,
        runtime: RuntimeOptions = DEFAULT_RUNTIME,
        *,
        max_new_tokens: int | None = None,
        adapters: AdapterUses = (),
        **overrides: Any,
    ) -> Generation:
        """Continue the prompt: an iterator of the new text's pieces (str), which never split a character.

        It ends at an end token, after max_new_tokens (None: no limit), or at the context's end. The same seed and the
        same model give the same text; without a seed a random one is drawn.
        Bytes that are no UTF-8 become U+FFFD; an unfinished character at the end is left out.
        adapters: act together, each with its scale (1 if none is given), in this order.
        overrides: fields of sampling and runtime by name: generate("Once", temperature=0.8).
        """
        sampling, runtime = with_overrides(sampling, runtime, overrides)
        if max_new_tokens is not None and max_new_tokens < 1:
            raise EngineError(f"max_new_tokens: expected at least 1, or None for no limit, found {max_new_tokens}")
        begins = self.info.add_bos or not prompt
        if begins and not prompt and self.info.bos_id < 0:
            raise EngineError("prompt: this model has no token to begin an empty text with; give a prompt")
        sampler = Sampler(self.info.vocab_size, sampling)
        prompt_ids = self.encode(prompt, bos=begins)
        session = self.session(runtime, adapters=adapters)
        if len(prompt_ids) > session.context_tokens:
            raise EngineError(
                f"prompt: expected at most {session.context_tokens} tokens (the context), found {len(prompt_ids)}; "
                "shorten it"
            )
        return Generation(self, session, sampler, prompt_ids, max_new_tokens)


class Adapter(Owned):
    """A low-rank change of one model's matrices. Immutable; sessions in many threads may share it.

    Sessions that use it keep it: closing it only means that it cannot be put to use again."""

    _kind = "adapter"

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        """Read a GGUF adapter. EngineError for a file that is none, is damaged, or was made for another model."""
        handle = ctypes.c_void_p()
        call("adapter_open", model._handle, os.fsencode(path), ctypes.byref(handle))
        self._own(handle.value, model)
        model._adapters.add(self)

    @functools.cached_property
    def info(self) -> AdapterInfo:
        """What the file is."""
        raw = AdapterInfoStruct()
        load_library().llamita_adapter_get_info(self._handle, ctypes.byref(raw))
        name = raw.name.decode("utf-8", "replace")
        return AdapterInfo(name, raw.num_parameters, raw.num_matrices, raw.rank, raw.alpha)


AdapterUses: TypeAlias = Sequence[Adapter | tuple[Adapter, float]]


class Session(Owned):
    """Running texts: the ids so far (as keys and values), scratch memory and threads. One thread at a time.

    What does not take a sequence's number works on sequence 0."""

    _kind = "session"

    def __init__(
        self, model: Model, runtime: RuntimeOptions = DEFAULT_RUNTIME, *, num_sequences: int = 1, **overrides: Any
    ) -> None:
        """num_sequences: texts side by side, each with its own context.

        overrides: fields of runtime by name."""
        runtime = dataclasses.replace(runtime, **overrides)
        handle = ctypes.c_void_p()
        params = SessionParamsStruct(
            int32("num_threads", runtime.num_threads),
            int32("context_tokens", runtime.context_tokens),
            int32("num_sequences", num_sequences),
            choice("kv_type", runtime.kv_type, KV_TYPES),
            choice("speculation", runtime.speculation, SPECULATIONS),
        )
        call("session_open", model._handle, ctypes.byref(params), ctypes.byref(handle))
        self._own(handle.value, model)
        self._vocab_size = model.info.vocab_size
        model._sessions.add(self)

    @property
    def num_threads(self) -> int:
        """How many threads compute."""
        return int(load_library().llamita_session_num_threads(self._handle))

    @property
    def context_tokens(self) -> int:
        """How many tokens it can hold."""
        return int(load_library().llamita_session_context_tokens(self._handle))

    @property
    def position(self) -> int:
        """How many tokens it holds."""
        return int(load_library().llamita_session_position(self._handle))

    @property
    def num_passes(self) -> int:
        """How often the weights were read so far: what is fed in fewer passes than tokens was guessed right."""
        return int(load_library().llamita_session_num_passes(self._handle))

    def rewind(self, position: int) -> None:
        """Forget all tokens from this position on."""
        call("session_rewind", self._handle, int32("position", position))

    def set_adapters(self, adapters: AdapterUses) -> None:
        """Use these adapters, each with its scale (1 if none is given), in this order; () for the model alone.

        Unless they are those of before, the tokens held are forgotten: they were computed without them."""
        call("session_set_adapters", self._handle, *_uses(adapters))

    def feed(self, ids: Ids) -> None:
        """Append at least one id; `logits` then holds those after the last one."""
        array = id_array(ids)
        call("session_feed", self._handle, array.ctypes.data_as(ids_pointer), array.size)

    def feed_logits(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Append at least one id; returns the logits after each: float32 [n, V]."""
        array = id_array(ids)
        logits = np.empty((array.size, self._vocab_size), dtype=np.float32)
        pointers = array.ctypes.data_as(ids_pointer), array.size, logits.ctypes.data_as(floats_pointer)
        call("session_feed_logits", self._handle, *pointers)
        return logits

    def score(self, ids: Ids) -> npt.NDArray[np.float64]:
        """float64 [n - 1], in nats: -ln p(ids[i + 1] | all before). The last id is not appended: rows can follow."""
        array = id_array(ids)
        nats = np.empty(max(array.size - 1, 0), dtype=np.float64)
        nats_pointer = nats.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
        call("session_score", self._handle, array.ctypes.data_as(ids_pointer), array.size, nats_pointer)
        return nats

    def decode(self, chunks: Sequence[tuple[int, Ids, int]]) -> npt.NDArray[np.float32]:
        """Append ids to several sequences at once: chunks of (sequence, ids, how many logits are wanted at its end).

        Returns them in this order: float32 [all of them, V]. What a sequence gives does not depend on the others."""
        arrays = [id_array(ids) for _, ids, _ in chunks]
        if any(not 0 <= num_logits <= array.size for (_, _, num_logits), array in zip(chunks, arrays, strict=True)):
            raise EngineError("chunks: expected to ask for 0 logits to as many as there are ids")
        raw = (ChunkStruct * len(chunks))(
            *(
                ChunkStruct(int32("sequence", sequence), array.ctypes.data_as(ids_pointer), array.size, num_logits)
                for (sequence, _, num_logits), array in zip(chunks, arrays, strict=True)
            )
        )
        logits = np.empty((sum(num_logits for _, _, num_logits in chunks), self._vocab_size), dtype=np.float32)
        call("decode", self._handle, raw, len(chunks), logits.ctypes.data_as(floats_pointer))
        return logits

    def sequence_position(self, sequence: int) -> int:
        """How many tokens a sequence holds."""
        position = int(load_library().llamita_sequence_position(self._handle, int32("sequence", sequence)))
        if position < 0:
            raise EngineError(f"sequence: this session has no sequence {sequence}")
        return position

    def sequence_rewind(self, sequence: int, position: int) -> None:
        """Forget all tokens of a sequence from this position on."""
        call("sequence_rewind", self._handle, int32("sequence", sequence), int32("position", position))

    def sequence_set_adapters(self, sequence: int, adapters: AdapterUses) -> None:
        """Use these adapters for one sequence: see set_adapters. Sequences with different ones run side by side."""
        call("sequence_set_adapters", self._handle, int32("sequence", sequence), *_uses(adapters))

    def sequence_share(self, source: int, target: int, num_tokens: int) -> None:
        """Make the target the first num_tokens of the source, without computing or copying them. Both must have the
        same adapters."""
        numbers = int32("source", source), int32("target", target), int32("num_tokens", num_tokens)
        call("sequence_share", self._handle, *numbers)

    @property
    def logits(self) -> npt.NDArray[np.float32] | None:
        """A copy of the logits after the last fed id, float32 [V]; None before the first feed and after a rewind."""
        pointer = load_library().llamita_session_logits(self._handle)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab_size,)).copy() if pointer else None


class Sampler(Owned):
    """How the next token is picked: penalty, temperature, softmax, top-k, top-p, min-p, draw. One thread at a time."""

    _kind = "sampler"

    def __init__(self, vocab_size: int, params: SamplingParams = DEFAULT_SAMPLING, **overrides: Any) -> None:
        """overrides: fields of params by name. EngineError: a value out of its range (llamita.h)."""
        params = dataclasses.replace(params, **overrides)
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.is_greedy = params.temperature == 0
        if not 0 <= self.seed < 2**64:
            raise EngineError(f"seed: expected 0 to 2**64 - 1, found {self.seed}")
        raw = SamplerParamsStruct(
            params.temperature,
            int32("top_k", params.top_k),
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            int32("repetition_window", params.repetition_window),
            self.seed,
        )
        handle = ctypes.c_void_p()
        call("sampler_open", ctypes.byref(raw), int32("vocab_size", vocab_size), ctypes.byref(handle))
        self._own(handle.value)
        self._vocab_size = vocab_size

    def accept(self, id: int) -> None:
        """Tell that this token is part of the text, for the repetition penalty."""
        load_library().llamita_sampler_accept(self._handle, int32("id", id))

    def pick(self, logits: npt.NDArray[np.float32]) -> int:
        """The next id, from float32 [V]."""
        array = np.ascontiguousarray(logits, dtype=np.float32)
        if array.shape != (self._vocab_size,):
            raise EngineError(f"logits: expected [{self._vocab_size}], found {list(array.shape)}")
        picked = ctypes.c_int32()
        call("sampler_pick", self._handle, array.ctypes.data_as(floats_pointer), ctypes.byref(picked))
        return picked.value


def _uses(adapters: AdapterUses) -> tuple[Any, int]:
    pairs = [(each, 1.0) if isinstance(each, Adapter) else each for each in adapters]
    return (AdapterUseStruct * len(pairs))(
        *(AdapterUseStruct(adapter._handle, scale) for adapter, scale in pairs)
    ), len(pairs)


def _kept(said: Part | Message) -> tuple[Any, int]:
    """The ids of a part or a message, for its structure: NULL and 0 if it was not generated."""
    array = id_array(said.ids) if said.ids else None
    return (None if array is None else (ctypes.c_int32 * len(array))(*array.tolist())), len(said.ids)


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
        """The line that engine/app/main.c prints last, with the same fields and units."""
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
