"""A real datatrove pipeline's token files become a token store that training reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamita.config import PrepareConfig
from llamita.data.prepare import prepare
from llamita.data.token_store import TokenStore
from llamita.errors import SourceError
from llamita.tokenizer import load_tokenizer, train_bpe

pytestmark = pytest.mark.compat
pytest.importorskip("datatrove", reason="datatrove is not installed (the extra compat has it)")
STORIES = [
    f"Story {i}: Lily saw {i % 7} apples by the river, where 狐狸 had found {i * i} before; she counted and sang."
    for i in range(300)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(STORIES, 290).save(folder)
    return folder


def run_datatrove(tmp_path: Path, tokenizer: Path, stories: list[str] = STORIES, **options: Any) -> Path:
    """Two tasks: reader → DocumentTokenizer."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    source, out = tmp_path / "text", tmp_path / "tokens"
    source.mkdir()
    for part in range(2):
        lines = [json.dumps({"text": text, "id": str(i)}) for i, text in enumerate(stories) if i % 2 == part]
        (source / f"{part}.jsonl").write_text("\n".join(lines))
    step = DocumentTokenizer(str(out), tokenizer_name_or_path=str(tokenizer / "tokenizer.json"), seed=5, **options)
    LocalPipelineExecutor([JsonlReader(str(source)), step], tasks=2, logging_dir=str(tmp_path / "logs")).run()
    return out


@pytest.mark.parametrize("loss", [False, True])
def test_a_pipelines_tokens_are_a_store(tmp_path: Path, tokenizer: Path, loss: bool) -> None:
    tokens = run_datatrove(tmp_path, tokenizer, eos_token="<|endoftext|>", save_loss_metadata=loss)
    config = PrepareConfig(sources=(str(tokens),), out=tmp_path / "store", tokenizer=tokenizer, datatrove=True)
    report = prepare(config)
    assert (report.files, report.documents, report.encoded_by) == (2, 300, "datatrove")
    assert (report.train.documents, report.val.documents) == (285, 15)
    assert report.train.text_bytes + report.val.text_bytes == sum(len(text.encode()) for text in STORIES)
    store, own = TokenStore(report.out), load_tokenizer(tokenizer)
    texts = {}
    for name in ("train", "val"):
        split = store.split(name)  # type: ignore[arg-type]
        documents = [split.document(i).tolist() for i in range(split.num_documents)]
        assert all(document[-1] == 0 and 0 not in document[:-1] for document in documents)
        texts[name] = [own.decode(document[:-1]).decode() for document in documents]
    assert sorted(texts["train"] + texts["val"]) == sorted(STORIES)
    linked = [path for path in (report.out / "train").glob("*.ds") if path.stat().st_nlink > 1 or path.is_symlink()]
    assert len(linked) == 1  # the other file is the one that the held-out documents were cut from
    assert prepare(config).reused


def test_training_reads_it(tmp_path: Path, tokenizer: Path) -> None:
    pytest.importorskip("torch")
    from llamita.config import TrainConfig
    from llamita.training.pretraining import train

    tokens = run_datatrove(tmp_path, tokenizer, eos_token="<|endoftext|>")
    prepare(PrepareConfig(sources=(str(tokens),), out=tmp_path / "store", tokenizer=tokenizer, datatrove=True))
    result = train(
        TrainConfig(
            data=tmp_path / "store", out=tmp_path / "run", layers=1, hidden=32, heads=2, context=64, micro_batch_size=4,
            steps=30, device="cpu", threads=1,
        )
    )  # fmt: skip
    assert result.summary["steps"] == 30 and (tmp_path / "run/latest/model.safetensors").is_file()


def test_without_eos_it_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    """datatrove then encodes as the tokenizer says: BOS first, nothing at the end."""
    tokens = run_datatrove(tmp_path, tokenizer)
    config = PrepareConfig(sources=(str(tokens),), out=tmp_path / "store", tokenizer=tokenizer, datatrove=True)
    with pytest.raises(SourceError, match=r"change when they are decoded and encoded|does not end with EOS"):
        prepare(config)
    assert not (tmp_path / "store").exists()
