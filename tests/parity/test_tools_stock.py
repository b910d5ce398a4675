"""Tools, thoughts and roles: the ids of training are those of transformers' apply_chat_template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamita.chat_template import ChatTemplate
from llamita.checkpoint import load_config
from llamita.data.file_formats import Row
from llamita.finetune.conversations import read_conversation, read_conversations
from llamita.finetune.rendering import Renderer
from llamita.tokenizer import load_tokenizer
from tests.thinking_templates import LLAMA31_LIKE, OPENS_THOUGHT, QWEN_LIKE, STRIPS_THOUGHTS

pytestmark = pytest.mark.compat

transformers = pytest.importorskip("transformers")

MARKS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Adds «numbers».", "parameters": {"type": "object"}},
    },
    {"type": "function", "function": {"name": "now", "description": "x", "parameters": {}}},
]
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "text": 'ü\n"x"', "b": [None, True, 2.5]}}},
]}  # fmt: skip
USER, SAID = {"role": "user", "content": "Add 1 and 2."}, {"role": "assistant", "content": "It is 3."}
ANSWER = {"role": "tool", "content": '{"sum": 3}', "name": "add"}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER, SAID],
    [{"role": "system", "content": "Be brief."}, USER, CALL, ANSWER, SAID, USER, SAID],
    [USER, CALL, ANSWER, CALL, ANSWER, SAID],
    [USER, USER, SAID, SAID],
    [{"role": "system", "content": "S"}, {"role": "developer", "content": "D"}, USER, SAID],
    [USER, CALL],
]
THOUGHT = SAID | {"reasoning_content": "One more\nthan 2."}


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with the marks of Llama 3 and Qwen."""
    import tokenizers

    path = make_checkpoint(tmp_path_factory.mktemp("tools") / "m", vocab_size=432, max_position_embeddings=4096)
    backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    backend.add_special_tokens(MARKS[:3])
    backend.add_tokens([tokenizers.AddedToken(each, special=False, normalized=False) for each in MARKS[3:]])
    backend.save(str(path / "tokenizer.json"))
    return path


def opened(folder: Path, template: str) -> tuple[Renderer, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return Renderer(load_tokenizer(folder), load_config(folder), None, template), tokenizer


def theirs(tokenizer: Any, messages: list[dict[str, Any]], tools: Any, *, prompt: bool) -> list[int]:
    options = {"tokenize": True, "return_dict": False, "add_generation_prompt": prompt}
    return list(tokenizer.apply_chat_template(messages, tools=tools, **options))


@pytest.mark.parametrize("template", [QWEN_LIKE, LLAMA31_LIKE], ids=["qwen", "llama31"])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_tools_and_roles(folder: Path, template: str, tools: Any) -> None:
    render, tokenizer = opened(folder, template)
    with render:
        for messages in CONVERSATIONS:
            conversation = read_conversation(Row("a", {"messages": messages, "tools": tools}))
            (example,) = render.render(conversation)
            expected = theirs(tokenizer, messages, tools, prompt=False)
            rest = tokenizer.decode(expected[len(example.ids) :])
            assert example.ids.tolist() == expected[: len(example.ids)] and rest in ("", "\n")
            for number, turn in enumerate(conversation.turns):
                if turn.role == "assistant":
                    start = theirs(tokenizer, messages[:number], tools, prompt=True)
                    assert example.ids[: len(start)].tolist() == start and example.loss_mask[len(start)]
                    assert not example.loss_mask[len(start) - 1]


def test_thoughts_that_are_stripped(folder: Path) -> None:
    messages = [USER, THOUGHT, USER, SAID, USER, THOUGHT]
    render, tokenizer = opened(folder, STRIPS_THOUGHTS)
    with render:
        examples = render.render(read_conversation(Row("a", {"messages": messages})))
        assert len(examples) == 3
        for number, example in zip((1, 3, 5), examples, strict=True):
            start = theirs(tokenizer, messages[:number], None, prompt=True)
            expected = theirs(tokenizer, messages[: number + 1], None, prompt=False)
            assert example.ids.tolist() == expected[: len(example.ids)]
            assert tokenizer.decode(expected[len(example.ids) :]) == "\n"
            assert example.loss_mask.tolist() == [False] * len(start) + [True] * (len(example.ids) - len(start))


@pytest.mark.parametrize("thinking", [None, True, False])
def test_thinking_in_a_chat_and_in_training(folder: Path, thinking: bool | None) -> None:
    """enable_thinking gives transformers' prompt. An answer without thoughts is learned with an empty
    one, so that thinking off begins with ids that training has seen."""
    messages = [USER, THOUGHT, USER]
    _, tokenizer = opened(folder, STRIPS_THOUGHTS)
    more = {} if thinking is None else {"enable_thinking": thinking}
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **more)
    with ChatTemplate(STRIPS_THOUGHTS, bos_token=tokenizer.bos_token, thinking=thinking) as template:
        assert template.render(messages) == expected
    render, _ = opened(folder, STRIPS_THOUGHTS)
    with render:
        (example,) = render.render(read_conversation(Row("a", {"messages": [USER, SAID]})))
        options = {"tokenize": True, "return_dict": False, "add_generation_prompt": True}
        prompt = list(tokenizer.apply_chat_template([USER], **options, **more))
        assert example.ids[: len(prompt)].tolist() == prompt


def test_thoughts_that_the_prompt_opens(folder: Path) -> None:
    messages = [USER, THOUGHT, USER, SAID]
    render, tokenizer = opened(folder, OPENS_THOUGHT)
    with render:
        examples = render.render(read_conversation(Row("a", {"messages": messages})))
        for number, example, answer in zip((1, 3), examples, ("One more\nthan 2.", ""), strict=True):
            start = theirs(tokenizer, messages[:number], None, prompt=True)
            assert example.ids[: len(start)].tolist() == start
            learned = f"{answer}\n</think>\n\nIt is 3.<|im_end|>"
            assert tokenizer.decode(example.ids[len(start) :]) == learned
            whole = (
                tokenizer.apply_chat_template(messages[:number], tokenize=False, add_generation_prompt=True) + learned
            )
            assert example.ids.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["reason_tool_use_demo_50.jsonl", "glaive_toolcall_zh_demo.json"])
def test_real_conversations_with_tools(folder: Path, shared_data: Path, name: str) -> None:
    render, tokenizer = opened(folder, QWEN_LIKE)
    compared = 0
    with render:
        for conversation in list(read_conversations(shared_data / "sft" / name))[:40]:
            render.context_tokens = 100_000
            (example,) = render.render(conversation)
            tools = [json.loads(json.dumps(tool)) for tool in conversation.tools] or None
            expected = theirs(tokenizer, conversation.messages(), tools, prompt=False)
            assert example.ids.tolist() == expected[: len(example.ids)]
            compared += any(turn.calls for turn in conversation.turns)
    assert compared > 10
