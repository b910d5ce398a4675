"""Bits per byte of a model's tensor types and KV-cache types, in our engine and in llama.cpp.

    python benchmarks/quality.py                            # the packaged model, generated stories
    python benchmarks/quality.py --text stories.txt --bytes 150000
    python benchmarks/quality.py --model smollm2.gguf --text essay.txt --bytes 4000 --file-only

The model is written as F32 (exact), then quantized to Q8_0 and Q4_0 by us and, if llama-cpp-python
is installed, by llama.cpp. Both engines score every file on the same ids in the same rows. The exit
status is 1 if a check fails.

To compare quantizers, take at least 250,000 bytes of a text that the model knows: on other texts
rounding may even help, by luck. (The packaged model knows TinyStories, not the synthetic stories.)
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from backends import LlamaCpp, has_llama_cpp

import llamita
from llamita.convert.quantize import quantize_file
from llamita.data.documents import read_documents
from llamita.eval.scoring import EncodedTexts, score_documents
from llamita.stories.generate import generate_stories

PACKAGED = Path(llamita.__file__).parent / "assets" / "stories.gguf"
CACHE_TYPES = ("f16", "f32", "q8")
LLAMA_CPP_TYPES = {"Q8_0": 7, "Q4_0": 2}  # enum llama_ftype
MAX_DIFFERENCE = 1e-3  # relative


@dataclasses.dataclass(frozen=True)
class Row:
    """Bits per byte of one file: in our engine by cache type, and in llama.cpp (None if not
    installed)."""

    name: str
    num_bytes: int
    ours: dict[str, float]
    stock: float | None


@dataclasses.dataclass(frozen=True)
class Check:
    """An expectation, and whether it holds."""

    text: str
    holds: bool


class StockModel:
    """A model file in llama.cpp, with its default F16 cache."""

    def __init__(self, path: Path, context_tokens: int, num_threads: int) -> None:
        self._stock = LlamaCpp()
        self._api = self._stock.api
        self._stock.load(str(path))
        self._context = self._stock.new_context(context_tokens, context_tokens, num_threads)
        self._batch = self._api.llama_batch_init(context_tokens, 0, 1)

    def score(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64 [n - 1]: -ln p(ids[i + 1] | ids[0..i]), with the softmax in float64."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        num, batch = ids.size - 1, self._batch
        batch.n_tokens = num
        for i, id in enumerate(ids[:-1].tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = id, i, 1, 1
            batch.seq_id[i][0] = 0
        status = self._api.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode returned {status}"
        logits = np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (num, self._stock.vocab_size))
        nats = np.empty(num)
        for first in range(0, num, 64):  # some rows at a time, as float64
            rows = logits[first : first + 64].astype(np.float64)
            chosen = rows[np.arange(len(rows)), ids[first + 1 : first + 1 + len(rows)]]
            largest = rows.max(axis=1)
            nats[first : first + 64] = np.log(np.exp(rows - largest[:, None]).sum(axis=1)) + largest - chosen
        return nats

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._stock.model)


def stock_quantize(source: Path, out: Path, type: str) -> None:
    """Quantizes an F32 file with llama.cpp's defaults. Beside Q4_0 the output matrix gets more
    bits."""
    api = LlamaCpp().api
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = LLAMA_CPP_TYPES[type], 1
    status = api.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters))
    assert status == 0, f"llama_model_quantize returned {status}"


def first_bytes(texts: Iterable[str], num_bytes: int) -> list[str]:
    """The first texts, with at most this many bytes in total; the last one is cut."""
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
    """The texts as token ids of the file's tokenizer, and the id that starts a row."""
    with llamita.load(path) as model:
        info = model.info
        start = info.bos_id if info.bos_id >= 0 else info.eos_id
        end = info.eos_id if info.eos_id >= 0 else start
        return EncodedTexts(texts, lambda some: [model.encode(text) for text in some], end), start


class Meter:
    """Scores files of one model on one text, in rows of at most context_tokens."""

    def __init__(self, source: Path, texts: list[str], context_tokens: int, num_threads: int) -> None:
        self._documents, self._start_id = encode(source, texts)
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
        if not has_llama_cpp():
            return None
        model = StockModel(path, self.context_tokens, self._threads)
        try:
            return self._bits_per_byte(model.score)
        finally:
            model.close()

    def _bits_per_byte(self, score_row: Any) -> float:
        return score_documents(self._documents, self.context_tokens, self._start_id, score_row).bits_per_byte


def files(source: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Writes F32 and, from it, the quantized files: ours and llama.cpp's."""
    exact = folder / "F32.gguf"
    quantize_file(source, exact, "f32")
    yield "F32", exact
    for type in LLAMA_CPP_TYPES:
        path = folder / f"{type}.gguf"
        quantize_file(exact, path, type.lower())
        yield f"{type}, ours", path
        if has_llama_cpp():
            path = folder / f"{type}-stock.gguf"
            stock_quantize(exact, path, type)
            yield f"{type}, llama.cpp's", path


def measure(source: Path, meter: Meter, folder: Path, *, file_only: bool = False) -> list[Row]:
    """One row per file, written to `folder`; all cache types only for the source."""
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
    """What should hold for the rows that were measured."""
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
    return Check(
        f"{text}: {value:.5f}, {expected:.5f}: {off:+.4%}, at most {MAX_DIFFERENCE:.1%}", abs(off) <= MAX_DIFFERENCE
    )


def table(rows: list[Row]) -> str:
    """Bits per byte, and the difference from the first row in our engine."""
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
    parser.add_argument("--model", type=Path, default=PACKAGED, help="a GGUF file (default: the packaged model)")
    parser.add_argument("--text", type=Path, help="documents separated by <|endoftext|> (default: synthetic stories)")
    parser.add_argument("--bytes", type=int, default=60_000, help="how much of the text to score (default: 60000)")
    parser.add_argument("--context", type=int, default=512, help="maximum tokens per row (default: 512)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--file-only", action="store_true", help="score only the file itself")
    flags = parser.parse_args(argv)
    found = (
        (document.text for document in read_documents((str(flags.text),))) if flags.text else generate_stories(10_000)
    )
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
