"""Writes docs/json-keys.md from the schemas of the readers; `make docs` runs it, and a test compares
the two."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path

from llamita.convert.import_huggingface import QUANTIZATION
from llamita.convert.import_meta import PARAMS
from llamita.finetune import adapter
from llamita.formats import huggingface
from llamita.formats.safetensors_io import ENTRY, INDEX_KEYS
from llamita.json_file import ABSENT, MAX_BYTES, MAX_DEPTH, MAX_DIGITS, Key, Schema
from llamita.tokenizer import load

PAGE = Path(__file__).with_name("json-keys.md")

HEAD = f"""# JSON files of other programs

Written by `make docs` from the schemas of the readers; do not edit.

Each file is checked before anything in it is used: UTF-8 (a BOM is allowed), at most
{MAX_BYTES >> 20} MiB, {MAX_DEPTH} levels, numbers of {MAX_DIGITS} digits, and no halves of surrogate pairs.
A value of the wrong kind is one error that names file, key, what was expected and what was found.
A null means that there is no value: the default is for a missing key. Keys that are not listed are
ignored, except in `params.json` and `adapter_config.json`, where an unknown key is refused: it may
change the model.
"""


def allowed(key: Key) -> str:
    """The kinds and limits of a key, in a few words."""
    names = [f"{kind} > 0" if key.positive and kind in ("integer", "number") else kind for kind in key.kinds]
    if key.choices:
        names = [" or ".join(key.choices)]
    if key.minimum is not None:
        names[0] += f" ≥ {key.minimum:g}"
    return " or ".join(names)


def rows(schema: Schema, prefix: str = "") -> list[str]:
    found = []
    for name, key in schema.items():
        notes = [key.use] if key.use else []
        if key.required:
            notes.append("required")
        elif key.default not in (None, ABSENT, (), {}):
            notes.append(f"default {json.dumps(key.default)}")
        found.append(f"| `{prefix}{name}` | {allowed(key)} | {'; '.join(notes)} |")
        item = key.items.keys if key.items is not None and key.items.keys is not None else {}
        found += rows(key.keys or {}, f"{prefix}{name}.") + rows(item, f"{prefix}{name}[].")
    return found


def table(title: str, schema: Schema) -> str:
    return "\n".join([f"## {title}", "", "| key | value | used for |", "|---|---|---|", *rows(schema)])


def refused(fixed: Mapping[str, str]) -> str:
    lines = [f"| `{key}` | {why} |" for key, why in fixed.items()]
    return "\n".join(["Refused:", "", "| key | unless |", "|---|---|", *lines])


def page() -> str:
    """The text of docs/json-keys.md."""
    fixed = {
        key: " or ".join(["missing", *dict.fromkeys(map(json.dumps, values))]) + f" ({what})"
        for key, (values, what) in huggingface.FIXED.items()
    }
    unsupported = {key: f"{json.dumps(unused)} ({what})" for key, (unused, what) in adapter.UNSUPPORTED.items()}
    harmless = ", ".join(f"`{key}`" for key in sorted(adapter.HARMLESS))
    parts = [
        HEAD.strip(),
        table(
            "config.json", {**huggingface.IDENTITY, **huggingface.CONFIG, **huggingface.WINDOWS, **huggingface.NO_ROPE}
        ),
        refused(fixed),
        table("quantization_config, of FP8 weights", QUANTIZATION),
        table("generation_config.json", load.GENERATION_CONFIG),
        table("tokenizer.json", load.TOKENIZER_JSON),
        "The `tokenizers` library reads the other keys.",
        table("tokenizer_config.json", load.TOKENIZER_CONFIG),
        table("special_tokens_map.json", load.SPECIAL_TOKENS_MAP),
        "## added_tokens.json, vocab.json\n\nTokens, each with its id: an integer ≥ 0. `added_tokens.json` is used if\n"
        "there are neither `tokenizer.json` nor `added_tokens_decoder`; `vocab.json`, with `merges.txt`,\nif "
        "there is no other tokenizer.",
        "## chat_template.jinja\n\nUTF-8 text. It counts more than `chat_template` of `tokenizer_config.json`.",
        table("model.safetensors.index.json", INDEX_KEYS),
        "Without an index, files named `NAME-00001-of-0000N.safetensors` are read if all are there.",
        table("Header of .safetensors, for each tensor", ENTRY),
        table("params.json (Meta)", PARAMS),
        table("adapter_config.json (PEFT)", adapter.USED),
        refused(unsupported),
        "Ignored, as they only describe the training:\n\n" + "\n".join(wrapped(harmless)),
    ]
    return "\n\n".join(parts) + "\n"


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 98, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
