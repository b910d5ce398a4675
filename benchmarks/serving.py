"""Measures `llamita serve` under load against the engine's own batch speed, and counts answers that
differ from the same requests alone.

    python benchmarks/serving.py [MODEL.gguf] [--tokens N] [--requests N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import llamita
from llamita.engine import Model, Request, Scheduler, encode_prompt
from llamita.sampling import RuntimeOptions, SamplingParams

PROMPTS = ("Once upon a time", "One day a dog", "The cat and the bird went to the park and", "Tom was sad because")
CLIENTS = (1, 4, 16)
REPEATS = 3


def engine_speed(model: Model, num_texts: int, num_tokens: int) -> float:
    """Tokens per second of the scheduler without a server."""
    end = {model.info.eos_id: -100.0}
    with Scheduler(model, RuntimeOptions(num_threads=1), num_parallel=num_texts) as scheduler:
        for seed in range(num_texts):
            ids = encode_prompt(model, PROMPTS[seed % len(PROMPTS)])
            scheduler.submit(Request(ids, num_tokens, SamplingParams(temperature=0.8, seed=seed), logit_bias=end))
        start = time.perf_counter()
        while scheduler.stats.num_running + scheduler.stats.num_waiting:
            scheduler.run(1.0)
        return scheduler.stats.num_new_tokens / (time.perf_counter() - start)


async def ask(port: int, body: dict[str, Any]) -> tuple[bytes, list[float]]:
    """The body of an answer, and the seconds from the request to each part of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = json.dumps(body).encode()
    start = time.perf_counter()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(raw)
    )
    writer.write(raw)
    parts, times = [], []
    while part := await reader.read(1 << 16):
        parts.append(part)
        times.append(time.perf_counter() - start)
    writer.close()
    head, _, said = b"".join(parts).partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0], head
    return said, times


async def load(port: int, num_clients: int, body: dict[str, Any]) -> tuple[float, float]:
    """Tokens per second of all clients together, and the median seconds to the first token."""
    bodies = [
        {**body, "prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "stream": True} for seed in range(num_clients)
    ]
    start = time.perf_counter()
    answers = await asyncio.gather(*(ask(port, each) for each in bodies))
    seconds = time.perf_counter() - start
    return num_clients * body["max_tokens"] / seconds, statistics.median(times[0] for _, times in answers)


def random_body(chosen: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": chosen.choice(PROMPTS) + chosen.choice(("", " and", " in the big")),
        "max_tokens": chosen.randrange(1, 80),
        "temperature": chosen.choice((0, 0.8)),
        "seed": chosen.randrange(10**6),
    }
    return body | ({"n": 3} if chosen.random() < 0.1 else {})


async def num_different(port: int, num_requests: int) -> int:
    """How many answers under load, with random arrivals, differ from the same request alone."""
    chosen = random.Random(1)
    bodies = [random_body(chosen) for _ in range(num_requests)]
    alone = [json.loads((await ask(port, body))[0])["choices"] for body in bodies]
    running = asyncio.Semaphore(40)

    async def later(body: dict[str, Any]) -> Any:
        async with running:
            await asyncio.sleep(chosen.random() * 0.02)
            return json.loads((await ask(port, body))[0])["choices"]

    together = await asyncio.gather(*map(later, bodies))
    return sum(one != other for one, other in zip(alone, together, strict=True))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=240)
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    command = [sys.executable, "-m", "llamita", "serve", "--port", "0", "--threads", "1", "--quiet"]
    words = [] if options.model is None else [str(options.model)]
    with llamita.load(options.model) as model, subprocess.Popen([*command, *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split(b"127.0.0.1:")[1].split(b"/")[0])
        try:
            body = {"max_tokens": options.tokens, "temperature": 0.8, "logit_bias": {str(model.info.eos_id): -100}}
            for num_clients in CLIENTS:
                engine, server, first = [], [], []
                for _ in range(REPEATS):
                    engine.append(engine_speed(model, num_clients, options.tokens))
                    speed, seconds = await load(port, num_clients, body)
                    server.append(speed)
                    first.append(seconds)
                ratio = statistics.median(server) / statistics.median(engine)
                print(
                    f"{num_clients:2} clients: engine {statistics.median(engine):,.0f} tok/s, server "
                    f"{statistics.median(server):,.0f} tok/s ({ratio:.0%}), first token "
                    f"{statistics.median(first) * 1e3:.1f} ms"
                )
            different = await num_different(port, options.requests)
            print(f"answers that differ from the same request alone: {different} of {options.requests:,}")
        finally:
            process.terminate()


if __name__ == "__main__":
    asyncio.run(main())
