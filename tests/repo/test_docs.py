"""Holds the documentation to its promises: short lines, working links, a complete navigation, examples that run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

import llamita
from llamita.engine.library import library_path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")]
MAX_COLUMNS = 100


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def columns(line: str) -> int:
    """The width on a terminal: Chinese characters take two columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def prose(path: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The ids that mkdocs and code hosts give to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in titles)
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("path", [*TEXTS, *PAGES], ids=name_of)
def test_lines_are_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    long = [
        f"{number}: {columns(line)} columns: {line}"
        for number, line in enumerate(lines, 1)
        if columns(line) > MAX_COLUMNS and "](http" not in line
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("path", [path for path in [*TEXTS, *PAGES] if "zh-CN" in path.name], ids=name_of)
def test_chinese_lines_end_at_a_mark(path: Path) -> None:
    """A line end shows as a space, which must not be in a phrase. Han and Latin letters have one."""
    text = prose(path)
    han = "[\u4e00-\u9fff]"
    assert not re.findall(rf"{han}\n(?=[ >-]*{han}).*", text)
    assert not re.findall(rf".*(?:{han}[A-Za-z0-9`]|[A-Za-z0-9`]{han}).*", text)
    assert not re.findall(rf".*{han}[,;!?].*", text)


@pytest.mark.parametrize("path", [*TEXTS, *PAGES], ids=name_of)
def test_links_resolve(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if link.startswith(("http:", "https:")):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{name_of(path)} links to {link}, which does not exist"
        if path.parent == DOCS:
            assert file.is_relative_to(DOCS), f"{name_of(path)} links to {link}, which is not part of the site"
        if anchor:
            assert anchor in anchors(file), f"{name_of(path)} links to {link}, a heading that does not exist"


def test_navigation_names_every_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in PAGES)


@pytest.mark.compat
def test_site_builds_strictly(tmp_path: Path) -> None:
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs-material is not installed: make docs-site installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_python_page_is_current() -> None:
    code = "import sys; sys.path.insert(0, 'docs'); import write_python_api as w; sys.stdout.write(w.page())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (DOCS / "python-api.md").read_text(encoding="utf-8"), "run `make docs`"


def test_python_page_has_every_public_name() -> None:
    headings = set(re.findall(r"^### (\w+)$", (DOCS / "python-api.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(llamita.__all__) - {"__version__"} <= headings


def test_c_example_compiles_and_runs(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (source,) = re.findall(
        r"^```c\n(.*?)^```", (DOCS / "c-api.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "story.c").write_text(source, encoding="utf-8")
    library = library_path()
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "engine" / "include")]
    command += [str(tmp_path / "story.c"), str(library), f"-Wl,-rpath,{library.parent}", "-o", str(tmp_path / "story")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    model = ROOT / "src" / "llamita" / "assets" / "stories.gguf"
    done = subprocess.run(
        [str(tmp_path / "story"), str(model), "Once upon a time"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time") and len(done.stdout) > 100
    failed = subprocess.run([str(tmp_path / "story"), "absent.gguf"], capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1 and "absent.gguf" in failed.stderr


def test_c_page_names_existing_functions() -> None:
    header = (ROOT / "engine" / "include" / "llamita.h").read_text(encoding="utf-8")
    named = set(re.findall(r"\bllamita_\w+", (DOCS / "c-api.md").read_text(encoding="utf-8")))
    assert named <= set(re.findall(r"\bllamita_\w+", header))


def named_paths(text: str) -> set[str]:
    """Files and folders in backticks, such as `training/fused.py` or `engine/src/kernels/panel.h`."""
    return set(re.findall(r"`([\w.-]+(?:/[\w.*-]+)*/(?:[\w.-]+\.(?:py|c|h|sh|txt|svg))?)`", text))


@pytest.mark.parametrize("path", [p for p in [*TEXTS, *PAGES] if p.name != "experiments.md"], ids=name_of)
def test_named_files_exist(path: Path) -> None:
    """Code files that the documentation names exist, from the root or from src/llamita."""
    homes = (ROOT, ROOT / "src" / "llamita", ROOT / "engine" / "src", DOCS)
    for name in named_paths(path.read_text(encoding="utf-8")):
        if re.search(r"\.(py|c|h|sh)$", name) and not name.startswith("build/"):
            assert any((home / name).exists() for home in homes), f"{name_of(path)} names {name}"


@pytest.mark.parametrize("path", [*TEXTS, *PAGES], ids=name_of)
def test_shown_options_exist(path: Path) -> None:
    """Every option of a `llamita` command line that a page shows is in the help of that command."""
    help_page = (DOCS / "cli.md").read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for command, rest in re.findall(r"\bllamita ([a-z]+)\b([^\n`#]*)", text):
        section = help_page.partition(f"\n## llamita {command}\n")[2].partition("\n## ")[0]
        for option in re.findall(r"(?<=\s)--?[a-zA-Z][\w-]*", rest) if section else ():
            assert re.search(rf"(?<![\w-]){option}\b", section), f"{name_of(path)}: llamita {command} has no {option}"
