"""Verification: equal models pass; a swapped row, a lost scale or NaN does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamita.convert import export as export_module  # noqa: E402
from llamita.convert import import_llama2c as source_llama2c  # noqa: E402
from llamita.convert import verify  # noqa: E402
from llamita.convert.export import export  # noqa: E402
from llamita.convert.import_model import import_model  # noqa: E402
from llamita.convert.verify import compare  # noqa: E402
from llamita.errors import FormatError  # noqa: E402
from llamita.tokenizer import gguf as tokenizer_gguf  # noqa: E402
from llamita.tokenizer import load as tokenizer_load  # noqa: E402
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES  # noqa: E402
from llamita.tokenizer.llama2c import tokenizer_bin  # noqa: E402

MakeCheckpoint = Callable[..., Path]


def test_compare() -> None:
    logits = np.array([[1.0, -4.0]], np.float32)
    result = compare(logits, logits + np.float32(0.25), 0.1, "x", "y")
    assert (result.num_tokens, result.largest_difference, result.largest_logit) == (1, 0.25, 4.0)
    assert result.relative == pytest.approx((2 * 0.25**2 / 17) ** 0.5)
    assert "largest difference 0.25 (largest logit 4), relative 0.086 (allowed: 0.1)" in result.line()
    for bad in (logits + np.float32(0.4), np.full_like(logits, np.nan)):
        with pytest.raises(FormatError, match="cannot write z: its logits differ from those of w: expected"):
            compare(logits, bad, 0.1, "cannot write z", "w")


def test_non_finite_logits_are_refused() -> None:
    with pytest.raises(FormatError, match="logits of w are not finite: its weights are broken"):
        compare(np.full((1, 2), np.inf, np.float32), np.zeros((1, 2), np.float32), 0.1, "cannot write z", "w")


@pytest.mark.parametrize("type", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gguf_files(make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path, type: str, kind: str) -> None:
    report = export(make_checkpoint(tmp_path / "model", kind), tmp_path / "model.gguf", type, verify=True)
    found = report.verification
    assert found is not None and found.num_tokens == verify.NUM_TOKENS
    assert found.relative <= {"f32": 1e-5, "f16": 0.01, "q8_0": 0.15, "q4_0": 0.9}[type]
    assert (found.relative > 1e-4) == (type not in ("f32",))


@pytest.mark.parametrize("version", [0, 1, 2])
def test_bin_files(make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path, version: int) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama", intermediate_size=172)
    found = export(checkpoint, tmp_path / "out" / "model.bin", version=version, verify=True).verification
    assert found is not None and found.relative <= (0.1 if version == 2 else 1e-5)


def test_rows_in_a_wrong_order_are_caught(
    make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one mistake that other checks miss: q and k of the right shape in the other RoPE
    order."""
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    export(checkpoint, tmp_path / "right" / "model.bin", verify=True)
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "permute_qk", lambda numbers, heads: numbers)
        for name in ("model.gguf", "model.bin"):
            with pytest.raises(FormatError, match=r"cannot write .* differ from those of .* please report it"):
                export(checkpoint, tmp_path / name, "f32", verify=True)
    assert sorted(tmp_path.iterdir()) == before

    def broken(tensor: Any, spec: Any, config: Any, reads: list[int] = []) -> Any:  # noqa: B006 (counts the reads)
        reads.append(1)
        return tensor.flip(0) if len(reads) == 3 else tensor

    monkeypatch.setattr(source_llama2c, "with_unpermuted_qk", broken)
    with pytest.raises(FormatError, match=r"cannot write .*/again: its logits differ"):
        import_model(tmp_path / "right" / "model.bin", tmp_path / "again")
    assert not (tmp_path / "again").exists() and not list(tmp_path.glob(".again*"))


def test_small_models_are_verified_by_default_and_large_ones_not(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    assert import_model(checkpoint, tmp_path / "a").verification is not None
    assert import_model(checkpoint, tmp_path / "b", verify=False).verification is None
    monkeypatch.setattr(verify, "SMALL_PARAMETERS", 1000)
    assert import_model(checkpoint, tmp_path / "c").verification is None
    assert import_model(checkpoint, tmp_path / "d", verify=True).verification is not None


# ---------------------------------------------------------------- ids of texts


def edit_tokenizer(checkpoint: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = checkpoint / "tokenizer.json"
    sections = json.loads(path.read_text(encoding="utf-8"))
    edit(sections)
    path.write_text(json.dumps(sections), encoding="utf-8")


def strip_after(special: bool) -> Callable[[dict[str, Any]], object]:
    return lambda sections: sections["added_tokens"][1].update(rstrip=True, special=special)


def first_only(sections: dict[str, Any]) -> None:
    """A space before the whole text alone, as transformers does for `"legacy": false`."""
    sections["normalizer"] = None
    sections["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "edit", "note"),
    [
        ("gpt2", lambda sections: sections.update(normalizer={"type": "NFC"}), r"it normalizes text \(NFC\)"),
        ("gpt2", lambda sections: sections.update(normalizer={"type": "Lowercase"}), "it normalizes text"),
        ("gpt2", lambda sections: sections["model"].update(ignore_merges=True), "whole words that are tokens"),
        ("gpt2", strip_after(special=False), "its token '<|im_start|>' strips the spaces"),
        ("gpt2", strip_after(special=True), "its control token '<|im_start|>' strips the spaces"),
        ("llama", strip_after(special=True), "its control token '<s>' strips the spaces"),
        ("llama", first_only, "the engine encodes control tokens differently"),
    ],
)
def test_texts_that_the_engine_encodes_differently_have_a_note(
    make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path, kind: str, edit: Any, note: str
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", kind)
    assert export(checkpoint, tmp_path / "before.gguf").notes == ()
    edit_tokenizer(checkpoint, edit)
    assert any(re.search(note, found) for found in export(checkpoint, tmp_path / "after.gguf").notes)
    if edit is not first_only:  # known without running the file
        assert any(re.search(note, found) for found in export(checkpoint, tmp_path / "b.gguf", verify=False).notes)


def test_texts_of_a_bin_are_compared(
    make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    assert export(checkpoint, tmp_path / "out" / "model.bin").notes == ()

    def wrong(tokenizer: Any, vocab_size: int) -> bytes:
        """The scores of the pieces in reverse."""
        monkeypatch.setattr(tokenizer, "scores", lambda: [-score for score in type(tokenizer).scores(tokenizer)])
        return tokenizer_bin(tokenizer, vocab_size)

    monkeypatch.setattr(export_module, "tokenizer_bin", wrong)
    (note,) = export(checkpoint, tmp_path / "out" / "model.bin").notes
    assert "the engine encodes 'Once upon a time" in note


@pytest.mark.parametrize(
    "template", ["chatml", "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['content'] }}\n{% endfor %}"]
)
def test_chats_are_compared(
    make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    """In a template that the engine renders itself, and in one that Jinja renders."""
    checkpoint = make_checkpoint(tmp_path / "model")
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    config["chat_template"] = CHAT_TEMPLATES.get(template, template)
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    assert export(checkpoint, tmp_path / "a.gguf").notes == ()
    assert import_model(tmp_path / "a.gguf", tmp_path / "a").notes[1:] == ()
    name = "chat_encode" if template == "chatml" else "encode"
    right = getattr(verify.Model, name)

    def wrong(model: Any, text: Any, *options: Any, **named: Any) -> list[int]:
        ids: list[int] = right(model, text, *options, **named)
        return ids[:-1] if name == "chat_encode" or "And now?" in text else ids

    monkeypatch.setattr(verify.Model, name, wrong)
    (note,) = export(checkpoint, tmp_path / "b.gguf").notes
    assert note == "the engine encodes a chat differently from the checkpoint"


def test_a_chat_template_that_fails_has_a_note(
    make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    (checkpoint / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    (note,) = export(checkpoint, tmp_path / "a.gguf").notes
    assert note == "the ids of a chat were not compared: chat template: it says: no"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bin"])
def test_a_tokenizer_that_was_misread_is_refused(
    make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The logits of given ids are right whatever the tokenizer does."""
    name = "model.bin" if kind == "bin" else "model.gguf"
    export(make_checkpoint(tmp_path / "model", "gpt2" if kind == "gpt2" else "llama"), tmp_path / "out" / name)
    import_model(tmp_path / "out" / name, tmp_path / "right")
    monkeypatch.setattr(tokenizer_gguf, "byte_level_json", with_last_merges_only(tokenizer_gguf.byte_level_json))
    monkeypatch.setattr(tokenizer_gguf, "tokenizer_json", with_last_merges_only(tokenizer_gguf.tokenizer_json))
    monkeypatch.setattr(tokenizer_load, "tokenizer_json", with_last_merges_only(tokenizer_load.tokenizer_json))
    with pytest.raises(FormatError, match=r"wrong: the engine encodes .* \(--verify no skips this check\)"):
        import_model(tmp_path / "out" / name, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    import_model(tmp_path / "out" / name, tmp_path / "wrong", verify=False)


def with_last_merges_only(make: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def made(*arguments: Any) -> dict[str, Any]:
        sections = make(*arguments)
        merges = sections["model"]["merges"]
        sections["model"]["merges"] = merges[len(merges) // 2 :]
        return sections

    return made


def test_import_notes_what_the_engine_cannot_do(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    assert import_model(checkpoint, tmp_path / "a").notes == ()
    edit_tokenizer(checkpoint, lambda sections: sections.update(normalizer={"type": "NFC"}))
    (note,) = import_model(checkpoint, tmp_path / "b").notes
    assert note == "the engine encodes some texts differently: it normalizes text (NFC)"
