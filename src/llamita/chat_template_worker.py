"""A program that renders a chat template under limits: JSON lines on stdin, texts on stdout.

chat_template.py starts it and never imports it. A template comes from a model file, so it is
untrusted code: it runs here in Jinja's sandbox, in a process with limited memory and time that can
neither open nor write files.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from typing import Any

MEMORY_BYTES = 512 << 20


def main() -> None:
    """argv: sys.path as JSON. First line: {"template": …, "variables": {…}}. Each request:
    {"messages": …, "tools": …, "add_generation_prompt": …, "max_characters": …, "seconds": …}. Each
    answer: {"text": …} or {"error": …}."""
    sys.path[:] = json.loads(sys.argv[1])
    import jinja2.debug  # otherwise imported later, when no file can be opened
    import jinja2.ext
    import jinja2.sandbox

    environment = make_environment(jinja2)
    warm_up(environment)
    request = json.loads(sys.stdin.readline())
    variables = request["variables"]
    answer({"text": "ready"})
    limit_resources()
    template: Any = None
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            limit_time(asked["seconds"])
            if template is None:
                template = environment.from_string(request["template"])
            answer({"text": render(template, variables, asked)})
        except MemoryError:
            template = None
            answer({"error": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"})
        except RecursionError:
            answer({"error": "it is nested too deeply"})
        except Exception as error:  # a template's error is an answer, not a failure of this program
            kind = f"syntax error in line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
            answer({"error": kind + (" ".join(str(error).split())[:300] or "it failed without a reason")})


def render(template: Any, variables: dict[str, Any], asked: dict[str, Any]) -> str:
    """The text of one conversation. Raises Refusal beyond max_characters."""
    pieces, left = [], asked["max_characters"]
    known = variables | {"messages": asked["messages"], "add_generation_prompt": asked["add_generation_prompt"]}
    for piece in template.generate(**known, tools=asked["tools"], documents=None):
        left -= len(piece)
        if left < 0:
            raise Refusal(f"it writes more than {asked['max_characters']:,} characters")
        pieces.append(piece)
    return "".join(pieces)


class Refusal(Exception):
    """Raised by the template's raise_exception, or at a limit."""


def make_environment(jinja2: Any) -> Any:
    """Jinja as transformers configures it for chat templates, but unsafe attributes are errors."""

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):  # type: ignore[misc]
        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise Refusal(f"it accesses {attribute!r} ({type(obj).__name__}), which is forbidden")

    class Generation(jinja2.ext.Extension):  # type: ignore[misc]
        """{% generation %}…{% endgeneration %}: a mark for training, ignored here."""

        tags = frozenset(("generation",))

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def raise_exception(message: object) -> None:
        raise Refusal(f"it says: {message}")

    def tojson(
        value: object, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def warm_up(environment: Any) -> None:
    """Trigger the lazy imports of Python and Jinja: later no file can be opened."""
    import jinja2.debug  # noqa: F401

    known = "{%- macro f(x='\\n') %}{{ x|trim|upper|string|tojson }}{% endmacro %}{{ f() ~ strftime_now('%d %B') }}"
    broken = ("{{ 1 // 0 }}", "{{ ''.__class__ }}", "{% include 'x' %}", "{{ 'a' + 1 }}", "{% for %}", "{{ x.y.z }}")
    for source in (known + "{% for x in [1]|sort|map('int') %}{% break %}{% endfor %}", *broken):
        with contextlib.suppress(Exception):
            environment.from_string(source).render()


def limit_resources() -> None:
    """Limit memory, and forbid opening files, writing files and starting processes."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_NOFILE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, limit in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (limit, limit))


def limit_time(seconds: float) -> None:
    """Let the system kill this process if a request takes too much processor time; 0: no limit."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def answer(content: dict[str, str]) -> None:
    """Write one line, and stop the timer until the next request."""
    limit_time(0)
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
