"""Generates many texts at once: a session decodes several sequences per pass, each with its own
seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamita.engine import AdapterUses, Grammar, GrammarState, Model, Sampler, Session, encode_prompt
from llamita.errors import EngineError
from llamita.progress import Progress, no_progress
from llamita.sampling import DEFAULT_RUNTIME, RuntimeOptions, SamplingParams

BATCH_SAMPLING = SamplingParams(temperature=0.8, top_p=0.95, seed=0)
NUM_SEQUENCES = 16  # per pass; more gain little, and each needs its own KV cache


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Which texts to generate. runtime: how the session computes."""

    count: int
    prompts: tuple[str | bytes, ...] = ("",)
    max_new_tokens: int | None = None
    sampling: SamplingParams = BATCH_SAMPLING
    runtime: RuntimeOptions = DEFAULT_RUNTIME


@dataclasses.dataclass(frozen=True)
class Sample:
    """A generated text: its new ids and their bytes, without the prompt, BOS and EOS."""

    ids: tuple[int, ...]
    text: bytes
    ended: bool
    """Whether the text ended with an end token or its grammar, as opposed to being cut off."""


@dataclasses.dataclass
class _Running:
    """A text in progress: its number, its sampler, the ids to feed next, the new ids so far."""

    number: int
    sampler: Sampler
    next_ids: list[int]
    grammar: GrammarState | None
    new_ids: list[int] = dataclasses.field(default_factory=list)


def generate_batch(
    model: Model,
    options: SampleOptions,
    progress: Progress = no_progress,
    *,
    adapters: AdapterUses = (),
    grammar: Grammar | None = None,
) -> list[Sample]:
    """Generate texts. Text i continues prompt i (modulo the number of prompts) with seed + i, and
    equals what `model.generate` gives with these options.

    A text ends at an end token, after max_new_tokens, or when the context is full. Progress counts
    texts. adapters, grammar: for all texts. Raises EngineError if a prompt is longer than the context, or is
    empty and the model has no BOS token.
    """
    count, max_new_tokens, sampling = options.count, options.max_new_tokens, options.sampling
    context = options.runtime.context_tokens or model.info.context_tokens
    encoded = [_prompt_ids(model, prompt, context) for prompt in options.prompts]
    if max_new_tokens is not None:
        context = min(context, max(len(ids) for ids in encoded) + max_new_tokens)
    samples: dict[int, Sample] = {}

    def begin(number: int) -> _Running:
        ids = encoded[number % len(encoded)]
        seed = None if sampling.seed is None else sampling.seed + number
        sampler = Sampler(model.info.vocab_size, sampling, model=model, seed=seed)
        for token_id in ids:
            sampler.accept(token_id)
        return _Running(number, sampler, ids, None if grammar is None else grammar.start(model))

    runtime = dataclasses.replace(options.runtime, context_tokens=context)
    with model.session(runtime, num_sequences=min(NUM_SEQUENCES, count), adapters=adapters) as session:
        waiting = iter(range(count))
        running = {sequence: begin(next(waiting)) for sequence in range(min(NUM_SEQUENCES, count))}
        while running:
            logits = session.decode([(sequence, text.next_ids, 1) for sequence, text in running.items()])
            for (sequence, text), row in zip(list(running.items()), logits, strict=True):
                ended = _step(model, text, row)
                if not ended and not _is_full(session, sequence, text, max_new_tokens):
                    continue
                text.sampler.close()
                prompt_ids = encoded[text.number % len(encoded)]
                samples[text.number] = Sample(tuple(text.new_ids), _new_bytes(model, prompt_ids, text.new_ids), ended)
                progress("generating", len(samples), count)
                session.sequence_rewind(sequence, 0)
                del running[sequence]
                if (number := next(waiting, None)) is not None:
                    running[sequence] = begin(number)
    return [samples[number] for number in range(count)]


def _step(model: Model, text: _Running, logits: npt.NDArray[Any]) -> bool:
    """Sample the next token from logits float32 [V]; return whether it ends the text."""
    if text.grammar is not None:
        limited = text.grammar.limit(logits, text.new_ids[-1] if text.new_ids else None)
        if limited is None:
            return True
        logits = limited
    token_id = text.sampler.pick(np.ascontiguousarray(logits))
    if model.token_ends(token_id):
        return True
    text.sampler.accept(token_id)
    text.new_ids.append(token_id)
    text.next_ids = [token_id]
    return False


def _is_full(session: Session, sequence: int, text: _Running, max_new_tokens: int | None) -> bool:
    if max_new_tokens is not None and len(text.new_ids) >= max_new_tokens:
        return True
    return session.sequence_position(sequence) >= session.context_tokens


def _prompt_ids(model: Model, prompt: str | bytes, context: int) -> list[int]:
    ids = encode_prompt(model, prompt)
    if len(ids) > context:
        raise EngineError(
            f"prompt {prompt[:40]!r}: expected at most {context} tokens (the context), found {len(ids)}; shorten it"
        )
    return ids


def _new_bytes(model: Model, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> bytes:
    """The bytes that the new ids add to the prompt."""
    before = [prompt_ids[-1], *new_ids]
    return b"".join(model.decode_token(token_id, previous) for previous, token_id in zip(before, new_ids, strict=False))
