"""How fast is fp32 decoding beside engine/reference/run.c at -Ofast -march=native -fopenmp, on the same weights?

    python benchmarks/decode_speed.py [--shape stories110M] [--rounds 7] [--threads 2] [--tokens 64]

Makes random weights of the seed's shape as a llama2.c version 0 file, compiles the reference, and runs both
interleaved. Prints medians, spread and the ratio of medians, and appends a row to results/<machine>.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import re
import statistics
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from llamita.config import PRESETS

ROOT = Path(__file__).resolve().parents[1]
VOCAB_SIZE = 32000


def write_random_model(path: Path, shape_name: str) -> int:
    """A v0 file of the shape with N(0, 0.02) weights; BOS's and EOS's rows are zero, so that neither ends the text.

    Returns the bytes read to decode one token: every weight but the embedding, whose matrix is the classifier.
    """
    s = PRESETS[shape_name]
    kv_size = s.hidden_size // s.num_attention_heads * s.num_key_value_heads
    random = np.random.default_rng(0)
    d, f, n = s.hidden_size, s.intermediate_size, s.num_hidden_layers
    sizes = [(VOCAB_SIZE, d), (n, d), (n, d, d), (n, kv_size, d), (n, kv_size, d), (n, d, d), (n, d), (n, f, d)]
    sizes += [(n, d, f), (n, f, d), (d,)]
    total = 0
    with path.open("wb") as file:
        header = (d, f, n, s.num_attention_heads, s.num_key_value_heads, VOCAB_SIZE, s.max_position_embeddings)
        file.write(struct.pack("<7i", *header))
        for size in sizes:
            norm = size[-1] == d and len(size) == (2 if size[0] == n else 1)
            values = np.ones(size, "<f4") if norm else (random.standard_normal(size, "float32") * 0.02).astype("<f4")
            if size == (VOCAB_SIZE, d):
                values[:3] = 0
            file.write(values.tobytes())
            total += values.nbytes
        file.write(bytes(4 * s.max_position_embeddings * (d // s.num_attention_heads)))
    return total


def write_tokenizer(path: Path) -> None:
    """A tokenizer.bin of VOCAB_SIZE different pieces, with the byte tokens where llama2.c has them."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % byte for byte in range(256)]
    pieces += [b" w%d" % i for i in range(VOCAB_SIZE - len(pieces))]
    pieces[-1] = b" "
    with path.open("wb") as file:
        file.write(struct.pack("<i", max(map(len, pieces))))
        for i, piece in enumerate(pieces):
            file.write(struct.pack("<fi", -float(i), len(piece)) + piece)


def measure(command: list[str], pattern: str, threads: int) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = re.search(pattern, done.stderr)
    assert found, done.stderr
    return float(found.group(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="stories110M", choices=sorted(PRESETS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    subprocess.run(["make", "-s", "engine"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer, reference = (Path(folder) / name for name in ("model.bin", "tokenizer.bin", "reference"))
        weight_bytes = write_random_model(model, args.shape)
        write_tokenizer(tokenizer)
        flags = ["-Ofast", "-march=native", "-fopenmp"]
        source = str(ROOT / "engine/reference/run.c")
        subprocess.run(["cc", *flags, source, "-o", str(reference), "-lm"], check=True)
        common = [str(model), "-z", str(tokenizer), "-t", "0", "-n", str(args.tokens)]
        ours = [str(ROOT / "engine/build/run"), *common, "-j", str(args.threads)]
        theirs = [str(reference), *common]
        speeds: dict[str, list[float]] = {"engine": [], "reference": []}
        for round_ in range(args.rounds + 1):
            engine = measure(ours, r"generated \d+ tokens, ([\d.]+) tok/s", args.threads)
            page = measure(theirs, r"achieved tok/s: ([\d.]+)", args.threads)
            if round_ > 0:  # the first warms up
                speeds["engine"].append(engine)
                speeds["reference"].append(page)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratio = medians["engine"] / medians["reference"]
    for name, values in speeds.items():
        bandwidth = medians[name] * weight_bytes / 1e9
        print(
            f"{name:<10} {medians[name]:8.1f} tok/s  {bandwidth:6.1f} GB/s  "
            f"({min(values):.1f} to {max(values):.1f} in {len(values)} interleaved rounds)"
        )
    print(f"ratio      {ratio:8.2f}   {args.shape} F32, {args.threads} threads")
    results = ROOT / "benchmarks" / "results" / f"{platform.machine()}-{os.cpu_count()}cores.csv"
    results.parent.mkdir(exist_ok=True)
    fresh = not results.exists()
    with results.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["date", "script", "what", "engine_tok_s", "peer", "peer_tok_s", "ratio", "rounds"])
        what = f"decode {args.shape} f32 {args.threads} threads"
        peer = "reference/run.c " + " ".join(flags)
        row = [datetime.date.today(), "decode_speed.py", what, f"{medians['engine']:.1f}", peer]
        writer.writerow([*row, f"{medians['reference']:.1f}", f"{ratio:.3f}", args.rounds])


if __name__ == "__main__":
    main()
