"""Keeps words out that this project has retired; docs/architecture.md lists what they became."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# pattern -> what to write instead
RETIRED = {
    r"\btold\b|\btelling\b|\btells\b": "prints, says, shows; samples, generated texts",
    r"\blessons?\b": "dataset",
    r"\bjudg(e|es|ed|ing)\b": "evaluate",
    r"\bwishes\b|\bwished\b": "options, requested",
    r"\b\w+_facts\b|\bfacts\(|\bdef facts\b": "settings, fingerprint",
    r"\bremarks?\b": "notes",
    r"\bretreats?\b": "rollback",
    r"\bmend(s|ed|ing|able)?\b": "fix, fixable",
    r"(?<!stopping-)(?<!stopping )\bpatience\b|\bpatient\b": "spin budget (early stopping keeps its patience)",
    r"\bbells?\b": "event",
    r"\bcorridors?\b": "pipeline",
    r"\bverbs?\b": "command",
    r"\bsequels?\b|\bsequel_\w+": "what comes after; reserved time",
    r"\bsettled\b": "resolved",
    r"\bborders?\b(?![-:])|\bborder_ids\b": "boundaries; bos_eos_ids",
    r"\bhalves[_ ]order\b|\bhalves_to_pairs\b|\bpairs_to_halves\b": "half-split RoPE order; permute_qk, unpermute_qk",
    r"\bby (itself|themselves)\b": "delete it, or say automatically or alone",
    r"\b(is|are) to be had\b": "exists, is available",
    r"\bwhatever (it|they) (is|are)\b": "any kind",
    r"\bso many\b": "a number, or delete it",
    r"\bdear(er|est)\b": "expensive, most expensive",
    r"\b_?(MOST|LEAST|LONGEST|SHORTEST|FEWEST)_[A-Z]": "MAX_, MIN_",
    r"(?i)\b\w*(quantis|normalis|recognis|memoris|tokenis|initialis|serialis|capitalis|summaris)\w*": "American -ize",
    r"(?i)\b\w*(colour|behaviour|neighbour|favour)\w*|\blicence\b": "American spelling",
    r"\btales\b": "stories",
}
TEXTS = ["README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
GENERATED = ["cli.md", "python-api.md"]  # follow src
FOLDERS = {
    "docs": ("*.md",), "examples": ("*.sh", "*.py"), "src": ("*.py",),
    "engine": ("*.c", "*.h"), "benchmarks": ("*.py", "*.c"),
}  # fmt: skip


def checked_files() -> list[Path]:
    found = [ROOT / name for name in TEXTS]
    for folder, patterns in FOLDERS.items():
        found += [path for pattern in patterns for path in sorted((ROOT / folder).rglob(pattern))]
    skipped = () if "src" in FOLDERS else GENERATED
    return [path for path in found if path.name not in skipped and "build" not in path.parts]


def own_words(text: str) -> str:
    """The text without what we only quote: program output, generated stories, and the list of old words."""
    text = re.sub(r"^```text\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^## What old words became\n.*?(?=^## |\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^(>|#  ).*$", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", checked_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_retired_words(path: Path) -> None:
    found = [
        f"{match.group(0)!r}: write {instead}"
        for pattern, instead in RETIRED.items()
        for match in re.finditer(pattern, own_words(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)
