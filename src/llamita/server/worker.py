"""A thread that steps the scheduler of one model, and the requests that an event loop reads from
it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from llamita.engine import Event, Model, Request, Scheduler, SchedulerStats
from llamita.errors import LlamitaError
from llamita.sampling import ComputeOptions
from llamita.server.errors import ApiError
from llamita.server.turns import Turns

RUN_SECONDS = 0.010  # steps of very small models between two looks at their events
RETRY_SECONDS = 1  # what a client is asked to wait when the queue is full


class Running:
    """A request in the scheduler, as the event loop sees it. events: what has come and was not yet
    taken."""

    def __init__(self, request: Request, group: Group) -> None:
        self.request, self.group = request, group
        self.events: list[Event] = []
        self.error: str | None = None
        self.is_refused = False  # the error is one of the request
        self.number: int | None = None  # the worker's own

    def take(self) -> list[Event]:
        """The events that have come since the last call. Raises ApiError if the request failed."""
        if self.error is not None:
            raise ApiError(400 if self.is_refused else 503, self.error, code="engine_error")
        events, self.events = self.events, []
        return events


class Group:
    """Requests that one client waits for together."""

    def __init__(self, worker: Worker, requests: Sequence[Request]) -> None:
        self._worker = worker
        self.running = [Running(request, self) for request in requests]
        self.ready = asyncio.Event()

    def cancel(self) -> None:
        """End what still runs. No further step computes anything for it."""
        for each in self.running:
            self._worker.cancel(each)

    def cancel_one(self, running: Running) -> None:
        """The same for one of them."""
        self._worker.cancel(running)


class Worker:
    """Owns the scheduler of a model: all its calls happen in one thread. The other methods belong
    to the event loop's thread."""

    def __init__(self, model: Model, runtime: ComputeOptions, *, num_parallel: int, max_queue: int) -> None:
        self._scheduler = Scheduler(model, runtime, num_parallel=num_parallel, num_cached=num_parallel)
        self.context_tokens = self._scheduler.context_tokens
        self.stats = self._scheduler.stats
        self.turns = Turns()  # with whatever else computes with the model
        self._max_requests = num_parallel + max_queue
        self._live: set[Running] = set()
        self._condition = threading.Condition()
        self._submitted: list[Running] = []
        self._cancelled: list[Running] = []
        self._is_closing = False
        self._delivered: list[tuple[Running, Event | str]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="llamita-scheduler", daemon=True)
        self._thread.start()

    @property
    def num_live(self) -> int:
        """Requests that run or wait."""
        return len(self._live)

    def check_count(self, num_requests: int) -> None:
        """Raise ApiError for more requests than ever find room."""
        if num_requests > self._max_requests:
            raise ApiError(
                400, f"expected at most {self._max_requests} texts in a request, found {num_requests:,}", param="n"
            )

    def submit(self, requests: Sequence[Request]) -> Group:
        """Start requests. Raises ApiError if the queue is full."""
        self.check_count(len(requests))
        if len(self._live) + len(requests) > self._max_requests:
            raise queue_full(len(self._live))
        self._loop = asyncio.get_running_loop()
        group = Group(self, requests)
        self._live.update(group.running)
        with self._condition:
            self._submitted += group.running
            self._condition.notify()
        self._scheduler.interrupt()
        return group

    def cancel(self, running: Running) -> None:
        """End a request, if it still runs."""
        if running in self._live:
            self._live.discard(running)
            with self._condition:
                self._cancelled.append(running)
                self._condition.notify()
            self._scheduler.interrupt()

    def close(self) -> None:
        """Stop the thread after its current step, and free the memory."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        self._thread.join()
        self._scheduler.close()

    # ---- the thread

    def _run(self) -> None:
        by_number: dict[int, Running] = {}
        while True:
            with self._condition:
                while not (by_number or self._submitted or self._cancelled or self._is_closing):
                    self._condition.wait()
                if self._is_closing:
                    return
                submitted, self._submitted = self._submitted, []
                cancelled, self._cancelled = self._cancelled, []
            results: list[tuple[Running, Event | str]] = []
            for running in submitted:
                try:
                    running.number = self._scheduler.submit(running.request)
                    by_number[running.number] = running
                except LlamitaError as error:
                    results.append((running, str(error)))
            for running in cancelled:
                if running.number is not None and running.number in by_number:
                    del by_number[running.number]
                    self._scheduler.cancel(running.number)
            results += self._step(by_number) if by_number else []
            self.stats = self._scheduler.stats
            self._deliver_later(results)

    def _step(self, by_number: dict[int, Running]) -> list[tuple[Running, Event | str]]:
        try:
            with self.turns:
                events = self._scheduler.run(RUN_SECONDS)
        except LlamitaError as error:  # out of memory
            failed = list(by_number.values())
            for number in by_number:
                self._scheduler.cancel(number)
            by_number.clear()
            return [(running, str(error)) for running in failed]
        results: list[tuple[Running, Event | str]] = [(by_number[event.request], event) for event in events]
        for event in events:
            if event.kind == "end":
                del by_number[event.request]
        return results

    def _deliver_later(self, results: list[tuple[Running, Event | str]]) -> None:
        if not results:
            return
        with self._condition:
            is_first = not self._delivered
            self._delivered += results
        assert self._loop is not None
        if is_first and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver)

    # ---- the event loop's thread again

    def _deliver(self) -> None:
        with self._condition:
            delivered, self._delivered = self._delivered, []
        for running, result in delivered:
            if running not in self._live:
                continue  # cancelled meanwhile
            if isinstance(result, str):
                running.error = result
            elif result.finish == "error":
                running.is_refused = result.error != ""
                running.error = result.error or "the engine cannot compute this text: out of memory, or damaged weights"
            else:
                running.events.append(result)
            if running.error is not None or (not isinstance(result, str) and result.kind == "end"):
                self._live.discard(running)
            running.group.ready.set()


def queue_full(num_requests: int) -> ApiError:
    """The error for a request that finds this many others."""
    return ApiError(
        429,
        f"the queue is full: {num_requests} requests run or wait; try again later",
        code="queue_full",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


def total_stats(workers: Sequence[Worker]) -> SchedulerStats:
    """The sums over all workers."""
    each = [vars(worker.stats) for worker in workers]
    return SchedulerStats(**{name: sum(stats[name] for stats in each) for name in each[0]})
