"""`llamita chat MODEL`: a conversation; answers on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, Literal

from llamita.chat import CHAT_SAMPLING, Answer, Chat
from llamita.cli.adapters import open_adapters
from llamita.cli.command import card_defaults, fail, parse, read_stdin_as_utf8
from llamita.cli.generation import DEFAULT_LOAD, LoadOptions, check_context, check_generation, engine_sampling
from llamita.cli.grammar import DEFAULT_GRAMMAR, GrammarOptions, read_grammar
from llamita.cli.help import has_color
from llamita.cli.open_model import opened_model
from llamita.cli.parser import suggestion
from llamita.cli.prompt import check_utf8
from llamita.cli.tracing import TextTracer
from llamita.config import Option
from llamita.errors import ChatError, SourceError
from llamita.sampling import DEFAULT_RUNTIME, RuntimeOptions, SamplingParams

COMMANDS: Final = {
    "/help": "list these commands",
    "/reset": "forget the conversation; the system prompt stays",
    "/system TEXT": "set the system prompt, and forget the conversation",
    "/save FILE": "add the conversation to a .jsonl, as one line that llamita finetune reads",
    "/exit": "end the chat, as Ctrl-D does",
    "//TEXT": "send the message /TEXT",
    '"""': "begin and end a message of several lines",
}
_QUOTES = '"""'


@dataclasses.dataclass(frozen=True)
class ChatFlags:
    """Chat with a GGUF model that has a chat template.

    Ctrl-C stops the answer, Ctrl-D ends the chat, /help lists commands. If the input is not a
    terminal, each line is a question, and there are no commands. A checkpoint or a run directory is
    exported to a temporary model file first.
    """

    examples = (
        "llamita chat my.gguf",
        "echo 'Who are you?' | llamita chat my.gguf -n 50",
        "llamita chat my.gguf --choice yes --choice no",
    )

    model: Annotated[Path, Option(positional=True)]
    """Model file, checkpoint or run directory."""
    system: Annotated[str | None, Option(short="y")] = None
    """System prompt. Default: the model's, else the chat template's."""
    thinking: Annotated[Literal["on", "off"] | None, Option("on|off")] = None
    """Whether the model thinks before it answers, if its chat template has enable_thinking (Qwen3,
    SmolLM3). Default: the template's."""
    rolling: bool = True
    """End the chat when the context is full, instead of forgetting the oldest turns."""
    max_new_tokens: Annotated[int, Option(short="n")] = 512
    """Most tokens in one answer; 0: until the context is full."""
    verbose: Annotated[bool | None, Option(short="v")] = None
    """Print the speed after each answer. Default: if stderr is a terminal."""
    trace: Annotated[Path | None, Option("STORE")] = None
    """Print on stderr, after each answer, where it stands word for word in this token store; see
    `llamita index`."""
    grammar: Annotated[GrammarOptions, Option(group="grammar")] = DEFAULT_GRAMMAR
    load: Annotated[LoadOptions, Option(group="model")] = DEFAULT_LOAD
    sampling: SamplingParams = CHAT_SAMPLING
    runtime: Annotated[RuntimeOptions, Option(group="engine")] = DEFAULT_RUNTIME
    prompt_cache: Annotated[Path | None, Option("FILE", group="engine")] = None
    """Keep the computed system prompt and first question in this file, and do not compute again what
    a chat shares with it."""

    def __post_init__(self) -> None:
        check_generation(self.max_new_tokens, self.sampling, self.runtime)


def main(argv: list[str]) -> int | None:
    flags = parse(ChatFlags, argv, "llamita chat", card_defaults)
    tracer = TextTracer(flags.trace)
    with opened_model(flags.model, flags.load, "chat") as model:
        check_context(model, flags.runtime)
        chat = Chat(
            model,
            flags.system,
            engine_sampling(flags.sampling),
            flags.runtime,
            rolling=flags.rolling,
            max_new_tokens=flags.max_new_tokens or None,
            thinking=None if flags.thinking is None else flags.thinking == "on",
            adapters=open_adapters(model, flags.load.adapter),
            grammar=read_grammar(flags.grammar),
            prompt_cache=flags.prompt_cache,
        )
        before = signal.getsignal(signal.SIGINT)
        try:
            with chat:
                return _Conversation(chat, flags, tracer).run()
        finally:
            signal.signal(signal.SIGINT, before)


class _Interrupts:
    """Handles Ctrl-C: during an answer, the first ends the answer and the second the program. At
    the prompt it raises KeyboardInterrupt. Between the two, on a terminal, it is ignored.
    is_pressed: during the last answer."""

    def __init__(self, terminal: bool) -> None:
        self.reading = not terminal
        self._answer: Answer | None = None
        self.is_pressed = False
        signal.signal(signal.SIGINT, self._on_interrupt)

    @contextlib.contextmanager
    def during(self, answer: Answer) -> Iterator[None]:
        """In this block an answer is printed."""
        self._answer, self.is_pressed = answer, False
        try:
            yield
        finally:
            self._answer = None

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._answer is not None and not self.is_pressed:
            self.is_pressed = True
            self._answer.interrupt()
        elif self._answer is not None or self.reading:
            raise KeyboardInterrupt


class _Conversation:
    """Questions from stdin, and the answers to them."""

    def __init__(self, chat: Chat, flags: ChatFlags, tracer: TextTracer) -> None:
        self._chat, self._flags, self._tracer = chat, flags, tracer
        self._terminal = sys.stdin.isatty()
        self._interrupts = _Interrupts(self._terminal)
        self._has_forgotten = False

    def run(self) -> int:
        """Until the input ends, or /exit. Returns the exit code."""
        read_stdin_as_utf8()
        if self._terminal:
            _status("Ctrl-C stops an answer, Ctrl-D ends the chat, /help lists commands.")
        while (question := self._read()) is not None:
            if not question.strip():
                continue
            if self._terminal and question.startswith("/"):
                if question.split()[0] == "/exit":
                    return 0
                if not question.startswith("//"):
                    self._command(*question.split(maxsplit=1))
                    continue
                question = question[1:]
            try:
                check_utf8(question.encode("utf-8", "surrogateescape"), "the question")
                answer = self._chat.ask(question)
            except (ChatError, SourceError) as error:
                if not self._terminal:
                    raise
                fail(str(error))  # the next question may be shorter
                continue
            self._print(answer)
            if self._interrupts.is_pressed and not self._terminal:  # even if the answer was at its end
                return 130
        return 0

    def _command(self, name: str, argument: str = "") -> None:
        """Do what a message that begins with / says."""
        argument = argument.strip()
        if name == "/help":
            for command, what in COMMANDS.items():
                _status(f"{command:<14}{what}")
        elif name == "/reset":
            self._chat.reset()
            _status("the conversation is forgotten; the system prompt stays")
        elif name == "/system" and argument:
            self._chat.reset(system=argument)
            _status("the system prompt is set; the conversation is forgotten")
        elif name == "/save" and argument:
            _status(_save(self._chat, Path(argument)))
        elif name in ("/system", "/save"):
            what = "the text of the system prompt" if name == "/system" else "the name of a .jsonl file"
            _status(f"{name}: expected {what} after it, found nothing")
        else:
            known = [command.split()[0] for command in COMMANDS if command.startswith("/")]
            _status(
                f"unknown command {name[:40]!r}{suggestion(name, known)}; /help lists the commands; write // to "
                "begin a message with /"
            )

    def _read(self) -> str | None:
        """The next question; None at the end."""
        while True:
            try:
                if not self._terminal:
                    line = sys.stdin.readline()
                    return line.removesuffix("\n").removesuffix("\r").lstrip("\ufeff") if line else None
                self._interrupts.reading = True
                return _read_message()
            except EOFError:
                sys.stderr.write("\n")
                return None
            except KeyboardInterrupt:
                if not self._terminal:
                    raise
                self._interrupts.reading = False
                sys.stderr.write("\n")
                _status("Ctrl-D or /exit ends the chat.")
            finally:
                self._interrupts.reading = not self._terminal

    def _print(self, answer: Answer) -> None:
        """Print the answer while it is generated."""
        if answer.num_forgotten_turns and not self._has_forgotten:
            self._has_forgotten = True
            _status("the context is full: from here on, the oldest turns are forgotten (/reset begins anew)")
        with self._interrupts.during(answer):
            for piece in answer:
                print(piece, end="", flush=True)
                self._tracer.add(piece)
        print(flush=True)
        cut_off = "" if self._flags.grammar == DEFAULT_GRAMMAR else ": the answer does not fit its grammar yet"
        if answer.stop == "number of tokens":
            _status(f"stopped after {len(answer.ids)} tokens (-n){cut_off}")
        elif answer.stop == "context's end":
            _status(f"stopped: the context is full{cut_off}")
        elif answer.stop == "interrupted" and not answer.ids:
            _status("stopped before the answer began: the question is forgotten")
        if sys.stderr.isatty() if self._flags.verbose is None else self._flags.verbose:
            _status(answer.speed_line())
        self._tracer.print_trace()


def _read_message() -> str:
    """A line from the terminal, or several between lines of quotes. Raises EOFError."""
    first = _read_line("> ")
    if not first.startswith(_QUOTES):
        return first
    lines = [first.removeprefix(_QUOTES)]
    while not lines[-1].endswith(_QUOTES):
        lines.append(_read_line("... "))
    return "\n".join(lines).removesuffix(_QUOTES).strip("\n")


def _read_line(prompt: str) -> str:
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # arrow keys and history, if the system has it
        return input(prompt)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input()


def _save(chat: Chat, path: Path) -> str:
    """Add the conversation to a .jsonl; returns a line for the user."""
    if path.suffix != ".jsonl":
        return f"/save: expected the name of a .jsonl file, found {str(path)[:200]!r}"
    said = [{"role": each.role, "content": each.content.decode("utf-8", "replace")} for each in chat.messages]
    if not any(message["role"] == "assistant" for message in said):
        return "/save: expected a conversation, found none yet"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": said}, ensure_ascii=False) + "\n")
    except (OSError, ValueError) as error:
        return f"/save: {str(path)[:200]}: {getattr(error, 'strerror', None) or error}"
    return f"{path}: the conversation is added, as one line"


def _status(line: str) -> None:
    print(f"\x1b[2m{line}\x1b[0m" if has_color(sys.stderr) else line, file=sys.stderr, flush=True)
