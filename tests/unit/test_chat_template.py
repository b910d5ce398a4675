"""Chat templates in their own process: texts, parts, and one line for any hostile template."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest

pytest.importorskip("jinja2")

from llamita.chat_template import MAX_TEMPLATE_BYTES, ChatTemplate, TextPart
from llamita.errors import ChatError
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES

SAID = [
    {"role": "system", "content": " S "},
    {"role": "user", "content": "  a <b> \udc80é🦙 \n"},
    {"role": "assistant", "content": "\n"},
    {"role": "user", "content": "c"},
]


def test_parts_separate_contents_from_template() -> None:
    with ChatTemplate(CHAT_TEMPLATES["llama3"], bos_token="<s>", eos_token="</s>") as template:
        parts = template.render_parts(SAID)
        assert parts is not None
        assert [part for part in parts if part.message is not None] == [
            TextPart("S", 0), TextPart("a <b> \udc80é🦙", 1), TextPart("c", 3),
        ]  # fmt: skip
        text = template.render(SAID)
        assert "".join(part.text for part in parts) == text
        assert text.startswith("<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user")
        assert template.render(SAID[:2], add_generation_prompt=False).endswith("é🦙<|eot_id|>")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content | upper | length }}{% endfor %}",
        "{% for m in messages %}{{ m.content[:2] }}{% endfor %}",
        "{% for m in messages %}{% if m.content.startswith('a') %}!{% endif %}{{ m.content }}{% endfor %}x",
    ],
)
def test_rewritten_contents_are_noticed(source: str) -> None:
    with ChatTemplate(source) as template:
        said = [{"role": "user", "content": "abc"}]
        assert template.render(said)
        assert template.render_parts(said) is None


def test_marks_in_a_content_are_text() -> None:
    with ChatTemplate("{{ messages[0].content }}") as template:
        said = [{"role": "user", "content": "\U000f0000x\U000ffffd"}]
        assert template.render(said) == said[0]["content"]
        assert template.render_parts(said) is None


HOSTILE = {
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "forbidden",
    "{{ ''.__class__ }}": "'__class__' (str), which is forbidden",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}": "forbidden",
    "{{ messages[0].content.format.__globals__ }}": "forbidden",
    "{{ '{0.__class__}'.format(1) }}": "forbidden",
    "{{ messages | map(attribute='__class__') | list }}": "forbidden",
    "{{ self._TemplateReference__context }}": "forbidden",
    "{{ messages.append(1) }}": "forbidden",
    "{% set messages[0].role = 'x' %}": "syntax error in line 1: expected token",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}": "more than 1.5 s",
    "{% for i in range(1000000000) %}{% endfor %}": "Range too big",
    "{{ 9 ** (9 ** 9) }}": "",  # constants are computed when the template is compiled
    "{{ 'a' * 1000000000 }}": "memory",
    "{{ '%1000000000d' % 1 }}": "memory",
    "{{ 'a' | center(1000000000) }}": "memory",
    "{% for i in range(100000) %}{{ 'aaaaaaaaaaaaaaaaaaaa' * 100 }}{% endfor %}": "more than 1,048,",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "nested too deeply",
    "{{" + "(" * 20000 + ")" * 20000 + "}}": "",
    "{% include '/etc/passwd' %}": "no loader",
    "{% import 'os' as os %}": "no loader",
    "{% extends 'base' %}": "no loader",
    "{{ raise_exception('no\nway') }}": "it says: no way",
    "{{ nothing.there }}": "'nothing' is undefined",
    "{{ 1 // 0 }}": "division or modulo by zero",
    "{% for %}": "syntax error in line 1",
    "{{": "syntax error in line 1",
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="memory is limited where the system has such limits")
@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_templates_are_one_line(source: str) -> None:
    # The process takes a moment to start on a busy machine.
    with ChatTemplate("{{ messages }}") as template:
        template.render([])
    start = time.monotonic()
    with ChatTemplate(source) as template, pytest.raises(ChatError) as raised:
        template.render([{"role": "user", "content": "Hi"}])
    assert time.monotonic() - start < 60  # 2 s where nothing else runs
    message = str(raised.value)
    assert message.startswith("chat template: ") and "\n" not in message and len(message) < 400
    assert HOSTILE[source] in message


def test_one_thread_watches_all_texts_and_ends_with_the_process() -> None:
    before = set(threading.enumerate())
    with ChatTemplate(CHAT_TEMPLATES["chatml"]) as template:
        started = set()
        for _ in range(20):
            template.render(SAID)
            started |= set(threading.enumerate()) - before
        (thread,) = started
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_rendering_continues_after_a_failure() -> None:
    source = "{% if messages[0].content == 'x' %}{{ 'a' * 10 ** 9 }}{% else %}{{ messages[0].content }}{% endif %}"
    with ChatTemplate(source) as template:
        for _ in range(2):
            with pytest.raises(ChatError):
                template.render([{"role": "user", "content": "x"}])
            assert template.render([{"role": "user", "content": "y"}]) == "y"


@pytest.mark.parametrize(
    ("template", "words"),
    [(7, "expected a string, found int"), (None, "found NoneType"), ("x" * (MAX_TEMPLATE_BYTES + 1), "at most 65,536")],
)
def test_what_is_not_a_template(template: Any, words: str) -> None:
    with pytest.raises(ChatError, match=words):
        ChatTemplate(template)


def test_thinking_is_a_variable_of_templates_that_have_it() -> None:
    source = "{{ enable_thinking if enable_thinking is defined else 'unset' }}"
    for thinking, expected in ((None, "unset"), (True, "True"), (False, "False")):
        with ChatTemplate(source, thinking=thinking) as template:
            assert template.render([]) == expected
    with pytest.raises(ChatError, match="expected one with the variable enable_thinking, found none"):
        ChatTemplate("{{ messages }}", thinking=False)
