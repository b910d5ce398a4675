"""The openai client reads what the server sends: answers, streams, errors."""

from __future__ import annotations

from typing import Any

import pytest

Client = Any  # conftest.Client: the tests are not a package

pytestmark = pytest.mark.compat
openai = pytest.importorskip("openai")


def connect(client: Client, **options: Any) -> Any:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="any", max_retries=0, **options)


HI = [{"role": "user", "content": "Hi"}]


def test_chat(chat_client: Client) -> None:
    with connect(chat_client) as api:
        options = {"model": "chatml", "messages": HI, "max_tokens": 9, "seed": 4}
        answer = api.chat.completions.create(**options, logprobs=True, top_logprobs=2, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1]
        choice = answer.choices[0]
        assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
        assert len(choice.logprobs.content[0].top_logprobs) == 2
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        chunks = list(api.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == choice.message.content
        assert chunks[-1].usage.completion_tokens > 0 and chunks[-2].choices[0].finish_reason == choice.finish_reason


def test_completions(client: Client) -> None:
    with connect(client) as api:
        options = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}
        answer = api.completions.create(**options, logprobs=2, echo=True)
        assert answer.choices[0].text.startswith("Once upon a time")
        assert len(answer.choices[0].logprobs.tokens) == len(answer.choices[0].logprobs.token_logprobs)
        text = "".join(chunk.choices[0].text for chunk in api.completions.create(**options, stream=True))
        assert answer.choices[0].text == "Once upon a time" + text
        assert [each.id for each in api.models.list()] == ["stories"]
        assert api.models.retrieve("stories").id == "stories"


def test_embeddings(client: Client) -> None:
    with connect(client) as api:  # asks for base64 unless told otherwise
        decoded = api.embeddings.create(model="stories", input=["One day", "The end"])
        plain = api.embeddings.create(model="stories", input=["One day", "The end"], encoding_format="float")
        assert [each.embedding for each in decoded.data] == [each.embedding for each in plain.data]
        assert len(decoded.data[1].embedding) > 0 and decoded.usage.prompt_tokens == plain.usage.total_tokens
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            api.embeddings.create(model="stories", input="x", dimensions=7)


def test_errors(client: Client, chat_client: Client) -> None:
    with connect(client) as api, connect(chat_client) as chat:
        with pytest.raises(openai.NotFoundError) as missing:
            api.completions.create(model="gpt-4o", prompt="x")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as long:
            chat.chat.completions.create(model="chatml", messages=[{"role": "user", "content": "x " * 5000}])
        assert long.value.code == "context_length_exceeded" and "maximum context length" in str(long.value)
        with pytest.raises(openai.BadRequestError):
            api.completions.create(model="stories", prompt="x", max_tokens=-1)


def test_leaving_a_stream_cancels(client: Client) -> None:
    with connect(client) as api:
        before = client.stats.num_new_tokens
        stream = api.completions.create(
            model="stories", prompt=["Once"] * 8, n=8, max_tokens=240, stream=True, logit_bias={"0": -100}
        )
        next(iter(stream))
        stream.close()
    client.wait_until(lambda: client.stats.num_running + client.stats.num_waiting == 0)
    assert client.stats.num_new_tokens - before < 64 * 240 / 2


def test_responses(chat_client: Client) -> None:
    with connect(chat_client) as api:
        options = {"model": "chatml", "input": "Hi", "max_output_tokens": 9, "temperature": 0}
        answer = api.responses.create(**options, instructions="You are brief.")
        assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
        assert answer.usage.output_tokens == 9 and answer.output_text
        with api.responses.stream(**options, instructions="You are brief.") as stream:
            events = list(stream)
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == answer.output_text and events[-1].type == "response.incomplete"
        assert events[-1].response.output_text == answer.output_text
        history = [*HI, *answer.output, {"role": "user", "content": "Go on."}]
        assert api.responses.create(**{**options, "input": history}).output_text
        with pytest.raises(openai.BadRequestError) as wrong:
            api.responses.create(**options, previous_response_id="resp_1")
        assert wrong.value.param == "previous_response_id"


def test_parsed_answers(chat_client: Client) -> None:
    pytest.importorskip("llguidance")
    from pydantic import BaseModel

    class Size(BaseModel):
        big: bool

    with connect(chat_client) as api:
        said = api.chat.completions.parse(model="chatml", messages=HI, response_format=Size).choices[0].message
        assert isinstance(said.parsed.big, bool)
        answer = api.responses.parse(model="chatml", input="Hi", text_format=Size)
        assert answer.status == "completed" and isinstance(answer.output_parsed.big, bool)
