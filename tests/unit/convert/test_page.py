"""A page holds the whole model, may load nothing, and shows names as names, whatever they are."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import html.parser
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamita import web
from llamita.cli.export import main as export
from llamita.convert import page
from llamita.convert.page import write_page
from llamita.errors import ConfigError, LlamitaError
from llamita.formats.gguf import read_gguf, write_gguf

STORIES = Path(page.__file__).parents[1] / "assets" / "stories.gguf"
pytestmark = pytest.mark.usefixtures("engine_build", "engine_for_browsers")


@pytest.fixture
def engine_for_browsers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's files need not be built: a page is written with any bytes."""
    folder = tmp_path / "web"
    shutil.copytree(web.WEB, folder, ignore=shutil.ignore_patterns("*.wasm"))
    for name in page.ENGINES:
        (folder / name).write_bytes(b"\0asm" + name.encode())
    shutil.copy(Path(__file__).parents[3] / "js" / "llamita.js", folder)
    monkeypatch.setattr(web, "WEB", folder)


class Elements(html.parser.HTMLParser):
    """The elements of a page as a browser finds them: (tag, attributes, text)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.is_open = False
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))
        self.is_open = True

    def handle_endtag(self, tag: str) -> None:
        self.is_open = False

    def handle_data(self, data: str) -> None:
        if self.is_open:
            tag, attributes, text = self.found[-1]
            self.found[-1] = tag, attributes, text + data

    def scripts(self, **wanted: str) -> list[str]:
        named = {name.replace("_", "-"): value for name, value in wanted.items()}
        return [
            text for tag, attributes, text in self.found
            if tag == "script" and all(attributes.get(name) == value for name, value in named.items())
        ]  # fmt: skip

    def parts(self, name: str) -> list[bytes]:
        """What the page holds of a file, in order."""
        values = [a["value"] for tag, a, _ in self.found if tag == "data" and a.get("data-part") == name]
        return [base64.b64decode(value or "", validate=True) for value in values]


@pytest.mark.parametrize(("objective", "expected"), [("bpb", 0.75), ("loss", None)])
def test_only_bits_per_byte_are_shown_as_such(
    objective: str, expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best value of a fine-tuning is a loss in nats."""
    found: list[float | None] = []
    monkeypatch.setattr(page, "write_page", lambda *args, bits_per_byte, **options: found.append(bits_per_byte) or 1)
    monkeypatch.setattr("llamita.cli.export.gguf_of", lambda *args: contextlib.nullcontext(STORIES))
    (tmp_path / "summary.json").write_text(json.dumps({"objective": objective, "best": 0.75}))
    export([str(tmp_path), str(tmp_path / "x.html")])
    assert found == [expected]


def test_the_model_and_the_engine_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PART_BYTES", 300_000)
    size = write_page(STORIES, tmp_path / "x.html", starts=["Once"], bits_per_byte=0.7)
    assert size == (tmp_path / "x.html").stat().st_size
    elements = Elements(tmp_path / "x.html")
    parts = elements.parts("model")
    packed = b"".join(parts)
    assert len(parts) > 5 and gzip.decompress(packed) == STORIES.read_bytes()
    (data,) = map(json.loads, elements.scripts(id="page"))
    assert data["numBytes"] == STORIES.stat().st_size and data["starts"] == ["Once"] and data["bitsPerByte"] == 0.7
    assert data["isChat"] is False and data["canSurprise"] is True
    for name in page.ENGINES:
        (raw,) = elements.parts(name)
        assert gzip.decompress(raw) == b"\0asm" + name.encode() and data["sizes"][name] == len(raw)
    assert data["sizes"]["model"] == len(packed) and elements.found[-1][1]["data-part"] == "model"
    write_page(STORIES, tmp_path / "y.html", starts=["Once"], bits_per_byte=0.7)
    assert (tmp_path / "y.html").read_bytes() == (tmp_path / "x.html").read_bytes()


def test_nothing_can_be_loaded(tmp_path: Path) -> None:
    write_page(STORIES, tmp_path / "x.html")
    found = Elements(tmp_path / "x.html")
    (policy,) = (a["content"] for tag, a, _ in found.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'none'"
    (script,) = (text for tag, attributes, text in found.found if tag == "script" and not attributes)
    (style,) = (text for tag, _, text in found.found if tag == "style")
    for text, rule in ((script, "script-src"), (style, "style-src")):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in rules[rule]
    for tag, attributes, _ in found.found:
        assert "src" not in attributes and attributes.get("href", "data:,") == "data:,", tag
    (worker,) = found.scripts(id="worker")
    assert "import.meta" not in worker and not re.search(r"^export ", worker, re.MULTILINE)


def with_metadata(path: Path, **changes: Any) -> Path:
    """The story model with other metadata."""
    found = read_gguf(STORIES)
    metadata = {**found.metadata, **{name.replace("__", "."): value for name, value in changes.items()}}
    infos = [(name, info.type, info.shape) for name, info in found.tensors.items()]
    write_gguf(path, metadata, infos, (found.data(name) for name in found.tensors))
    return path


HOSTILE = "</script><script>alert(1)</script><!--<script>\"'&lt;\u2028 @DATA@ @SCRIPT@"


def test_names_are_only_text(tmp_path: Path) -> None:
    model = with_metadata(
        tmp_path / "x.gguf", general__name=HOSTILE, general__description=HOSTILE, general__license=HOSTILE
    )
    write_page(model, tmp_path / "x.html", starts=[HOSTILE])
    plain = write_page(STORIES, tmp_path / "y.html")
    assert plain > 0
    hostile, ordinary = Elements(tmp_path / "x.html"), Elements(tmp_path / "y.html")
    assert [tag for tag, _, _ in hostile.found] == [tag for tag, _, _ in ordinary.found]
    (data,) = map(json.loads, hostile.scripts(id="page"))
    assert data["name"] == data["description"] == data["license"] == data["starts"][0] == HOSTILE
    (title,) = (text for tag, _, text in hostile.found if tag == "title")
    assert title.strip() == HOSTILE


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for x in messages %}{{ x | upper }}{% endfor %}"
    jinja = with_metadata(tmp_path / "jinja.gguf", tokenizer__chat_template=template)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: write_page(jinja, tmp_path / "x.html"), "its chat template needs Jinja"),
        (lambda: write_page(STORIES, tmp_path / "x.html", starts=["a"] * 13), "--start: expected at most 12 texts"),
        (lambda: write_page(STORIES, tmp_path / "x.html", starts=["a" * 201]), "at most 200 characters"),
        (lambda: export([str(STORIES), str(tmp_path / "x.html"), "--type", "q4_0"]), "goes into a page as it is"),
        (lambda: export([str(STORIES), str(tmp_path / "x.html"), "--modelfile"]), "--modelfile: not for a page"),
        (lambda: export([str(STORIES), str(tmp_path / "x.gguf"), "--start", "a"]), "--start: expected a page"),
        (lambda: export([str(STORIES), str(tmp_path / "x.html"), "--target", "linux-x86_64"]), "--target: expected"),
        (lambda: export([str(tmp_path / "none"), str(tmp_path / "x.html")]), "no such folder"),
    ]  # fmt: skip
    for call, said in cases:
        with pytest.raises(LlamitaError) as caught:
            call()
        assert said in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setattr(page, "MAX_MODEL_BYTES", 1 << 20)
    with pytest.raises(ConfigError, match="expected a model of at most 1 MB for a browser, found 7 MB"):
        write_page(STORIES, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
    (web.WEB / "llamita.wasm").unlink()
    with pytest.raises(ConfigError, match="`make wasm` builds it"):
        export([str(STORIES), str(tmp_path / "x.html")])


def test_a_checkpoint_becomes_a_page(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "poems")
    export([str(checkpoint), str(tmp_path / "poems.html"), "--license", "cc0-1.0", "--start", "春", "--type", "f16"])
    elements = Elements(tmp_path / "poems.html")
    (data,) = map(json.loads, elements.scripts(id="page"))
    assert (data["name"], data["license"], data["starts"]) == ("poems", "cc0-1.0", ["春"])
    raw = gzip.decompress(b"".join(elements.parts("model")))
    (tmp_path / "model.gguf").write_bytes(raw)
    assert read_gguf(tmp_path / "model.gguf").tensors["output_norm.weight"].type == "F32"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".html"] == ["poems.html"]
