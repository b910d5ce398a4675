"""Embeddings: their requests, the thread that computes them, and OpenAI's answer."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llamita.engine import EMBEDDING_SEQUENCES, AdapterUses, Model, Session, embed_ids, encode_prompt
from llamita.errors import EngineError
from llamita.sampling import ComputeOptions, RuntimeOptions
from llamita.server.answers import json_bytes
from llamita.server.errors import ApiError
from llamita.server.parameters import prompts_of, too_long, whole_field
from llamita.server.worker import queue_full

MAX_INPUTS: Final = 2048  # as in OpenAI's API
NICENESS: Final = 10  # of the threads that embed: where cores are short, texts get nine tenths of them
Vector = npt.NDArray[np.float32]  # [D], of length 1


class Embedder:
    """Computes the embeddings of a model, in a thread and a session of its own. Requests take turns
    by batches of texts. The methods belong to the event loop's thread."""

    def __init__(self, model: Model, runtime: ComputeOptions, adapters: AdapterUses, max_requests: int) -> None:
        """max_requests: that run or wait."""
        self._model, self._runtime, self._adapters, self._max_requests = model, runtime, adapters, max_requests
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "llamita-embedder", _let_others_go_first)
        self._session: Session | None = None
        self._num_live = 0
        self._is_closing = threading.Event()

    async def embed(self, texts: Sequence[list[int]], encode: Callable[[Vector], bytes]) -> list[bytes]:
        """The vectors of texts, each encoded: in the thread, because a list of thousands would stop
        the event loop. Once the caller is cancelled, no further pass is computed. Raises
        ApiError."""
        if self._num_live >= self._max_requests:
            raise queue_full(self._num_live)
        left = threading.Event()
        self._num_live += 1
        loop = asyncio.get_running_loop()
        encoded: list[bytes] = []
        try:
            for start in range(0, len(texts), EMBEDDING_SEQUENCES):
                batch = texts[start : start + EMBEDDING_SEQUENCES]
                encoded += await loop.run_in_executor(self._executor, self._embed, batch, encode, left)
        except EngineError as error:
            raise ApiError(503, str(error), code="engine_error") from None
        finally:
            self._num_live -= 1
            left.set()
        return encoded

    def close(self) -> None:
        """Stop after the current pass, and free the memory."""
        self._is_closing.set()
        self._executor.shutdown(cancel_futures=True)
        if self._session is not None:
            self._session.close()

    # ---- the thread

    def _embed(
        self, texts: Sequence[list[int]], encode: Callable[[Vector], bytes], left: threading.Event
    ) -> list[bytes]:
        if self._session is None:
            compute = {field.name: getattr(self._runtime, field.name) for field in dataclasses.fields(ComputeOptions)}
            runtime = RuntimeOptions(**compute, speculation="off")
            self._session = self._model.session(runtime, num_sequences=EMBEDDING_SEQUENCES, adapters=self._adapters)

        def is_cancelled() -> bool:
            return left.is_set() or self._is_closing.is_set()

        return [encode(row) for row in embed_ids(self._session, EMBEDDING_SEQUENCES, texts, is_cancelled)]


def _let_others_go_first() -> None:
    """Lower the priority of this thread, and so of the session's threads that it will start."""
    if sys.platform == "linux":  # elsewhere it would be that of the process
        os.nice(NICENESS)


def embedding_inputs(
    body: dict[str, Any], model: Model, context_tokens: int, name: str = "input", *, truncate: bool = False
) -> list[list[int]]:
    """The token ids of the texts in a request. truncate: to the context. Raises ApiError."""
    whole_field(body, "dimensions", model.info.hidden_size, model.info.hidden_size, None)
    texts = []
    for each in prompts_of(body, model.info.vocab_size, name, MAX_INPUTS):
        if not each:
            raise ApiError(400, f"{name}: expected texts that are not empty", param=name)
        try:
            ids = encode_prompt(model, each.encode("utf-8", "replace")) if isinstance(each, str) else each
        except EngineError as error:
            raise ApiError(400, str(error), param=name) from None
        if len(ids) > context_tokens and not truncate:
            raise too_long(len(ids), context_tokens, name)
        texts.append(ids[:context_tokens])
    return texts


def encoding_of(body: dict[str, Any]) -> Callable[[Vector], bytes]:
    """How a request wants its vectors: as numbers, or base64 of little-endian floats. Raises
    ApiError."""
    form = body.get("encoding_format")
    if form in (None, "float"):
        return numbers
    if form != "base64":
        raise ApiError(400, "encoding_format: expected float or base64", param="encoding_format")
    return lambda vector: b'"' + base64.b64encode(vector.astype("<f4").tobytes()) + b'"'


def numbers(vector: Vector) -> bytes:
    """A list in JSON."""
    return json_bytes(vector.tolist())


def embeddings_body(model_name: str, vectors: list[bytes], num_tokens: int) -> bytes:
    """OpenAI's answer."""
    data = b",".join(b'{"object":"embedding","index":%d,"embedding":%b}' % each for each in enumerate(vectors))
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return b'{"object":"list","data":[' + data + b"]," + json_bytes({"model": model_name, "usage": usage})[1:]
