"""The ollama client reads what the server sends: answers, streams, models, errors."""

from __future__ import annotations

from typing import Any

import pytest

Client = Any  # conftest.Client: the tests are not a package

pytestmark = pytest.mark.compat
ollama = pytest.importorskip("ollama")
HI = [{"role": "user", "content": "Hi"}]


def connect(client: Client) -> Any:
    return ollama.Client(host=f"http://127.0.0.1:{client.port}")


def test_chat(chat_client: Client) -> None:
    api = connect(chat_client)
    options = {"num_predict": 9, "seed": 4}
    answer = api.chat(model="chatml", messages=HI, options=options, logprobs=True, top_logprobs=2)
    assert answer.message.role == "assistant" and answer.done_reason in ("stop", "length")
    assert answer.total_duration > answer.eval_duration > 0 and answer.eval_count == len(answer.logprobs)
    *pieces, last = api.chat(model="chatml:latest", messages=HI, options=options, stream=True)
    assert "".join(piece.message.content for piece in pieces) == answer.message.content
    assert last.done and last.done_reason == answer.done_reason and last.eval_count == answer.eval_count


def test_chat_in_a_format(chat_client: Client) -> None:
    pytest.importorskip("llguidance")
    from pydantic import BaseModel

    class Size(BaseModel, extra="forbid"):
        big: bool

    answer = connect(chat_client).chat(model="chatml", messages=HI, format=Size.model_json_schema())
    assert isinstance(Size.model_validate_json(answer.message.content).big, bool)


def test_generate(client: Client) -> None:
    api = connect(client)
    options = ollama.Options(num_predict=20, temperature=0, num_ctx=2048, stop=["never there"])
    answer = api.generate(model="stories", prompt="Once upon a time", options=options)
    text = "".join(
        piece.response for piece in api.generate("stories", "Once upon a time", options=options, stream=True)
    )
    assert text == answer.response != ""
    more = api.generate(model="stories", prompt=" The", context=answer.context, options=options)
    assert more.prompt_eval_count > answer.prompt_eval_count + answer.eval_count
    assert api.generate(model="stories").done_reason == "load"


def test_models(client: Client) -> None:
    api = connect(client)
    [listed] = api.list().models
    assert listed.model == "stories:latest" and listed.size > 0 and listed.details.family == "llama"
    [running] = api.ps().models
    assert running.name == listed.model and running.digest == listed.digest and running.expires_at.year == 9999
    shown = api.show("stories")
    assert shown.modelinfo["llama.context_length"] > 0 and shown.capabilities == ["completion"]


def test_embed(client: Client) -> None:
    api = connect(client)
    [first] = api.embed("stories", "One day").embeddings
    answer = api.embed(model="stories", input=["One day", "The end"], dimensions=len(first))
    assert len(answer.embeddings) == 2 and answer.embeddings[0] == first
    assert answer.prompt_eval_count > 2 and answer.total_duration > 0
    assert api.embeddings(model="stories", prompt="The end").embedding == answer.embeddings[1]


def test_errors(client: Client) -> None:
    api = connect(client)
    for call, status in (
        (lambda: api.generate(model="llama3", prompt="x"), 404),
        (lambda: api.chat(model="stories", messages=HI), 400),
        (lambda: list(api.generate(model="stories", prompt="x", options={"num_predict": -9}, stream=True)), 400),
        (lambda: api.pull("llama3"), 403),
        (lambda: api.delete("stories"), 403),
        (lambda: api.copy("stories", "other"), 403),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            call()
        assert caught.value.status_code == status and caught.value.error and "{" not in caught.value.error
