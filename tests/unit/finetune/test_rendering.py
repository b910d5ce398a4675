"""Conversations to ids and masks, packed rows and their loss: what is learned, what is refused, what is kept apart."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from llamita.checkpoint import load_config, load_model
from llamita.data.batches import IGNORED
from llamita.errors import ChatError, SourceError, TokenizerError, TrainingError
from llamita.finetune.conversations import Conversation, Turn, read_conversations
from llamita.finetune.lora import LoraConfig, add_lora
from llamita.finetune.loss import ConversationLoss
from llamita.finetune.packing import ConversationBatches, Examples
from llamita.finetune.preview import masked_spans, preview_examples
from llamita.finetune.rendering import Renderer, render_examples
from llamita.tokenizer import load_tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES
from tests.conftest import PUBLISHED_TEMPLATES


def talk(*texts: str, system: str | None = None, where: str = "a.jsonl:1") -> Conversation:
    turns = [] if system is None else [Turn("system", system)]
    turns += [Turn("assistant", text, True) if n % 2 else Turn("user", text) for n, text in enumerate(texts)]
    return Conversation(tuple(turns), where)


THREE = talk("Who are you?", "A llama.", "How old?", "Two, I think.", "Bye", "Bye!", system="Be brief.")


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sft") / "base", max_position_embeddings=256)


@pytest.fixture(scope="module")
def llama_checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sft") / "base", "llama", max_position_embeddings=256)


def renderer(checkpoint: Path, context: int | None = None, template: str | None = None) -> Renderer:
    return Renderer(load_tokenizer(checkpoint), load_config(checkpoint), context, template)


def learned_texts(checkpoint: Path, template: str | None = None) -> list[str]:
    with renderer(checkpoint, template=template) as render:
        example = render.render(THREE)
        return [text for text, learned in masked_spans(example, render.tokenizer) if learned]


def test_our_own_tokenizer_gets_chatml(checkpoint: Path) -> None:
    with renderer(checkpoint) as render:
        example = render.render(THREE)
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
        example = render.render(THREE)
    assert example.ids.tolist() == whole[: len(example.ids)]
    assert render.tokenizer.decode(whole[len(example.ids) :]) == b"\n"  # what follows the end token belongs to nobody


def test_only_marked_answers_are_learned(checkpoint: Path) -> None:
    turns = list(THREE.turns)
    turns[2] = Turn("assistant", "A llama.", False)
    with renderer(checkpoint) as render:
        example = render.render(Conversation(tuple(turns), "x"))
        assert next(t for t, learned in masked_spans(example, render.tokenizer) if learned).startswith("Two")


def test_long_ones_are_cut_at_turns(checkpoint: Path) -> None:
    with renderer(checkpoint) as render:
        whole = render.render(THREE)
    ends = np.flatnonzero(whole.ids == 2)  # system, user, assistant, …
    with renderer(checkpoint, context=int(ends[4])) as render:
        cut = render.render(THREE)
        assert len(cut.ids) == ends[4] + 1 and cut.removed_turns == 2 and cut.length == render.context_tokens
    with renderer(checkpoint, context=int(ends[4]) - 1) as render:
        assert render.render(THREE).removed_turns == 4
        long = talk("Why?", "Because " * 200, where="a.jsonl:7")
        examples, counts = render_examples([long, THREE, long], render)
        assert len(examples) == 1
        assert (counts.total, counts.truncated, counts.removed_turns, counts.too_long) == (3, 1, 4, 2)
        told = dict(line.split(": ", 1) for line in counts.describe())
        assert "a.jsonl:7" in told["too long"] and "4 turns" in told["truncated"]
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
def test_templates_that_cannot_be_learned(checkpoint: Path, template: str, message: str) -> None:
    with renderer(checkpoint, template=template) as render, pytest.raises(ChatError, match=rf"a\.jsonl:1: .*{message}"):
        render.render(THREE)


def test_joined_tokens_are_refused(checkpoint: Path) -> None:
    """The prompt for an answer ends in "t", the answer goes on with "he": one token in the whole text."""
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


def made_examples(checkpoint: Path, number: int = 60, context: int = 256) -> Examples:
    chosen = random.Random(4)
    words = ["the", "llama", "could", "not", "sleep", "and", "counted", "sheep", "again"]
    said = [
        talk(*(" ".join(chosen.choices(words, k=chosen.randrange(1, 12))) for _ in range(2 * chosen.randrange(1, 3))))
        for _ in range(number)
    ]
    with renderer(checkpoint, context) as render:
        return Examples(render_examples(said, render)[0])


def test_rows_hold_every_conversation_once_and_whole(checkpoint: Path) -> None:
    examples = made_examples(checkpoint)
    batches = ConversationBatches(examples, 256, 2, seed=5)
    seen, total = [], 0
    while batches.epoch == 0:
        batch = next(batches)
        assert batch.num_targets == (batch.targets != IGNORED).sum()
        for inputs, targets, segments in zip(batch.inputs, batch.targets, batch.segments, strict=True):
            for number in range(segments.max() + 1):
                inside = segments == number
                if (targets[inside] != IGNORED).any():
                    total += 1
                    seen.append((inputs[inside].tolist(), targets[inside].tolist()))
    wanted = [(e.ids[:-1].tolist(), np.where(e.loss_mask[1:], e.ids[1:], IGNORED).tolist()) for e in examples.examples]
    epoch = [row for row in seen if row in wanted]
    assert len(epoch) == total and sorted(map(str, wanted)) == sorted(set(map(str, seen)) & set(map(str, wanted)))
    assert total - len(wanted) <= 20  # of the row of the next epoch that fills the last batch


def test_order_is_a_function_of_seed_and_resumes(checkpoint: Path) -> None:
    examples = made_examples(checkpoint)

    def stream(batches: ConversationBatches, number: int) -> list[bytes]:
        return [
            b"".join(part.tobytes() for part in (b.inputs, b.targets, b.segments))
            for b, _ in zip(batches, range(number), strict=False)
        ]

    whole = ConversationBatches(examples, 256, 2, seed=5)
    first = stream(whole, 7)
    state = whole.state_dict()
    rest = stream(whole, 30)
    again = ConversationBatches(examples, 256, 2, seed=5)
    again.load_state_dict(state)
    assert stream(again, 30) == rest and whole.epoch > 0
    assert stream(ConversationBatches(examples, 256, 2, seed=5), 7) == first
    assert stream(ConversationBatches(examples, 256, 2, seed=6), 7) != first
    ranks = [ConversationBatches(examples, 256, 1, 5, rank, 2) for rank in (0, 1)]
    one, two, both = next(ranks[0]), next(ranks[1]), next(ConversationBatches(examples, 256, 2, seed=5))
    assert np.array_equal(np.concatenate([one.targets, two.targets]), both.targets)
    assert one.num_targets == two.num_targets == both.num_targets


@pytest.mark.parametrize("lora", [False, True])
def test_packed_loss_is_that_of_each_alone(checkpoint: Path, lora: bool) -> None:
    """Loss and gradients of packed rows are the sums over conversations, each from position 0 and unpadded."""
    examples = made_examples(checkpoint, 12)
    model = load_model(checkpoint)
    if lora:
        add_lora(model, LoraConfig(rank=2), torch.Generator().manual_seed(0))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.1)
    model = model.double()
    batches = ConversationBatches(examples, 256, 1, seed=1)
    packed = ConversationLoss(model, torch.float64)
    total, num_targets = 0.0, 0
    while batches.epoch == 0:
        batch = next(batches)
        assert batch.segments.max() >= 1
        nats = packed(*(torch.from_numpy(part) for part in (batch.inputs, batch.targets, batch.segments)))
        nats.backward()
        total, num_targets = total + nats.item(), num_targets + batch.num_targets
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    alone = 0.0
    for example in examples.examples:
        ids = torch.from_numpy(example.ids)
        targets = torch.where(torch.from_numpy(example.loss_mask[1:]), ids[1:], IGNORED)
        loss = F.cross_entropy(model(ids[None, :-1])[0], targets, ignore_index=IGNORED, reduction="sum")
        loss.backward()
        alone += loss.item()
    assert num_targets == examples.num_targets.sum()
    assert total == pytest.approx(alone, rel=1e-5)  # log-probabilities are float32's
    for name, gradient in gradients.items():
        expected = dict(model.named_parameters())[name].grad
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()), name
    assert (model.output_weight.grad is None) == lora


def test_preview(checkpoint: Path) -> None:
    with renderer(checkpoint) as render:
        example = render.render(talk("Why [b]?", "Because.", where="a.jsonl:9"))
        plain, colored = io.StringIO(), io.StringIO()
        preview_examples([example], render.tokenizer, Console(file=plain, width=80))
        preview_examples(
            [example],
            render.tokenizer,
            Console(file=colored, force_terminal=True, color_system="standard", width=80),
        )
    assert "<|im_start|>user\nWhy [b]?<|im_end|>" in plain.getvalue() and "«Because.<|im_end|>»" in plain.getvalue()
    assert "a.jsonl:9" in plain.getvalue()
    assert "\x1b[1;32mBecause.<|im_end|>" in colored.getvalue()


def test_real_pairs(checkpoint: Path, shared_data: Path) -> None:
    """The first 40 questions and answers of MedQuAD: those that fit are learned whole, to the end token."""
    rows = read_conversations(shared_data / "sft" / "medquad_qa.jsonl")
    said = [next(rows) for _ in range(40)]
    with renderer(checkpoint, context=2048) as render:
        examples, counts = render_examples(said, render)
        for example in examples:
            learned = [text for text, is_learned in masked_spans(example, render.tokenizer) if is_learned]
            answer = next(c for c in said if c.where == example.where).turns[1].text
            assert learned == [answer + "<|im_end|>"]
    assert counts.kept + counts.too_long == 40 and counts.kept > 20
