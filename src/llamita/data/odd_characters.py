"""Finds characters that hardly belong into text: lost, invisible, or without a meaning that others
know."""

from __future__ import annotations

import re
import unicodedata

# Controls but tab and line ends; soft hyphens, spaces of no width, marks of direction; private use;
# what is no character. (Zero-width joiners are needed in emoji, Persian and Indic scripts.)
_ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\uffff"
    "\ue000-\uf8ff\U000e0000-\U000e007f\U000f0000-\U0010ffff]"
)
_NAMES = {"\ufffd": "REPLACEMENT CHARACTER: a letter was lost", "\u00ad": "SOFT HYPHEN"}
_KINDS = {"Cc": "control character", "Co": "private use", "Cn": "no character"}


def find_odd(text: str) -> list[str]:
    """Every odd character in a text."""
    return [] if text.isascii() and text.isprintable() else _ODD.findall(text)


def describe_character(character: str) -> str:
    """U+200B ZERO WIDTH SPACE."""
    known = _NAMES.get(character) or unicodedata.name(character, "")
    return f"U+{ord(character):04X} {known or _KINDS.get(unicodedata.category(character), '')}".rstrip()
