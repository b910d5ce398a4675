"""`llamita chat MODEL`: a conversation; answers on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import llamita
from llamita.chat import CHAT_SAMPLING, Answer, Chat
from llamita.cli.adapters import open_adapters
from llamita.cli.command import card_defaults, check_is_file, fail, parse
from llamita.cli.generation import DEFAULT_LOAD, LoadOptions, check_generation, engine_sampling
from llamita.cli.help import has_color
from llamita.config import Option
from llamita.errors import ChatError
from llamita.sampling import DEFAULT_RUNTIME, RuntimeOptions, SamplingParams


@dataclasses.dataclass(frozen=True)
class ChatFlags:
    """Chat with a GGUF model that has a chat template.

    Ctrl-C stops the answer, Ctrl-D ends the chat. If the input is not a terminal, each line is a
    question.
    """

    examples = ("llamita chat my.gguf", "echo 'Who are you?' | llamita chat my.gguf -n 50")

    model: Annotated[Path, Option(positional=True)]
    """Model file."""
    system: Annotated[str | None, Option(short="y")] = None
    """System prompt. Default: the model's, else the chat template's."""
    rolling: bool = False
    """When the context is full, forget the oldest turns instead of ending the chat."""
    num_tokens: Annotated[int, Option(short="n")] = 512
    """Most tokens in one answer; 0: until the context is full."""
    verbose: Annotated[bool, Option(short="v")] = False
    """Print the speed after each answer even if stderr is not a terminal."""
    load: Annotated[LoadOptions, Option(group="model")] = DEFAULT_LOAD
    sampling: SamplingParams = CHAT_SAMPLING
    runtime: Annotated[RuntimeOptions, Option(group="engine")] = DEFAULT_RUNTIME

    def __post_init__(self) -> None:
        check_generation(self.num_tokens, self.runtime)


def main(argv: list[str]) -> int | None:
    flags = parse(ChatFlags, argv, "llamita chat", card_defaults)
    check_is_file(flags.model, "chat with")
    with llamita.load(flags.model, tokenizer=flags.load.tokenizer, kernels=flags.load.kernels) as model:
        chat = Chat(
            model,
            flags.system,
            engine_sampling(flags.sampling),
            flags.runtime,
            rolling=flags.rolling,
            max_new_tokens=flags.num_tokens or None,
            adapters=open_adapters(model, flags.load.adapter),
        )
        with chat:
            return _converse(chat, flags)


class _Interrupts:
    """Handles Ctrl-C: during an answer, the first ends the answer and the second the program. At
    the prompt it raises KeyboardInterrupt. Between the two, on a terminal, it is ignored."""

    def __init__(self, terminal: bool) -> None:
        self.reading = not terminal
        self._answer: Answer | None = None
        self._pressed = False
        signal.signal(signal.SIGINT, self._on_interrupt)

    @contextlib.contextmanager
    def during(self, answer: Answer) -> Iterator[None]:
        """In this block an answer is printed."""
        self._answer, self._pressed = answer, False
        try:
            yield
        finally:
            self._answer = None

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._answer is not None and not self._pressed:
            self._pressed = True
            self._answer.interrupt()
        elif self._answer is not None or self.reading:
            raise KeyboardInterrupt


def _converse(chat: Chat, flags: ChatFlags) -> int:
    before = signal.getsignal(signal.SIGINT)
    try:
        return _turns(chat, flags)
    finally:
        signal.signal(signal.SIGINT, before)


def _turns(chat: Chat, flags: ChatFlags) -> int:
    terminal = sys.stdin.isatty()
    interrupts = _Interrupts(terminal)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if terminal:
        _status("Ctrl-C stops an answer, Ctrl-D ends the chat.")
    while (question := _read(terminal, interrupts)) is not None:
        if not question.strip():
            continue
        try:
            answer = chat.ask(question)
        except ChatError as error:
            if not terminal:
                raise
            fail(str(error))  # the next question may be shorter
            continue
        _answer(answer, flags, interrupts)
        if answer.stop == "interrupted" and not terminal:
            return 130
    return 0


def _read(terminal: bool, interrupts: _Interrupts) -> str | None:
    """The next question; None at the end."""
    while True:
        try:
            if not terminal:
                line = sys.stdin.readline()
                return line.removesuffix("\n").removesuffix("\r") if line else None
            interrupts.reading = True
            if sys.stdout.isatty():
                _load_line_editing()
                return input("> ")
            sys.stderr.write("> ")
            sys.stderr.flush()
            return input()
        except EOFError:
            sys.stderr.write("\n")
            return None
        except KeyboardInterrupt:
            if not terminal:
                raise
            interrupts.reading = False
            sys.stderr.write("\n")
            _status("Ctrl-D ends the chat.")
        finally:
            interrupts.reading = not terminal


def _load_line_editing() -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # arrow keys and history, if the system has it


def _answer(answer: Answer, flags: ChatFlags, interrupts: _Interrupts) -> None:
    """Print the answer while it is generated."""
    if answer.num_forgotten_turns:
        turns = "turn was" if answer.num_forgotten_turns == 1 else "turns were"
        _status(f"the context is full: the {answer.num_forgotten_turns} oldest {turns} forgotten")

    with interrupts.during(answer):
        for piece in answer:
            print(piece, end="", flush=True)
    print(flush=True)
    if answer.stop == "number of tokens":
        _status(f"stopped after {len(answer.ids)} tokens (-n)")
    elif answer.stop == "context's end":
        _status("stopped: the context is full")
    elif answer.stop == "interrupted" and not answer.ids:
        _status("stopped before the answer began: the question is forgotten")
    if flags.verbose or sys.stderr.isatty():
        _status(answer.speed_line())


def _status(line: str) -> None:
    print(f"\x1b[2m{line}\x1b[0m" if has_color(sys.stderr) else line, file=sys.stderr, flush=True)
