"""OpenAI's Responses API: the same texts as chat completions, in the form of responses; wrong
requests are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

Client = Any  # conftest.Client: the tests are not a package
RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
GREEDY = {"model": "chatml", "input": "Hi", "max_output_tokens": 12, "temperature": 0}


def text_of(client: Client, messages: Any = HI) -> str:
    """The answer of chat completions."""
    body = {"model": "chatml", "messages": messages, "max_tokens": 12, "temperature": 0}
    return str(client.ok(CHAT, body)["choices"][0]["message"]["content"])


def test_an_answer_is_that_of_chat_completions(chat_client: Client) -> None:
    answer = chat_client.ok(RESPONSES, {**GREEDY, "metadata": {"a": "b"}, "store": True})
    assert answer["id"].startswith("resp_") and answer["object"] == "response" and answer["error"] is None
    assert answer["status"] == "incomplete" and answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["metadata"] == {"a": "b"} and answer["store"] is False and answer["max_output_tokens"] == 12
    [item] = answer["output"]
    assert item.pop("id").startswith("msg_")
    part = {"type": "output_text", "text": text_of(chat_client), "annotations": [], "logprobs": []}
    assert item == {"type": "message", "status": "incomplete", "role": "assistant", "content": [part]}
    usage = answer["usage"]
    assert usage["output_tokens"] == 12 and usage["total_tokens"] == usage["input_tokens"] + 12


def test_a_stream_has_the_events_that_clients_wait_for(chat_client: Client) -> None:
    status, headers, text = chat_client.send(RESPONSES, {**GREEDY, "stream": True})
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    whole = text_of(chat_client)
    assert "".join(event["delta"] for event in events[4:-4]) == whole == events[-4]["text"]
    response = events[-1]["response"]
    assert response["output"] == [events[-2]["item"]] and response["output"][0]["content"] == [events[-3]["part"]]
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    assert events[0]["response"]["id"] == response["id"] and response["usage"]["output_tokens"] == 12
    alone = chat_client.ok(RESPONSES, GREEDY)
    for each in (alone, response):
        assert 0 <= each["usage"].pop("input_tokens_details")["cached_tokens"] < each["usage"]["input_tokens"]
    changing = ("id", "created_at", "output")
    assert {name: alone[name] for name in alone if name not in changing} == {
        name: response[name] for name in response if name not in changing
    }


def test_inputs(chat_client: Client) -> None:
    system = {"role": "system", "content": "You are brief."}
    history = [*HI, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Who?"}]
    expected = text_of(chat_client, [system, *history])
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Hello", "annotations": []}]},
        {"role": "user", "content": "Who?"},
    ]  # fmt: skip
    for more in (
        {"instructions": "You are brief.", "input": items},
        {"input": [{**system, "role": "developer"}, *items]},
    ):
        answer = chat_client.ok(RESPONSES, {**GREEDY, **more})
        assert answer["output"][0]["content"][0]["text"] == expected


def test_logprobs(chat_client: Client) -> None:
    more = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = chat_client.ok(RESPONSES, {**GREEDY, **more})
    shown = answer["output"][0]["content"][0]["logprobs"]
    assert len(shown) == 12 and all(len(each["top_logprobs"]) == 2 for each in shown)
    body = {"model": "chatml", "messages": HI, "max_tokens": 12, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    assert chat_client.ok(CHAT, body)["choices"][0]["logprobs"]["content"] == shown


def test_a_schema_limits_the_answer(chat_client: Client) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    answer = chat_client.ok(RESPONSES, {**GREEDY, "max_output_tokens": 200, "text": {"format": form}})
    text = answer["output"][0]["content"][0]["text"]
    assert answer["text"] == {"format": form} and text.lstrip().startswith("{")
    if answer["status"] == "completed":
        assert json.loads(text)["a"] in (True, False)
    error = chat_client.refused(RESPONSES, {**GREEDY, "text": {"format": {**form, "schema": {"not": {}}}}})
    assert error["status"] == 400 and error["param"] == "text.format" and "not" in error["message"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_output_tokens": 0}, "max_output_tokens"), ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"max_output_tokens": "x"}, "max_output_tokens"), ({"input": None}, "input"), ({"input": []}, "input"),
        ({"input": 5}, "input"), ({"input": [5]}, "input"), ({"input": [{"role": "robot", "content": "x"}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"instructions": 5}, "instructions"), ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"), ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"), ({"temperature": 101}, "temperature"), ({"top_p": 2}, "top_p"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"), ({"text": {"format": "json"}}, "text.format"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"), ({"include": "x"}, "include"),
        ({"top_logprobs": 99}, "top_logprobs"), ({"stream": 1}, "stream"), ({"model": 7}, "model"),
        ({"text": "json"}, "text"), ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_json": {}}, "guided_json"), ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
        ({"input": HI * 100_000}, "input"), ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "input"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ],
)  # fmt: skip
def test_wrong_requests(chat_client: Client, more: dict[str, Any], param: str) -> None:
    before = chat_client.stats.num_new_tokens
    error = chat_client.refused(RESPONSES, {**GREEDY, **more})
    assert (error["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert chat_client.stats.num_new_tokens == before


def test_a_prompt_that_is_too_long(chat_client: Client) -> None:
    error = chat_client.refused(RESPONSES, {**GREEDY, "input": "x " * 5000})
    assert (error["status"], error["code"]) == (400, "context_length_exceeded")


def test_unsupported_content_is_named(chat_client: Client) -> None:
    for kind in ("input_image", "input_file", "input_audio"):
        items = [{"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": kind}]}]
        error = chat_client.refused(RESPONSES, {**GREEDY, "input": items})
        assert error["status"] == 400 and "input[0].content: expected parts of type input_text" in error["message"]
        assert f"found {kind!r}" in error["message"]


def test_tools_that_may_not_be_used_and_unknown_fields(chat_client: Client) -> None:
    more = {"tools": [{"type": "web_search"}], "tool_choice": "none", "unknown": 1, "text": {"verbosity": "low"}}
    answer = chat_client.ok(RESPONSES, {**GREEDY, **more})
    assert answer["output"][0]["content"][0]["text"] == text_of(chat_client) and answer["tools"] == []


def test_unknown_models_and_broken_json(chat_client: Client, client: Client) -> None:
    error = chat_client.refused(RESPONSES, {**GREEDY, "model": "gpt-5"})
    assert (error["status"], error["code"]) == (404, "model_not_found")
    assert chat_client.refused(RESPONSES, b"{")["status"] == 400
    assert chat_client.refused(RESPONSES, b"[]")["status"] == 400
    assert chat_client.refused(RESPONSES, None)["status"] == 405
    assert chat_client.refused(f"{RESPONSES}/resp_1", {})["status"] == 404  # nothing is stored
    assert "no chat template" in client.refused(RESPONSES, {"input": "Hi"})["message"]
