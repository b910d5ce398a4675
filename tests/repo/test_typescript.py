"""js/llamita.d.ts names what js/llamita.js exports, takes and gives, and TypeScript's compiler accepts its uses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TYPES = (ROOT / "js" / "llamita.d.ts").read_text(encoding="utf-8")
SCRIPT = (ROOT / "js" / "llamita.js").read_text(encoding="utf-8")
HOST = (ROOT / "engine" / "wasm" / "library.c").read_text(encoding="utf-8")


def members(interface: str) -> set[str]:
    body = re.search(rf"^export interface {interface} \{{\n(.*?)^\}}", TYPES, re.MULTILINE | re.DOTALL)
    assert body, interface
    return set(re.findall(r"^  (?:readonly )?(\w+)[?:(]", body[1], re.MULTILINE))


def matched(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    assert found, pattern
    return found[1]


def test_exports() -> None:
    exported = set(re.findall(r"^export (?:async )?(?:function|class|const|let)\*? (\w+)", SCRIPT, re.MULTILINE))
    assert len(re.findall(r"^export\b", SCRIPT, re.MULTILINE)) == len(exported)
    assert set(re.findall(r"^export (?:declare )?(?:function|class|const) (\w+)", TYPES, re.MULTILINE)) == exported


def test_options() -> None:
    """Of load, and of generate and chat."""
    taken = matched(r"^export async function load\(.*?const \{ (.*?) \} = options", SCRIPT)
    assert members("LoadOptions") == {name.split(" = ")[0] for name in taken.split(", ")}
    defaults = matched(r"^const GENERATE_DEFAULTS = \{\n(.*?)^\}", SCRIPT)
    others = matched(r"!\[([^\]]*)\]\.includes\(name\)", SCRIPT)
    assert members("GenerateOptions") == set(re.findall(r"^  (\w+):", defaults, re.MULTILINE)) | set(
        json.loads(f"[{others}]")
    )


def test_model() -> None:
    """Its public methods, and what they set; the names of the description that the engine gives."""
    body = matched(r"^class Model \{\n(.*?)^\}", SCRIPT)
    methods = set(re.findall(r"^  (?:async )?\*?(\w+)\(.*\) \{$", body, re.MULTILINE)) - {"constructor"}
    assert members("Model") == methods | set(re.findall(r"\bthis\.(\w+) = ", body))
    described = set(re.findall(r'\\"(\w+)\\":', HOST)) | set(re.findall(r'\{"(\w+)", ', HOST))
    assert members("ModelInfo") == described


@pytest.mark.cross
def test_compiles(tmp_path: Path) -> None:
    """As a user of the npm package compiles it: right uses, and wrong ones that must be errors."""
    tsc = shutil.which("tsc")
    if tsc is None:
        pytest.skip("tsc is not on PATH (Debian: node-typescript)")
    package = tmp_path / "node_modules" / "llamita"
    package.mkdir(parents=True)
    for name in ("package.json", "llamita.js", "llamita.d.ts"):
        shutil.copy(ROOT / "js" / name, package)
    shutil.copy(ROOT / "tests" / "repo" / "usage.mts", tmp_path)
    options = {"strict": True, "noEmit": True, "module": "node16", "target": "es2022", "lib": ["es2022", "dom"]}
    config = {"compilerOptions": {**options, "types": []}, "files": ["usage.mts"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(config), encoding="utf-8")
    done = subprocess.run([tsc, "-p", str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "")
