"""Counting Chinese characters: which code points they are, and what follows for a vocabulary."""

from __future__ import annotations

import unicodedata

import pytest

from llamita.data.han import MIN_OCCURRENCES, HanCounts


def counts(*texts: str) -> HanCounts:
    han = HanCounts()
    han.add([text.encode() for text in texts])
    return han


def test_every_ideograph_counts_and_no_other_letter() -> None:
    assigned = [chr(code) for code in range(0x80, 0x40000) if unicodedata.category(chr(code))[0] in "LN"]
    ideographs = [c for c in assigned if unicodedata.name(c, "").startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEO"))]
    assert len(ideographs) > 90_000
    assert int(counts("".join(ideographs)).counts.sum()) == len(ideographs)
    neighbors = "、。「」ぁゖァヺㄅ가힣ᄀﾊＡ0aé"
    assert counts(neighbors).counts.sum() == 0


def test_bytes_and_share() -> None:
    han = counts("床前明月光，a", "𠀀b\n")
    assert (han.num_bytes, han.other_bytes) == (15 + 3 + 1 + 4 + 2, 3 + 1 + 2)
    assert han.share == pytest.approx(6 / 10)
    assert counts().share == 0


def test_frequent_characters_and_the_tokens_before_them() -> None:
    han = counts(
        "月" * MIN_OCCURRENCES + "朋" * MIN_OCCURRENCES + "天" * MIN_OCCURRENCES + "光" * (MIN_OCCURRENCES - 1)
    )
    assert han.num_frequent == 3
    assert han.num_prefixes == 2  # 月 and 朋 begin with the same two bytes
    assert "月".encode()[:2] == "朋".encode()[:2]
