"""Chats with a model: a conversation whose KV cache is kept between the turns.

For each question the whole conversation is encoded again (generated ids are kept), and the session
rewinds to the longest common prefix, normally its end. So only new tokens are fed.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any

from llamita.chat_template import ChatTemplate
from llamita.engine import (
    AdapterUses,
    Grammar,
    Message,
    Model,
    Sampler,
    TextSegment,
    keep_common_ids,
    load_prompt_cache,
    save_prompt_cache,
    text_pieces,
)
from llamita.errors import ChatError
from llamita.sampling import DEFAULT_RUNTIME, RuntimeOptions, SamplingParams, with_overrides

CHAT_SAMPLING = SamplingParams(temperature=0.6)
FEED_TOKENS = 128  # per call, so that a long prompt can be interrupted
ROLLING_SHARE = 4  # with rolling, 1/4 of the context is kept free for the answer


class ChatEncoder:
    """Encodes the conversations of a model by its chat template. For one thread."""

    def __init__(self, model: Model, thinking: bool | None = None) -> None:
        """thinking: as in Chat. Raises ChatError if the model has no chat template or no tokenizer,
        or not one that asks for `thinking`."""
        if model.chat_template is None:
            raise ChatError(
                "chat: the model has no chat template: it was not trained to chat; continue texts with `llamita run`, "
                "or train it on conversations: llamita finetune CHECKPOINT CONVERSATIONS.jsonl --out RUN"
            )
        if not model.info.has_tokenizer:
            raise ChatError("chat: the model has no tokenizer; name one with --tokenizer")
        self._model = model
        self._template = None if model.chat_family and thinking is None else _template(model, thinking)

    def encode(self, messages: list[Message]) -> list[int]:
        """Encode a conversation by the model's template, up to where the next answer starts.

        Control tokens spelled out in contents stay text. Raises ChatError or EngineError where that
        is impossible.
        """
        if self._template is None:
            return self._model.chat_encode(messages)
        said = [{"role": each.role, "content": _text(each.content)} for each in messages]
        found = self._template.render_parts(said)
        if found is None:
            return self._encode_whole(said)
        parts = []
        for part in found:
            ids = () if part.message is None else messages[part.message].ids
            parts.append(TextSegment(_bytes(part.text), part.message is None, ids))
        return self._model.encode_segments(parts)

    def close(self) -> None:
        """Stop the process that renders the template."""
        if self._template is not None:
            self._template.close()

    def _encode_whole(self, said: list[dict[str, str]]) -> list[int]:
        """For templates that rewrite contents, so that contents cannot be found in the rendered
        text: control tokens are allowed everywhere, but only if other contents give the same
        ones."""
        assert self._template is not None
        text = self._template.render(said)
        plain = [{**each, "content": "x" if each["content"].strip() else ""} for each in said]
        if self._control_ids(text) != self._control_ids(self._template.render(plain)):
            raise ChatError(
                "chat: the model's template rewrites messages, and text in one of them would become control tokens; "
                "remove text such as <|im_end|>"
            )
        return self._model.encode(_bytes(text), special=True)

    def _control_ids(self, text: str) -> list[int]:
        ids = self._model.encode(_bytes(text), special=True)
        return [i for i in ids if not self._model.decode_token(i, i)]

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """The control token that the template writes after an answer, if the file may not list it
        as an end token."""
        if self._template is None:
            return frozenset()
        said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        try:
            found = self._template.render_parts(said, add_generation_prompt=False) or []
        except ChatError:  # the template wants other messages; the first question reports errors
            return frozenset()
        after = [part for before, part in itertools.pairwise(found) if before.message == 1]
        ids = self._model.encode(_bytes(after[0].text.lstrip()), special=True) if after else []
        return frozenset(i for i in ids[:1] if not self._model.decode_token(i, i))


class Chat:
    """A conversation with a model that has a chat template. For one thread.

    messages: the conversation so far, with the system prompt.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        sampling: SamplingParams = CHAT_SAMPLING,
        runtime: RuntimeOptions = DEFAULT_RUNTIME,
        *,
        rolling: bool = False,
        max_new_tokens: int | None = None,
        thinking: bool | None = None,
        adapters: AdapterUses = (),
        grammar: Grammar | None = None,
        prompt_cache: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        """system: the system prompt; None: the model's own, else the chat template's default.
        rolling: forget the oldest turns when the context is full, instead of raising ChatError.
        max_new_tokens: per answer. thinking: whether to think before an answer, if the chat template
        asks; None: its default. grammar: what each answer must be. prompt_cache: as in Model.generate, of
        the system prompt and the first question. overrides: fields of sampling and runtime by name.

        Raises ChatError if the model has no chat template, or not one that asks for `thinking`,
        EngineError for a value out of its range.
        """
        sampling, runtime = with_overrides(sampling, runtime, overrides)
        self._encoder = ChatEncoder(model, thinking)
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ChatError(f"max_new_tokens: expected at least 1, or None for no limit, found {max_new_tokens}")
        system = model.system_prompt if system is None else system
        self.messages = [] if system is None else [Message("system", _bytes(system))]
        self.rolling = rolling
        self._model, self._max_new_tokens = model, max_new_tokens
        self._answer: Answer | None = None
        self._sampler = Sampler(model.info.vocab_size, sampling, model=model)
        self.seed = self._sampler.seed
        self._grammar = None if grammar is None else grammar.start(model, self._encoder.end_ids)
        self._session = model.session(runtime, adapters=adapters)
        self._prompt_cache, self._has_read = prompt_cache, False
        load_prompt_cache(self._session, prompt_cache)

    def ask(self, text: str) -> Answer:
        """The answer to a question: an iterator of pieces of str, computed as it is read.

        When the answer ends, question and answer are added to `messages`, also after
        Answer.interrupt and close. Asking again closes the previous answer. Raises ChatError if the
        conversation does not fit the context or the template rejects it; `messages` stays as it
        was.
        """
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        question = Message("user", _bytes(text))
        kept, num_forgotten = list(self.messages), 0
        ids = self.encode([*kept, question])
        room = self._session.context_tokens
        first = 1 if self.messages and self.messages[0].role == "system" else 0
        if self.rolling and len(ids) > room - self._reserved_tokens():
            # Down to half, because what stays must be computed again: not at every question from now on.
            while len(ids) > room // 2 and len(kept) > first:
                del kept[first : first + 2]
                num_forgotten += 1
                ids = self.encode([*kept, question])
        if len(ids) >= room:
            much = "the question alone has" if len(kept) == first else "with this question the chat has"
            alone = self.rolling or len(kept) == first
            remedy = "shorten it" if alone else "begin anew, or let the oldest turns be forgotten (rolling)"
            raise ChatError(f"chat: the context is full: it holds {room} tokens, {much} {len(ids)}; {remedy}")
        self.messages[:] = kept
        self._answer = Answer(self, question, ids, num_forgotten, self._encoder.end_ids)
        return self._answer

    def reset(self, system: str | None = None) -> None:
        """Forget all turns. system: the new system prompt; None: it stays as it is."""
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        kept = [each for each in self.messages[:1] if each.role == "system"]
        self.messages = kept if system is None else [Message("system", _bytes(system))]

    def encode(self, messages: list[Message]) -> list[int]:
        """As ChatEncoder.encode."""
        return self._encoder.encode(messages)

    def close(self) -> None:
        """Free the memory."""
        if self._answer is not None:
            self._answer.close()
        self._encoder.close()
        self._session.close()
        self._sampler.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _reserved_tokens(self) -> int:
        share = self._session.context_tokens // ROLLING_SHARE
        return share if self._max_new_tokens is None else min(share, self._max_new_tokens)


class Answer(Iterator[str]):
    """An answer while it is generated: an iterator of pieces of str that never split a character.

    ids: the new ids so far. num_fed_tokens: tokens of the conversation that were not in the
    session. num_forgotten_turns: with rolling. stop: "" until the end, then "end token", "grammar's
    end", "number of tokens", "context's end" or "interrupted".
    """

    def __init__(
        self, chat: Chat, question: Message, prompt_ids: list[int], num_forgotten_turns: int, end_ids: frozenset[int]
    ) -> None:
        self.ids: list[int] = []
        self.num_fed_tokens = 0
        self.num_forgotten_turns = num_forgotten_turns
        self.stop = ""
        self._chat, self._question, self._prompt_ids, self._end_ids = chat, question, prompt_ids, end_ids
        self._said: list[bytes] = []  # the bytes of each id
        self._grammar = None if chat._grammar is None else chat._grammar.copy()
        self._interrupted = False
        self._prompt_seconds = self._decode_seconds = 0.0
        self._pieces = self._generate()

    def __next__(self) -> str:
        return next(self._pieces)

    def interrupt(self) -> None:
        """End at the next token; may be called from a signal handler or another thread."""
        self._interrupted = True

    def close(self) -> None:
        """End now; the answer so far stays in the conversation."""
        self._pieces.close()
        self.stop = self.stop or "interrupted"  # if it had not started

    def speed_line(self) -> str:
        """Number of tokens read and generated, and the speed of both."""
        read_speed = self.num_fed_tokens / self._prompt_seconds if self._prompt_seconds else 0.0
        speed = (len(self.ids) - 1) / self._decode_seconds if self._decode_seconds else 0.0
        held, room = len(self._prompt_ids) + len(self.ids), self._chat._session.context_tokens
        return (
            f"read {self.num_fed_tokens} tokens, {read_speed:.1f} tok/s | generated {len(self.ids)} tokens, "
            f"{speed:.1f} tok/s | context {held} of {room}"
        )

    def _generate(self) -> Generator[str, None, None]:
        try:
            yield from text_pieces(self._new_bytes())
        finally:
            self.stop = self.stop or "interrupted"
            self._record()
            self._chat._answer = None

    def _record(self) -> None:
        """Add question and answer to the conversation, unless it was interrupted before the answer
        started. Uses no model: an answer that is left early may end after its model was closed."""
        if self.ids or self.stop == "end token":
            said = Message("assistant", b"".join(self._said), tuple(self.ids))
            self._chat.messages += [self._question, said]

    def _new_bytes(self) -> Iterator[bytes]:
        """The bytes of each new token."""
        chat, session = self._chat, self._chat._session
        start = time.perf_counter()
        if not self._read():
            return
        token_id = self._pick()
        self._prompt_seconds = time.perf_counter() - start
        while not self._interrupted:
            if token_id is None:
                self.stop = "grammar's end"
                return
            if chat._model.token_ends(token_id) or token_id in self._end_ids:
                self.stop = "end token"
                return
            before = self.ids[-1] if self.ids else self._prompt_ids[-1]
            self.ids.append(token_id)
            self._said.append(chat._model.decode_token(token_id, before))
            yield self._said[-1]
            if chat._max_new_tokens is not None and len(self.ids) >= chat._max_new_tokens:
                self.stop = "number of tokens"
                return
            if session.position >= session.context_tokens:
                self.stop = "context's end"
                return
            start = time.perf_counter()
            session.feed([token_id])
            token_id = self._pick()
            self._decode_seconds += time.perf_counter() - start

    def _read(self) -> bool:
        """Rewind the session and feed the rest of the conversation; False if interrupted."""
        chat, session, ids = self._chat, self._chat._session, self._prompt_ids
        is_first, chat._has_read = not chat._has_read, True
        common = keep_common_ids(session, ids)
        chat._sampler.begin_text()
        for token_id in ids:
            chat._sampler.accept(token_id)
        for start in range(common, len(ids), FEED_TOKENS):
            if self._interrupted:
                return False
            piece = ids[start : start + FEED_TOKENS]
            session.feed(piece)
            self.num_fed_tokens += len(piece)
        if is_first:
            save_prompt_cache(session, chat._prompt_cache, common, len(ids))
        return True

    def _pick(self) -> int | None:
        """The next id; None: the answer is complete."""
        logits = self._chat._session.logits
        assert logits is not None
        if self._grammar is not None:
            logits = self._grammar.limit(logits, self.ids[-1] if self.ids else None)
            if logits is None:
                return None
        token_id = self._chat._sampler.pick(logits)
        self._chat._sampler.accept(token_id)
        return token_id


def _template(model: Model, thinking: bool | None) -> ChatTemplate:
    info, template = model.info, model.chat_template
    assert template is not None
    bos, eos = model.token_text(info.bos_id) or "", model.token_text(info.eos_id) or ""
    return ChatTemplate(template, bos_token=bos, eos_token=eos, thinking=thinking)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    """Bytes that are not UTF-8 (an incomplete generated character) become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")
