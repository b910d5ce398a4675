"""Counts for /metrics, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llamita.engine import SchedulerStats

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The numbers of one server."""

    def __init__(self, stats: Callable[[], SchedulerStats]) -> None:
        """stats: the sums over all schedulers."""
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "llamita_requests", "Requests that have ended.", ["route", "status"], registry=registry
        )
        self._prompt = Counter("llamita_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._new = Counter("llamita_generation_tokens", "Tokens generated and sent.", registry=registry)
        self._cancelled = Counter("llamita_requests_cancelled", "Requests whose client left.", registry=registry)
        self._first = Histogram(
            "llamita_time_to_first_token_seconds", "From the request to its first token.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._whole = Histogram(
            "llamita_request_seconds", "From the request to its end.", buckets=_SECONDS, registry=registry
        )
        for name, what in (
            ("num_running", "Texts that are generated now."),
            ("num_waiting", "Texts that wait for a sequence."),
            ("num_steps", "Steps of the engine."),
            ("num_shared_tokens", "Tokens of prompts that were not computed again."),
        ):
            gauge = Gauge(f"llamita_{name}", what, registry=registry)
            gauge.set_function(lambda name=name: float(getattr(stats(), name)))  # type: ignore[misc]

    def count_text(self, prompt: int, new: int, first: float | None, seconds: float, *, cancelled: bool) -> None:
        """Count an answer that has ended."""
        self._prompt.inc(prompt)
        self._new.inc(new)
        self._whole.observe(seconds)
        if first is not None:
            self._first.observe(first)
        if cancelled:
            self._cancelled.inc()

    def count_request(self, route: str, status: int) -> None:
        """Count a request by its route and status."""
        self._requests.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """All numbers."""
        return generate_latest(self._registry)
