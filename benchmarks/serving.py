"""Measures `llamita serve`: speed beside the engine and llama-server, waiting times, cancellation,
and answers that differ under load.

    python benchmarks/serving.py [MODEL.gguf] [--llama-server PATH] [--only speed gaps]
    python benchmarks/serving.py [MODEL.gguf] --soak MINUTES

Both servers and the engine are measured in turns, and medians are printed: on a machine with other
work only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import itertools
import json
import math
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import uvicorn

import llamita
from llamita.engine import PACKAGED_MODEL, Model, Request, Scheduler, encode_prompt
from llamita.sampling import ComputeOptions, RuntimeOptions, SamplingParams
from llamita.server import app, serving, worker
from llamita.server.connection import TimedProtocol

PROMPTS: Final = (
    "Once upon a time", "One day a dog", "The cat and the bird went to the park and", "Tom was sad because"
)  # fmt: skip
CLIENTS: Final = (1, 4, 16)
NUM_PARALLEL: Final = 16
# The same work for both servers' samplers.
SAMPLING: Final = SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
SAMPLING_FIELDS: Final = {name: getattr(SAMPLING, name) for name in ("temperature", "top_k", "top_p", "min_p")}
MAX_GAP_SECONDS: Final = 20.0  # of one measurement: a server that stalls gives few gaps
MAX_RSS_GROWTH: Final = 1.05
WARM_UP_SHARE: Final = 0.2  # of a soak: memory still grows to its size


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is measured: a model file, and how it is served."""

    path: Path
    model: Model
    num_threads: int
    context_tokens: int
    num_repeats: int
    num_requests: int
    num_tokens: int
    llama_server: Path | None
    adapter: str | None

    @property
    def runtime(self) -> ComputeOptions:
        return RuntimeOptions(num_threads=self.num_threads, context_tokens=self.context_tokens)

    @property
    def endless(self) -> dict[str, Any]:
        """Fields of requests that do not end before max_tokens, on both servers."""
        return {"logit_bias": {str(self.model.info.eos_id): -100}, "ignore_eos": True}


# ---- servers


@contextlib.contextmanager
def ours(setup: Setup) -> Iterator[tuple[int, int]]:
    """Run `llamita serve`: its port, and the id of its process."""
    command = [sys.executable, "-m", "llamita", "serve", str(setup.path), "--port", "0", "--quiet"]
    command += ["--threads", str(setup.num_threads), "--context", str(setup.context_tokens)]
    command += [] if setup.adapter is None else ["--adapter", setup.adapter]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().split(b"127.0.0.1:")[1].split(b"/")[0]), process.pid
        finally:
            process.terminate()


@contextlib.contextmanager
def llama_server(setup: Setup) -> Iterator[int]:
    """Run llama.cpp's server with as many sequences and threads: its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads, context = str(setup.num_threads), str(setup.context_tokens * NUM_PARALLEL)
    command = [str(setup.llama_server), "-m", str(setup.path), "--port", str(port), "-t", threads, "-tb", threads,
               "-np", str(NUM_PARALLEL), "-c", context]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                    break
                if process.poll() is not None:
                    sys.exit(f"{setup.llama_server}: expected a server, found exit status {process.returncode}")
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()


class CountedScheduler(Scheduler):
    """Notes at which step a request was really cancelled."""

    steps_at_cancel: dict[int, int]

    def cancel(self, request: int) -> bool:
        found = super().cancel(request)
        if found:
            self.steps_at_cancel[request] = self.stats.num_steps
        return found


class CountedWorker(worker.Worker):
    """Notes at which step a client's request was to be cancelled: (its number, the step)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cancelled: list[tuple[worker.Running, int]] = []
        assert isinstance(self._scheduler, CountedScheduler)
        self.steps_at_cancel = self._scheduler.steps_at_cancel = {}

    def cancel(self, running: worker.Running) -> None:
        if running in self._live:
            self.cancelled.append((running, self._scheduler.stats.num_steps))
        super().cancel(running)


@contextlib.contextmanager
def in_this_process(setup: Setup) -> Iterator[tuple[int, CountedWorker]]:
    """Run our server in a thread: its port, and its worker, which counts."""
    setattr(worker, "Scheduler", CountedScheduler)  # noqa: B010
    setattr(serving, "Worker", CountedWorker)  # noqa: B010
    limits = serving.ServerLimits(NUM_PARALLEL, max_queue=1000)
    server = app.Server([serving.ServedModel("model", setup.model)], setup.runtime, limits)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        program = uvicorn.Server(uvicorn.Config(server.app, lifespan="on", log_config=None, http=TimedProtocol))
        thread = threading.Thread(target=program.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not program.started:
                time.sleep(0.01)
            yield listening.getsockname()[1], server._serving["model"].worker  # type: ignore[misc]
        finally:
            program.should_exit = True
            thread.join()


# ---- requests


async def send(
    port: int, body: dict[str, Any], path: str = "/v1/completions"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    raw = json.dumps(body).encode()
    writer.write(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n".encode())
    writer.write(b"Content-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n" % len(raw) + raw)
    return reader, writer


async def parts(port: int, body: dict[str, Any], path: str = "/v1/completions") -> AsyncIterator[tuple[float, bytes]]:
    """The parts of an answer as they come, with the seconds since the request."""
    start = time.perf_counter()
    reader, writer = await send(port, body, path)
    try:
        while part := await reader.read(1 << 16):
            yield time.perf_counter() - start, part
    finally:
        writer.close()


async def ask(port: int, body: dict[str, Any], path: str = "/v1/completions") -> tuple[int, Any]:
    """The status and the object of an answer."""
    head, _, said = b"".join([part async for _, part in parts(port, body, path)]).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(said)


async def stream(port: int, body: dict[str, Any], seconds_left: float = math.inf) -> tuple[list[float], int]:
    """When the chunks of a stream with text came, and the number of its tokens; 0: it was left, for
    there was no more time."""
    raw, times = [], []
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    async for seconds, part in parts(port, {**body, **usage}):
        raw.append(part)
        if b'"text":' in part:
            times.append(seconds)
        if seconds > seconds_left:
            return times, 0
    whole = b"".join(raw)
    assert b" 200 " in whole.splitlines()[0] and b"data: [DONE]" in whole, whole[-1000:]
    [last] = [line for line in whole.splitlines() if line.startswith(b"data: {") and b'"completion_tokens"' in line][
        -1:
    ]
    return times, json.loads(last[6:])["usage"]["completion_tokens"]


def random_body(chosen: random.Random, most: int = 80) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": chosen.choice(PROMPTS) + chosen.choice(("", " and", " in the big", " and the cat went home" * 5)),
        "max_tokens": chosen.randrange(1, most),
        "temperature": chosen.choice((0, 0.8)),
        "seed": chosen.randrange(10**6),
    }
    return body | ({"n": 3} if chosen.random() < 0.1 else {})


def full_prompt(setup: Setup, chosen: random.Random) -> list[int]:
    """A prompt that fills the context but one token, and starts like no other."""
    return [chosen.randrange(setup.model.info.vocab_size) for _ in range(setup.context_tokens - 1)]


# ---- speed


def engine_speed(setup: Setup, num_texts: int) -> tuple[float, float]:
    """Tokens per second of the scheduler without a server, and the seconds of processor time."""
    end = {setup.model.info.eos_id: -100.0}
    prompts = [encode_prompt(setup.model, prompt) for prompt in PROMPTS]
    with Scheduler(setup.model, setup.runtime, num_parallel=num_texts) as scheduler:
        for ids in prompts:  # the server has them from the round before
            scheduler.submit(Request(ids, 0))
        while scheduler.stats.num_running + scheduler.stats.num_waiting:
            scheduler.run(1.0)
        for seed in range(num_texts):
            ids = prompts[seed % len(prompts)]
            scheduler.submit(Request(ids, setup.num_tokens, dataclasses.replace(SAMPLING, seed=seed), logit_bias=end))
        start, processor_start = time.perf_counter(), time.process_time()
        while scheduler.stats.num_running + scheduler.stats.num_waiting:
            scheduler.run(1.0)
        seconds = time.perf_counter() - start
        return scheduler.stats.num_new_tokens / seconds, time.process_time() - processor_start


async def server_speed(setup: Setup, port: int, num_clients: int) -> float:
    """Tokens per second of all clients together."""
    body = {"max_tokens": setup.num_tokens, **SAMPLING_FIELDS, **setup.endless}
    start = time.perf_counter()
    answers = await asyncio.gather(
        *(stream(port, {**body, "prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed}) for seed in range(num_clients))
    )
    return sum(num for _, num in answers) / (time.perf_counter() - start)


def processor_seconds(process: int) -> float:
    """The time that all threads of a process have computed. Linux."""
    return time.clock_gettime(~process << 3 | 2)


def speed(setup: Setup) -> None:
    """Tokens per second: the engine, our server, llama-server. Other work on the machine changes
    them more than the processor time that the engine and our server take for the same texts."""
    with contextlib.ExitStack() as stack:
        port, process = stack.enter_context(ours(setup))
        peer = None if setup.llama_server is None else stack.enter_context(llama_server(setup))
        for num_clients in CLIENTS:
            found: dict[str, list[float]] = collections.defaultdict(list)
            for _ in range(setup.num_repeats + 1):
                each, seconds = engine_speed(setup, num_clients)
                found["engine"].append(each)
                found["processor, engine"].append(seconds)
                start = processor_seconds(process)
                found["ours"].append(asyncio.run(server_speed(setup, port, num_clients)))
                found["processor, ours"].append(processor_seconds(process) - start)
                if peer is not None:
                    found["llama-server"].append(asyncio.run(server_speed(setup, peer, num_clients)))
            medians = {name: statistics.median(each[1:]) for name, each in found.items()}  # the first warms up
            line = f"{num_clients:2} clients: engine {medians['engine']:,.0f} tok/s, ours {medians['ours']:,.0f}"
            line += f" ({medians['ours'] / medians['engine']:.0%} of the engine; "
            line += f"by processor time {medians['processor, engine'] / medians['processor, ours']:.0%})"
            if peer is not None:
                ratios = [one / other for one, other in zip(found["ours"], found["llama-server"], strict=True)][1:]
                line += f", llama-server {medians['llama-server']:,.0f}: {statistics.median(ratios):.2f} times"
                line += f" ({min(ratios):.2f} to {max(ratios):.2f})"
            print(line, flush=True)


# ---- waiting


def engine_first_token(setup: Setup, scheduler: Scheduler, prompt: str) -> float:
    start = time.perf_counter()
    number = scheduler.submit(Request(encode_prompt(setup.model, prompt), 8, SamplingParams(temperature=0)))
    while not scheduler.step():
        pass
    seconds = time.perf_counter() - start
    scheduler.cancel(number)
    return seconds


def first_token(setup: Setup) -> None:
    """Time to the first token of a server with nothing else to do, and the engine's own."""
    chosen = random.Random(2)
    found: dict[str, list[float]] = collections.defaultdict(list)
    with contextlib.ExitStack() as stack:
        ports = {"ours": stack.enter_context(ours(setup))[0]}
        if setup.llama_server is not None:
            ports["llama-server"] = stack.enter_context(llama_server(setup))
        scheduler = stack.enter_context(Scheduler(setup.model, setup.runtime))
        for _ in range(20 * setup.num_repeats):
            prompt = f"{chosen.randrange(10**6)} times " + chosen.choice(PROMPTS)
            found["engine"].append(engine_first_token(setup, scheduler, prompt))
            for name, port in ports.items():
                times, _ = asyncio.run(
                    stream(port, {"prompt": prompt, "max_tokens": 8, "temperature": 0, **setup.endless})
                )
                found[name].append(times[0])
    line = ", ".join(
        f"{name} {statistics.median(times) * 1e3:.2f} ms (p90 {percentile(times, 90) * 1e3:.2f})"
        for name, times in found.items()
    )
    over = statistics.median(one - other for one, other in zip(found["ours"], found["engine"], strict=True))
    print(f"first token: {line}; ours is {over * 1e3:.2f} ms over the engine", flush=True)


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


async def token_gaps(setup: Setup, port: int, num_gaps: int, *, with_prompts: bool) -> list[float]:
    """Seconds between the chunks of one stream after another, while prompts keep arriving."""
    chosen = random.Random(time.time_ns())

    async def keep_prompting() -> None:
        while True:
            await ask(port, {"prompt": full_prompt(setup, chosen), "max_tokens": 1})

    arriving = asyncio.ensure_future(keep_prompting()) if with_prompts else None
    body = {"prompt": PROMPTS[0], "max_tokens": min(setup.context_tokens // 2, 64), **SAMPLING_FIELDS, **setup.endless}
    gaps: list[float] = []
    end = time.monotonic() + MAX_GAP_SECONDS
    while len(gaps) < num_gaps and time.monotonic() < end:
        times, _ = await stream(port, body, end - time.monotonic())
        gaps += [after - before for before, after in itertools.pairwise(times)]
    if arriving is not None:
        arriving.cancel()
        await asyncio.gather(arriving, return_exceptions=True)
    return gaps


def gaps(setup: Setup) -> None:
    """The time between tokens while prompts of the full context keep arriving."""
    with contextlib.ExitStack() as stack:
        ports = {"ours": stack.enter_context(ours(setup))[0]}
        if setup.llama_server is not None:
            ports["llama-server"] = stack.enter_context(llama_server(setup))
        found: dict[str, list[tuple[float, ...]]] = collections.defaultdict(list)
        for _ in range(setup.num_repeats):
            for name, port in ports.items():
                calm = asyncio.run(token_gaps(setup, port, 300, with_prompts=False))
                busy = asyncio.run(token_gaps(setup, port, 300, with_prompts=True))
                medians = statistics.median(calm), statistics.median(busy)
                found[name].append((*medians, percentile(calm, 99), percentile(busy, 99), medians[1] / medians[0],
                                    percentile(busy, 99) / medians[0]))  # fmt: skip
        for name, rows in found.items():
            each = [statistics.median(column) for column in zip(*rows, strict=True)]
            calm_median, busy_median, calm_p99, busy_p99 = (seconds * 1e3 for seconds in each[:4])
            print(
                f"gaps, {name}: without prompts median {calm_median:.1f} ms, p99 {calm_p99:.1f} ms; with prompts of "
                f"{setup.context_tokens - 1:,} tokens median {busy_median:.1f} ms ({each[4]:.1f} times), p99 "
                f"{busy_p99:.1f} ms ({each[5]:.1f} times the median without)",
                flush=True,
            )


# ---- promises


async def leave_at_random(port: int, chosen: random.Random, body: dict[str, Any]) -> None:
    """Send a request and close the connection after a moment."""
    _, writer = await send(port, body)
    await asyncio.sleep(chosen.random() ** 2 * 0.1)
    writer.transport.abort()


async def cancel_many(setup: Setup, port: int) -> None:
    chosen = random.Random(3)
    running = asyncio.Semaphore(30)

    async def one() -> None:
        async with running:
            body = random_body(chosen) | {"max_tokens": setup.context_tokens, "stream": chosen.random() < 0.5}
            await leave_at_random(port, chosen, {**body, **setup.endless})

    await asyncio.gather(*(one() for _ in range(setup.num_requests)))


def cancellation(setup: Setup) -> None:
    """Requests whose client leaves at a random moment: how many steps are still computed for them."""
    with in_this_process(setup) as (port, counted):
        asyncio.run(cancel_many(setup, port))
        start = time.perf_counter()
        while counted.num_live:
            time.sleep(0.001)
        seconds = time.perf_counter() - start
        time.sleep(0.2)
        late = [
            counted.steps_at_cancel.get(each.number, step) - step for each, step in counted.cancelled if each.number
        ]
        never = sum(1 for each, _ in counted.cancelled if each.number is None)
        stats = counted.stats
    over = sum(1 for each in late if each > 1)
    print(
        f"cancelled: {len(late):,} texts of {setup.num_requests:,} requests ({never:,} more before they began); steps "
        f"after that: {dict(sorted(collections.Counter(late).items()))}; more than one: {over}; all had ended "
        f"{seconds * 1e3:.0f} ms after the last client; still running: {stats.num_running + stats.num_waiting}",
        flush=True,
    )


async def num_different(port: int, num_requests: int) -> int:
    """How many answers under load, with random arrivals, differ from the same request alone."""
    chosen = random.Random(1)
    bodies = [random_body(chosen) for _ in range(num_requests)]
    alone = [(await ask(port, body))[1]["choices"] for body in bodies]
    running = asyncio.Semaphore(20)  # the largest has three texts, and 64 may wait

    async def later(body: dict[str, Any]) -> Any:
        async with running:
            await asyncio.sleep(chosen.random() * 0.02)
            return (await ask(port, body))[1]["choices"]

    together = await asyncio.gather(*map(later, bodies))
    return sum(one != other for one, other in zip(alone, together, strict=True))


def sameness(setup: Setup) -> None:
    """Answers under load that differ from the same request alone."""
    with ours(setup) as (port, _):
        different = asyncio.run(num_different(port, setup.num_requests))
    print(f"answers that differ from the same request alone: {different} of {setup.num_requests:,}", flush=True)


# ---- soak


def resident_bytes(process: int) -> int:
    line = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


async def soak_client(setup: Setup, port: int, number: int, end: float, counts: collections.Counter[str]) -> None:
    chosen = random.Random(number)
    while time.monotonic() < end:
        body = random_body(chosen, setup.context_tokens) | {"stream": chosen.random() < 0.5}
        if chosen.random() < 0.1:
            body["structured_outputs"] = {"regex": f"[a-z ,]{{5,{chosen.randrange(6, 60)}}}"}
        kind = chosen.random()
        try:
            if kind < 0.3:
                await leave_at_random(port, chosen, body)
                counts["left"] += 1
            elif kind < 0.35:
                status, _ = await ask(port, {"prompt": full_prompt(setup, chosen), "max_tokens": 1})
                counts[str(status)] += 1
            elif kind < 0.4:
                status, _ = await ask(port, {"input": [body["prompt"]] * chosen.randrange(1, 9)}, "/v1/embeddings")
                counts[f"{status}, vectors"] += 1
            elif body["stream"]:
                await stream(port, body)
                counts["200"] += 1
            else:
                status, _ = await ask(port, body)
                counts[str(status)] += 1
        except (OSError, AssertionError, ValueError):
            counts["failed"] += 1


async def soak_clients(setup: Setup, port: int, end: float, counts: collections.Counter[str]) -> None:
    await asyncio.gather(*(soak_client(setup, port, number, end, counts) for number in range(2 * NUM_PARALLEL)))


def soak(setup: Setup, minutes: float) -> bool:
    """Full load with clients that leave: memory must not grow, and nothing may be left over."""
    seconds = minutes * 60
    counts: collections.Counter[str] = collections.Counter()
    with ours(setup) as (port, process):
        start = time.monotonic()
        load = threading.Thread(target=lambda: asyncio.run(soak_clients(setup, port, start + seconds, counts)))
        load.start()
        warm = 0
        while load.is_alive():
            load.join(seconds / 20)
            memory, passed = resident_bytes(process), time.monotonic() - start
            if warm == 0 and passed >= seconds * WARM_UP_SHARE:
                warm = memory
            print(f"{passed:5.0f} s: {memory / 2**20:.1f} MiB, {dict(sorted(counts.items()))}", flush=True)
        time.sleep(2)
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        left = sum(float(metrics.split(f"\nllamita_num_{name} ")[1].split("\n")[0]) for name in ("running", "waiting"))
        growth = resident_bytes(process) / warm
    print(f"soak: memory {growth - 1:+.1%} since the warm-up; still running: {left:.0f}; failed: {counts['failed']}")
    return growth <= MAX_RSS_GROWTH and left == 0 and counts["failed"] == 0


CASES: Final[dict[str, Callable[[Setup], None]]] = {
    "speed": speed,
    "first-token": first_token,
    "gaps": gaps,
    "cancellation": cancellation,
    "sameness": sameness,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=PACKAGED_MODEL)
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="measure it, too")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, metavar="TOKENS", help="default: the model's, at most 2,048")
    parser.add_argument("--tokens", type=int, default=200, help="of each text of `speed`")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--adapter", help="PATH or PATH:SCALE, for all texts of our server")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="full load with clients that leave")
    options = parser.parse_args()
    with llamita.load(options.model) as model:
        context = options.context or min(model.info.context_tokens, 2048)
        setup = Setup(options.model, model, options.threads, context, options.repeats, options.requests,
                      options.tokens, options.llama_server, options.adapter)  # fmt: skip
        if options.soak is not None:
            sys.exit(not soak(setup, options.soak))
        for name in options.only:
            CASES[name](setup)


if __name__ == "__main__":
    main()
