"""A model file to many texts at once: several sequences of a session in a pass, each text with a seed of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamita.engine import Model, Sampler, Session
from llamita.errors import EngineError

NUM_SEQUENCES = 16  # side by side; more gain little and each needs keys and values of its own


@dataclasses.dataclass(frozen=True)
class Sample:
    """A text that a model told: its new ids and their bytes, without prompt, BOS and EOS."""

    ids: tuple[int, ...]
    text: bytes
    ended: bool
    """Whether it came to its end token before it was cut off."""


@dataclasses.dataclass
class _Running:
    """A text that is being told: its number, its sampler, what is fed next, what is new so far."""

    number: int
    sampler: Sampler
    next_ids: list[int]
    new_ids: list[int] = dataclasses.field(default_factory=list)


def generate_batch(
    model: Model,
    count: int,
    *,
    prompts: Sequence[str] = ("",),
    max_new_tokens: int | None = None,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    num_threads: int = 0,
    advance: Callable[[float], None] = lambda share: None,
) -> list[Sample]:
    """Text i continues prompt i modulo their number with seed + i: what `model.generate` tells with these settings.

    Each ends at an end token, after max_new_tokens, or at the context's end. advance(share done) is called after each
    text. EngineError: a prompt longer than the context, or none and no token to begin with.
    """
    encoded = [_prompt_ids(model, prompt) for prompt in prompts]
    context = model.info.context_tokens
    if max_new_tokens is not None:
        context = min(context, max(len(ids) for ids in encoded) + max_new_tokens)
    samples: dict[int, Sample] = {}

    def begin(number: int) -> _Running:
        ids = encoded[number % len(encoded)]
        sampler = Sampler(model.info.vocab_size, temperature=temperature, top_p=top_p, seed=seed + number)
        for token_id in ids:
            sampler.accept(token_id)
        return _Running(number, sampler, ids)

    with model.session(
        num_threads=num_threads, context_tokens=context, num_sequences=min(NUM_SEQUENCES, count)
    ) as session:
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
                advance(len(samples) / count)
                session.sequence_rewind(sequence, 0)
                del running[sequence]
                if (number := next(waiting, None)) is not None:
                    running[sequence] = begin(number)
    return [samples[number] for number in range(count)]


def _step(model: Model, text: _Running, logits: npt.NDArray[Any]) -> bool:
    """Pick the next token from float32 [V]; whether it ends the text."""
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


def _prompt_ids(model: Model, prompt: str) -> list[int]:
    begins = model.info.add_bos or not prompt
    if not prompt and model.info.bos_id < 0:
        raise EngineError("prompt: this model has no token to begin an empty text with; give prompts")
    ids = model.encode(prompt, bos=begins)
    if len(ids) > model.info.context_tokens:
        raise EngineError(
            f"prompt {prompt[:40]!r}: expected at most {model.info.context_tokens} tokens (the context), "
            f"found {len(ids)}; shorten it"
        )
    return ids


def _new_bytes(model: Model, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> bytes:
    """The bytes that new ids add after the prompt's."""
    before = [prompt_ids[-1], *new_ids]
    return b"".join(model.decode_token(token_id, previous) for previous, token_id in zip(before, new_ids, strict=False))
