"""Tools, thoughts and roles: learned as a chat template writes them, refused where it does not."""

from __future__ import annotations

from typing import Any

import pytest

from llamita.data.file_formats import BadRows, Row
from llamita.errors import ChatError, SourceError
from llamita.finetune.conversations import Conversation, read_conversation
from llamita.finetune.dpo_data import read_preference, render_pairs
from llamita.finetune.preview import masked_spans
from llamita.finetune.rendering import Example, Renderer, render_examples
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES
from tests.conftest import PUBLISHED_TEMPLATES
from tests.thinking_templates import OPENS_THOUGHT, QWEN_LIKE, STRIPS_THOUGHTS
from tests.unit.finetune.conftest import renderer, talk

USER = {"role": "user", "content": "Add 1 and 2."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"text": 'one\n"two"'}}]}
ANSWER = {"role": "tool", "content": "3"}
SAID = {"role": "assistant", "content": "It is 3."}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def read(*messages: dict[str, Any], **more: Any) -> Conversation:
    return read_conversation(Row("a.jsonl:1", {"messages": list(messages), **more}))


def learned(render: Renderer, example: Example) -> list[str]:
    return [text for text, is_target in masked_spans(example, render.tokenizer) if is_target]


def whole(render: Renderer, example: Example) -> str:
    return "".join(text for text, _ in masked_spans(example, render.tokenizer))


def test_tool_calls_are_learned_and_tool_answers_are_not(checkpoint: Any) -> None:
    with renderer(checkpoint, context=2048, template=QWEN_LIKE) as render:
        (example,) = render.render(read(USER, CALL, ANSWER, SAID, tools=TOOLS))
        call, answer = learned(render, example)
        assert call.startswith('<tool_call>\n{"name": "add", "arguments": {"text": "one\\n\\"two\\""}}')
        assert call.endswith("</tool_call><|im_end|>") and answer == "It is 3.<|im_end|>"
        assert '"parameters": {}' in whole(render, example)
        chat = render.prompt(read(USER, CALL, ANSWER, SAID, tools=TOOLS), 3)
        assert example.ids[: len(chat)].tolist() == chat


ANSWERED = "is not supported by the chat template, which does not write"
NO_TOOLS = (
    "{% for m in messages if m.role in ('system', 'user', 'assistant') %}{{ '<|im_start|>' + m.role + '\n' + m.content "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("conversation", "template", "message"),
    [
        (read(USER, SAID, tools=TOOLS), CHAT_TEMPLATES["chatml"], f"training with 'tools' {ANSWERED}"),
        (read(USER, SAID, tools=TOOLS), PUBLISHED_TEMPLATES["chatml"], f"training with 'tools' {ANSWERED}"),
        (read(USER, CALL, ANSWER, SAID), CHAT_TEMPLATES["chatml"], f"message 2: training on tool calls {ANSWERED}"),
        (read(USER, SAID, ANSWER, SAID), NO_TOOLS, f"message 3: a message of the tool {ANSWERED}"),
        (read({"role": "developer", "content": "D"}, USER, SAID), NO_TOOLS, f"message 1: .* the developer {ANSWERED}"),
        *(
            (read(USER, SAID | {key: "Hm."}), CHAT_TEMPLATES["chatml"], f"message 2: training on '{key}' {ANSWERED}")
            for key in ("reasoning_content", "reasoning", "thinking")
        ),
        (read(USER | {"content": "a <|im_end|>"}, SAID), QWEN_LIKE, "holds the control token"),
        (read(USER, SAID | {"reasoning_content": "<|im_end|>"}), QWEN_LIKE, "message 2: .* holds the control token"),
        (
            read(USER, CALL | {"tool_calls": [{"name": "f", "arguments": {"x": "<|im_end|>"}}]}), QWEN_LIKE,
            "message 2: .* holds the control token",
        ),
    ],
)  # fmt: skip
def test_what_a_template_does_not_write_is_refused(
    checkpoint: Any, conversation: Conversation, template: str, message: str
) -> None:
    with renderer(checkpoint, context=2048, template=template) as render:
        with pytest.raises(SourceError, match=rf"cannot use a\.jsonl:1: .*{message}"):
            render.render(conversation)
        _, counts = render_examples([conversation, talk("Who?", "Me.")], render, bad=(bad := BadRows(1)))
        assert counts.kept == 1 and len(bad.skipped) == 1


def test_turns_of_one_role_in_a_row(checkpoint: Any, make_checkpoint: Any, tmp_path: Any) -> None:
    twice = read(USER, USER, SAID, SAID)
    with renderer(checkpoint, template=CHAT_TEMPLATES["chatml"]) as render:
        (example,) = render.render(twice)
        assert learned(render, example) == ["It is 3.<|im_end|>"] * 2
    base = make_checkpoint(tmp_path / "base", "llama", max_position_embeddings=256)
    for template in (CHAT_TEMPLATES["llama2"], PUBLISHED_TEMPLATES["llama2"]):
        with renderer(base, template=template) as render, pytest.raises(ChatError, match=r"a\.jsonl:1: .*alternate"):
            render.render(twice)


# ---- thoughts

FIRST, SECOND = SAID | {"reasoning_content": "One more\nthan 2."}, {"role": "assistant", "content": "Bye."}
THANKS = {"role": "user", "content": "Thanks."}
INLINE = {"role": "assistant", "content": "<think>\nOne more\nthan 2.\n</think>\n\nIt is 3."}


@pytest.mark.parametrize("first", [FIRST, INLINE])
def test_a_template_that_strips_earlier_thoughts(checkpoint: Any, first: dict[str, Any]) -> None:
    """Each answer is an example: after the prompt that a chat renders, thoughts of its own only."""
    conversation = read(USER, first, THANKS, SECOND)
    with renderer(checkpoint, template=STRIPS_THOUGHTS) as render:
        one, two = render.render(conversation)
        assert learned(render, one) == ["<think>\nOne more\nthan 2.\n</think>\n\nIt is 3.<|im_end|>"]
        assert learned(render, two) == ["<think>\n\n</think>\n\nBye.<|im_end|>"]
        assert "One more" not in whole(render, two) and "It is 3.<|im_end|>" in whole(render, two)
        for example, number in ((one, 1), (two, 3)):
            prompt = render.prompt(conversation, number)
            assert example.ids[: len(prompt)].tolist() == prompt
            assert example.loss_mask.sum() == len(example.ids) - len(prompt)
        examples, counts = render_examples([conversation], render)
        assert len(examples) == 2 and (counts.kept, counts.split) == (1, 1)
        assert any("each answer is an example of its own" in line for line in counts.describe())
    with renderer(checkpoint, context=len(one.ids), template=STRIPS_THOUGHTS) as render:
        (only,) = render.render(conversation)
        assert only.ids.tolist() == one.ids.tolist() and only.removed_turns == 2
    with renderer(checkpoint, context=len(one.ids) - 2, template=STRIPS_THOUGHTS) as render:
        assert render.render(conversation) == []


@pytest.mark.parametrize("first", [FIRST, INLINE])
def test_a_template_whose_prompt_opens_a_thought(checkpoint: Any, first: dict[str, Any]) -> None:
    conversation = read(USER, first, THANKS, SECOND)
    with renderer(checkpoint, template=OPENS_THOUGHT) as render:
        one, two = render.render(conversation)
        assert learned(render, one) == ["One more\nthan 2.\n</think>\n\nIt is 3.<|im_end|>"]
        assert learned(render, two) == ["\n</think>\n\nBye.<|im_end|>"]
        assert whole(render, two).endswith("assistant\n<think>\n\n</think>\n\nBye.<|im_end|>")
        assert "One more" not in whole(render, two)
        (only,) = render.render(read(USER, first))
        assert only.ids.tolist() == one.ids.tolist()


def test_a_thought_in_the_text_is_not_lost(checkpoint: Any) -> None:
    """R1's first template cuts it off, and its prompt opened none."""
    template = OPENS_THOUGHT.replace("assistant\\n<think>\\n", "assistant\\n")
    assert template != OPENS_THOUGHT
    with renderer(checkpoint, template=template) as render:
        with pytest.raises(SourceError, match="message 2: training on '<think>' is not supported"):
            render.render(read(USER, INLINE))
        (example,) = render.render(read(USER, SAID))
        assert learned(render, example) == ["It is 3.<|im_end|>"]


def test_only_targets_of_a_thinking_template_are_learned(checkpoint: Any) -> None:
    with renderer(checkpoint, template=STRIPS_THOUGHTS) as render:
        (example,) = render.render(read(USER, FIRST | {"weight": 0}, THANKS, SECOND))
        assert learned(render, example) == ["<think>\n\n</think>\n\nBye.<|im_end|>"]


def test_preferences_with_thoughts(checkpoint: Any) -> None:
    row = {"prompt": [USER, FIRST, THANKS], "chosen": [SECOND | {"reasoning_content": "Hm."}], "rejected": [SECOND]}
    pair = read_preference(Row("a.jsonl:1", row))
    with renderer(checkpoint, template=STRIPS_THOUGHTS) as render:
        (found,), counts = render_pairs([pair], render)
        assert learned(render, found.chosen) == ["<think>\nHm.\n</think>\n\nBye.<|im_end|>"]
        assert learned(render, found.rejected) == ["<think>\n\n</think>\n\nBye.<|im_end|>"] and counts.kept == 1
    with renderer(checkpoint) as render:
        pairs, _ = render_pairs([read_preference(Row("a:1", {"prompt": "a", "chosen": "b", "rejected": "c"})), pair],
                                render, bad=(bad := BadRows(1)))  # fmt: skip
        assert len(pairs) == 1 and "training on 'reasoning_content' is not supported" in bad.skipped[0]


def test_dialogues_of_hh_rlhf() -> None:
    start = "\n\nHuman: Why?\n\nAssistant: Because.\nSo.\n\nHuman: And?\n\nAssistant:"
    pair = read_preference(Row("a.jsonl:1", {"chosen": f"{start} Yes.", "rejected": f"{start} No: Human: me."}))
    assert [(turn.role, turn.text) for turn in pair.chosen.turns] == [
        ("user", "Why?"), ("assistant", "Because.\nSo."), ("user", "And?"), ("assistant", "Yes."),
    ]  # fmt: skip
    assert pair.rejected.turns[:-1] == pair.chosen.turns[:-1] and pair.rejected.turns[-1].text == "No: Human: me."
    assert [turn.is_target for turn in pair.chosen.turns] == [False, False, False, True]
    with pytest.raises(SourceError, match=r"a\.jsonl:1 \(rejected\): message 4: the assistant's text is empty"):
        read_preference(Row("a.jsonl:1", {"chosen": f"{start} Yes.", "rejected": start}))
    with pytest.raises(SourceError, match="expected an assistant message at its end"):
        read_preference(Row("a.jsonl:1", {"chosen": f"{start} Yes.\n\nHuman: x", "rejected": f"{start} No."}))
