"""llamita chat: a conversation with a chat model: answers on stdout, everything else on stderr."""

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

import tyro

import llamita
from llamita.chat import Answer, Chat
from llamita.cli.adapters import open_adapters
from llamita.cli.command import check_is_file, fail, parse
from llamita.config import check
from llamita.errors import ChatError


@dataclasses.dataclass(frozen=True)
class ChatFlags:
    """Chat with a model that was trained to: a GGUF with a chat template.

    Ctrl-C stops the answer, Ctrl-D ends the chat. Where the input is no terminal, each line of it is a question.
    """

    model: tyro.conf.Positional[Path]
    """The model file."""
    system: Annotated[str | None, tyro.conf.arg(aliases=["-y"])] = None
    """How the assistant is to be; without it as the model's template says."""
    rolling: bool = False
    """Forget the oldest questions and answers when the context is full, instead of ending."""
    num_tokens: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 512
    """At most so many tokens an answer; 0: to the context's end."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 0.6
    """0: always the most probable token; above 1: bolder."""
    top_p: Annotated[float, tyro.conf.arg(aliases=["-p"])] = 0.9
    """Pick from the smallest set with this share of the probability; 0 or 1: off."""
    top_k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 0
    """Pick from the K most probable tokens; 0: off."""
    min_p: float = 0.0
    """Pick from those with this share of the best one's probability; 0: off."""
    repetition_penalty: float = 1.0
    """Above 1: avoid recent tokens."""
    repetition_window: int = 64
    """How many tokens are recent."""
    seed: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """The same seed and the same questions give the same answers; without one it is drawn."""
    tokenizer: Annotated[Path | None, tyro.conf.arg(aliases=["-z"])] = None
    """A GGUF to take the tokenizer and the chat template from; without one the model's own."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A GGUF adapter of the model's, FILE or FILE:SCALE; several times for several, which act together."""
    threads: Annotated[int, tyro.conf.arg(aliases=["-j"])] = 0
    """0: chosen by the model's size and the machine."""
    context: Annotated[int, tyro.conf.arg(aliases=["-c"])] = 0
    """Keep room for this many tokens; 0: the model's context."""
    kernels: str = "auto"
    """auto, scalar, avx2, avxvnni, or on ARM neon, dotprod."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """Tell the speed after each answer, also where stderr is no terminal."""

    def __post_init__(self) -> None:
        check(self.num_tokens >= 0, f"--num-tokens: expected 0 or more, found {self.num_tokens}")
        check(0 <= self.threads <= 1024, f"--threads: expected 0 to 1024, found {self.threads}")
        check(self.context >= 0, f"--context: expected 0 or more, found {self.context}")


def main(argv: list[str]) -> int | None:
    flags = parse(ChatFlags, argv, "llamita chat")
    check_is_file(flags.model, "chat with")
    with llamita.load(flags.model, tokenizer=flags.tokenizer, kernels=flags.kernels) as model:
        chat = Chat(
            model,
            flags.system,
            rolling=flags.rolling,
            max_new_tokens=flags.num_tokens or None,
            temperature=flags.temperature,
            top_p=flags.top_p or 1.0,
            top_k=flags.top_k,
            min_p=flags.min_p,
            repetition_penalty=flags.repetition_penalty,
            repetition_window=flags.repetition_window,
            seed=flags.seed,
            num_threads=flags.threads,
            context_tokens=flags.context,
            adapters=open_adapters(model, flags.adapter),
        )
        with chat:
            return _converse(chat, flags)


class _Interrupts:
    """What Ctrl-C means: the first during an answer ends it, a second one the program. At the prompt it is a
    KeyboardInterrupt; between the two, on a terminal, nothing."""

    def __init__(self, terminal: bool) -> None:
        self.reading = not terminal
        self._answer: Answer | None = None
        self._pressed = False
        signal.signal(signal.SIGINT, self._on_interrupt)

    @contextlib.contextmanager
    def during(self, answer: Answer) -> Iterator[None]:
        """In this block an answer comes."""
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
            fail(str(error))  # the chat goes on: another question may be shorter
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
        importlib.import_module("readline")  # arrow keys and earlier questions, where the system has it


def _answer(answer: Answer, flags: ChatFlags, interrupts: _Interrupts) -> None:
    """Print the answer as it comes."""
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
    dim = sys.stderr.isatty()
    print(f"\x1b[2m{line}\x1b[0m" if dim else line, file=sys.stderr, flush=True)
