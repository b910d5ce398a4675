"""Anthropic's Messages API: the same texts as chat completions, in Anthropic's form; wrong requests
are refused in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

Client = Any  # conftest.Client: the tests are not a package
MESSAGES, CHAT = "/v1/messages", "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
GREEDY = {"model": "chatml", "messages": HI, "max_tokens": 12, "temperature": 0}


def text_of(client: Client, **more: Any) -> str:
    """The answer of chat completions."""
    answer = client.ok(CHAT, {**GREEDY, **more})
    return str(answer["choices"][0]["message"]["content"])


def refused(client: Client, body: Any, path: str = MESSAGES) -> tuple[int, str, str]:
    status, _, answer = client.send(path, body)
    assert answer.keys() == {"type", "error"} and answer["type"] == "error"
    assert answer["error"].keys() == {"type", "message"} and "\n" not in answer["error"]["message"]
    return status, answer["error"]["type"], answer["error"]["message"]


def named_events(client: Client, path: str, body: Any) -> list[Any]:
    """The objects of a stream whose events are named by their types."""
    status, headers, text = client.send(path, {**body, "stream": True})
    assert status == 200 and headers["content-type"].startswith("text/event-stream"), text
    events = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found = json.loads(data.removeprefix("data: "))
        assert name == f"event: {found['type']}" and data.startswith("data: ")
        events.append(found)
    return events


def test_an_answer_is_that_of_chat_completions(chat_client: Client) -> None:
    answer = chat_client.ok(MESSAGES, GREEDY)
    assert answer.pop("id").startswith("msg_")
    whole = text_of(chat_client)
    usage = chat_client.ok(CHAT, GREEDY)["usage"]
    cached = answer["usage"].pop("cache_read_input_tokens")
    assert 0 <= cached < usage["prompt_tokens"]
    assert answer == {
        "type": "message", "role": "assistant", "model": "chatml", "content": [{"type": "text", "text": whole}],
        "stop_reason": "max_tokens", "stop_sequence": None,
        "usage": {
            "input_tokens": usage["prompt_tokens"] - cached, "cache_creation_input_tokens": 0,
            "output_tokens": usage["completion_tokens"],
        },
    }  # fmt: skip


def test_a_stream_has_the_events_that_clients_wait_for(chat_client: Client) -> None:
    events = named_events(chat_client, MESSAGES, GREEDY)
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "content_block_start", "ping"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert events[0]["message"]["content"] == [] and events[0]["message"]["stop_reason"] is None
    assert events[0]["message"]["usage"]["input_tokens"] > 0
    assert "".join(event["delta"]["text"] for event in events[3:-3]) == text_of(chat_client)
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 12


def test_system_prompts_and_blocks(chat_client: Client) -> None:
    system = "You are brief."
    expected = text_of(chat_client, messages=[{"role": "system", "content": system}, *HI])
    blocks = [{"type": "text", "text": "H", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "i"}]
    for given in (system, [{"type": "text", "text": system}]):
        for content in ("Hi", blocks):
            messages = [{"role": "user", "content": content}]
            answer = chat_client.ok(MESSAGES, {**GREEDY, "system": given, "messages": messages})
            assert answer["content"][0]["text"] == expected
    counted = chat_client.ok(f"{MESSAGES}/count_tokens", {"model": "chatml", "system": system, "messages": HI})
    usage = answer["usage"]
    assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


def test_stop_reasons(chat_client: Client) -> None:
    whole = text_of(chat_client)
    stop = whole[3:6]
    answer = chat_client.ok(MESSAGES, {**GREEDY, "stop_sequences": ["never", stop]})
    assert answer["content"][0]["text"] == whole[: whole.find(stop)]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
    [*_, delta, _] = named_events(chat_client, MESSAGES, {**GREEDY, "stop_sequences": [stop]})
    assert delta["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": stop}


def test_a_schema_limits_the_answer(chat_client: Client) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "schema": schema}
    body = {**GREEDY, "max_tokens": 200, "output_config": {"format": form}}
    answer = chat_client.ok(MESSAGES, body)
    if answer["stop_reason"] == "end_turn":
        assert json.loads(answer["content"][0]["text"])["a"] in (True, False)
    assert answer["content"][0]["text"].lstrip().startswith("{")
    wrong = {"type": "json_schema", "schema": {"not": {}}}
    status, kind, message = refused(chat_client, {**body, "output_config": {"format": wrong}})
    assert (status, kind) == (400, "invalid_request_error") and "not" in message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"max_tokens": None}, "max_tokens: expected a whole number"), ({"max_tokens": 0}, "max_tokens: expected 1"),
        ({"max_tokens": -5}, "max_tokens"), ({"max_tokens": "x"}, "max_tokens"), ({"messages": []}, "messages"),
        ({"messages": None}, "messages"), ({"messages": "Hi"}, "messages"), ({"messages": [7]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "system", "content": "x"}, *HI]}, "system is a field"),
        ({"messages": [*HI, {"role": "assistant", "content": "x"}]}, "the last one to be the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "found 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"system": 5}, "system: expected a string"), ({"system": [{"type": "image"}]}, "found 'image'"),
        ({"tools": [{"name": "x"}]}, "tools: not supported"), ({"temperature": "hot"}, "temperature"),
        ({"top_k": -1}, "top_k"), ({"stop_sequences": [""]}, "stop_sequences"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"), ({"stream": "yes"}, "stream"),
        ({"messages": [{"role": "user", "content": "x " * 5000}]}, "maximum context length"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"output_config": "json"}, "output_config: expected an object"),
        ({"output_format": {"type": "json_schema", "schema": {}}}, "output_format: not supported here; use"),
        ({"response_format": {"type": "json_object"}}, "response_format: not supported here; use output_config.format"),
        ({"guided_json": {}}, "guided_json"), ({"tools": [{"name": "x"}], "tool_choice": {"type": "auto"}}, "tools"),
        ({"stop_sequences": ["x" * 10_000]}, "stop_sequences"), ({"messages": HI * 100_000}, "10,000"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "found 'document'"),
        ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": True}, "max_tokens"), ({"model": 7}, "model"),
    ],
)  # fmt: skip
def test_wrong_requests(chat_client: Client, more: dict[str, Any], words: str) -> None:
    before = chat_client.stats.num_new_tokens
    status, kind, message = refused(chat_client, {**GREEDY, **more})
    assert (status, kind) == (400, "invalid_request_error") and words in message
    assert chat_client.stats.num_new_tokens == before


def test_errors_have_anthropics_form(chat_client: Client) -> None:
    assert refused(chat_client, {**GREEDY, "model": "claude"})[:2] == (404, "not_found_error")
    assert refused(chat_client, b"{")[:2] == (400, "invalid_request_error")
    assert refused(chat_client, {}, f"{MESSAGES}/batches")[:2] == (404, "not_found_error")
    assert refused(chat_client, {"messages": []}, f"{MESSAGES}/count_tokens")[0] == 400
    assert chat_client.send(MESSAGES)[0] == 405


def test_disabled_thinking_and_unknown_fields_are_accepted(chat_client: Client) -> None:
    more = {"thinking": {"type": "disabled"}, "metadata": {"user_id": "1"}, "service_tier": "auto", "unknown": [1],
            "tools": [{"name": "x"}], "tool_choice": {"type": "none"}, "output_config": {"effort": "low"}}  # fmt: skip
    assert chat_client.ok(MESSAGES, {**GREEDY, **more})["content"][0]["text"] == text_of(chat_client)


def test_the_key_may_be_in_anthropics_header(running_server: Any, stories: Any) -> None:
    with running_server({"stories": stories}, api_keys=("secret",)) as client:
        body = {"max_tokens": 3, "messages": HI}
        assert client.send(MESSAGES, body)[0] == 401
        assert client.send(MESSAGES, body, headers={"x-api-key": "wrong"})[0] == 401
        status, _, answer = client.send(MESSAGES, body, headers={"x-api-key": "secret"})
        assert status == 400 and "chat template" in answer["error"]["message"]  # it is no chat model
        for one, other, expected in (("secret", "x", 400), ("x", "secret", 400), ("x", "x", 401), ("", "", 401)):
            both = {"x-api-key": one, "Authorization": f"Bearer {other}"}
            assert client.send(MESSAGES, body, headers=both)[0] == expected
