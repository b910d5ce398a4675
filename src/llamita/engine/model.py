"""A model that computes: logits, scores and generated text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llamita.engine.adapter import Adapter, AdapterUses
from llamita.engine.choices import check_choices, num_shared_tokens, probabilities
from llamita.engine.embedding import EMBEDDING_SEQUENCES, embed_ids
from llamita.engine.generation import Generation, encode_prompt
from llamita.engine.grammar import Grammar
from llamita.engine.library import Ids
from llamita.engine.model_file import ModelFile
from llamita.engine.sampler import Sampler
from llamita.engine.session import Session
from llamita.errors import EngineError
from llamita.sampling import DEFAULT_RUNTIME, DEFAULT_SAMPLING, RuntimeOptions, SamplingParams, with_overrides

PACKAGED_MODEL = Path(__file__).parents[1] / "assets" / "stories.gguf"


class Model(ModelFile):
    """A model file in memory: weights, configuration and tokenizer. Immutable; sessions in several
    threads may share it."""

    def load_adapter(self, path: str | os.PathLike[str]) -> Adapter:
        """Open a GGUF adapter of this model (`llamita export --adapter`). Raises EngineError for a
        bad file."""
        return Adapter(self, path)

    def session(
        self,
        runtime: RuntimeOptions = DEFAULT_RUNTIME,
        *,
        num_sequences: int = 1,
        adapters: AdapterUses = (),
        **overrides: Any,
    ) -> Session:
        """A new session for one text, or several side by side. adapters: for all sequences.

        overrides: fields of runtime by name, as in session(num_threads=2).
        """
        session = Session(self, runtime, num_sequences=num_sequences, **overrides)
        for sequence in range(num_sequences if adapters else 0):
            session.sequence_set_adapters(sequence, adapters)
        return session

    def logits(self, ids: Ids, *, adapters: AdapterUses = (), **overrides: Any) -> npt.NDArray[np.float32]:
        """float32 [n, V]: row i holds the logits of the token after ids[0..i].

        overrides: as in session().
        """
        with self.session(adapters=adapters, **overrides) as session:
            return session.feed_logits(ids)

    def score(self, ids: Ids, *, adapters: AdapterUses = (), **overrides: Any) -> npt.NDArray[np.float64]:
        """float64 [n - 1], in nats: -ln p(ids[i + 1] | ids[0..i]), for two or more ids.

        overrides: as in session().
        """
        with self.session(adapters=adapters, **overrides) as session:
            return session.score(ids)

    def embed(
        self, texts: Sequence[str | bytes], *, adapters: AdapterUses = (), **overrides: Any
    ) -> npt.NDArray[np.float32]:
        """Vectors of length 1 for texts: float32 [n, D], the mean of the hidden states of each
        text's tokens after the last norm.

        These are the states of a language model, not of one that was trained to embed: compare
        texts of like length and kind. overrides: as in session(). Raises EngineError for an empty
        text, or one longer than the context.
        """
        if not all(texts):
            raise EngineError("texts: expected texts that are not empty")
        ids = [encode_prompt(self, text) for text in texts]
        num_sequences = min(max(len(ids), 1), EMBEDDING_SEQUENCES)
        with self.session(num_sequences=num_sequences, adapters=adapters, **overrides) as session:
            return embed_ids(session, num_sequences, ids)

    def generate(
        self,
        prompt: str | bytes = "",
        sampling: SamplingParams = DEFAULT_SAMPLING,
        runtime: RuntimeOptions = DEFAULT_RUNTIME,
        *,
        max_new_tokens: int | None = None,
        adapters: AdapterUses = (),
        grammar: Grammar | None = None,
        prompt_cache: str | os.PathLike[str] | None = None,
        context_full: Literal["stop", "shift"] = "stop",
        keep: int = 0,
        **overrides: Any,
    ) -> Generation:
        """Continue the prompt: an iterator of pieces of new text (str) that never split a
        character.

        It ends at an end token, after max_new_tokens (None: no limit), or at the end of the
        context. The same seed gives the same text; without a seed, a random one is drawn. Bytes
        that are not UTF-8 become U+FFFD; an incomplete character at the end is dropped.
        adapters: applied together, in this order, each with its scale (default: 1).
        grammar: the texts that may come, as in generate("Name: ", grammar=Grammar.regex("[A-Z].*")).
        prompt_cache: a file that keeps the computed prompt (Session.save). What this prompt shares
        with it is not computed again; it is written if that is less than three quarters of the
        prompt.
        context_full: "shift" goes on when the context is full: it drops the older half of the tokens
        after the first `keep` of the prompt (-1: all of it) and BOS, and computes the others again.
        overrides: fields of sampling and runtime by name: generate("Once", temperature=0.8).
        """
        sampling, runtime = with_overrides(sampling, runtime, overrides)
        if max_new_tokens is not None and max_new_tokens < 1:
            raise EngineError(f"max_new_tokens: expected at least 1, or None for no limit, found {max_new_tokens}")
        if context_full not in ("stop", "shift"):
            raise EngineError(f"context_full: expected stop or shift, found {context_full!r}")
        if keep < -1 or (keep and context_full == "stop"):
            raise EngineError(f"keep: expected -1 (all) or more with context_full='shift', else 0, found {keep}")
        prompt_ids = encode_prompt(self, prompt)
        num_kept = len(prompt_ids) if keep < 0 else min(len(prompt_ids), keep + (prompt_ids[0] == self.info.bos_id))
        state = None if grammar is None else grammar.start(self)
        sampler = Sampler(self.info.vocab_size, sampling, model=self)
        session = self.session(runtime, adapters=adapters)
        if len(prompt_ids) > session.context_tokens:
            raise EngineError(
                f"prompt: expected at most {session.context_tokens} tokens (the context), found {len(prompt_ids)}; "
                "shorten it"
            )
        kept = num_kept if context_full == "shift" else None
        return Generation(self, session, sampler, prompt_ids, max_new_tokens, state, prompt_cache, kept)

    def choose(
        self, prompt: str, choices: Sequence[str], *, adapters: AdapterUses = (), **overrides: Any
    ) -> dict[str, float]:
        """The probability of each choice, given that the prompt goes on with one of them.

        It is exact: the product of the probabilities of its tokens, divided by the sum over the
        choices. A choice that begins with another one is less probable than that one.
        overrides: as in session(). Raises EngineError.
        """
        check_choices(choices)
        texts = [self.encode(prompt + choice, bos=self.info.bos_id >= 0) for choice in choices]
        num_shared = num_shared_tokens(texts)
        with self.session(adapters=adapters, **overrides) as session:
            if num_shared > 1:
                session.feed(texts[0][: num_shared - 1])
            scores = []
            for ids in texts:
                session.rewind(num_shared - 1)
                scores.append(-session.score(ids[num_shared - 1 :]).sum())
        return dict(zip(choices, probabilities(scores), strict=True))


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    kernels: str | None = None,
    pre: str | None = None,
    pack_later: bool = False,
) -> Model:
    """Open a model file; without a path, the story model that comes with the package.

    tokenizer: a llama2.c tokenizer.bin (llama2.c models need one), or a GGUF to take it from.
    kernels: "auto" (also None), "scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm".
    pre: a value for tokenizer.ggml.pre of a GGUF that lacks it, such as "llama-bpe".
    pack_later: for the fastest first token: the first pass reads the weights from the file, which
    must not change until the second one has packed them.
    Raises EngineError for a bad file.
    """
    if path is None and not PACKAGED_MODEL.is_file():
        raise EngineError(f"the packaged model: expected it at {PACKAGED_MODEL}, found nothing; name a model file")
    return Model(
        PACKAGED_MODEL if path is None else path, tokenizer=tokenizer, kernels=kernels, pre=pre, pack_later=pack_later
    )
