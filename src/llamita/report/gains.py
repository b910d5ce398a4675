"""What a run that went on with new documents changed: bits per byte of held-out text, new and old."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from llamita.report.history import is_positive


@dataclasses.dataclass(frozen=True)
class Gains:
    """Bits per byte before the first step and of the weights that are exported. old: None if no old
    text was evaluated."""

    new: tuple[float, float]
    old: tuple[float, float] | None

    def rows(self) -> list[tuple[str, str]]:
        """As rows of a table."""
        known = [("new text", self.new), *([("old text", self.old)] if self.old else [])]
        return [(name, f"{_from_to(values)} bits per byte, held out") for name, values in known]

    def sentence(self) -> str:
        """In one sentence."""
        found = f"Bits per byte of held-out new text: {_from_to(self.new)}"
        return found + (f"; of old text: {_from_to(self.old)}." if self.old else ".")


def _from_to(values: tuple[float, float]) -> str:
    before, after = values
    return f"{before:.4f} → {after:.4f} ({100 * (after / before - 1):+.2f} %)"


def find_gains(lines: Sequence[Mapping[str, Any]]) -> Gains | None:
    """From the lines of metrics.jsonl; None before the first evaluation."""
    found = [line for line in lines if line["kind"] == "eval" and is_positive(line.get("bpb"))]
    if not found:
        return None
    first, best = found[0], min(found, key=lambda line: line["bpb"])
    best = next((line for line in reversed(found) if "trained_share" in line), best)
    is_known = all(is_positive(line.get("old_bpb")) for line in (first, best))
    return Gains((first["bpb"], best["bpb"]), (first["old_bpb"], best["old_bpb"]) if is_known else None)
