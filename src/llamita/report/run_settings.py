"""Turns the nested values of run.json into rows of words, and tells what of them was chosen or differs between runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamita.config import FinetuneConfig, TrainConfig
from llamita.data.token_store import read_store_info
from llamita.errors import StoreError

RUN_SPECIFIC_FIELDS = frozenset(("out", "resume", "track", "started"))  # of every run its own


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
    names = dict.fromkeys(name for rows in values for name in rows if name not in RUN_SPECIFIC_FIELDS)
    found = [(name, [rows.get(name, "–") for rows in values]) for name in names]
    return [(name, row) for name, row in found if len(set(row)) > 1]


def store_facts(description: Mapping[str, Any]) -> dict[str, Any]:
    """What the token stores say of themselves, if they are still where they were, of the same tokenizer."""
    given, known = description["config"].get("data"), description.get("data", {})
    stores = [_store_info(str(store)) for store in (given if isinstance(given, list) else [given])]
    found = [info for info in stores if info is not None and info["tokenizer"]["fingerprint"] == known.get("tokenizer")]
    if len(found) < len(stores) or not found:
        return {}
    train, val = ([info["splits"][split] for info in found] for split in ("train", "val"))
    if len(found) == 1 and train[0]["tokens"] != known.get("tokens"):
        return {}  # prepared anew since
    sources = [source["name"] for info in found for source in info.get("sources", [])]
    return {
        "text_bytes": sum(split["text_bytes"] for split in train),
        "val_documents": sum(split["documents"] for split in val),
        "val_tokens": sum(split["tokens"] for split in val),
        "val_bytes": sum(split["text_bytes"] for split in val),
        **({"sources": sources} if sources else {}),
    }


def _store_info(store: str) -> dict[str, Any] | None:
    """store.json of "PATH" or "PATH:WEIGHT"; None if it is not there."""
    for path in (store, store.rpartition(":")[0]):
        if path and Path(path).is_dir():
            try:
                return read_store_info(Path(path))
            except StoreError:
                return None
    return None
