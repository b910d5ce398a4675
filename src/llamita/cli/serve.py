"""`llamita serve [MODEL | NAME=MODEL …]`: serves models over HTTP: a chat page, the APIs of OpenAI,
Anthropic and Ollama."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import ipaddress
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llamita.cli.adapters import open_adapters
from llamita.cli.command import card_defaults, parse, requires_extra
from llamita.cli.generation import DEFAULT_LOAD, LoadOptions, check_context, check_runtime
from llamita.cli.open_model import opened_model
from llamita.cli.tracing import open_index
from llamita.config import Option, check
from llamita.engine import PACKAGED_MODEL, Model
from llamita.errors import ConfigError, LlamitaError, SourceError, clean_line
from llamita.sampling import DEFAULT_COMPUTE, ComputeOptions

if TYPE_CHECKING:
    from llamita.server.serving import ServedModel

MAX_KEY_FILE_BYTES = 1 << 20
LOG_FORMAT = "%(asctime)s %(message)s"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_KEY = re.compile("[!-~]+")  # what an HTTP header can hold


@dataclasses.dataclass(frozen=True)
class ServeFlags:
    """Serve models over HTTP: a chat page, the APIs of OpenAI, Anthropic and Ollama.

    Requests run side by side and give the same texts as alone.
    """

    examples = (
        "llamita serve",
        "llamita serve small.gguf chat=big.gguf --port 8080",
        "llamita serve my.gguf --api-key-file keys.txt",
    )

    models: Annotated[tuple[str, ...], Option("MODEL...", positional=True)] = ()
    """Model files, checkpoints or run directories, or NAME=MODEL to name one in the API. Default:
    the story model that comes with llamita."""
    host: Annotated[str, Option("ADDRESS", group="server")] = "127.0.0.1"
    """Address to listen at; 0.0.0.0: all of this machine."""
    port: Annotated[int, Option(group="server")] = 8000
    """Port to listen at; 0: any free one."""
    parallel: Annotated[int, Option(group="server")] = 16
    """Texts that each model generates at once."""
    queue: Annotated[int, Option(group="server")] = 64
    """Texts that wait besides, for each model; more are refused with status 429."""
    timeout: Annotated[float, Option("SECONDS", group="server")] = 600.0
    """Longest time for an answer."""
    api_key_file: Annotated[Path | None, Option("PATH", group="server")] = None
    """File with one API key a line; clients must send one of them."""
    cors: Annotated[tuple[str, ...], Option("ORIGIN", group="server", repeated=True)] = ()
    """Let web pages of this origin use the API; * for all. May be given several times."""
    watch: Annotated[bool, Option(group="server")] = False
    """Serve a model anew when its file, or the checkpoint of its run directory, is replaced."""
    trace: Annotated[Path | None, Option("STORE", group="server")] = None
    """Let clients ask where a text stands word for word in this token store: POST /trace, and a button
    of the chat page. They see its texts. The store needs an index; see `llamita index`."""
    quiet: Annotated[bool, Option(group="server")] = False
    """Print no line for each request."""
    load: Annotated[LoadOptions, Option(group="model")] = DEFAULT_LOAD
    runtime: Annotated[ComputeOptions, Option(group="engine")] = DEFAULT_COMPUTE

    def __post_init__(self) -> None:
        check(0 <= self.port <= 65535, f"--port: expected 0 to 65535, found {self.port}")
        check(1 <= self.parallel <= 512, f"--parallel: expected 1 to 512, found {self.parallel}")
        check(0 <= self.queue <= 100_000, f"--queue: expected 0 to 100,000, found {self.queue}")
        check(0 < self.timeout <= 86_400, f"--timeout: expected more than 0 and at most 86,400, found {self.timeout}")
        check_runtime(self.runtime)


def main(argv: list[str]) -> int | None:
    flags = parse(ServeFlags, argv, "llamita serve")
    with requires_extra("serve"):
        import uvicorn

        from llamita.server.app import Server
        from llamita.server.connection import TimedProtocol
        from llamita.server.serving import ServerLimits
    keys = () if flags.api_key_file is None else read_keys(flags.api_key_file)
    named = named_models(flags.models)
    index = None if flags.trace is None else open_index(flags.trace)
    check(not flags.watch or flags.models != (), "--watch: expected a MODEL: the packaged one never changes")
    with contextlib.ExitStack() as stack:
        served = []
        for name, path in named.items():
            served.append(open_model(name, path, flags))
            assert served[-1].close is not None
            stack.callback(served[-1].close)
        limits = ServerLimits(flags.parallel, flags.queue, answer_seconds=flags.timeout)
        listening = stack.enter_context(_listen(flags.host, flags.port))
        _log_requests(flags.quiet)
        is_local = ipaddress.ip_address(listening.getsockname()[0]).is_loopback
        server = Server(
            served,
            flags.runtime,
            limits,
            api_keys=keys,
            cors_origins=flags.cors,
            host_names=(*LOOPBACK_NAMES, flags.host) if is_local and not keys else (),
            index=index,
        )

        class Announcing(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started:
                    _announce(listening, flags, served[0].name, served[0].model)

        config = uvicorn.Config(
            server.app,
            http=TimedProtocol,
            lifespan="on",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=60,
        )
        Announcing(config).run(sockets=[listening])
    return 0


def open_model(name: str, path: Path | None, flags: ServeFlags) -> ServedModel:
    """Open a model to serve. Raises LlamitaError."""
    from llamita.server.serving import API_SAMPLING, ServedModel
    from llamita.server.watch import Watched, file_state, private_copy

    with contextlib.ExitStack() as stack:
        watched, source = None, path
        if flags.watch and path is not None:
            watched = Watched(path, file_state(path))
            source = stack.enter_context(private_copy(path)) if path.is_file() else path
        try:
            model = stack.enter_context(opened_model(source, flags.load, "serve"))
        except LlamitaError as error:
            if source == path:
                raise
            raise SourceError(str(error).replace(str(source), str(path))) from None
        check(model.info.has_tokenizer, f"cannot serve {name}: the model has no tokenizer; name one with --tokenizer")
        check_context(model, flags.runtime)
        found = card_defaults({("model",): source or PACKAGED_MODEL})
        card = {option[1]: value for option, value in found.items() if option[0] == "sampling"}
        sampling = dataclasses.replace(API_SAMPLING, **card)
        adapters = open_adapters(model, flags.load.adapter)
        reopen = functools.partial(open_model, name, path, flags)
        return ServedModel(name, model, sampling, adapters, watched, reopen, stack.pop_all().close)


def named_models(words: Sequence[str]) -> dict[str, Path | None]:
    """The models by their names in the API; None: the packaged one. Raises ConfigError for a name
    that is given twice."""
    named: dict[str, Path | None] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or "/" in name or Path(word).exists():
            name, path = Path(word).stem if Path(word).is_file() else Path(word).resolve().name, word
        check(name != "" and path != "", f"MODEL: expected a path or NAME=PATH, found {word!r}")
        check(name not in named, f"MODEL: expected different names, found {name!r} twice; write NAME=PATH")
        named[name] = Path(path)
    return named or {"stories": None}


def read_keys(path: Path) -> tuple[str, ...]:
    """The API keys of a file: one a line; empty lines and those that begin with # are left out.
    Raises SourceError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_KEY_FILE_BYTES + 1)
        if len(raw) > MAX_KEY_FILE_BYTES:
            raise SourceError(f"--api-key-file: {path}: expected at most {MAX_KEY_FILE_BYTES:,} bytes")
        lines = [line.strip() for line in raw.decode("utf-8-sig").splitlines()]
    except OSError as error:
        raise SourceError(f"--api-key-file: {path}: {error.strerror or error}") from None
    except UnicodeError:
        raise SourceError(f"--api-key-file: {path}: expected UTF-8 text, found other bytes") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise SourceError(f"--api-key-file: {path}: expected a key on each line, found none")
    if not all(_KEY.fullmatch(key) for key in keys):
        raise SourceError(f"--api-key-file: {path}: expected keys of ASCII letters, digits and signs, found others")
    return keys


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(found[0], found[1])
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host: {host}: {getattr(error, 'strerror', None) or error}") from None
    try:
        if os.name != "nt":  # there it would let a second server listen at the same port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
        return listening
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; choose another with --port"
        ) from None


def _announce(listening: socket.socket, flags: ServeFlags, name: str, model: Model) -> None:
    """Print where the server listens, and a command that tries it."""
    host, port = listening.getsockname()[:2]
    local = ipaddress.ip_address(host).is_unspecified
    reached = "127.0.0.1" if local else f"[{host}]" if ":" in host else host
    url = f"http://{reached}:{port}/v1"
    if model.chat_template is None:
        route, body = "completions", {"model": name, "prompt": "Once upon a time", "max_tokens": 100}
    else:
        route, body = "chat/completions", {"model": name, "messages": [{"role": "user", "content": "Hello!"}]}
    key = "" if flags.api_key_file is None else ' -H "Authorization: Bearer KEY"'
    data = json.dumps(body).replace("'", "'\\''")
    page = url.removesuffix("v1")
    print(f"serving {name} at {url} (stop with Ctrl-C); open {page} in a browser, or try it here:", flush=True)
    print(f"  curl {url}/{route}{key} -H 'Content-Type: application/json' -d '{data}'", flush=True)
    if flags.api_key_file is None and not ipaddress.ip_address(host).is_loopback:
        print(
            "note: anyone who reaches this address can use the server; --api-key-file asks for a key", file=sys.stderr
        )


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return clean_line(super().format(record))


def _log_requests(quiet: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(LOG_FORMAT))
    for name, level in (("llamita.server", logging.WARNING if quiet else logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False
