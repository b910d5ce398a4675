"""Holds the README to its word: the tree it draws is the tree on disk, and the commands it shows run as written."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llamita.stories.generate import generate_stories

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def drawn_paths() -> set[str]:
    """The paths of the README's tree: two spaces a level, a name, then what lives there."""
    (tree,) = blocks("text")
    paths, parents = set(), {}
    for line in tree.splitlines():
        if not line.strip():
            continue
        depth, names = (len(line) - len(line.lstrip())) // 2, re.split(r"\s{2,}", line.strip())[0]
        for name in names.split(" · "):
            parents[depth] = name.rstrip("/")
            paths.add("/".join(parents[d] for d in range(depth + 1)))
    return paths


def tracked_files() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [path for path in listed if path and (ROOT / path).exists()]


def test_tree_is_the_tree_on_disk() -> None:
    drawn = drawn_paths()
    for path in drawn:
        assert (ROOT / path).exists(), f"README's tree draws {path}, which is not there"
    drawn_folders = {path for path in drawn if (ROOT / path).is_dir()}
    for file in tracked_files():
        parts = file.split("/")
        known = any("/".join(parts[:n]) in drawn for n in range(len(parts), 0, -1))
        assert known, f"{file} is not in README's tree"
        folder = "/".join(parts[:-1])
        if folder in drawn_folders and any(path.startswith(f"{folder}/") for path in drawn):
            assert file in drawn or "/".join(parts) in drawn, f"{file} is missing from README's tree under {folder}/"


def corridor_commands() -> list[str]:
    (block,) = [b for b in blocks("sh") if "llamita prepare" in b]
    return [line.split("#")[0].strip() for line in block.splitlines() if line.split("#")[0].strip()]


def test_corridor_commands_run(tmp_path: Path) -> None:
    """Every command of the pipeline, in order, in one folder; only the training time is cut to a few steps."""
    folder = tmp_path / "my_texts"
    folder.mkdir()
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(generate_stories(4000)), encoding="utf-8")
    commands = corridor_commands()
    commands = [shlex.split(command)[1] for command in commands]
    assert commands[:2] == ["prepare", "train"] and {"export", "run", "eval"} <= set(commands)
    for command in commands:
        words = shlex.split(re.sub(r"--minutes \d+", "--steps 3", command))
        assert words[0] == "llamita"
        done = subprocess.run(
            [sys.executable, "-m", "llamita", *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_python_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_make_targets_exist() -> None:
    targets = re.findall(r"^make ([a-z]+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README shows `make {target}`"
