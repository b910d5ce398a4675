"""The anthropic client reads what the server sends: answers, streams, errors."""

from __future__ import annotations

from typing import Any

import pytest

Client = Any  # conftest.Client: the tests are not a package

pytestmark = pytest.mark.compat
anthropic = pytest.importorskip("anthropic")
OPTIONS = {"model": "chatml", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}


def connect(client: Client, **options: Any) -> Any:
    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{client.port}", api_key="any", max_retries=0, **options)


def test_messages(chat_client: Client) -> None:
    with connect(chat_client) as api:
        options = {**OPTIONS, "system": "You are brief.", "extra_body": {"temperature": 0}}
        answer = api.messages.create(**options)
        assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 9 and answer.content[0].text
        with api.messages.stream(**options) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == answer.content[0].text == final.content[0].text
        assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 9)
        counted = api.messages.count_tokens(model="chatml", system="You are brief.", messages=OPTIONS["messages"])
        num_read = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
        assert counted.input_tokens == num_read
        assert final.usage.input_tokens + final.usage.cache_read_input_tokens == num_read
        assert final.usage.cache_read_input_tokens == num_read - 1  # of the same prompt
        history = [*OPTIONS["messages"], {"role": "assistant", "content": answer.content},
                   {"role": "user", "content": "Go on."}]  # fmt: skip
        usage = api.messages.create(**{**options, "messages": history}).usage
        assert usage.input_tokens + usage.cache_read_input_tokens > num_read


def test_parsed_answers(chat_client: Client) -> None:
    pytest.importorskip("llguidance")
    from pydantic import BaseModel

    class Size(BaseModel):
        big: bool

    with connect(chat_client) as api:
        answer = api.messages.parse(**{**OPTIONS, "max_tokens": 200}, output_format=Size)
        assert answer.stop_reason == "end_turn" and isinstance(answer.parsed_output.big, bool)


def test_errors(chat_client: Client) -> None:
    with connect(chat_client) as api:
        with pytest.raises(anthropic.NotFoundError):
            api.messages.create(**{**OPTIONS, "model": "claude"})
        with pytest.raises(anthropic.BadRequestError) as wrong:
            api.messages.create(**OPTIONS, tools=[{"name": "x", "input_schema": {"type": "object"}}])
        assert wrong.value.body["error"]["type"] == "invalid_request_error"


def test_keys(chat_client: Client, running_server: Any, make_chat_model: Any) -> None:
    from llamita.engine import Model

    with Model(make_chat_model("chatml").path) as model, running_server({"chatml": model}, api_keys=("any",)) as client:
        with connect(client) as api:
            assert api.messages.create(**OPTIONS).content
        with connect(client) as api, pytest.raises(anthropic.AuthenticationError):
            api.with_options(api_key="wrong").messages.create(**OPTIONS)
