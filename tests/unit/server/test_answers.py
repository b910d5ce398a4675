"""What the server answers: the same texts as the engine alone, at any load, in OpenAI's form."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import http.client
import json
import random
import time
from typing import Any

import pytest

from llamita.chat import ChatEncoder
from llamita.engine import Message, Model, Request, Scheduler, encode_prompt
from llamita.sampling import SamplingParams

Client = Any  # conftest.Client: the tests are not a package
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "Once upon a time"


def text_of(answer: Any) -> str:
    return answer["choices"][0]["text"]


def test_completion_is_what_the_engine_generates(client: Client, stories: Model) -> None:
    body = {"model": "stories", "prompt": PROMPT, "max_tokens": 50, "temperature": 0.8, "top_p": 0.9, "seed": 7}
    answer = client.ok(COMPLETIONS, body)
    generation = stories.generate(PROMPT, temperature=0.8, top_p=0.9, seed=7, max_new_tokens=50)
    assert text_of(answer) == "".join(generation)
    assert answer["object"] == "text_completion" and answer["model"] == "stories" and answer["id"].startswith("cmpl-")
    assert answer["choices"][0]["finish_reason"] == "length" and answer["choices"][0]["logprobs"] is None
    num_prompt = len(encode_prompt(stories, PROMPT))
    assert answer["usage"] == {
        "prompt_tokens": num_prompt, "completion_tokens": 50, "total_tokens": num_prompt + 50,
        "prompt_tokens_details": answer["usage"]["prompt_tokens_details"],
    }  # fmt: skip


def test_end_of_text(client: Client, stories: Model) -> None:
    answer = client.ok(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 250, "temperature": 0})
    generation = stories.generate(PROMPT, temperature=0, max_new_tokens=250)
    assert text_of(answer) == "".join(generation)
    expected = {"end token": "stop", "context's end": "length", "number of tokens": "length"}
    assert answer["choices"][0]["finish_reason"] == expected[generation.stop]


def test_stream_joins_to_the_answer(client: Client) -> None:
    body = {"prompt": PROMPT, "max_tokens": 60, "seed": 3, "stream_options": {"include_usage": True}}
    whole = client.ok(COMPLETIONS, body)
    *chunks, last = client.events(COMPLETIONS, body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text_of(whole)
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert {(chunk["id"], chunk["created"]) for chunk in [*chunks, last]} == {(last["id"], last["created"])}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_chat(chat_client: Client) -> None:
    body = {
        "model": "chatml",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello <|im_end|>"}],
        "max_completion_tokens": 12,
        "seed": 1,
    }
    whole = chat_client.ok(CHAT, body)
    choice = whole["choices"][0]
    assert whole["object"] == "chat.completion" and choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    first, *middle, last = chat_client.events(CHAT, body)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(each["choices"][0]["delta"]["content"] for each in middle) == choice["message"]["content"]
    assert all(each["choices"][0]["finish_reason"] is None for each in [first, *middle])
    assert last["choices"][0]["delta"] == {} and last["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert all("usage" not in each for each in [first, *middle, last])
    model = chat_client.server._serving["chatml"].model
    ids = model.chat_encode([Message("system", b"Be kind."), Message("user", b"Hello <|im_end|>")])
    assert whole["usage"]["prompt_tokens"] == len(ids)


def test_parts_of_a_message_and_developers(chat_client: Client) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    answers = [
        chat_client.ok(CHAT, {"model": "chatml", "max_tokens": 9, "temperature": 0, "messages": messages})
        for messages in (
            [{"role": "system", "content": "x"}, {"role": "user", "content": "Hello"}],
            [{"role": "developer", "content": "x", "name": "ignored"}, {"role": "user", "content": parts}],
        )
    ]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["usage"]["prompt_tokens"] == answers[1]["usage"]["prompt_tokens"]


def test_templates_that_need_jinja(chat_client: Client) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer = chat_client.ok(CHAT, {"model": "jinja", "messages": messages, "max_tokens": 5})
    model = chat_client.server._serving["jinja"].model
    encoder = ChatEncoder(model)
    assert answer["usage"]["prompt_tokens"] == len(encoder.encode([Message("user", b"Hi")]))
    encoder.close()
    messages = [{"role": "system", "content": "x"}, *messages]
    error = chat_client.refused(CHAT, {"model": "jinja", "messages": messages})
    assert error["status"] == 400 and "no system messages" in error["message"]


def test_several_choices_have_the_next_seeds(client: Client) -> None:
    body = {"prompt": [PROMPT, "The dog"], "max_tokens": 20, "seed": 5}
    choices = client.ok(COMPLETIONS, {**body, "n": 3})["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))
    for number, choice in enumerate(choices):
        alone = {**body, "prompt": body["prompt"][number // 3], "seed": 5 + number % 3}
        assert choice["text"] == text_of(client.ok(COMPLETIONS, alone))


def test_prompts_as_token_ids(client: Client, stories: Model) -> None:
    ids = encode_prompt(stories, PROMPT)
    body = {"max_tokens": 10, "temperature": 0}
    texts = {text_of(client.ok(COMPLETIONS, {**body, "prompt": prompt})) for prompt in (PROMPT, ids, [ids], [PROMPT])}
    assert len(texts) == 1


def test_stop_strings(client: Client) -> None:
    body = {"prompt": PROMPT, "max_tokens": 200, "temperature": 0}
    whole = text_of(client.ok(COMPLETIONS, body))
    for stop in (".", [whole[20:31], "never there"], whole[50:53]):
        cut = min(at for each in ([stop] if isinstance(stop, str) else stop) if (at := whole.find(each)) >= 0)
        answer = client.ok(COMPLETIONS, {**body, "stop": stop})
        assert text_of(answer) == whole[:cut] and answer["choices"][0]["finish_reason"] == "stop"
        chunks = client.events(COMPLETIONS, {**body, "stop": stop})
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole[:cut]
    unfinished = client.ok(COMPLETIONS, {**body, "max_tokens": 10, "stop": text_of(client.ok(COMPLETIONS, {**body,
                           "max_tokens": 10}))[-4:] + "\x00"})  # fmt: skip
    assert text_of(unfinished) == text_of(client.ok(COMPLETIONS, {**body, "max_tokens": 10}))  # what was held back


def test_logit_bias_and_penalties(client: Client, stories: Model) -> None:
    ids = stories.encode(" dog")
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    answer = client.ok(COMPLETIONS, {**body, "logit_bias": {str(ids[0]): 100}})
    assert text_of(answer) == " dog" * 8
    answer = client.ok(COMPLETIONS, {**body, "logit_bias": {str(ids[0]): 30}, "frequency_penalty": 2, "max_tokens": 60})
    assert 1 <= text_of(answer).count(" dog") < 60


def test_logprobs_of_chats(chat_client: Client) -> None:
    body = {"model": "chatml", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "seed": 2,
            "logprobs": True, "top_logprobs": 3}  # fmt: skip
    answer = chat_client.ok(CHAT, body)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    for token in content:
        assert len(token["top_logprobs"]) == 3 and token["logprob"] < 0
        logprobs = [each["logprob"] for each in token["top_logprobs"]]
        assert logprobs == sorted(logprobs, reverse=True)
    raw = bytes(byte for token in content for byte in token["bytes"])
    assert raw.decode("utf-8", "replace").startswith(answer["choices"][0]["message"]["content"])
    streamed = [token for chunk in chat_client.events(CHAT, body) for choice in chunk["choices"]
                for token in (choice["logprobs"] or {"content": []})["content"]]  # fmt: skip
    assert streamed == content


def test_echo_scores_the_prompt(client: Client, stories: Model) -> None:
    ids = encode_prompt(stories, PROMPT)
    answer = client.ok(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 1})
    choice = answer["choices"][0]
    assert choice["text"] == PROMPT and answer["usage"]["completion_tokens"] == 0
    expected = -stories.score(ids)
    found = choice["logprobs"]["token_logprobs"]
    assert found[0] is None and found[1:] == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["text_offset"]) == len(ids)
    starts = [len(stories.decode(ids[:i])) for i in range(1, len(ids))]
    assert choice["logprobs"]["text_offset"] == [0, *starts]


def test_characters_stay_whole(chat_client: Client) -> None:
    """A model of random weights on bytes generates every kind of broken text."""
    for seed in range(20):
        body = {"model": "chatml", "messages": [{"role": "user", "content": "日本"}], "max_tokens": 40, "seed": seed}
        whole = chat_client.ok(CHAT, body)["choices"][0]["message"]["content"]
        chunks = chat_client.events(CHAT, body)
        deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        assert "".join(deltas) == whole


def test_unknown_fields_are_ignored(client: Client) -> None:
    client.ok(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 1, "user": "x", "service_tier": "auto", "new": {"a": 1}})


def test_models_tokens_health_metrics(client: Client, stories: Model) -> None:
    models = client.ok("/v1/models")
    assert models["object"] == "list" and [each["id"] for each in models["data"]] == ["stories"]
    assert client.ok("/v1/models/stories") == models["data"][0]
    tokens = client.ok("/tokenize", {"content": "One day."})["tokens"]
    assert tokens == stories.encode("One day.")
    assert client.ok("/detokenize", {"tokens": tokens})["content"] == "One day."
    assert client.ok("/health") == {"status": "ok"}
    metrics = client.ok("/metrics")
    assert "llamita_generation_tokens_total" in metrics and 'route="/v1/completions",status="200"' in metrics


def random_body(chosen: random.Random) -> dict[str, Any]:
    starts = (PROMPT, "Once upon a time there was a little dog who", "One day", "The cat and the bird went to the park")
    prompt = chosen.choice(starts) + chosen.choice(("", " and", " in the", " big tree. Then"))
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": chosen.randrange(1, 60), "seed": chosen.randrange(1000)}
    body["temperature"] = chosen.choice((0, 0.8, 0.8))
    if chosen.random() < 0.2:
        body |= {"n": 2, "stop": [".", "!"]}
    if chosen.random() < 0.2:
        body |= {"presence_penalty": 0.7, "logprobs": 2}
    return body


def test_same_answers_at_any_load(client: Client) -> None:
    chosen = random.Random(1)
    bodies = [random_body(chosen) for _ in range(150)]
    alone = [client.ok(COMPLETIONS, body)["choices"] for body in bodies]

    def later(number: int) -> Any:
        time.sleep(chosen.random() * 0.02)
        return client.ok(COMPLETIONS, bodies[number])["choices"]

    order = list(range(len(bodies)))
    chosen.shuffle(order)
    shared = client.stats.num_shared_tokens
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = dict(zip(order, pool.map(later, order), strict=True))
    assert [together[number] for number in range(len(bodies))] == alone
    assert client.stats.num_shared_tokens > shared


def test_cancelled_requests_compute_nothing_more(client: Client) -> None:
    client.wait_until(lambda: client.stats.num_running == 0)
    for stream in (True, False):
        for _ in range(5):
            before = client.stats.num_new_tokens
            connection = http.client.HTTPConnection("127.0.0.1", client.port)
            body = {"prompt": ["Once"] * 8, "n": 8, "max_tokens": 240, "stream": stream}
            connection.request("POST", COMPLETIONS, json.dumps(body))
            client.wait_until(lambda: client.stats.num_running > 0)
            connection.sock.close()
            connection.close()
            client.wait_until(lambda: client.stats.num_running + client.stats.num_waiting == 0)
            assert client.stats.num_new_tokens - before < 64 * 240 / 2
    steps = client.stats.num_steps
    time.sleep(0.05)
    assert client.stats.num_steps == steps


def test_scheduler_binding(stories: Model) -> None:
    """Requests of different lengths through Python's binding, one cancelled."""
    ids = encode_prompt(stories, PROMPT)
    request = Request(ids, 10, SamplingParams(temperature=0), top_logprobs=2)
    with Scheduler(stories, num_parallel=2) as scheduler:
        first, second = scheduler.submit(request), scheduler.submit(dataclasses.replace(request, max_new_tokens=3))
        third = scheduler.submit(request)
        assert scheduler.cancel(third) and not scheduler.cancel(third)
        events = []
        while scheduler.stats.num_running + scheduler.stats.num_waiting:
            events += scheduler.step()
    tokens = {number: [e.id for e in events if e.request == number and e.kind == "token"] for number in (first, second)}
    assert tokens[second] == tokens[first][:3] and len(tokens[first]) == 10
    assert [e.finish for e in events if e.kind == "end"] == ["length", "length"]
    assert all(e.top[0] == (e.id, pytest.approx(e.logprob)) for e in events if e.kind == "token")


def test_tokens_that_need_no_computing_are_reported(stories: Model, running_server: Any, make_chat_model: Any) -> None:
    """Of a prompt that is repeated all tokens but the last are shared."""
    with (
        Model(make_chat_model("chatml").path) as chat,
        running_server({"stories": stories, "chat": chat}) as client,
    ):
        body = {"model": "stories", "prompt": "The dog saw " * 9, "max_tokens": 3}
        for cached in (False, True):
            usage = client.ok(COMPLETIONS, body)["usage"]
            expected = usage["prompt_tokens"] - 1 if cached else 1  # BOS, which the warm-up has computed
            assert usage["prompt_tokens_details"] == {"cached_tokens": expected}
        last = client.events(COMPLETIONS, {**body, "stream_options": {"include_usage": True}})[-1]
        assert last["usage"] == usage
        two = client.ok(COMPLETIONS, {**body, "prompt": [body["prompt"], "The"], "n": 2})["usage"]
        assert usage["prompt_tokens"] - 1 <= two["prompt_tokens_details"]["cached_tokens"] < two["prompt_tokens"]
        stopped = client.ok(COMPLETIONS, {**body, "max_tokens": 90, "stop": ["."]})["usage"]  # ends without an event
        assert stopped["prompt_tokens_details"] == usage["prompt_tokens_details"]

        said = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}
        num = client.ok(CHAT, said)["usage"]["prompt_tokens"]
        assert client.ok(CHAT, said)["usage"]["prompt_tokens_details"] == {"cached_tokens": num - 1}
        answer = client.ok("/v1/responses", {"model": "chat", "input": "Hi", "max_output_tokens": 3})
        assert answer["usage"]["input_tokens_details"] == {"cached_tokens": num - 1}
        expected = {"input_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": num - 1,
                    "output_tokens": 3}  # fmt: skip
        assert client.ok("/v1/messages", said)["usage"] == expected
        text = client.send("/v1/messages", {**said, "stream": True})[2]
        [end] = [json.loads(line[6:]) for line in text.splitlines() if line.startswith('data: {"type":"message_delta"')]
        assert end["usage"] == expected
