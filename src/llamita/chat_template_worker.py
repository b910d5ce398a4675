"""A program: a chat template and messages, as lines of JSON on stdin, to texts on stdout, under limits set by itself.

chat_template.py starts it (never imports it). A template comes from a model file, so it is a stranger's program: it
runs here, in Jinja's sandbox, in a process that may take only so much memory and time, and open or write no file.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from typing import Any

MEMORY_BYTES = 512 << 20
SECONDS = 3.0  # the parent's patience ends before; this is for when there is no parent any more


def main() -> None:
    """argv: sys.path as JSON. First line: {"template": …, "variables": {…}}; each further one: {"messages": …,
    "add_generation_prompt": …, "most_characters": …}. Answers: {"text": …} or {"error": …}."""
    sys.path[:] = json.loads(sys.argv[1])
    import jinja2.debug  # loaded later otherwise, when no file can be opened
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
            limit_time()
            asked = json.loads(line)
            if template is None:
                template = environment.from_string(request["template"])
            answer({"text": render(template, variables, asked)})
        except MemoryError:
            template = None
            answer({"error": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"})
        except RecursionError:
            answer({"error": "it is nested too deeply"})
        except Exception as error:  # whatever a template does is an answer, not a failure of this program
            kind = "" if type(error).__name__ == "Refusal" else f"{type(error).__name__}: "
            answer({"error": f"{kind}{' '.join(str(error).split())[:300]}"})


def render(template: Any, variables: dict[str, Any], asked: dict[str, Any]) -> str:
    """The text of one conversation; Refusal if it has more than the characters asked for."""
    pieces, left = [], asked["most_characters"]
    known = variables | {"messages": asked["messages"], "add_generation_prompt": asked["add_generation_prompt"]}
    for piece in template.generate(**known, tools=None, documents=None):
        left -= len(piece)
        if left < 0:
            raise Refusal(f"it writes more than {asked['most_characters']:,} characters")
        pieces.append(piece)
    return "".join(pieces)


class Refusal(Exception):
    """What the template's own raise_exception says, or a limit."""


def make_environment(jinja2: Any) -> Any:
    """Jinja as transformers sets it up for chat templates, and stricter: unsafe attributes are errors at once."""

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):  # type: ignore[misc]
        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise Refusal(f"it reaches for {attribute!r} ({type(obj).__name__}), which is forbidden")

    class Generation(jinja2.ext.Extension):  # type: ignore[misc]
        """{% generation %}…{% endgeneration %}, which marks the assistant's text for training; nothing else."""

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
    """Use what Python and Jinja load when it is first used: later no file can be opened."""
    import jinja2.debug  # noqa: F401

    known = "{%- macro f(x='\\n') %}{{ x|trim|upper|string|tojson }}{% endmacro %}{{ f() ~ strftime_now('%d %B') }}"
    broken = ("{{ 1 // 0 }}", "{{ ''.__class__ }}", "{% include 'x' %}", "{{ 'a' + 1 }}", "{% for %}", "{{ x.y.z }}")
    for source in (known + "{% for x in [1]|sort|map('int') %}{% break %}{% endfor %}", *broken):
        with contextlib.suppress(Exception):
            environment.from_string(source).render()


def limit_resources() -> None:
    """Memory, and no new files, nothing written to files, no new processes; where the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_NOFILE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, most in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (most, most))


def limit_time() -> None:
    """Let the system end this process when a request takes too long."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, SECONDS)


def answer(content: dict[str, str]) -> None:
    """Write one line, and wait for the next request without a limit."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
