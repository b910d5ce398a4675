"""Holds both READMEs to their promises: the map is the tree on disk, the commands and examples run as written."""

from __future__ import annotations

import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
MAX_LINES = 150


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def folder_map(text: str) -> str:
    return next(block for block in blocks("text", text) if block.startswith("src/llamita/"))


def mapped_folders(text: str) -> set[str]:
    """Names in the first column of the map; indented ones are in src/llamita."""
    found = set()
    for line in folder_map(text).splitlines():
        indented = line.startswith(" ")
        names = re.match(r"\s*((?:[\w/]+/\s+)+|[\w, ]+?(?=\s{2}))", line)
        assert names, line
        for name in re.findall(r"[\w/]+", names.group(1)):
            found.add(f"src/llamita/{name}" if indented else name.rstrip("/"))
    return found


def tracked_folders() -> set[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    parts = [line.split("/")[:-1] for line in listed.splitlines() if (ROOT / line).exists()]
    return {"/".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}


@pytest.mark.parametrize("text", [README, CHINESE], ids=["README.md", "README.zh-CN.md"])
def test_map_is_the_tree_on_disk(text: str) -> None:
    mapped = mapped_folders(text)
    for folder in mapped:
        assert (ROOT / folder).is_dir(), f"the map shows {folder}, which does not exist"
    for folder in tracked_folders():
        if "/" not in folder and not folder.startswith(".") and folder != "src":
            assert folder in mapped, f"{folder}/ is not in the map"
        if re.fullmatch(r"src/llamita/\w+", folder) and folder != "src/llamita/assets":
            name = folder.rsplit("/", 1)[1]
            assert re.search(rf"\b{name}\b", folder_map(text), re.ASCII), f"{folder} is not in the map"


def test_readmes_are_short() -> None:
    assert len(README.splitlines()) <= MAX_LINES
    assert len(CHINESE.splitlines()) <= MAX_LINES


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(text), re.MULTILINE)]


def links(text: str) -> set[str]:
    return set(re.findall(r"\]\(([^)\s]+)\)", prose(text)))


def without_comments(block: str) -> str:
    """The code, and comments that show a program's output (`#   ...`)."""
    return re.sub(r"[ \t]+", " ", re.sub(r"#(?!  ).*", "", block))


def test_readmes_agree() -> None:
    """The Chinese README has the same headings, bullets, commands, code, links and figures."""
    assert headings(CHINESE) == headings(README)
    assert prose(CHINESE).count("\n- ") == prose(README).count("\n- ")
    fences = [re.findall(r"^```(\w+)$", text, re.MULTILINE) for text in (README, CHINESE)]
    assert fences[0] == fences[1]
    for language in ("sh", "python"):
        ours, theirs = ([without_comments(block) for block in blocks(language, text)] for text in (README, CHINESE))
        assert ours == theirs
    assert blocks("text", CHINESE)[0] == blocks("text")[0]  # what make demo prints
    spans = [set(re.findall(r"`([^`\n]+)`", prose(text))) for text in (README, CHINESE)]
    assert spans[0] == spans[1]
    own = {"README.md", "docs/quickstart.zh-CN.md"}, {"README.zh-CN.md", "docs/quickstart.md"}
    assert links(CHINESE) - own[0] == links(README) - own[1]


def test_readmes_have_the_same_figures() -> None:
    figures = [
        [row.strip("| ").split(" | ")[1:] for row in re.findall(r"^\|.*\d.*\|$", text, re.MULTILINE)]
        for text in (README, CHINESE)
    ]
    assert figures[0] == figures[1]
    # In sentences, millions are counted in ten thousands: 6.5 million are 650 万.
    inline = [set(re.findall(r"\d[\d,.]*\d", prose(text))) for text in (README, CHINESE)]
    assert inline[1] - inline[0] <= {"650"} and inline[0] - inline[1] <= {"6.5"}


def quickstart_commands() -> list[str]:
    (block,) = [block for block in blocks("sh") if "llamita prepare" in block]
    return [line for line in block.splitlines() if line and not line.startswith("#")]


def random_stories(count: int, seed: int) -> str:
    """Short texts of invented words, enough for a small vocabulary."""
    choice = random.Random(seed)
    words = ["".join(choice.choice("aeioubdgklmnprst") for _ in range(choice.randint(2, 7))) for _ in range(900)]
    stories = (" ".join(choice.choices(words, k=choice.randint(20, 60))) + "." for _ in range(count))
    return "\n<|endoftext|>\n".join(stories)


def test_quickstart_runs(tmp_path: Path) -> None:
    """Every command of the quickstart, in order, in one folder; only the training is made shorter."""
    (tmp_path / "stories.txt").write_text(random_stories(400, seed=0), encoding="utf-8")
    (tmp_path / "more.txt").write_text(random_stories(100, seed=1), encoding="utf-8")
    commands = quickstart_commands()
    assert [shlex.split(command)[1] for command in commands] == ["prepare", "train", "export", "eval", "run"]
    for command in commands:
        words = shlex.split(re.sub(r"--minutes \d+", "--steps 3", command))
        assert words[0] == "llamita"
        done = subprocess.run(
            [sys.executable, "-m", "llamita", *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_python_example_runs(page: str, tmp_path: Path) -> None:
    (code,) = blocks("python", (ROOT / page).read_text(encoding="utf-8"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.slow
def test_python_pipeline_runs(tmp_path: Path) -> None:
    """The first example of the Python API page, with three steps instead of ten minutes."""
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "stories.txt").write_text(random_stories(400, seed=0), encoding="utf-8")
    code = blocks("python", (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8"))[0]
    assert "minutes=10" in code
    shorter = code.replace("minutes=10", "steps=3")
    done = subprocess.run([sys.executable, "-c", shorter], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.gguf").is_file()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/quickstart.md", "docs/c-api.md"])
def test_make_targets_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page} shows `make {target}`"


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.sh")), ids=lambda path: path.name)
def test_example_scripts_use_existing_options(script: Path) -> None:
    """Each option that a script gives is in the help of its command, and the shell accepts the script."""
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=10)
    help_page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for line in script.read_text(encoding="utf-8").splitlines():
        for command, rest in re.findall(r"^[^#]*\bllamita ([a-z]+)(.*)", line):
            section = help_page.partition(f"\n## llamita {command}\n")[2].partition("\n## ")[0]
            assert section, f"{script.name}: unknown command {command}"
            for option in re.findall(r"(?<=\s)--?[a-z][\w-]*", rest):
                assert re.search(rf"(?<![\w-]){option}\b", section), f"{script.name}: {command} has no {option}"
