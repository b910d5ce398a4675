"""Speed of `llamita prepare` in MB/s, beside a SentencePiece loop in two processes.

    python benchmarks/prepare_speed.py TEXT.txt [--split-on blank-lines] [--rounds 5]

The loop is that of llama2.c's `tinystories.py pretokenize`: each process strips its documents,
encodes them with BOS in front, and writes uint16. Its model (BPE, 4,096 tokens), texts and
processes are ready before the clock starts. `prepare` is timed completely: reading, deduplication,
validation split, encoding, writing. It runs with the same SentencePiece model, with a given
tokenizer of ours, and with training one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece

from llamita.config import PrepareConfig
from llamita.data.documents import read_documents
from llamita.data.prepare import prepare
from llamita.tokenizer import train_bpe

PROCESSES, VOCAB_SIZE = 2, 4096


def encode_part(model: str, texts: list[str], out: str) -> float:
    """One process of the loop; returns its processor seconds."""
    start = time.process_time()
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    ids: list[int] = []
    for text in texts:
        ids.extend([processor.bos_id(), *processor.encode(text.strip())])
    np.array(ids, dtype=np.uint16).tofile(out)
    return time.process_time() - start


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds (all threads, and the processes of the loop)."""
    start, cpu = time.perf_counter(), time.process_time()
    result = action()
    others = sum(result) if isinstance(result, list) else 0.0
    return time.perf_counter() - start, time.process_time() - cpu + others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--split-on", choices=("separator", "blank-lines"), default="separator")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--train", action="store_true", help="also train a vocabulary with the tokenizers library (slow)"
    )
    flags = parser.parse_args()
    texts = [document.text for document in read_documents([flags.text], split_on=flags.split_on)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as name, multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        folder = Path(name)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts[:4000]), model_prefix=str(folder / "peer"), vocab_size=VOCAB_SIZE,
            model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
            character_coverage=0.98, minloglevel=2,
        )  # fmt: skip
        parts = [(str(folder / "peer.model"), texts[i::PROCESSES], str(folder / f"{i}.bin")) for i in range(PROCESSES)]

        def store(**changes: object) -> Callable[[], object]:
            values = {"sources": (flags.text,), "out": folder / "store", "split_on": flags.split_on, "overwrite": True}
            return lambda: prepare(PrepareConfig(**{**values, **changes}))  # type: ignore[arg-type]

        store(vocab_size=VOCAB_SIZE)()
        (folder / "own").mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / "own" / file).write_bytes((folder / "store" / file).read_bytes())
        sides: dict[str, Callable[[], object]] = {
            "SentencePiece loop, 2 processes": lambda: pool.starmap(encode_part, parts),
            "prepare, same SentencePiece model": store(tokenizer=folder / "peer.model"),
            "prepare, given tokenizer": store(tokenizer=folder / "own"),
            "prepare, trained tokenizer": store(vocab_size=VOCAB_SIZE),
        }
        if flags.train:
            sides["tokenizers library, training only"] = lambda: train_bpe(texts, VOCAB_SIZE)
        times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(flags.rounds):
            for side, action in sides.items():
                times[side].append(timed(action))
        loop = [statistics.median(column) for column in zip(*times["SentencePiece loop, 2 processes"], strict=True)]
        for side, taken in times.items():
            wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
            print(
                f"{side:<40} {wall:6.2f} s {megabytes / wall:6.1f} MB/s {loop[0] / wall:6.2f} x;"
                f" processor {cpu:6.2f} s, {loop[1] / cpu:6.2f} x"
            )
    print(f"{len(texts):,} documents, {megabytes:.1f} MB; {flags.rounds} interleaved rounds, medians", file=sys.stderr)


if __name__ == "__main__":
    main()
