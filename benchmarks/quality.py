"""Turns a model and a text into a table: bits per byte of its tensor types and cache types, here and in llama.cpp.

    python benchmarks/quality.py                                    # the packaged model, on tales made here
    python benchmarks/quality.py --text stories.txt --bytes 150000
    python benchmarks/quality.py --model smollm2.gguf --text essay.txt --bytes 4000 --file-only

The model is written as F32 (nothing is lost), and that as Q8_0 and Q4_0 by us and, where llama-cpp-python is installed,
by llama.cpp, whose output matrix gets 6 or 8 bits like ours; every file is scored by both engines, on the same ids in
the same rows. Status 1 if a check fails. Take a text of the kind that the model knows, and 250,000 bytes or more, to
compare roundings: on others they may even gain, by luck (the packaged model knows TinyStories, not the tales).
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import llamita
from llamita.convert.quantize import quantize_file
from llamita.data.readers import read_documents
from llamita.data.tales import generate_tales
from llamita.eval.scoring import EncodedTexts, score_documents

PACKAGED = Path(llamita.__file__).parent / "assets" / "stories.gguf"
CACHE_TYPES = ("f16", "f32", "q8")
LLAMA_CPP_TYPES = {"Q8_0": 7, "Q4_0": 2}  # its numbers: enum llama_ftype
ALLOWED = 1e-3  # relative, of bits per byte


@dataclasses.dataclass(frozen=True)
class Row:
    """Bits per byte of one file: in our engine for each type of its cache, and in llama.cpp (None: not installed)."""

    name: str
    num_bytes: int
    ours: dict[str, float]
    stock: float | None


@dataclasses.dataclass(frozen=True)
class Check:
    """A promise, and whether it holds."""

    text: str
    holds: bool


class StockModel:
    """A model file in llama.cpp, through llama-cpp-python's C functions; its cache is F16, its default."""

    def __init__(self, path: Path, context_tokens: int, num_threads: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        silence_stock()
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self._model, f"llama.cpp cannot load {path}"
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context_tokens
        settings.n_threads = settings.n_threads_batch = num_threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        assert self._context, f"llama.cpp cannot make a context of {context_tokens} tokens"
        self._batch = llama_cpp.llama_batch_init(context_tokens, 0, 1)

    def score(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64 [n - 1], in nats: -ln p(ids[i + 1] | ids[0..i]), the softmax in float64."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        num, batch = ids.size - 1, self._batch
        batch.n_tokens = num
        for i, id in enumerate(ids[:-1].tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = id, i, 1, 1
            batch.seq_id[i][0] = 0
        status = self._api.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode says {status}"
        logits = np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (num, self._vocab_size))
        nats = np.empty(num)
        for first in range(0, num, 64):  # a copy in float64 of some rows at a time
            rows = logits[first : first + 64].astype(np.float64)
            chosen = rows[np.arange(len(rows)), ids[first + 1 : first + 1 + len(rows)]]
            largest = rows.max(axis=1)
            nats[first : first + 64] = np.log(np.exp(rows - largest[:, None]).sum(axis=1)) + largest - chosen
        return nats

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)


@functools.cache
def silence_stock() -> object:
    """The function that llama.cpp calls with its messages from here on: kept, as it calls it for as long as it runs."""
    import llama_cpp

    ignore = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(ignore, ctypes.c_void_p(0))
    return ignore


def stock_is_installed() -> bool:
    """Whether there is a llama-cpp-python to import."""
    return importlib.util.find_spec("llama_cpp") is not None


def stock_quantize(source: Path, out: Path, type: str) -> None:
    """Write `source`, an F32 file, as llama.cpp does by default: one of LLAMA_CPP_TYPES, and of Q4_0 an output matrix,
    and so a tied embedding, of more bits."""
    import llama_cpp

    silence_stock()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = LLAMA_CPP_TYPES[type], 1
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters))
    assert status == 0, f"llama_model_quantize says {status}"


def first_bytes(texts: Iterable[str], num_bytes: int) -> list[str]:
    """Texts, the last one cut, that have at most this many bytes together."""
    chosen, left = [], num_bytes
    for text in texts:
        raw = text.strip().encode()[:left]
        left -= len(raw)
        if raw:
            chosen.append(raw.decode(errors="ignore"))
        if left <= 0:
            break
    return chosen


def encode(path: Path, texts: list[str]) -> tuple[EncodedTexts, int]:
    """The texts as the file's own tokens, and the id that a row begins with."""
    with llamita.load(path) as model:
        info = model.info
        border = info.bos_id if info.bos_id >= 0 else info.eos_id
        end = info.eos_id if info.eos_id >= 0 else border
        return EncodedTexts(texts, lambda some: [model.encode(text) for text in some], end), border


class Meter:
    """Scores files of one model on one text: rows of at most context_tokens, as eval/scoring.py cuts them."""

    def __init__(self, source: Path, texts: list[str], context_tokens: int, num_threads: int) -> None:
        self._documents, self._border = encode(source, texts)
        self._threads = num_threads
        with llamita.load(source) as model:
            self.context_tokens = min(context_tokens, model.info.context_tokens)
        self.num_tokens, self.num_bytes = self._documents.num_tokens, self._documents.text_bytes

    def ours(self, path: Path, cache_type: str = "f16") -> float:
        with (
            llamita.load(path) as model,
            model.session(num_threads=self._threads, kv_type=cache_type) as session,
        ):

            def score_row(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
                session.rewind(0)
                return session.score(ids)

            return self._bits_per_byte(score_row)

    def stock(self, path: Path) -> float | None:
        if not stock_is_installed():
            return None
        model = StockModel(path, self.context_tokens, self._threads)
        try:
            return self._bits_per_byte(model.score)
        finally:
            model.close()

    def _bits_per_byte(self, score_row: Any) -> float:
        return score_documents(self._documents, self.context_tokens, self._border, score_row).bits_per_byte


def files(source: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """F32, which is exact; ours of it; llama.cpp's of it."""
    exact = folder / "F32.gguf"
    quantize_file(source, exact, "f32")
    yield "F32", exact
    for type in LLAMA_CPP_TYPES:
        path = folder / f"{type}.gguf"
        quantize_file(exact, path, type.lower())
        yield f"{type}, ours", path
        if stock_is_installed():
            path = folder / f"{type}-stock.gguf"
            stock_quantize(exact, path, type)
            yield f"{type}, llama.cpp's", path


def measure(source: Path, meter: Meter, folder: Path, *, file_only: bool = False) -> list[Row]:
    """A row for each file; all cache types for the source's alone. folder: for the files."""
    chosen = itertools.chain([("the file", source)], () if file_only else files(source, folder))
    return [
        Row(
            name,
            path.stat().st_size,
            {cache: meter.ours(path, cache) for cache in (CACHE_TYPES if path == source else CACHE_TYPES[:1])},
            meter.stock(path),
        )
        for name, path in chosen
    ]


def checks(rows: list[Row]) -> list[Check]:
    """What issue 3 promises, of the rows that there are."""
    by_name = {row.name: row for row in rows}
    source = by_name["the file"]
    found: list[Check | None] = [_near("the file: ours, llama.cpp", source.ours["f16"], source.stock)]
    found.append(_near("the file: cache in F16, in F32", source.ours["f16"], source.ours["f32"]))
    if "F32" in by_name:
        exact = by_name["F32"].ours["f16"]
        found.append(_near("our Q8_0, F32", by_name["Q8_0, ours"].ours["f16"], exact))
    if "Q4_0, llama.cpp's" in by_name:
        found += _no_worse(by_name["Q4_0, ours"], by_name["Q4_0, llama.cpp's"])
    return [check for check in found if check is not None]


def _no_worse(ours: Row, theirs: Row) -> Iterator[Check]:
    assert ours.stock is not None and theirs.stock is not None
    for where, mine, their in (
        ("each in its own engine", ours.ours["f16"], theirs.stock),
        ("both in our engine", ours.ours["f16"], theirs.ours["f16"]),
        ("both in llama.cpp", ours.stock, theirs.stock),
    ):
        size = theirs.num_bytes / ours.num_bytes
        text = f"{ours.name} is no worse than {theirs.name} ({size:.2f} times the bytes), {where}: "
        yield Check(f"{text}{mine:.5f}, {their:.5f}", mine <= their)


def _near(text: str, value: float, expected: float | None) -> Check | None:
    if expected is None:
        return None
    off = value / expected - 1
    return Check(f"{text}: {value:.5f}, {expected:.5f}: {off:+.4%}, at most {ALLOWED:.1%}", abs(off) <= ALLOWED)


def table(rows: list[Row]) -> str:
    """Bits per byte, and how far from the first row's in our engine."""
    lines = [f"{'':<22}{'bytes':>12}{'ours':>10}{'':>10}{'llama.cpp':>11}{'':>10}"]
    base = rows[0].ours["f16"]
    for row in rows:
        for cache, value in row.ours.items():
            named = row.name if cache == "f16" else f"  cache in {cache}"
            line = f"{named:<22}{row.num_bytes:>12,}{value:>10.5f}{value / base - 1:>+10.3%}"
            if row.stock is not None and cache == "f16":
                line += f"{row.stock:>11.5f}{row.stock / base - 1:>+10.3%}"
            lines.append(line)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="bits per byte of a model's tensor types, here and in llama.cpp")
    parser.add_argument("--model", type=Path, default=PACKAGED, help="a GGUF file")
    parser.add_argument("--text", type=Path, help="documents between <|endoftext|>; without it, tales are made")
    parser.add_argument("--bytes", type=int, default=60_000, help="of the text, from its beginning")
    parser.add_argument("--context", type=int, default=512, help="most tokens of a row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--file-only", action="store_true", help="score the file as it is, write no others")
    flags = parser.parse_args(argv)
    found = (document.text for document in read_documents((str(flags.text),))) if flags.text else generate_tales(10_000)
    meter = Meter(flags.model, first_bytes(found, flags.bytes), flags.context, flags.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(flags.model, meter, Path(folder), file_only=flags.file_only)
    print(f"{flags.model.name}: bits per byte of {meter.num_bytes:,} bytes, {meter.num_tokens:,} tokens,")
    print(f"rows of at most {meter.context_tokens} tokens")
    print(table(rows))
    made = checks(rows)
    for check in made:
        print(f"{'holds' if check.holds else 'FAILS'}: {check.text}")
    return 0 if all(check.holds for check in made) else 1


if __name__ == "__main__":
    sys.exit(main())
