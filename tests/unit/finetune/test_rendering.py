"""Rendering of conversations: ids, masks, truncation, and templates that cannot be trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llamita.checkpoint import load_config
from llamita.errors import ChatError, SourceError, TokenizerError, TrainingError
from llamita.finetune.conversations import Conversation, Turn, read_conversations
from llamita.finetune.preview import masked_spans
from llamita.finetune.rendering import Renderer, render_examples
from llamita.tokenizer import load_tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES
from tests.conftest import PUBLISHED_TEMPLATES
from tests.unit.finetune.conftest import renderer, talk

THREE = talk("Who are you?", "A llama.", "How old?", "Two, I think.", "Bye", "Bye!", system="Be brief.")


@pytest.fixture(scope="module")
def llama_checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sft") / "base", "llama", max_position_embeddings=256)


def learned_texts(checkpoint: Path, template: str | None = None) -> list[str]:
    with renderer(checkpoint, template=template) as render:
        (example,) = render.render(THREE)
        return [text for text, learned in masked_spans(example, render.tokenizer) if learned]


def test_unused_keys_are_counted(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"question": "Who?", "answer": "A llama.", "context": "x"}] * 2
    rows.append({"question": "Who?", "answer": "A llama.", **{f"extra{i}" + "y" * 90: "x" for i in range(9)}})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with renderer(checkpoint) as render:
        _, counts = render_examples(list(read_conversations(path)), render)
    line = counts.describe()[-1]
    assert line.startswith("keys not used: 'context' in 2 rows, 'extra0yyy") and line.endswith(" in 1 rows, 2 more")
    assert len(line) < 500


def test_our_own_tokenizer_gets_chatml(checkpoint: Path) -> None:
    with renderer(checkpoint) as render:
        (example,) = render.render(THREE)
        assert example.ids[0] == 1 and example.ids[-1] == 2 and not example.loss_mask[0] and example.loss_mask[-1]
        pieces = [text for text, _ in masked_spans(example, render.tokenizer)]
    assert "".join(pieces).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>"
    )
    assert learned_texts(checkpoint) == ["A llama.<|im_end|>", "Two, I think.<|im_end|>", "Bye!<|im_end|>"]


@pytest.mark.parametrize("name", ["llama2", "zephyr", "chatml"])
@pytest.mark.parametrize("written", ["ours", "published"])
def test_families(checkpoint: Path, llama_checkpoint: Path, name: str, written: str) -> None:
    template = (CHAT_TEMPLATES if written == "ours" else PUBLISHED_TEMPLATES)[name]
    where = checkpoint if name == "chatml" else llama_checkpoint
    texts = learned_texts(where, template)
    end = "<|im_end|>" if name == "chatml" else "</s>"
    assert [text.strip().removesuffix(end).strip() for text in texts] == ["A llama.", "Two, I think.", "Bye!"]
    assert all(text.endswith(end) for text in texts)


def test_ids_are_those_of_the_whole_text(checkpoint: Path) -> None:
    jinja2 = pytest.importorskip("jinja2")
    text = jinja2.Template(CHAT_TEMPLATES["chatml"]).render(messages=THREE.messages())
    with renderer(checkpoint) as render:
        whole = render.tokenizer.encode(text, parse_special=True)
        (example,) = render.render(THREE)
    assert example.ids.tolist() == whole[: len(example.ids)]
    assert render.tokenizer.decode(whole[len(example.ids) :]) == b"\n"  # what follows the end token belongs to nobody


def test_only_marked_answers_are_learned(checkpoint: Path) -> None:
    turns = list(THREE.turns)
    turns[2] = Turn("assistant", "A llama.", False)
    with renderer(checkpoint) as render:
        (example,) = render.render(Conversation(tuple(turns), "x"))
        assert next(t for t, learned in masked_spans(example, render.tokenizer) if learned).startswith("Two")


def test_long_ones_are_cut_at_turns(checkpoint: Path) -> None:
    with renderer(checkpoint) as render:
        (whole,) = render.render(THREE)
    ends = np.flatnonzero(whole.ids == 2)  # system, user, assistant, …
    with renderer(checkpoint, context=int(ends[4])) as render:
        (cut,) = render.render(THREE)
        assert len(cut.ids) == ends[4] + 1 and cut.removed_turns == 2 and cut.length == render.context_tokens
    with renderer(checkpoint, context=int(ends[4]) - 1) as render:
        assert render.render(THREE)[0].removed_turns == 4
        long = talk("Why?", "Because " * 200, where="a.jsonl:7")
        examples, counts = render_examples([long, THREE, long], render)
        assert len(examples) == 1
        assert (counts.total, counts.truncated, counts.removed_turns, counts.too_long) == (3, 1, 4, 2)
        counted = dict(line.split(": ", 1) for line in counts.describe())
        assert "a.jsonl:7" in counted["too long"] and "4 turns" in counted["truncated"]
        with pytest.raises(TrainingError, match=r"none of 2 conversations fits.*a\.jsonl:7.*--context"):
            render_examples([long, long], render)


NO_END = (
    "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)


FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}"
    "{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


OTHER_PROMPT = CHAT_TEMPLATES["chatml"].replace("assistant", "helper")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NO_END, "writes no end token after the answer"),
        (
            NO_END.replace("'\n'", "'<|im_start|>'"),
            "ends an answer with '<|im_start|>', which is no end token of this model",
        ),
        (FORGETS, "not prefix-stable: it renders an answer differently when more messages follow"),
        (OTHER_PROMPT, "not prefix-stable: it renders the messages before message 3"),
        (PUBLISHED_TEMPLATES["qwen"], "writes no end token after the answer"),
        ("{{ raise_exception('no') }}", "it says: no"),
    ],
)
def test_templates_that_are_errors(checkpoint: Path, template: str, message: str) -> None:
    with renderer(checkpoint, template=template) as render, pytest.raises(ChatError, match=rf"a\.jsonl:1: .*{message}"):
        render.render(THREE)


def test_joined_tokens_are_refused(checkpoint: Path) -> None:
    """The prompt for an answer ends in "t", the answer goes on with "he": one token in the whole
    text."""
    template = (
        "{% for m in messages %}{{ m['role'][0] + ': t' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{{ 'a: t' if add_generation_prompt }}"
    )
    joins = "the tokenizer merges the beginning of message 2"
    with renderer(checkpoint, template=template) as render, pytest.raises(ChatError, match=joins):
        render.render(talk("Who?", "he moon"))


def test_other_refusals(checkpoint: Path, llama_checkpoint: Path, tiny_tokenizers: dict[str, Path]) -> None:
    with (
        renderer(checkpoint) as render,
        pytest.raises(SourceError, match=r"a\.jsonl:1: message 1: its text holds the control token '<\|im_end\|>'"),
    ):
        render.render(talk("What is <|im_end|>?", "A mark."))
    with pytest.raises(ChatError, match=r"no chat template.*--chat-template"):
        renderer(llama_checkpoint)
    with pytest.raises(TokenizerError, match="does not fit the model: expected at most 320"):
        Renderer(load_tokenizer(tiny_tokenizers["llama"]), load_config(checkpoint))


def test_real_pairs(checkpoint: Path, shared_data: Path) -> None:
    """The first 40 questions and answers of MedQuAD: those that fit are learned whole, to the end
    token."""
    rows = read_conversations(shared_data / "sft" / "medquad_qa.jsonl")
    said = [next(rows) for _ in range(40)]
    with renderer(checkpoint, context=2048) as render:
        examples, counts = render_examples(said, render)
        for example in examples:
            learned = [text for text, is_learned in masked_spans(example, render.tokenizer) if is_learned]
            answer = next(c for c in said if c.where == example.where).turns[1].text
            assert learned == [answer + "<|im_end|>"]
    assert counts.kept + counts.too_long == 40 and counts.kept > 20
