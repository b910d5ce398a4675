"""General text is a sample: the beginning of each document, and of few documents."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from llamita.finetune import dataset
from llamita.tokenizer import load_tokenizer


def test_a_book_and_many_documents_are_cut(story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "GENERAL_CHARACTERS", 100)
    monkeypatch.setattr(dataset, "GENERAL_TOKENS", 150)
    tokenizer = load_tokenizer(story_store)
    text = "The old fox slept under the apple tree. " * 50
    path = tmp_path / "book.txt"
    path.write_text("\n<|endoftext|>\n".join([text] * 20), encoding="utf-8")
    found = dataset.open_general_text(path, tokenizer, 0)
    one = len(tokenizer.encode(text[:100])) + 1
    assert found.num_documents == -(-150 // one) and found.text_bytes == 100 * found.num_documents
