"""Libraries and tools over the clients work with the server."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Client = Any  # conftest.Client: the tests are not a package

pytestmark = pytest.mark.compat
HI = [{"role": "user", "content": "Hi"}]


def address(client: Client) -> str:
    return f"http://127.0.0.1:{client.port}/v1"


def expected(client: Client, **more: Any) -> str:
    body = {"model": "chatml", "messages": HI, "max_tokens": 9, "temperature": 0, **more}
    return str(client.ok("/v1/chat/completions", body)["choices"][0]["message"]["content"])


def test_langchain(chat_client: Client) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    options = {"model": "chatml", "base_url": address(chat_client), "api_key": "any", "temperature": 0, "max_tokens": 9}
    model = langchain_openai.ChatOpenAI(**options)
    answer = model.invoke("Hi")
    assert answer.content == expected(chat_client)
    assert answer.usage_metadata["output_tokens"] == 9
    assert "".join(chunk.content for chunk in model.stream("Hi")) == answer.content
    [vector] = langchain_openai.OpenAIEmbeddings(
        model="chatml", base_url=address(chat_client), api_key="any", check_embedding_ctx_length=False
    ).embed_documents(["Hi"])
    assert math.isclose(sum(each * each for each in vector), 1, rel_tol=1e-3)


def test_langchain_over_responses_and_schemas(chat_client: Client) -> None:
    pytest.importorskip("llguidance")
    langchain_openai = pytest.importorskip("langchain_openai")
    from pydantic import BaseModel

    class Size(BaseModel):
        big: bool

    options = {"model": "chatml", "base_url": address(chat_client), "api_key": "any", "temperature": 0}
    for api in ({}, {"use_responses_api": True}):
        model = langchain_openai.ChatOpenAI(**options, **api)
        size = model.with_structured_output(Size, method="json_schema").invoke("Hi")
        assert isinstance(size.big, bool)
    model = langchain_openai.ChatOpenAI(**options, use_responses_api=True, max_tokens=9)
    assert model.invoke("Hi").text == expected(chat_client)
    assert "".join(chunk.text for chunk in model.stream("Hi")) == expected(chat_client)


def test_litellm(chat_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the network
    litellm = pytest.importorskip("litellm")
    options = {"messages": HI, "max_tokens": 9, "temperature": 0, "api_key": "any"}
    openai_like = {**options, "model": "openai/chatml", "api_base": address(chat_client)}
    answer = litellm.completion(**openai_like)
    assert answer.choices[0].message.content == expected(chat_client) and answer.usage.completion_tokens == 9
    chunks = list(litellm.completion(**openai_like, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected(chat_client)
    response = litellm.responses(
        model="openai/chatml", input="Hi", max_output_tokens=20, temperature=0, api_key="any",
        api_base=address(chat_client),
    )  # fmt: skip
    assert response.output[0].content[0].text == expected(chat_client, max_tokens=20)  # it sends no limit below 16
    root = address(chat_client).removesuffix("/v1")
    for model in ("anthropic/chatml", "ollama_chat/chatml"):
        answer = litellm.completion(**options, model=model, api_base=root)
        assert answer.choices[0].message.content == expected(chat_client), model


def test_llm(chat_client: Client, tmp_path: Path) -> None:
    """Simon Willison's program, by its file of further models."""
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: mine\n  model_name: chatml\n  api_base: {address(chat_client)}\n", encoding="utf-8"
    )
    for more in ([], ["--no-stream"]):
        done = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "mine", "--key", "any", "-o", "temperature", "0", "-o", "max_tokens",
             "9", *more, "Hi"],
            env=os.environ | {"LLM_USER_PATH": str(tmp_path)}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == expected(chat_client).strip()
