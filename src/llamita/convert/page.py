"""Writes a web page with a model in it: one HTML file that runs offline, from a file or a server.

The page holds the model's GGUF, the engine in WebAssembly (two builds; the browser takes one), and
the scripts of llamita/web. It may load nothing from anywhere: its Content-Security-Policy says so.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from llamita import web
from llamita.atomic import atomic_file
from llamita.engine import Model, version
from llamita.errors import ConfigError, FormatError
from llamita.formats.gguf_card import card_of_gguf

# Browsers hold the model twice while it is unpacked, and phones have little memory.
MAX_MODEL_BYTES: Final = 256 << 20
PART_BYTES: Final = 192 << 10  # of a file in one element: the page unpacks it while the browser reads the next
MAX_STARTS, MAX_START_CHARS = 12, 200
# llamita.js's names of sampling defaults.
_OPTIONS: Final = {"temperature": "temperature", "top_p": "topP", "top_k": "topK", "min_p": "minP",
                   "repetition_penalty": "repetitionPenalty"}  # fmt: skip
ENGINES: Final = ("llamita.wasm", "llamita-relaxed.wasm")


def write_page(
    model: Path,
    out: Path,
    *,
    starts: Sequence[str] = (),
    bits_per_byte: float | None = None,
) -> int:
    """Write a page with a .gguf to `out` atomically; returns its bytes.

    starts: texts that one click begins with. bits_per_byte: of held-out text. Raises ConfigError for
    a model that is too large or has no tokenizer, FormatError, EngineError, OutputError.
    """
    engines = _engines()
    num_bytes = model.stat().st_size
    if num_bytes > MAX_MODEL_BYTES:
        raise ConfigError(
            f"cannot write {out}: expected a model of at most {MAX_MODEL_BYTES >> 20} MB for a browser, found "
            f"{num_bytes / 2**20:,.0f} MB; choose a smaller --type such as q4_0"
        )
    if len(starts) > MAX_STARTS or any(len(start) > MAX_START_CHARS for start in starts):
        raise ConfigError(f"--start: expected at most {MAX_STARTS} texts of at most {MAX_START_CHARS} characters")
    data = _page_data(model, out)
    data |= {"starts": list(starts), "bitsPerByte": bits_per_byte}
    packed = gzip.compress(model.read_bytes(), 6, mtime=0)  # with a checksum, and a tenth smaller
    data |= {"sizes": {"model": len(packed), **{name: len(engine) for name, engine in engines.items()}}}
    with atomic_file(out) as temporary, open(temporary, "wb") as file:
        for part in _page(data, {**engines, "model": packed}):
            file.write(part)
    return out.stat().st_size


def check_engine() -> None:
    """Raise ConfigError if the engine for browsers was not built."""
    missing = [name for name in (*ENGINES, "llamita.js") if not (web.WEB / name).is_file()]
    if missing:
        raise ConfigError(
            f"cannot write a page: {web.WEB / missing[0]} is missing, the engine for browsers; in a checkout "
            "`make wasm` builds it"
        )


def _engines() -> dict[str, bytes]:
    """The engine's files by name, compressed."""
    check_engine()
    return {name: gzip.compress((web.WEB / name).read_bytes(), 9, mtime=0) for name in ENGINES}


def _page_data(path: Path, out: Path) -> dict[str, Any]:
    """What the page says about the model, and how it begins."""
    card = card_of_gguf(path)
    with Model(path) as model:
        info = model.info
        if not info.has_tokenizer:
            raise ConfigError(f"cannot write {out}: the model has no tokenizer")
        if model.chat_template is not None and model.chat_family is None:
            raise ConfigError(
                f"cannot write {out}: its chat template needs Jinja, which a page does not have; expected one of "
                "chatml, llama2, llama3 or zephyr"
            )
        is_chat = model.chat_family is not None
        can_surprise = info.bos_id >= 0
    return {
        "name": card.name or out.stem,
        "description": card.description,
        "license": card.license,
        "languages": list(card.language),
        "isChat": is_chat,
        "canSurprise": can_surprise and not is_chat,
        "sampling": {_OPTIONS[option]: value for option, value in card.sampling().items()},
        "numBytes": path.stat().st_size,
        "version": version(),
    }


def _page(data: dict[str, Any], files: dict[str, bytes]) -> Iterator[bytes]:
    """The page, part by part. files: compressed."""
    style, script = web.source("page.css"), web.source("page.js")
    policy = (
        f"default-src 'none'; script-src {web.policy_hash(script)} 'wasm-unsafe-eval'; "
        f"style-src {web.policy_hash(style)}; img-src data:; worker-src blob:; connect-src 'none'; "
        "base-uri 'none'; form-action 'none'"
    )
    # Chromium runs no modules in the workers of a page from a file.
    library = web.source("llamita.js").replace("import.meta.url", "location.href")
    engine = re.sub(r"^export ", "", library, flags=re.MULTILINE)
    worker = engine + "\n" + web.source("worker.js")
    if "</script" in worker.lower() or "</script" in script.lower():
        raise FormatError("cannot write a page: its scripts contain the end of a script")
    values = {
        "POLICY": policy,
        "GENERATOR": f"llamita {version()}",
        "TITLE": html.escape(data["name"]),
        "PAGE": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
        "STYLE": style,
        "SCRIPT": script,
        "WORKER": worker,
    }
    before, after = web.source("page.html").split("@DATA@")
    yield web.fill(before, values)
    for name, packed in files.items():
        for start in range(0, len(packed), PART_BYTES):
            yield _element(name, packed[start : start + PART_BYTES])
    yield web.fill(after, values)


def _element(name: str, part: bytes) -> bytes:
    return b'<data hidden data-part="%s" value="%s"></data>\n' % (name.encode(), base64.b64encode(part))
