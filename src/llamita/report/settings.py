"""The part of the report about settings: tables of run.json, and its differences between runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from llamita.config import FinetuneConfig, RunConfig, TrainConfig, options_of
from llamita.data.token_store import read_store_info
from llamita.errors import StoreError
from llamita.report.history import History

STARTED = "started"  # in run.json's environment
NONE = "–"


def folded_settings(history: History) -> str:
    """All settings, folded: they are long, and few people need them."""
    return f'<details class="all"><summary>Settings</summary>{settings_tables(history)}</details>'


def settings_tables(history: History) -> str:
    """Everything that run.json and summary.json record about a run."""
    description, changed = history.description, changed_from_default(history.config)
    config = [(name, value, "" if name in changed else "default") for name, value in flatten(history.config).items()]
    sections = {
        "Model": description.get("model", {}),
        "Data": {**description.get("data", {}), **store_counts(description)},
        "Environment": description.get("environment", {}),
        "Summary": {name: value for name, value in history.summary.items() if name not in ("model", "samples")},
    }
    right = "".join(
        _table(title, [(name, value, "") for name, value in flatten(values).items()])
        for title, values in sections.items()
        if values
    )
    return f'<div class="columns"><div>{_table("Configuration", config)}</div><div>{right}</div></div>'


def _table(title: str, rows: Sequence[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<tr><th>{escape(name)}</th><td class="{style}">{escape(value)}</td></tr>' for name, value, style in rows
    )
    note = '<p class="soft">Gray values are defaults.</p>' if any(style for _, _, style in rows) else ""
    return f'<h2>{escape(title)}</h2>{note}<table class="settings">{cells}</table>'


def differences_table(histories: Sequence[History]) -> str:
    """Configuration, model, data and environment where the runs differ."""
    head = "".join(f"<th>{escape(history.name)}</th>" for history in histories)
    sections = []
    for title in ("config", "model", "data", "environment"):
        rows = differing([flatten(history.description.get(title, {})) for history in histories])
        if rows:
            cells = "".join(
                f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(value)}</td>' for value in row)}</tr>"
                for name, row in rows
            )
            heading = f'<tr><th class="part" colspan="{1 + len(histories)}">{title}</th></tr>'
            sections.append(f"<tbody>{heading}{cells}</tbody>")
    if not sections:
        return '<h2>Differences</h2><p class="soft">None, except the folder.</p>'
    table = f"<table><thead><tr><th></th>{head}</tr></thead>{''.join(sections)}</table>"
    return f'<h2>Differences</h2><div class="scroll">{table}</div>'


# ---------------------------------------------------------------- values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as dotted name → text."""
    rows: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows.update(flatten(value, f"{prefix}{name}."))
        else:
            rows[prefix + name] = format_value(value)
    return rows


def format_value(value: Any) -> str:
    """A JSON value for people: yes and no, thousands separated, a dash for none."""
    if value is None or value == "" or value == []:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}".removesuffix(".0") if abs(value) >= 1000 else f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item) for item in value)
    return str(value)


def changed_from_default(config: Mapping[str, Any]) -> set[str]:
    """Names of a configuration whose values are not the default."""
    kind = FinetuneConfig if "checkpoint" in config else TrainConfig
    defaults = {
        field.name: list(field.default) if isinstance(field.default, tuple) else field.default
        for field in dataclasses.fields(kind)
    }
    return {name for name, value in config.items() if name not in defaults or defaults[name] != value}


def differing(values: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Each name whose values are not the same in all runs, with the value of each run."""
    expected = {STARTED, *(name for name, option in options_of(RunConfig).items() if option.run_specific)}
    names = dict.fromkeys(name for rows in values for name in rows if name not in expected)
    found = [(name, [rows.get(name, NONE) for rows in values]) for name in names]
    return [(name, row) for name, row in found if len(set(row)) > 1]


def store_counts(description: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes from the token stores of a run; {} if a store is gone or was prepared again since."""
    given, known = description["config"].get("data"), description.get("data", {})
    stores = [_store_info(str(store)) for store in (given if isinstance(given, list) else [given])]
    found = [info for info in stores if info is not None and info["tokenizer"]["fingerprint"] == known.get("tokenizer")]
    if len(found) < len(stores) or not found:
        return {}
    train, val = ([info["splits"][split] for info in found] for split in ("train", "val"))
    if len(found) == 1 and train[0]["tokens"] != known.get("tokens"):
        return {}
    sources = [source["name"] for info in found for source in info.get("sources", [])]
    return {
        "text_bytes": sum(split["text_bytes"] for split in train),
        "val_documents": sum(split["documents"] for split in val),
        "val_tokens": sum(split["tokens"] for split in val),
        "val_bytes": sum(split["text_bytes"] for split in val),
        **({"sources": sources} if sources else {}),
    }


def _store_info(store: str) -> dict[str, Any] | None:
    """store.json of "PATH" or "PATH:WEIGHT"; None if there is none."""
    for path in (store, store.rpartition(":")[0]):
        try:
            if path and Path(path).is_dir():
                return read_store_info(Path(path))
        except (StoreError, OSError, ValueError):  # damaged, or no path at all
            return None
    return None
