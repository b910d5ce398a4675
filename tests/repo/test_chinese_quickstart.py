"""Runs every command of docs/quickstart.zh-CN.md, in order, on a small generated corpus of poems."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamita.cli import main
from llamita.tokenizer.chat_templates import replace_chat_template

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "quickstart.zh-CN.md").read_text(encoding="utf-8")
NOUNS = "山水风月花鸟云雨雪江河海天星夜春秋石松竹梅柳舟桥门窗灯酒茶书琴剑马牛羊草叶枝村城路客僧翁童"
VERBS = "见闻听思望来去归行坐起落飞鸣照入出过随送问饮歌舞眠醒"
ADJECTIVES = "青白红黄绿远近高低深浅明暗冷暖清长新旧孤静空满轻"
TINY = "--layers 2 --hidden 32 --heads 2 --ffn 64 --context 128 --micro-batch-size 8 --threads 1"
# What makes a command shorter. Nothing else of it is changed.
SHORTER = {
    "train tokens": ("--minutes 10", f"--steps 3 {TINY}"),
    "train --out": ("--minutes 20", "--steps 5"),
    "finetune runs/poems": ("--minutes 5", "--steps 2 --threads 1"),
    "finetune qwen": ("--minutes 60", "--steps 2 --threads 1"),
    "eval runs/poems": ("--samples 64", "--samples 4"),
    "python benchmarks/poems.py": ("benchmarks/poems.py", f"{ROOT}/benchmarks/poems.py --samples 20"),
}


def generated_poems(count: int) -> str:
    """Poems in form only: a title, an author, and lines of two halves, of random words."""
    choice = random.Random(0)

    def words(number: int) -> str:
        return "".join(choice.choice((ADJECTIVES, NOUNS, VERBS)[place % 3]) for place in range(number))

    def poem() -> str:
        length, num_lines = choice.choice((5, 7)), choice.choice((2, 4))
        lines = [f"{words(length)}，{words(length)}。" for _ in range(num_lines)]
        return "\n".join([words(3), words(2), *lines])

    return "\n\n".join(poem() for _ in range(count)) + "\n"


def blocks() -> list[tuple[str, str]]:
    """The code blocks that are run: (language, code)."""
    return re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def shorter(command: str) -> str:
    for part, (long, short) in SHORTER.items():
        if part in command and long in command:
            return command.replace(long, short)
    return command


@contextlib.contextmanager
def serving(command: str, port: int) -> Iterator[None]:
    """The server, ready, while the block runs."""
    words = shlex.split(command.replace("8000", str(port)))[1:]
    process = subprocess.Popen([sys.executable, "-m", "llamita", *words], stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            assert process.poll() is None, process.communicate()[1]
            with contextlib.suppress(OSError):
                assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def run(command: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Runs a command of the page; the `llamita` ones in this process. Returns its standard output."""
    capfd.readouterr()
    if command.startswith("llamita "):
        assert main(shlex.split(command)[1:]) == 0, f"{command}\n{capfd.readouterr().err}"
        return capfd.readouterr().out
    python = shlex.quote(sys.executable)
    command = re.sub(r"^python ", f"{python} ", command).replace("| llamita ", f"| {python} -m llamita ")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_install_is_that_of_the_english_page() -> None:
    english = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    for command in commands(blocks()[0][1]):
        assert command.replace("[train,serve]", "[train]") in english
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^train = \[", extras, re.MULTILINE) and re.search(r"^serve = \[", extras, re.MULTILINE)


@pytest.mark.slow
def test_every_command_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    make_checkpoint: Callable[..., Path],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("poems.txt").write_text(generated_poems(400), encoding="utf-8")
    qwen = make_checkpoint(Path("Qwen2.5-0.5B-Instruct"), architecture="qwen2", attention_bias=True)
    replace_chat_template(qwen, "chatml")
    shown: dict[str, str] = {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    can_serve = importlib.util.find_spec("uvicorn") is not None and shutil.which("curl") is not None
    with contextlib.ExitStack() as stack:
        for language, block in blocks()[1:]:
            if language == "python":
                done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120)
                assert done.returncode == 0, f"{block}\n{done.stderr}"
                continue
            for command in commands(block):
                if not command.startswith(("llamita serve", "curl")):
                    shown[command] = run(shorter(command), capfd)
                elif command.startswith("curl") and can_serve:
                    shown[command] = run(command.replace(":8000/", f":{port}/"), capfd)
                elif can_serve:
                    stack.enter_context(serving(command, port))
    assert "<svg" in Path("runs/poems/report.html").read_text(encoding="utf-8")
    assert "| corpus | 400 | 100.0 | 100.0 |" in Path("poems.md").read_text(encoding="utf-8")
    (continued,) = (text for command, text in shown.items() if " -e " in command)
    assert continued.startswith("春夜\n李白\n")
    (regular,) = (text for command, text in shown.items() if " --regex " in command)
    title, author, *lines = regular.rstrip("\n").split("\n")  # cut off where the context ends
    assert 1 <= len(title) <= 12 and len(author) <= 5
    assert all(re.fullmatch("([一-龥]{5}[，。])*[一-龥]{0,5}", line) for line in lines), regular
    (ten,) = (text for command, text in shown.items() if " -N 10" in command)
    assert ten.count("\n--- ") + ten.startswith("--- ") == 10
    answers = [text for command, text in shown.items() if command.startswith("curl")]
    assert len(answers) == can_serve and all('"choices"' in text for text in answers)


def test_poems_in_gb18030_make_the_same_tokens(tmp_path: Path) -> None:
    text = generated_poems(400)
    (tmp_path / "utf8.txt").write_text(text, encoding="utf-8")
    (tmp_path / "gb.txt").write_bytes(text.replace("\n", "\r\n").encode("gb18030"))
    (prepare,) = (command for _, block in blocks() for command in commands(block) if " prepare " in command)
    for name in ("utf8", "gb"):
        words = shlex.split(
            prepare.replace("poems.txt", f"{tmp_path}/{name}.txt").replace("tokens", f"{tmp_path}/{name}")
        )
        assert main(words[1:]) == 0
    for file in ("train/00000.ds", "tokenizer.json"):
        assert (tmp_path / "gb" / file).read_bytes() == (tmp_path / "utf8" / file).read_bytes()
