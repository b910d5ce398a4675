"""Counts of Chinese poems: half-lines, forms, broken characters; the table, on the packaged model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import poems  # noqa: E402

from llamita.engine.model import PACKAGED_MODEL  # noqa: E402

FIVE, SEVEN = "一二三四五", "一二三四五六七"
HEAD = "題目\n作者\n"
QUATRAIN = f"{HEAD}{FIVE}，{FIVE}。\n{FIVE}，{FIVE}？\n"


def test_half_lines_are_what_marks_and_line_ends_separate() -> None:
    assert poems.half_lines(QUATRAIN, 2) == [FIVE] * 4
    assert poems.half_lines(f"\n{HEAD}{FIVE}；{SEVEN}！「{FIVE}」…\n", 2) == [FIVE, SEVEN, FIVE]
    assert poems.half_lines(QUATRAIN, 0)[:2] == ["題目", "作者"]
    assert poems.half_lines(HEAD, 2) == []


@pytest.mark.parametrize("note", ["（一作六）", "(一作六)", "〔六〕", "〖六〗", "【六】", "[六]"])
def test_notes_in_brackets_can_be_left_out(note: str) -> None:
    poem = f"{HEAD}{FIVE}{note}，{FIVE}。"
    assert poems.half_lines(poem, 2, notes=False) == [FIVE, FIVE]
    assert poems.half_lines(poem, 2)[0] == FIVE + note
    unclosed = f"{HEAD}{FIVE}{note[:-1]}，{FIVE}。"
    assert poems.half_lines(unclosed, 2, notes=False)[0] == FIVE + note[:-1]


@pytest.mark.parametrize(
    ("halves", "expected"),
    [
        ([FIVE] * 4, (1, 1, 1)),
        ([SEVEN] * 8, (1, 1, 1)),
        ([SEVEN] * 6, (1, 1, 0)),
        ([FIVE] * 5, (1, 1, 0)),
        ([FIVE, FIVE, FIVE, SEVEN], (1, 0, 0)),
        (["一二三四"] * 4, (1, 0, 0)),
        (["一二三四□"] * 4, (1, 1, 1)),  # the corpus marks lost characters
        (["\U00030000一二三四"] * 4, (1, 1, 1)),
        ([], (0, 0, 0)),
    ],
)
def test_forms(halves: list[str], expected: tuple[int, int, int]) -> None:
    assert poems.count_form([halves]) == poems.Form(*expected)


def test_broken_characters_of_texts() -> None:
    whole = QUATRAIN.encode()
    assert not poems.is_broken(whole) and not poems.is_broken("□".encode())
    assert poems.is_broken(whole[:-2]) and poems.is_broken(b"\xe4" + whole) and poems.is_broken("\ufffd".encode())
    counts = poems.count_texts([whole, whole[:-2], HEAD.encode(), f"{HEAD}{FIVE}（六），{FIVE}。".encode()], 2)
    assert (counts.texts, counts.broken) == (4, 1)
    assert counts.as_is == poems.Form(3, 1, 1)
    assert counts.without_notes == poems.Form(3, 2, 1)
    assert counts.as_is.shares() == (pytest.approx(100 / 3), pytest.approx(100 / 3))


def test_table_has_the_corpus_the_models_and_their_medians() -> None:
    counts = poems.count_texts([QUATRAIN.encode()] * 3 + [HEAD.encode()], 2)
    models = [poems.Measured(f"seed {n}", counts, n, 2.0 + n, (QUATRAIN,)) for n in range(3)]
    lines = poems.table(counts, models).splitlines()
    assert lines[2] == "| corpus | 4 | 100.0 | 100.0 | 100.0 | 100.0 | 1 | 0 |  |  |"
    assert lines[4] == "| seed 1 | 4 | 100.0 | 100.0 | 100.0 | 100.0 | 1 | 0 | 1 | 3.0000 |"
    assert lines[6] == "| median |  | 100.0 | 100.0 | 100.0 | 100.0 |  |  |  | 3.0000 |"
    assert len({line.count("|") for line in lines}) == 1
    rows = poems.records(counts, models, 10)
    assert [row[1] for row in rows] == ["100.0", "100.0", "3.0000"] and rows[2][-1] == "2.0000-4.0000"


def test_a_model_file_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The packaged model writes stories: no poem, no broken character."""
    text, out = tmp_path / "poems.txt", tmp_path / "poems.md"
    text.write_text("\n\n".join(QUATRAIN.replace("題", chr(0x4E00 + n)) for n in range(40)), encoding="utf-8")
    arguments = [str(text), "--store", str(text), "--runs", str(PACKAGED_MODEL), "--samples", "12", "--threads", "1"]
    assert poems.main([*arguments, "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "| corpus | 40 | 100.0 | 100.0 | 100.0 | 100.0 | 0 | 0 |  |  |" in page
    assert f"| {PACKAGED_MODEL} | 12 | 0.0 | 0.0 | 0.0 | 0.0 |" in page
    assert page.count("```text") == poems.SHOWN_POEMS
    assert "0 broken" in capsys.readouterr().err


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert poems.main([str(tmp_path / "absent.txt")]) == 1
    assert "absent.txt" in capsys.readouterr().err
    (tmp_path / "poems.txt").write_text(QUATRAIN, encoding="utf-8")
    assert poems.main([str(tmp_path / "poems.txt"), "--minutes", "0.1"]) == 1
    assert capsys.readouterr().err.startswith("llamita prepare ended with code 2: ")
