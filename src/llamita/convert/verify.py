"""Compares the logits of two forms of one model; a difference above a bound is an error."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llamita.chat_template import ChatTemplate
from llamita.checkpoint import load_config, open_tensors
from llamita.config import ModelConfig
from llamita.convert.model_source import ModelSource, with_unpermuted_qk
from llamita.engine import Message, Model
from llamita.errors import ChatError, EngineError, FormatError
from llamita.formats.gguf import read_gguf
from llamita.formats.llama2c import read_bin
from llamita.formats.mmap_file import read_bytes
from llamita.formats.safetensors_io import TensorEntry
from llamita.formats.tensor_table import TensorSpec, tensor_table
from llamita.formats.tensor_types import TYPES
from llamita.json_file import shown
from llamita.model.llama import Llama
from llamita.tokenizer import Tokenizer, load_tokenizer
from llamita.tokenizer.sentencepiece import CONTROL, USER_DEFINED

SMALL_PARAMETERS = 200_000_000  # up to this size, a comparison takes seconds and less than 2 GB
NUM_TOKENS = 48
TEXT = (
    "Once upon a time, in 1987, a naïve llama (her name was Lía) asked: “Where does the river go?” "
    "床前明月光 🦙\n\n    def river(): return 42\n"
)

TEXTS = (
    TEXT,
    "  two  spaces\tand\ttabs  \r\n\r\n",
    "I'LL say: WE'VE 1234567 ΑΒΓ ﬁ Å e\u0301 Ａ １ ½ don't\n\n\n",
    "return x[i]+=0x1F;//...---===  /* 你好，世界 */ 👩‍👩‍👧",
    "Привет, мир! こんにちは 안녕하세요 नमस्ते שלום مرحبا ١٢٣ ไทย 𝔘𝔫𝔦 ½²₃ \u00a0\u3000\u200b.",
)
CHAT = (("user", "Where is Åsa's 2nd 🦙?\n\n 你好"), ("assistant", "There."), ("user", "And now?"))
_NUM_ADDED = 32  # added tokens of each kind in the sample

# Allowed difference of logits, √(Σ difference² / Σ logit²), by the type that weights were rounded
# to. Rows of q and k in the wrong order give 1.2 with random weights and 0.3 with trained ones
# (stories260K).
BOUNDS: dict[str, float] = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.1}

# The same for a file run by the engine, which sums in another order and, for quantized types,
# rounds activations to eight bits. First: against PyTorch with the weights in the file. Second:
# against the checkpoint. Below six bits the loss is the user's choice, so only nonsense is refused.
FILE_BOUNDS: dict[str, tuple[float, float]] = {"F32": (1e-4, 1e-4), "F16": (0.01, 0.02), "BF16": (0.02, 0.1)}
QUANTIZED_BOUNDS = (0.1, 0.15)
COARSE_BOUNDS = (0.1, 0.9)


@dataclasses.dataclass(frozen=True)
class Verification:
    """largest_difference: of two logits, absolute. largest_logit: of the source, absolute.
    relative: √(Σ difference² / Σ logit²), an error above the bound."""

    num_tokens: int
    largest_difference: float
    largest_logit: float
    relative: float
    bound: float

    def line(self) -> str:
        """For display."""
        return (
            f"logits of {self.num_tokens} tokens: largest difference {self.largest_difference:.3g} (largest logit "
            f"{self.largest_logit:.4g}), relative {self.relative:.2g} (allowed: {self.bound:g})"
        )


def is_small(config: ModelConfig) -> bool:
    """Whether a comparison is cheap enough to run by default."""
    return config.num_parameters <= SMALL_PARAMETERS


def verify_import(source: ModelSource, folder: Path, entries: Sequence[TensorEntry], out: Path) -> Verification:
    """Compare the checkpoint written to `folder` (later renamed `out`) with the source, read again;
    a GGUF also with the engine, which reads its metadata with code of its own.

    Raises FormatError above the bound of the type that weights were rounded to."""
    specs = {spec.huggingface: spec for spec in tensor_table(source.config)}
    rounded = [entry.dtype for entry in entries if entry.dtype != source.dtype(specs[entry.name])]
    kind = str(rounded[0]).removeprefix("torch.") if rounded else "float32"
    ids = fixed_ids(folder, source.config)
    written = torch_logits(_checkpoint_network(folder, source.config), ids)
    original = torch_logits(network(source.config, source.tensor), ids)
    if source.gguf_types:
        _compare_with_engine(source, ids, original, f"cannot write {out}")
    return compare(original, written, BOUNDS[kind], f"cannot write {out}", str(source.path))


def import_notes(source: ModelSource, folder: Path, out: Path, *, is_own_template: bool) -> tuple[str, ...]:
    """How the tokenizer written to `folder` (later renamed `out`) differs from the source's in the
    engine, if the engine can open the source: a GGUF, or a .bin with its tokenizer.bin.

    is_own_template: the chat template is the source's. Raises FormatError if texts have other ids
    for no known reason."""
    tokenizer = load_tokenizer(folder)
    reasons = [] if tokenizer.missing_bytes else [tokenizer.engine_obstacle, tokenizer.control_token_obstacle]
    known = [f"the engine encodes some texts differently: {reason}" for reason in reasons if reason is not None]
    is_bin = source.kind.startswith("llama2.c v") and source.tokenizer_path.suffix == ".bin"
    if known or not (source.gguf_types or is_bin):
        return tuple(known)
    try:
        with Model(source.path, tokenizer=source.tokenizer_path if is_bin else None) as model:
            plain, others = _differences(model, tokenizer, "the checkpoint", has_control=not is_bin and is_own_template)
    except EngineError as error:
        return (f"the ids of texts were not compared with the source's: {error}",)
    if plain and not tokenizer.missing_bytes:
        raise FormatError(f"cannot write {out}: {plain[0]} (--verify no skips this check)")
    return (*plain, *others)


def _compare_with_engine(source: ModelSource, ids: Sequence[int], logits: NDArray[np.float32], what: str) -> None:
    try:
        with Model(source.path, pre=source.gguf_pre) as model:
            ids = ids[: model.info.context_tokens]
            engine = model.logits(ids, kv_type="f32", context_tokens=len(ids))
    except EngineError as error:
        raise FormatError(f"{what}: {error} (--verify no skips this check)") from error
    bound = max(_file_bounds(type)[0] for type in source.gguf_types)
    compare(engine, logits[: len(ids)], bound, what, f"{source.path} in the engine")


def verify_folder(checkpoint: Path, folder: Path, entries: Sequence[TensorEntry], out: Path) -> Verification:
    """Compare an exported folder (later renamed `out`) with the checkpoint. Raises FormatError."""
    stored, config = open_tensors(checkpoint), load_config(checkpoint)
    rounded = [entry.dtype for entry in entries if entry.dtype != stored.dtype(entry.name)]
    kind = str(rounded[0]).removeprefix("torch.") if rounded else "float32"
    ids = fixed_ids(checkpoint, config)
    original = torch_logits(_checkpoint_network(checkpoint, config), ids)
    written = torch_logits(_checkpoint_network(folder, config), ids)
    return compare(original, written, BOUNDS[kind], f"cannot write {out}", str(checkpoint))


def verify_file(checkpoint: Path, written: Path, config: ModelConfig, type: str, out: Path) -> Verification:
    """Compare the engine's logits for a .gguf or .bin (later renamed `out`) with PyTorch's: first
    with the weights in the file, then with the checkpoint's. Returns the second comparison.

    type: the coarsest in the file. Raises FormatError, EngineError.
    """
    ids = fixed_ids(checkpoint, config)
    with Model(written) as model:
        engine = model.logits(ids, kv_type="f32", context_tokens=len(ids))
    same, rounded = _file_bounds(type)
    what = f"cannot write {out}"
    compare(torch_logits(network(config, _reader(written, config)), ids), engine, same, what, "its own weights")
    return compare(torch_logits(_checkpoint_network(checkpoint, config), ids), engine, rounded, what, str(checkpoint))


def text_notes(
    tokenizer: Tokenizer, written: Path, tokenizer_file: Path | None = None, *, run: bool = True
) -> tuple[str, ...]:
    """How the engine's ids with an exported file differ from the checkpoint's; nothing if equal.

    tokenizer_file: of a .bin, which has no control tokens to compare. run: encode a sample, unless
    a difference is known without. A note and not an error: the
    file is right for other texts, and another runtime may do what the engine cannot."""
    reasons = [] if tokenizer_file is not None else [tokenizer.control_token_obstacle]
    found = [reason for reason in (tokenizer.engine_obstacle, *reasons) if reason is not None]
    notes = [f"the engine encodes some texts differently from the checkpoint: {reason}" for reason in found]
    if notes or not run:
        return tuple(notes)
    try:
        with Model(written, tokenizer=tokenizer_file) as model:
            plain, others = _differences(model, tokenizer, "the checkpoint", has_control=tokenizer_file is None)
            return (*plain, *others)
    except EngineError as error:
        return (f"the ids of texts were not compared with the checkpoint's: {error}",)


def _differences(model: Model, tokenizer: Tokenizer, other: str, *, has_control: bool) -> tuple[list[str], list[str]]:
    """What the engine does differently from `tokenizer`, which is that of `other`: notes about texts
    without control tokens, at most one of a kind, and about control tokens, ends and the chat."""
    pieces = list(zip(tokenizer.pieces(), tokenizer.types(), strict=True))
    added = [piece for piece, kind in pieces if kind == USER_DEFINED][:_NUM_ADDED]
    sample = [*TEXTS, *(f"a{piece}b {piece} c" for piece in added)]
    control = [piece for piece, kind in pieces if kind == CONTROL][:_NUM_ADDED] if has_control else []
    if tokenizer.remove_extra_whitespaces:  # export has a note about it
        sample = [re.sub(" {2,}", " ", text.strip(" ")) for text in TEXTS] + [f"a{piece}b" for piece in added]
        control = []
    plain, notes = [], []
    text = next((text for text in sample if model.encode(text) != tokenizer.encode(text)), None)
    if text is not None:
        plain.append(f"the engine encodes {shown(text)} differently from {other}")
    for text in sample:
        ids = tokenizer.encode(text)
        if model.decode(ids) != tokenizer.decode(ids):
            plain.append(f"the engine decodes the ids of {shown(text)} differently from {other}")
            break
    for text in (f"{piece}user\nHi {piece}\nI" for piece in control):
        if model.encode(text, special=True) != tokenizer.encode(text, parse_special=True):
            notes.append(f"the engine encodes control tokens differently from {other}: {shown(text)}")
            break
    if has_control:
        missed = next((i for i in tokenizer.end_ids if not model.token_ends(i)), None)
        if missed is not None:
            notes.append(f"the engine does not end a text at token {missed}, unlike {other}")
    if control and not plain and not notes:
        notes += _chat_differences(model, tokenizer, other)
    return plain, notes


def _chat_differences(model: Model, tokenizer: Tokenizer, other: str) -> list[str]:
    """The same for a conversation in the chat template, which the engine renders itself if it knows
    the template, and which Jinja renders otherwise."""
    if tokenizer.chat_template is None or model.chat_template != tokenizer.chat_template:
        return [] if model.chat_template == tokenizer.chat_template else [f"{other} has another chat template"]
    pieces = tokenizer.pieces()
    bos, eos = ("" if i is None else pieces[i] for i in (tokenizer.bos_id, tokenizer.eos_id))
    said = [{"role": role, "content": content} for role, content in CHAT]
    try:
        with ChatTemplate(tokenizer.chat_template, bos_token=bos, eos_token=eos) as template:
            text = template.render(said)
    except ChatError as error:
        return [f"the ids of a chat were not compared: {error}"]
    ids = tokenizer.encode(text, parse_special=True)
    found = model.encode(text, special=True)
    if model.chat_family is not None:
        found = model.chat_encode([Message(each["role"], each["content"].encode("utf-8")) for each in said])
    return [] if found == ids else [f"the engine encodes a chat differently from {other}"]


def _file_bounds(type: str) -> tuple[float, float]:
    if type in FILE_BOUNDS:
        return FILE_BOUNDS[type]
    return QUANTIZED_BOUNDS if TYPES[type].bits > 6 else COARSE_BOUNDS


def _reader(path: Path, config: ModelConfig) -> Callable[[TensorSpec], Tensor]:
    """Returns a reader of the tensors of a .gguf or .bin."""
    if read_bytes(path, 0, 4, "header").tobytes() != b"GGUF":
        model = read_bin(path)
        return lambda spec: with_unpermuted_qk(torch.from_numpy(model.tensor(spec)), spec, config)
    file = read_gguf(path)
    return lambda spec: with_unpermuted_qk(torch.from_numpy(file.dequantize(spec.gguf)), spec, config)


def compare(
    original: NDArray[np.float32], written: NDArray[np.float32], bound: float, what: str, against: str
) -> Verification:
    """Raise FormatError(what: …) if logits [n, V] differ by more than the bound."""
    if not np.isfinite(original).all():
        raise FormatError(
            f"{what}: the logits of {against} are not finite: its weights are broken (--verify no skips this check)"
        )
    difference = written.astype(np.float64) - original.astype(np.float64)
    power = float(np.square(original.astype(np.float64)).sum())
    result = Verification(
        num_tokens=len(original),
        largest_difference=float(np.abs(difference).max()),
        largest_logit=float(np.abs(original).max()),
        relative=math.sqrt(float(np.square(difference).sum()) / power)
        if power > 0
        else float(np.abs(difference).max()),
        bound=bound,
    )
    if not result.relative <= bound:  # also for NaN
        raise FormatError(
            f"{what}: its logits differ from those of {against}: expected a relative difference of at most "
            f"{bound:g}, found {result.relative:.3g}; a few extreme weights can cause it in small types, else it is a "
            "bug in llamita: please report it"
        )
    return result


def network(config: ModelConfig, read: Callable[[TensorSpec], Tensor]) -> Llama:
    """The float32 network for NUM_TOKENS tokens. read: tensors in Hugging Face's row order."""
    model = Llama(dataclasses.replace(config, max_position_embeddings=min(NUM_TOKENS, config.max_position_embeddings)))
    state = {spec.huggingface: read(spec).float() for spec in tensor_table(config)}
    model.load_state_dict(state, assign=True)
    return model


def _checkpoint_network(folder: Path, config: ModelConfig) -> Llama:
    stored = open_tensors(folder)
    return network(config, lambda spec: stored.read(spec.huggingface))


def fixed_ids(checkpoint: Path, config: ModelConfig) -> list[int]:
    """BOS and the start of TEXT, at most NUM_TOKENS ids."""
    tokenizer = load_tokenizer(checkpoint)
    ids = ([] if tokenizer.bos_id is None else [tokenizer.bos_id]) + tokenizer.encode(TEXT)
    return ids[: min(NUM_TOKENS, config.max_position_embeddings)]


@torch.no_grad()
def torch_logits(model: Llama, ids: Sequence[int]) -> NDArray[np.float32]:
    """float32 [n, V]."""
    logits: NDArray[np.float32] = model.eval()(torch.tensor([list(ids)]))[0].numpy()
    return logits
