"""Ollama's API: the same texts as the engine alone, in Ollama's form; wrong requests are refused."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from llamita.chat import ChatEncoder
from llamita.engine import Message, Model, encode_prompt
from llamita.server.serving import ServerLimits

Client = Any  # conftest.Client: the tests are not a package
CHAT, GENERATE = "/api/chat", "/api/generate"
PROMPT = "Once upon a time"
HI = [{"role": "user", "content": "Hi"}]
METRICS = {
    "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"
}  # fmt: skip


def lines(client: Client, path: str, body: Any) -> list[Any]:
    """The objects of a stream, which is the default."""
    status, headers, text = client.send(path, body)
    assert status == 200 and headers["content-type"] == "application/x-ndjson", text
    assert text.endswith("\n")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def whole(client: Client, path: str, body: Any) -> Any:
    return client.ok(path, {**body, "stream": False})


def refused(client: Client, path: str, body: Any, method: str = "") -> tuple[int, str]:
    status, _, answer = client.send(path, body, method=method)
    assert set(answer) == {"error"} and "\n" not in answer["error"] and len(answer["error"]) < 600, answer
    return status, answer["error"]


# ---- texts


def test_generate_is_what_the_engine_generates(client: Client, stories: Model) -> None:
    options = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 7, "num_predict": 50,
               "repeat_penalty": 1.1, "repeat_last_n": 32, "num_ctx": 4096, "unknown": 1}  # fmt: skip
    answer = whole(client, GENERATE, {"model": "stories:latest", "prompt": PROMPT, "options": options})
    generation = stories.generate(
        PROMPT, temperature=0.8, top_p=0.9, top_k=40, min_p=0.01, seed=7, max_new_tokens=50,
        repetition_penalty=1.1, repetition_window=32,
    )  # fmt: skip
    assert answer["response"] == "".join(generation)
    assert answer.keys() == {"model", "created_at", "response", "done", "done_reason", "context"} | METRICS
    assert answer["model"] == "stories:latest" and answer["done"] is True and answer["done_reason"] == "length"
    assert answer["created_at"].endswith("Z")
    assert answer["context"] == generation.prompt_ids + generation.ids
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (len(generation.prompt_ids), 50)
    durations = [answer[name] for name in METRICS if name.endswith("duration")]
    assert all(isinstance(each, int) and each > 0 for each in durations)
    parts = answer["load_duration"] + answer["prompt_eval_duration"] + answer["eval_duration"]
    assert parts == pytest.approx(answer["total_duration"], abs=10)


def test_stream_joins_to_the_answer(client: Client) -> None:
    body = {"model": "stories", "prompt": PROMPT, "options": {"num_predict": 40, "seed": 3, "stop": ["."]}}
    answer = whole(client, GENERATE, body)
    *pieces, last = lines(client, GENERATE, body)
    assert "".join(each["response"] for each in pieces) == answer["response"]
    assert all(each.keys() == {"model", "created_at", "response", "done"} for each in pieces)
    assert all(each["done"] is False for each in pieces)
    assert last.keys() == answer.keys() and last["response"] == ""
    for name in ("done", "done_reason", "context", "prompt_eval_count", "eval_count"):
        assert last[name] == answer[name]


def test_the_end_of_a_text(client: Client) -> None:
    body = {"prompt": PROMPT, "options": {"temperature": 0, "stop": "."}}
    answer = whole(client, GENERATE, body)
    assert answer["done_reason"] == "stop" and "." not in answer["response"]
    for num_predict in (-1, -2, 0):  # no limit
        answer = whole(client, GENERATE, {"prompt": PROMPT, "options": {"temperature": 0, "num_predict": num_predict}})
        assert answer["eval_count"] > 100


def test_chat_is_that_of_the_other_route(chat_client: Client) -> None:
    options = {"num_predict": 12, "seed": 1, "temperature": 0.7}
    messages = [{"role": "system", "content": "Be kind."}, *HI]
    body = {"model": "chatml", "messages": messages, "options": options}
    answer = whole(chat_client, CHAT, body)
    assert answer.keys() == {"model", "created_at", "message", "done", "done_reason"} | METRICS
    same = chat_client.ok(
        "/v1/chat/completions",
        {"model": "chatml", "messages": messages, "max_tokens": 12, "seed": 1, "temperature": 0.7},
    )
    assert answer["message"] == {"role": "assistant", "content": same["choices"][0]["message"]["content"]}
    assert answer["done_reason"] == same["choices"][0]["finish_reason"]
    assert answer["prompt_eval_count"] == same["usage"]["prompt_tokens"]
    *pieces, last = lines(chat_client, CHAT, body)
    assert "".join(each["message"]["content"] for each in pieces) == answer["message"]["content"]
    assert {each["message"]["role"] for each in [*pieces, last]} == {"assistant"}
    assert last["message"]["content"] == "" and last["done_reason"] == answer["done_reason"]


def test_prompts_by_the_chat_template(chat_client: Client) -> None:
    """A prompt is the user's message; raw, it is the text itself with its control tokens."""
    model = chat_client.server._serving["chatml"].model
    options = {"num_predict": 5, "temperature": 0}
    body = {"model": "chatml", "prompt": "Hello", "system": "Be kind.", "options": options}
    answer = whole(chat_client, GENERATE, body)
    ids = model.chat_encode([Message("system", b"Be kind."), Message("user", b"Hello")])
    assert answer["context"][: len(ids)] == ids and answer["prompt_eval_count"] == len(ids)
    text = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    raw = whole(chat_client, GENERATE, {"model": "chatml", "prompt": text, "raw": True, "options": options})
    assert "context" not in raw
    same = {"model": "chatml", "prompt": [model.info.bos_id, *ids], "max_tokens": 5, "temperature": 0}
    assert raw["response"] == chat_client.ok("/v1/completions", same)["choices"][0]["text"]
    text = (model.token_text(model.info.bos_id) or "") + text
    again = whole(chat_client, GENERATE, {"model": "chatml", "prompt": text, "raw": True, "options": options})
    assert again["prompt_eval_count"] == raw["prompt_eval_count"] == len(ids) + 1  # BOS comes once


def test_context_goes_on(client: Client, stories: Model, chat_client: Client) -> None:
    options = {"temperature": 0, "num_predict": 8}
    first = whole(client, GENERATE, {"prompt": PROMPT, "options": options})
    second = whole(client, GENERATE, {"prompt": " The end", "context": first["context"], "options": options})
    more = encode_prompt(stories, " The end")
    ids = first["context"] + (more[1:] if more[0] == stories.info.bos_id else more)
    assert second["prompt_eval_count"] == len(ids) and second["context"][: len(ids)] == ids
    body = {"model": "chatml", "prompt": "Hi", "options": {"temperature": 0, "num_predict": 40}}
    model = chat_client.server._serving["chatml"].model
    for seed in range(30):  # random weights: some answer ends by itself
        answer = whole(chat_client, GENERATE, {**body, "options": {"seed": seed, "temperature": 3}})
        if answer["done_reason"] == "stop":
            assert model.token_ends(answer["context"][-1])
            assert len(answer["context"]) == answer["prompt_eval_count"] + answer["eval_count"] + 1
            return
    pytest.fail("no answer ended")


def test_formats(chat_client: Client) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    body = {"model": "chatml", "messages": HI, "options": {"seed": 1}}
    answer = whole(chat_client, CHAT, {**body, "format": schema})
    assert json.loads(answer["message"]["content"])["n"] in (1, 2)
    text = "".join(each["message"]["content"] for each in lines(chat_client, CHAT, {**body, "format": schema}))
    assert text == answer["message"]["content"]
    whole(chat_client, CHAT, {**body, "format": "json", "options": {"num_predict": 5}})
    whole(chat_client, CHAT, {**body, "format": "", "options": {"num_predict": 5}})
    status, error = refused(chat_client, CHAT, {**body, "format": {"type": "array", "uniqueItems": True}})
    assert status == 400 and "uniqueItems" in error and error.startswith("format")


def test_logprobs(chat_client: Client) -> None:
    body = {"model": "chatml", "messages": HI, "options": {"seed": 2, "num_predict": 6}, "logprobs": True,
            "top_logprobs": 2}  # fmt: skip
    answer = whole(chat_client, CHAT, body)
    assert len(answer["logprobs"]) == answer["eval_count"]
    assert all(len(each["top_logprobs"]) == 2 for each in answer["logprobs"])
    streamed = [token for line in lines(chat_client, CHAT, body) for token in line.get("logprobs", [])]
    assert streamed == answer["logprobs"]


def test_requests_that_only_load(client: Client) -> None:
    for body in ({"model": "stories"}, {"model": "stories", "prompt": "", "keep_alive": -1}):
        answer = client.ok(GENERATE, body)
        assert answer.keys() == {"model", "created_at", "response", "done", "done_reason"}
        assert (answer["response"], answer["done"], answer["done_reason"]) == ("", True, "load")
    answer = client.ok(CHAT, {"model": "stories", "messages": []})
    assert answer["message"] == {"role": "assistant", "content": ""} and answer["done_reason"] == "load"


# ---- models


def test_models(client: Client, stories: Model, chat_client: Client) -> None:
    info = stories.info
    [listed] = client.ok("/api/tags")["models"]
    assert listed["name"] == listed["model"] == "stories:latest" and listed["size"] == info.weight_bytes
    assert listed["details"] == {
        "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
        "parameter_size": f"{info.num_parameters / 1e6:.1f}M", "quantization_level": info.weight_type,
    }  # fmt: skip
    digests = {each["digest"] for each in [listed, *chat_client.ok("/api/tags")["models"]]}
    assert len(digests) == 3 and all(len(bytes.fromhex(each)) == 32 for each in digests)
    [running] = client.ok("/api/ps")["models"]
    assert running["digest"] == listed["digest"] and running["context_length"] == info.context_tokens
    for body in ({"model": "stories"}, {"name": "stories:latest"}):
        shown = client.ok("/api/show", body)
        assert shown["details"] == listed["details"] and shown["capabilities"] == ["completion"]
        assert shown["model_info"]["llama.context_length"] == info.context_tokens
        assert shown["model_info"]["general.parameter_count"] == info.num_parameters
        assert "temperature " in shown["parameters"]
    assert "im_start" in chat_client.ok("/api/show", {"model": "chatml"})["template"]


def test_probes(client: Client) -> None:
    assert client.send("/", method="HEAD")[0] == 200
    assert client.send("/api/tags", method="HEAD")[0] == 200
    assert client.ok("/api/version")["version"].count(".") == 2


# ---- wrong requests


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, {"messages": 5}, "messages"), (CHAT, {"messages": [5]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "role"),
        (CHAT, {"messages": [{"role": "user", "content": "x", "images": ["QQ=="]}]}, "images"),
        (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, "tools"),
        (CHAT, {"messages": HI, "think": True}, "think"), (CHAT, {"messages": HI}, "no chat template"),
        (GENERATE, {"prompt": 5}, "prompt"), (GENERATE, {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        (GENERATE, {"prompt": "x", "suffix": "y"}, "suffix"), (GENERATE, {"prompt": "x", "images": ["QQ=="]}, "images"),
        (GENERATE, {"prompt": "x", "system": "y"}, "system: expected none"),
        (GENERATE, {"prompt": "x", "system": "y", "raw": True}, "raw is true"),
        (GENERATE, {"prompt": "x", "raw": 1}, "raw"), (GENERATE, {"prompt": "x", "stream": "no"}, "stream"),
        (GENERATE, {"prompt": "x", "format": "xml"}, "format"), (GENERATE, {"prompt": "x", "format": 5}, "format"),
        (GENERATE, {"prompt": "x", "context": "y"}, "context"), (GENERATE, {"prompt": "x", "context": [-1]}, "context"),
        (GENERATE, {"prompt": "x", "context": [[1], [2]]}, "context"),
        (GENERATE, {"prompt": "x", "options": []}, "options"),
        (GENERATE, {"prompt": "x", "options": {"temperature": "hot"}}, "temperature"),
        (GENERATE, {"prompt": "x", "options": {"num_predict": 1.5}}, "num_predict"),
        (GENERATE, {"prompt": "x", "options": {"num_predict": -3}}, "num_predict"),
        (GENERATE, {"prompt": "x", "options": {"repeat_last_n": -2}}, "repeat_last_n"),
        (GENERATE, {"prompt": "x", "options": {"mirostat": 1}}, "mirostat: expected 0 (off) or 2"),
        (GENERATE, {"prompt": "x", "options": {"typical_p": 1.5}}, "typical_p"),
        (GENERATE, {"prompt": "x", "options": {"tfs_z": 0.5}}, "tfs_z"),
        (GENERATE, {"prompt": "x", "options": {"stop": [""]}}, "stop"),
        (GENERATE, {"prompt": "x", "top_logprobs": 5}, "top_logprobs"),
        (GENERATE, {"prompt": "x " * 2000}, "maximum context length"),
        (GENERATE, {"model": 5, "prompt": "x"}, "model"), (GENERATE, b"{", "broken JSON"),
    ],
    ids=range(33),
)  # fmt: skip
def test_wrong_requests(client: Client, path: str, body: Any, expected: str) -> None:
    submitted = client.stats
    status, error = refused(client, path, body)
    assert status == 400 and expected in error and client.stats == submitted


def test_samplers_that_are_off(client: Client) -> None:
    options = {"mirostat": 0, "typical_p": 1.0, "tfs_z": 1, "num_predict": 1, "top_k": -1, "repeat_last_n": -1}
    whole(client, GENERATE, {"prompt": PROMPT, "options": options})


def test_unknown_models_and_routes(client: Client) -> None:
    for path, body in ((CHAT, {"model": "llama3", "messages": HI}), (GENERATE, {"model": "llama3"}),
                       ("/api/show", {"model": "llama3:latest"})):  # fmt: skip
        status, error = refused(client, path, body)
        assert status == 404 and "stories" in error and "llama3" in error
    assert refused(client, "/api/nothing", {})[0] == 404
    assert refused(client, CHAT, None)[0] == 405
    for name in ("pull", "push", "create", "copy", "blobs/sha256:00"):
        status, error = refused(client, f"/api/{name}", {"model": "llama3"})
        assert status == 403 and "not supported" in error
    assert refused(client, "/api/delete", {"model": "stories"}, "DELETE")[0] == 403


def test_keys_and_time_limits(stories: Model, running_server: Any) -> None:
    with running_server({"stories": stories}, ServerLimits(answer_seconds=0.0001), api_keys=("one",)) as client:
        assert refused(client, "/api/tags", None)[0] == 401
        headers = {"Authorization": "Bearer one"}
        body = {"prompt": "Once", "options": {"num_predict": 250}}
        status, _, answer = client.send(GENERATE, {**body, "stream": False}, headers=headers)
        assert status == 503 and "more than" in answer["error"]
        _, _, text = client.send(GENERATE, body, headers=headers)
        assert "more than" in json.loads(text.splitlines()[-1])["error"]


def test_templates_that_refuse(chat_client: Client) -> None:
    status, error = refused(chat_client, GENERATE, {"model": "jinja", "prompt": "Hi", "system": "x"})
    assert status == 400 and "no system messages" in error
    answer = whole(chat_client, GENERATE, {"model": "jinja", "prompt": "Hi", "options": {"num_predict": 3}})
    encoder = ChatEncoder(chat_client.server._serving["jinja"].model)
    assert answer["prompt_eval_count"] == len(encoder.encode([Message("user", b"Hi")]))
    encoder.close()


def test_made_up_requests(client: Client) -> None:
    """Fields of all kinds of values: answered or refused, and never a bug of the server."""
    chosen = random.Random(5)
    fields = ["prompt", "messages", "options", "format", "raw", "system", "template", "context", "stream", "think",
              "tools", "images", "suffix", "keep_alive", "input", "truncate", "dimensions", "logprobs", "model", "name",
              "top_logprobs"]  # fmt: skip
    values = [None, True, False, 0, -1, 2, 1.5, -1e308, 10**30, "", "x", "json", "stories", ":latest", "\ud800", "\0",
              [], [1], [[1]], ["a"], [None], {}, {"a": 1}, HI, [{"role": "user"}], {"type": "strin"}, {"$ref": "#/x"},
              {"temperature": {}}, {"seed": -(2**63)}, {"num_predict": 3}, {"num_predict": 10**30}, {"top_k": 1e9},
              {"mirostat": []}, {"typical_p": {}}, {"stop": [["a"]]}, [5] * 3000]  # fmt: skip
    statuses = set()
    for _ in range(400):
        body = {"prompt": "x", "input": "x", "options": {"num_predict": 2}} if chosen.random() < 0.7 else {}
        body |= {name: chosen.choice(values) for name in chosen.sample(fields, chosen.randint(1, 4))}
        path = chosen.choice([GENERATE, CHAT, "/api/embed", "/api/embeddings", "/api/show"])
        status, _, _ = client.send(path, json.dumps(body).encode())
        statuses.add(status)
        assert status in (200, 400, 404), (path, body)
    assert statuses == {200, 400, 404}
