"""A program that reads grammars under limits: JSON lines on stdin and stdout.

grammar.py starts it and never imports it. llguidance crashes on some grammars and takes hours for
others, and a grammar comes from a server's client. What this program has read, the caller can read
again.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from typing import Any

MEMORY_BYTES = 128 << 20  # besides what it has at the start; the caller needs as much for the grammar
STACK_BYTES = 1 << 20  # less than the caller's threads have


def main() -> None:
    """argv: sys.path as JSON. The first line is only answered. Each request: {"kind": …, "text": …,
    "options": …, "max_characters": …, "seconds": …}. Each answer: {"source": llguidance's form},
    {"failed": why the text cannot be read}, {"invalid": why it cannot be enforced}, or {"size":
    characters that are too many}."""
    sys.path[:] = json.loads(sys.argv[1])
    import llguidance

    vocabulary: Any = Bytes()
    tokenizer = llguidance.LLTokenizer(vocabulary, n_vocab=257, eos_token=[256])
    threading.stack_size(STACK_BYTES)
    sys.stdin.readline()
    limit_resources()
    answer({})
    for line in sys.stdin:
        asked = json.loads(line)
        answers: list[dict[str, Any]] = []
        thread = threading.Thread(target=read_into, args=(answers, llguidance, tokenizer, asked))
        limit_time(asked["seconds"])
        thread.start()
        thread.join()
        limit_time(0)
        answer(answers[0])


def read_into(answers: list[dict[str, Any]], llguidance: Any, tokenizer: Any, asked: dict[str, Any]) -> None:
    """Append the answer to one request."""
    answers.append(read(llguidance, tokenizer, asked))


def read(llguidance: Any, tokenizer: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    matcher, text = llguidance.LLMatcher, asked["text"]
    try:
        if asked["kind"] == "schema":
            source = matcher.grammar_from_json_schema(text, overrides=asked["options"])
        elif asked["kind"] == "regex":
            source = matcher.grammar_from_regex(text)
        else:
            source = llguidance.grammar_from("grammar", text)
        source.encode()  # halves of surrogate pairs are no text
    except (ValueError, RecursionError) as error:
        return {"failed": str(error)}
    if len(source) > asked["max_characters"]:
        return {"size": len(source)}
    is_error, messages = matcher.validate_grammar_with_warnings(source)
    if is_error or messages:
        return {"invalid": messages[0]}
    state = matcher(tokenizer, source, log_level=0)  # some grammars take long only here
    if not state.is_error():
        state.compute_bitmask()
    return {"invalid": state.get_error()} if state.is_error() else {"source": source}


class Bytes:
    """A vocabulary of all bytes, and a token that ends a text."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"\xff<256>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text)


def limit_resources() -> None:
    """Limit memory, and write no core files."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = 512 << 20
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    for name, limit in (("RLIMIT_AS", used + MEMORY_BYTES), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (limit, limit))


def limit_time(seconds: float) -> None:
    """Let the system kill this process if a request takes too much processor time; 0: no limit."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def answer(content: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
