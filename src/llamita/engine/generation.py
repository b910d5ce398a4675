"""Generates one text: prompt to ids, ids to pieces of str, and the speed of both."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence

from llamita.engine.grammar import GrammarState
from llamita.engine.library import utf8_complete
from llamita.engine.model_file import ModelFile
from llamita.engine.prompt_cache import keep_common_ids, load_prompt_cache, save_prompt_cache
from llamita.engine.sampler import Sampler
from llamita.engine.session import Session
from llamita.errors import EngineError

FEED_TOKENS = 128  # per call, so that a long prompt can be interrupted


class Generation(Iterator[str]):
    """A text while it is generated: an iterator of pieces of str.

    prompt_ids: the ids of the prompt, with BOS. ids: the new ids so far; once a full context was
    shifted, those of them that it still holds. num_new_tokens: of all. seed: generates the same text
    again. stop: "" until the end, then "end token", "number of tokens", "context's end" or
    "grammar's end".
    """

    def __init__(
        self,
        model: ModelFile,
        session: Session,
        sampler: Sampler,
        prompt_ids: list[int],
        max_new_tokens: int | None,
        grammar: GrammarState | None = None,
        prompt_cache: str | os.PathLike[str] | None = None,
        num_kept: int | None = None,
    ) -> None:
        """num_kept: tokens that stay when the context is full; None: the text ends there."""
        self.prompt_ids = prompt_ids
        self.ids: list[int] = []
        self.num_new_tokens = 0
        self.seed = sampler.seed
        self.stop = ""
        self._model, self._session, self._sampler, self._max_new_tokens = model, session, sampler, max_new_tokens
        self._grammar, self._prompt_cache, self._num_kept = grammar, prompt_cache, num_kept
        self._num_cached = 0  # tokens of the prompt
        self._num_threads = session.num_threads
        self._prompt_seconds = self._decode_seconds = 0.0
        self._num_decoded = self._num_passes = 0
        self._pieces = self._generate()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End early and free the memory."""
        self._pieces.close()
        self._session.close()
        self._sampler.close()

    def _generate(self) -> Generator[str, None, None]:
        try:
            yield from text_pieces(self._new_bytes())
        finally:
            self._session.close()
            self._sampler.close()

    def _new_bytes(self) -> Iterator[bytes]:
        """The bytes of each new token."""
        for prompt_id in self.prompt_ids:
            self._sampler.accept(prompt_id)
        start = time.perf_counter()
        load_prompt_cache(self._session, self._prompt_cache)
        self._num_cached = keep_common_ids(self._session, self.prompt_ids)
        token_id = self._step(self.prompt_ids[self._num_cached :])
        self._prompt_seconds = time.perf_counter() - start
        save_prompt_cache(self._session, self._prompt_cache, self._num_cached, len(self.prompt_ids))
        while True:
            if token_id is None:
                self.stop = "grammar's end"
                return
            if self._model.token_ends(token_id):
                self.stop = "end token"
                return
            before = self.ids[-1] if self.ids else self.prompt_ids[-1]
            self.ids.append(token_id)
            self.num_new_tokens += 1
            yield self._model.decode_token(token_id, before)
            if self._max_new_tokens is not None and self.num_new_tokens >= self._max_new_tokens:
                self.stop = "number of tokens"
                return
            start, passes = time.perf_counter(), self._session.num_passes
            next_ids = [token_id]
            if self._session.position >= self._session.context_tokens:
                next_ids = self._shift(token_id)
                if not next_ids:
                    self.stop = "context's end"
                    return
            token_id = self._step(next_ids)
            self._decode_seconds += time.perf_counter() - start
            self._num_passes += self._session.num_passes - passes
            self._num_decoded += 1

    def _shift(self, token_id: int) -> list[int]:
        """Drop the older half of the tokens after the kept ones; the ids to read again, up to the new
        one. None of them: the text ends here."""
        held = self._session.ids.tolist()
        if self._num_kept is None or (num_dropped := (len(held) - self._num_kept) // 2) == 0:
            return []
        last = [*held[self._num_kept + num_dropped :], token_id]
        ids = [*held[: self._num_kept], *last]
        del self.ids[: -len(last)]
        return ids[keep_common_ids(self._session, ids) :]

    def _step(self, ids: Sequence[int]) -> int | None:
        """The next id; None: the text is complete."""
        for start in range(0, len(ids), FEED_TOKENS):
            self._session.feed(ids[start : start + FEED_TOKENS])
        logits = self._session.logits
        assert logits is not None
        if self._grammar is not None:
            logits = self._grammar.limit(logits, self.ids[-1] if self.ids else None)
            if logits is None:
                return None
        token_id = self._sampler.pick(logits)
        self._sampler.accept(token_id)
        return token_id

    def speed_line(self) -> str:
        """The last line that engine/build/run prints, with the same fields and units."""
        num_fed = len(self.prompt_ids) - self._num_cached
        prompt_speed = num_fed / self._prompt_seconds if self._prompt_seconds else 0.0
        cached = f" ({self._num_cached} from the cache)" if self._num_cached else ""
        speed = self._num_decoded / self._decode_seconds if self._decode_seconds else 0.0
        passes = self._num_passes / self._decode_seconds if self._decode_seconds else 0.0
        gigabytes = passes * self._model.info.decode_bytes * 1e-9
        return (
            f"prompt {len(self.prompt_ids)} tokens{cached}, {prompt_speed:.1f} tok/s | "
            f"generated {self.num_new_tokens} tokens, {speed:.1f} tok/s, {gigabytes:.2f} GB/s | "
            f"load {self._model.load_seconds * 1e3:.1f} ms, first token {self._prompt_seconds * 1e3:.1f} ms | "
            f"threads {self._num_threads}"
        )


def encode_prompt(model: ModelFile, prompt: str | bytes) -> list[int]:
    """The ids that a text starts with: BOS, if the model wants it or the prompt is empty, and the
    prompt. Raises EngineError if the prompt is empty and the model has no BOS token."""
    if not prompt and model.info.bos_id < 0:
        raise EngineError("prompt: this model has no BOS token to start an empty prompt with; give a prompt")
    return model.encode(prompt, bos=model.info.add_bos or not prompt)


def text_pieces(tokens: Iterable[bytes]) -> Iterator[str]:
    """The text of tokens as their bytes come, in pieces that never split a character.

    Bytes that are not UTF-8 become U+FFFD; an incomplete character at the end is dropped.
    """
    pending = b""
    for raw in tokens:
        pending += raw
        whole = utf8_complete(pending)
        if whole:
            piece, pending = pending[:whole], pending[whole:]
            yield piece.decode("utf-8", "replace")
