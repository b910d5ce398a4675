"""The route /choose: the probability of each of given answers, which a classifier needs."""

from __future__ import annotations

import dataclasses
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamita.engine.choices import check_choices, num_shared_tokens, probabilities
from llamita.errors import EngineError
from llamita.sampling import SamplingParams
from llamita.server.answers import json_bytes
from llamita.server.errors import ApiError
from llamita.server.host import Host
from llamita.server.parameters import TextParams, kind_of, text_field, too_long
from llamita.server.serving import Serving
from llamita.server.worker import Group

# Scores the prompt, and generates nothing.
_SCORED = TextParams(SamplingParams(), seed=0, max_new_tokens=0, top_logprobs=0, echo=True)


class ChooseRoutes:
    """The route."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.routes = [Route("/choose", self._choose, methods=["POST"])]

    async def _choose(self, request: Request) -> Response:
        body = await self._host.read_body(request)
        serving = self._host.find(body)
        choices = body.get("choices")
        if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
            raise ApiError(400, f"choices: expected a list of strings, found {kind_of(choices)}", param="choices")
        serving.worker.check_count(len(choices))
        try:
            check_choices(choices)
            texts, num_shared = await _texts(body, serving, choices)
        except EngineError as error:
            raise ApiError(400, str(error), param="choices") from None
        field = "prompt" if body.get("messages") is None else "messages"
        group = serving.submit(dataclasses.replace(_SCORED, prompt_field=field), texts, None)

        async def work() -> bytes:
            shares = probabilities([sum(scores[num_shared - 1 :]) for scores in await _scores(group)])
            found = [{"text": text, "probability": share} for text, share in zip(choices, shares, strict=True)]
            return json_bytes({"model": serving.name, "choices": found})

        return self._host.compute(work, sum(map(len, texts)))


async def _texts(body: dict[str, Any], serving: Serving, choices: list[str]) -> tuple[list[list[int]], int]:
    """The ids of the prompt or the conversation with each choice behind it, and how many all begin
    with. Ends at the first text that is too long: a long prompt is not encoded for each choice.
    Raises ApiError, EngineError."""
    model, most = serving.model, serving.worker.context_tokens
    if body.get("messages") is not None:
        if body.get("prompt") is not None:
            raise ApiError(400, "prompt: expected no messages beside it", param="prompt")
        field, (ids, _) = "messages", await serving.encode_chat(body)
        num_chars = len(ids)

        def encode(choice: str) -> list[int]:
            return [*ids, *model.encode(choice.encode("utf-8", "replace"))]
    else:
        field, prompt = "prompt", text_field(body, "prompt")
        num_chars = len(prompt)

        def encode(choice: str) -> list[int]:
            return model.encode((prompt + choice).encode("utf-8", "replace"), bos=model.info.bos_id >= 0)

    def encode_all() -> tuple[list[list[int]], int]:
        texts: list[list[int]] = []
        for choice in choices:
            texts.append(encode(choice))
            if len(texts[-1]) > most:
                raise too_long(len(texts[-1]), most, field)
        return texts, num_shared_tokens(texts)

    return await serving.encode(encode_all, num_chars * len(choices) + sum(map(len, choices)))


async def _scores(group: Group) -> list[list[float]]:
    """The log-probabilities of each text's tokens, from its second one on. Raises ApiError."""
    scores: list[list[float]] = [[] for _ in group.running]
    num_left = len(scores)
    try:
        while num_left:
            await group.ready.wait()
            group.ready.clear()
            for found, running in zip(scores, group.running, strict=True):
                for event in running.take():
                    if event.kind == "prompt":
                        found.append(event.logprob)
                    num_left -= event.kind == "end"
    finally:
        group.cancel()
    return scores
