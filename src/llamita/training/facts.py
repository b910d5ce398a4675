"""Turns the nested values of run.json into rows of words, and tells what of them was chosen or differs between runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamita.config import FinetuneConfig, TrainConfig
from llamita.data.shards import read_store_info
from llamita.errors import StoreError

WATCHING = frozenset(("out", "resume", "track", "started"))  # of every run its own


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as name.name → words."""
    rows: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows.update(flat(value, f"{prefix}{name}."))
        else:
            rows[prefix + name] = words(value)
    return rows


def words(value: Any) -> str:
    """A value of JSON for people: yes and no, thousands divided, none as a dash."""
    if value is None or value == "" or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(words(item) for item in value)
    return str(value)


def changed_from_default(config: Mapping[str, Any]) -> set[str]:
    """The names of a configuration whose values are not the default: chosen, or worked out from others."""
    kind = FinetuneConfig if "checkpoint" in config else TrainConfig
    defaults = {
        field.name: list(field.default) if isinstance(field.default, tuple) else field.default
        for field in dataclasses.fields(kind)
    }
    return {name for name, value in config.items() if name not in defaults or defaults[name] != value}


def differing(values: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Each name whose words are not the same in all, with the words of each."""
    names = dict.fromkeys(name for rows in values for name in rows if name not in WATCHING)
    found = [(name, [rows.get(name, "–") for rows in values]) for name in names]
    return [(name, row) for name, row in found if len(set(row)) > 1]


def store_facts(description: Mapping[str, Any]) -> dict[str, Any]:
    """What the token store says of itself, if it is still where it was and the same."""
    data = description.get("data", {})
    try:
        info = read_store_info(Path(str(description["config"].get("data"))))
    except StoreError:
        return {}
    train, val = info["splits"]["train"], info["splits"]["val"]
    if (info["tokenizer"]["fingerprint"], train["tokens"]) != (data.get("tokenizer"), data.get("tokens")):
        return {}
    found = {
        "text_bytes": train["text_bytes"],
        "held_out_documents": val["documents"],
        "held_out_tokens": val["tokens"],
        "held_out_bytes": val["text_bytes"],
        "sources": [source["name"] for source in info.get("sources", [])],
    }
    return {name: value for name, value in found.items() if value != []}
