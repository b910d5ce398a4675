"""POST /choose gives the probabilities that the engine gives alone, and refuses wrong requests."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from llamita.chat import ChatEncoder
from llamita.engine import Message, Model

Client = Any  # conftest.Client: the tests are not a package
CHOOSE = "/choose"
PROMPT = "Once upon a"
CHOICES = [" time", " day", " time there", " 小诗"]


def shares(answer: Any) -> dict[str, float]:
    return {each["text"]: each["probability"] for each in answer["choices"]}


def test_the_probabilities_are_those_of_the_engine(client: Client, stories: Model) -> None:
    answer = client.ok(CHOOSE, {"model": "stories", "prompt": PROMPT, "choices": CHOICES})
    expected = stories.choose(PROMPT, CHOICES)
    assert answer["model"] == "stories" and list(shares(answer)) == CHOICES
    assert shares(answer) == pytest.approx(expected, rel=1e-5) and sum(expected.values()) == pytest.approx(1)
    assert max(expected, key=expected.__getitem__) == " time"
    assert client.ok(CHOOSE, {"prompt": PROMPT, "choices": [" time"]})["choices"][0]["probability"] == 1


def test_a_conversation_comes_before_the_choices(chat_client: Client) -> None:
    messages = [{"role": "user", "content": "Is it big?"}]
    found = shares(chat_client.ok(CHOOSE, {"model": "chatml", "messages": messages, "choices": ["Yes.", "No."]}))
    model = chat_client.server.models["chatml"].model
    ids = ChatEncoder(model).encode([Message("user", b"Is it big?")])
    scores = []
    for choice in ("Yes.", "No."):
        with model.session() as session:
            session.feed(ids[:-1])
            scores.append(-float(session.score([ids[-1], *model.encode(choice)]).sum()))
    weights = np.exp(np.array(scores) - max(scores))
    assert list(found.values()) == pytest.approx((weights / weights.sum()).tolist(), rel=1e-4)


def test_the_same_bits_at_any_load(client: Client) -> None:
    body = {"prompt": PROMPT, "choices": CHOICES}
    alone, under_load = client.ok(CHOOSE, body), []
    busy = {"prompt": "One day", "max_tokens": 200, "n": 6, "seed": 1}
    threads = [threading.Thread(target=client.ok, args=("/v1/completions", busy))]
    threads += [threading.Thread(target=lambda: under_load.append(client.ok(CHOOSE, body))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert under_load == [alone] * 8


def test_a_prompt_that_is_too_long_is_encoded_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, lengths = Model.encode, []

    def counted(self: Model, text: bytes, **options: Any) -> list[int]:
        lengths.append(len(text))
        return encode(self, text, **options)

    monkeypatch.setattr(Model, "encode", counted)
    error = client.refused(CHOOSE, {"prompt": "word " * 20_000, "choices": [str(i) for i in range(60)]})
    assert error["code"] == "context_length_exceeded" and lengths == [100_001]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"choices": None}, "choices"), ({"choices": []}, "choices"), ({"choices": "x"}, "choices"),
        ({"choices": [""]}, "choices"), ({"choices": ["a", "a"]}, "choices"), ({"choices": [1]}, "choices"),
        ({"choices": [f"c{i}" for i in range(500)]}, "n"), ({"prompt": None}, "prompt"), ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"prompt": None, "messages": []}, "messages"), ({"prompt": "word " * 2000}, "prompt"),
    ],
)  # fmt: skip
def test_wrong_requests(chat_client: Client, more: dict[str, Any], param: str) -> None:
    before = chat_client.stats
    error = chat_client.refused(CHOOSE, {"prompt": PROMPT, "choices": CHOICES, **more})
    assert (error["status"], error["param"]) == (400, param)
    assert chat_client.stats == before
