"""Renders a Jinja chat template, and finds which parts of the text are message contents.

The template runs in a process of its own (chat_template_worker.py), in Jinja's sandbox, with limits
on time, memory and output. Any failure is a ChatError of one line. To find the contents, the
conversation is rendered twice: as it is, and with each content between marks (private-use
characters). If the second text without its marks equals the first, the marks delimit the contents.
Otherwise (the template truncates contents, or branches on them) the parts are unknown, and whoever
encodes the text must make sure that no content adds control tokens.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from llamita.errors import ChatError
from llamita.limited_process import LimitedProcess

MAX_TEMPLATE_BYTES: Final = 64 << 10
LIMIT_SECONDS: Final = 1.5  # per text
_THINKING: Final = "enable_thinking"  # of Qwen3 and SmolLM3
_MAX_CHARACTERS: Final = 1 << 20  # plus 16 times the contents' own
_WORKER: Final = Path(__file__).with_name("chat_template_worker.py")

# Supplementary Private Use Area-A: the mark before the content of message i, and the one after it.
_OPEN, _CLOSE, _MAX_MARKED = 0xF0000, "\U000ffffd", 0xFF00
_MARKS = re.compile("[\U000f0000-\U000ffffd]")


@dataclasses.dataclass(frozen=True)
class TextPart:
    """A part of a rendered text. message: index of the message whose (stripped) content it is;
    None: template text."""

    text: str
    message: int | None = None


class ChatTemplate:
    """A template that renders conversations. Not thread-safe."""

    def __init__(
        self, template: str, *, bos_token: str = "", eos_token: str = "", thinking: bool | None = None
    ) -> None:
        """bos_token, eos_token: the texts of these tokens, as variables of the template. thinking: its
        variable enable_thinking; None: not defined.

        Raises ChatError if the template is not a string, is too long, or jinja2 is missing. Its
        syntax is checked by the first rendering.
        """
        if not isinstance(template, str):
            raise ChatError(f"chat template: expected a string, found {type(template).__name__}")
        size = len(template.encode("utf-8", "surrogatepass"))
        if size > MAX_TEMPLATE_BYTES:
            raise ChatError(f"chat template: expected at most {MAX_TEMPLATE_BYTES:,} bytes, found {size:,}")
        if importlib.util.find_spec("jinja2") is None:
            raise ChatError("chat template: rendering this template needs jinja2: pip install jinja2")
        self._template = template
        self._variables: dict[str, Any] = {"bos_token": bos_token, "eos_token": eos_token}
        if thinking is not None:
            if _THINKING not in template:
                raise ChatError(f"chat template: expected one with the variable {_THINKING}, found none; drop thinking")
            self._variables[_THINKING] = thinking
        self._process: LimitedProcess | None = None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The text of the conversation, as transformers' apply_chat_template renders it.

        messages: each with "role" and "content", and any other keys that the template uses. tools:
        what the model may call, as objects. Raises ChatError if the template fails or calls
        raise_exception.
        """
        contents = sum(len(str(value)) for message in messages for value in message.values()) + len(str(tools))
        return self._ask(
            {
                "messages": [dict(message) for message in messages],
                "tools": [dict(tool) for tool in tools] or None,
                "add_generation_prompt": add_generation_prompt,
                "max_characters": _MAX_CHARACTERS + 16 * contents,
            }
        )

    def render_parts(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[TextPart] | None:
        """The same text in parts; None if the template does more than print and trim contents."""
        plain = self.render(messages, add_generation_prompt=add_generation_prompt)
        contents = [message.get("content") for message in messages]
        if len(messages) > _MAX_MARKED or any(_MARKS.search(str(text)) for text in [*contents, self._template]):
            return None
        marked = [_marked(number, message) for number, message in enumerate(messages)]
        try:
            parts = _parts(self.render(marked, add_generation_prompt=add_generation_prompt))
        except ChatError:
            return None
        return parts if parts is not None and "".join(part.text for part in parts) == plain else None

    def close(self) -> None:
        """Stop the process. Rendering starts a new one."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- the process

    def _ask(self, request: dict[str, Any]) -> str:
        if self._process is None or not self._process.is_running:
            first = {"template": self._template, "variables": self._variables}
            self._process = LimitedProcess(_WORKER, first)
            if not self._process.is_running:
                raise ChatError("chat template: cannot start the process that renders it")
        reply = self._process.ask(request, LIMIT_SECONDS)
        if reply is None:
            raise ChatError(
                f"chat template: rendering crashed or took more than {LIMIT_SECONDS} s; the model's template is "
                "broken or malicious"
            )
        if "error" in reply:
            raise ChatError(f"chat template: {reply['error']}")
        text: str = reply["text"]
        return text


def _marked(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with marks around its stripped content: templates trim the white space."""
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        return dict(message)
    core = content.strip()
    start = content.index(core)
    marked = content[:start] + chr(_OPEN + number) + core + _CLOSE + content[start + len(core) :]
    return {**message, "content": marked}


def _parts(text: str) -> list[TextPart] | None:
    """The parts of a text with marks; None if marks do not pair up (truncated contents)."""
    parts: list[TextPart] = []
    at, inside = 0, None
    for mark in _MARKS.finditer(text):
        closes = mark.group() == _CLOSE
        if closes == (inside is None):
            return None
        if mark.start() > at:
            parts.append(TextPart(text[at : mark.start()], inside))
        inside = None if closes else ord(mark.group()) - _OPEN
        at = mark.end()
    if inside is not None:
        return None
    if at < len(text):
        parts.append(TextPart(text[at:]))
    return parts
