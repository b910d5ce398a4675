"""Runs many requests side by side: texts of different lengths, prompts and sampling."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from llamita.engine.adapter import AdapterUses, adapter_structs
from llamita.engine.grammar import GrammarState
from llamita.engine.library import (
    CONSTRAINT_ALLOWS,
    CONSTRAINT_COMPLETE,
    CONSTRAINT_FAILED,
    KV_TYPES,
    MAX_TOP_LOGPROBS,
    Constraint,
    EventStruct,
    Ids,
    LogitBiasStruct,
    Owned,
    RequestStruct,
    SchedulerParamsStruct,
    SchedulerStatsStruct,
    call,
    choice,
    id_array,
    ids_pointer,
    int32,
    load_library,
)
from llamita.engine.model_file import ModelFile
from llamita.engine.sampler import sampler_struct
from llamita.engine.session import rope_struct
from llamita.errors import EngineError
from llamita.sampling import DEFAULT_COMPUTE, DEFAULT_SAMPLING, ComputeOptions, SamplingParams

EventKind = Literal["prompt", "token", "end"]
Finish = Literal["", "stop", "length", "error"]
_KINDS: tuple[EventKind, ...] = ("prompt", "token", "end")  # llamita_event_kind, in its order
_FINISHES: tuple[Finish, ...] = ("", "stop", "length", "error")  # llamita_finish, in its order


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to generate. sampling.seed: None draws one.

    top_logprobs: None, or how many of the most probable tokens each event names besides its own.
    score_prompt: an event for each id of the prompt but the first. adapters must stay open until
    the request ends. grammar: started for the scheduler's model; each text gets its own copy.
    """

    ids: Ids
    max_new_tokens: int
    sampling: SamplingParams = DEFAULT_SAMPLING
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    top_logprobs: int | None = None
    score_prompt: bool = False
    adapters: AdapterUses = ()
    grammar: GrammarState | None = None


@dataclasses.dataclass(frozen=True)
class Event:
    """What a step did for a request. id: -1 at the end. logprob: in nats, of the id by the logits
    alone. top: the most probable ids and their log-probabilities. finish: "" until the end. error:
    why the text cannot go on in its grammar. num_shared_tokens: of the prompt, which another text
    had computed."""

    request: int
    kind: EventKind
    id: int
    finish: Finish
    logprob: float
    top: tuple[tuple[int, float], ...]
    error: str = ""
    num_shared_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class SchedulerStats:
    """Requests that run and wait now, and counts since the scheduler was opened."""

    num_running: int
    num_waiting: int
    num_steps: int
    num_prompt_tokens: int
    num_shared_tokens: int
    num_new_tokens: int


class Scheduler(Owned):
    """Requests that run on one session; the others wait in the order of their arrival. For one
    thread.

    A request gives the same tokens as alone.
    """

    _kind = "scheduler"

    def __init__(
        self,
        model: ModelFile,
        runtime: ComputeOptions = DEFAULT_COMPUTE,
        *,
        num_parallel: int = 16,
        num_cached: int = 16,
    ) -> None:
        """num_parallel: requests that run at once. num_cached: ended texts that are kept for
        prompts that start alike. Raises EngineError for a value out of its range."""
        params = SchedulerParamsStruct(
            int32("num_threads", runtime.num_threads),
            int32("context_tokens", runtime.context_tokens),
            choice("kv_type", runtime.kv_type, KV_TYPES),
            int32("num_parallel", num_parallel),
            int32("num_cached", num_cached),
            rope_struct(runtime),
        )
        handle = ctypes.c_void_p()
        call("scheduler_open", model._handle, ctypes.byref(params), ctypes.byref(handle))
        self._own(handle.value, model)
        self._model = model
        self._grammars: dict[int, tuple[GrammarState, Any]] = {}  # with the callback, by the number of the request
        model._users.add(self)

    @property
    def context_tokens(self) -> int:
        """Number of tokens that a request can hold."""
        return int(load_library().llamita_scheduler_context_tokens(self._handle))

    @property
    def stats(self) -> SchedulerStats:
        """What it does now, and has done."""
        raw = SchedulerStatsStruct()
        load_library().llamita_scheduler_get_stats(self._handle, ctypes.byref(raw))
        return SchedulerStats(*(getattr(raw, field.name) for field in dataclasses.fields(SchedulerStats)))

    def submit(self, request: Request) -> int:
        """Add a request to the queue; returns its number. Raises EngineError for a value out of
        its range, or a prompt longer than the context."""
        ids = id_array(request.ids)
        if request.top_logprobs is not None and not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
            raise EngineError(f"top_logprobs: expected 0 to {MAX_TOP_LOGPROBS}, found {request.top_logprobs}")
        biases = (LogitBiasStruct * len(request.logit_bias))(
            *(LogitBiasStruct(int32("id", token_id), bias) for token_id, bias in request.logit_bias.items())
        )
        sampling, _ = sampler_struct(request.sampling)
        raw = RequestStruct(
            ids.ctypes.data_as(ids_pointer),
            ids.size,
            int32("max_new_tokens", request.max_new_tokens),
            sampling,
            request.presence_penalty,
            request.frequency_penalty,
            biases,
            len(biases),
            -1 if request.top_logprobs is None else request.top_logprobs,
            request.score_prompt,
            *adapter_structs(request.adapters),
        )
        grammar = None if request.grammar is None else request.grammar.copy()
        if grammar is not None:
            if grammar.model is not self._model:
                raise EngineError("grammar: expected one that was started for the scheduler's model")
            raw.constraint = _constraint(grammar)
        number = ctypes.c_uint64()
        call("scheduler_submit", self._handle, ctypes.byref(raw), ctypes.byref(number))
        if grammar is not None:
            self._grammars[number.value] = grammar, raw.constraint
        return number.value

    def cancel(self, request: int) -> bool:
        """End a request: no step computes anything for it any more. False: it has ended before."""
        done = bool(load_library().llamita_scheduler_cancel(self._handle, request))
        self._grammars.pop(request, None)
        return done

    def step(self) -> list[Event]:
        """Start waiting requests and compute one step. A request that fails ends with "error"; the
        others go on."""
        call("scheduler_step", self._handle)
        return self._events()

    def run(self, seconds: float) -> list[Event]:
        """Step until the time has passed, a text gets its first token or ends, or `interrupt`; at
        least once."""
        call("scheduler_run", self._handle, seconds)
        return self._events()

    def interrupt(self) -> None:
        """Make `run` return after its current step, or the next call after its first one. Any
        thread may call this."""
        load_library().llamita_scheduler_interrupt(self._handle)

    def _events(self) -> list[Event]:
        num_events = ctypes.c_size_t()
        events = load_library().llamita_scheduler_events(self._handle, ctypes.byref(num_events))
        return [self._event(raw) for raw in events[: num_events.value]]

    def _event(self, raw: EventStruct) -> Event:
        num = raw.num_top
        top = tuple(zip(raw.top_ids[:num], raw.top_logprobs[:num], strict=True)) if num else ()
        kind = _KINDS[raw.kind]
        ended = self._grammars.pop(raw.request, None) if kind == "end" else None
        error = "" if ended is None else ended[0].error
        return Event(raw.request, kind, raw.id, _FINISHES[raw.finish], raw.logprob, top, error, raw.num_shared_tokens)


def _constraint(grammar: GrammarState) -> Any:
    """The callback that the engine calls before each token of a text."""

    def allow(_: Any, last_id: int, allowed: Any) -> int:
        try:
            words = grammar.allowed(None if last_id < 0 else last_id)
        except EngineError:
            return CONSTRAINT_FAILED  # grammar.error says why
        if words is None:
            return CONSTRAINT_COMPLETE
        ctypes.memmove(allowed, words.ctypes.data, words.nbytes)
        return CONSTRAINT_ALLOWS

    return Constraint(allow)
