"""`llamita quantize IN.gguf OUT.gguf --type T`: writes a GGUF file in a smaller type."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from llamita.atomic import check_parent
from llamita.cli.command import parse
from llamita.cli.next_command import has_template, print_next
from llamita.cli.progress import progress_bars
from llamita.commands import use_commands
from llamita.config import Option
from llamita.console import print_table


@dataclasses.dataclass(frozen=True)
class QuantizeFlags:
    """Write the matrices of a GGUF file in a smaller type.

    Everything else in the file is kept. Scales are searched for the least squared error. Memory
    holds one tensor at a time.
    """

    examples = ("llamita quantize big.gguf small.gguf --type q8_0", "llamita quantize big.gguf tiny.gguf -t q4_k_m")

    source: Annotated[Path, Option("IN", positional=True)]
    """GGUF file of a Llama, Qwen2, Qwen3 or SmolLM3, not quantized (f32, f16, bf16)."""
    out: Annotated[Path, Option(positional=True)]
    """File to write, in a folder that exists; an existing file is replaced."""
    type: Annotated[str, Option("TYPE", short="t")]
    """f16, bf16: half the bytes of f32; q8_0: a quarter; q6_k, q5_k, q5_1, q5_0: less; q4_k_m
    (q4_k, with the most sensitive matrices in q6_k), q4_k, q4_1, q4_0: an eighth. f32: from any
    type, exactly."""
    requantize: bool = False
    """Accept a file that is already quantized; its errors add up with the new ones."""


def main(argv: list[str]) -> None:
    flags = parse(QuantizeFlags, argv, "llamita quantize")
    check_parent(flags.out)
    from llamita.convert.quantize import quantize_file

    with progress_bars(in_bytes=True) as progress:
        report = quantize_file(flags.source, flags.out, flags.type, requantize=flags.requantize, progress=progress)
    worst = "none" if report.worst_tensor is None else f"{report.largest_error:.3%} of {report.worst_tensor}"
    speed = report.source_bytes / max(report.seconds, 1e-9) / 1e6
    rows = [
        ("wrote", f"{report.path}, {report.num_bytes:,} bytes"),
        ("weights", f"{report.num_parameters:,}, {report.bits_per_weight:.2f} bits each"),
        ("tensors", ", ".join(f"{count} {name}" for name, count in report.num_tensors_by_type.items())),
        ("largest rounding error", worst),
        ("took", f"{report.seconds:.1f} s, {speed:,.0f} MB/s of weights read"),
        *(("note", note) for note in report.notes),
    ]
    print_table(rows, sys.stderr)
    print_next(*use_commands(report.path, can_chat=has_template(report.path)))
