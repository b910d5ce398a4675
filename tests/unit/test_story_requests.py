"""The example that makes requests of stories: each request asks for what its story has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "story_requests.py"
NOUNS = ("frog", "boat", "garden", "kite", "puppy", "lamp")
VERBS = ("jumped", "sailed", "shouted", "danced", "painted", "whispered", "climbed", "giggled")


def story(number: int) -> str:
    noun, verbs = NOUNS[number % 6], [VERBS[(number + step) % 8] for step in (0, 1, 2, 4)]
    return f"Tim saw a {noun}. The {noun} {verbs[0]} and {verbs[1]}. Then the {noun}, who {verbs[2]}, was {verbs[3]}."


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=True)


def test_requests_ask_for_what_the_story_has_and_for_no_names(tmp_path: Path) -> None:
    stories = [story(number) for number in range(200)]
    source = tmp_path / "stories.txt"
    source.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    # every word of so few kinds is in more than 6 % of the stories: drown them in others
    with source.open("a", encoding="utf-8") as file:
        file.writelines(f"\n<|endoftext|>\nOne day it rained on number {i}." for i in range(4000))
    for name in ("one.jsonl", "two.jsonl"):
        assert "200 requests of 4200 stories" in run(str(source), "--out", str(tmp_path / name)).stderr
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        assert row["completion"] == stories[number]
        assert re.search(rf"about an? {NOUNS[number % 6]}\b", row["prompt"]), row
        asked = re.search(r"words (\w+), (\w+) and (\w+)", row["prompt"])
        assert asked is not None and "Tim" not in row["prompt"]
        assert len(set(asked.groups())) == 3 and all(re.search(rf"\b{w}\b", stories[number]) for w in asked.groups())
