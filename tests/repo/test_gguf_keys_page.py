"""The table of GGUF keys in docs/formats.md is the engine's."""

from __future__ import annotations

from pathlib import Path

from llamita.formats.gguf_keys import GgufKey, known_keys

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"


def number(value: float) -> str:
    return {2**31 - 1: "2³¹ − 1", 2**31: "2³¹"}.get(int(value)) or f"{value:g}"


def row(key: GgufKey) -> str:
    """The line of the table. 0 to 0: the key has no range."""
    if key.use == "fixed":
        return f"| `{key.name}` | {key.kind} | refused unless {key.default:g} |"
    done = {"required": "required", "optional": "used", "ignored": "ignored"}[key.use]
    if key.low != key.high:
        done += f", {number(key.low)} to {number(key.high)}"
    if key.default and key.use == "optional":
        done += f", else {key.default:g}"
    return f"| `{key.name}` | {key.kind} | {done} |"


def test_the_table_is_the_engines() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("### Keys") : text.index("### RoPE scaling")]
    found = [line for line in table.splitlines() if line.startswith("| `")]
    assert found == [row(key) for key in known_keys().values()]
