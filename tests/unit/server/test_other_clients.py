"""Libraries and tools over the openai client, and lm-evaluation-harness, work with the server."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamita.convert.export import export
from llamita.engine import Model
from llamita.stories.generate import generate_stories

Client = Any  # conftest.Client: the tests are not a package

pytestmark = pytest.mark.compat
HI = [{"role": "user", "content": "Hi"}]
ROOT = Path(__file__).resolve().parents[3]


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


def test_lm_evaluation_harness(
    make_checkpoint: Callable[..., Path], tmp_path: Path, running_server: Any, engine_build: Path
) -> None:
    """Its local-completions on the server gives the results of its hf on the checkpoint."""
    pytest.importorskip("lm_eval")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", max_position_embeddings=1024)
    export(checkpoint, tmp_path / "model.gguf", "f32")
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(generate_stories(6)), encoding="utf-8")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}

    def run(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, *words], env=os.environ | offline, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr

    tasks = tmp_path / "tasks"
    run(str(ROOT / "benchmarks" / "lm_eval_tasks.py"), str(tmp_path / "stories.txt"), "--model", str(checkpoint),
        "--out", str(tasks))  # fmt: skip
    results = []
    with Model(tmp_path / "model.gguf") as model, running_server({"mine": model}) as client:
        for name, arguments in (
            ("hf", f"pretrained={checkpoint},add_bos_token=False"),
            ("local-completions", f"model=mine,base_url={address(client)}/completions,tokenizer={checkpoint},"
             "tokenizer_backend=huggingface,max_length=1024,add_bos_token=False"),
        ):  # fmt: skip
            run("-m", "lm_eval", "--model", name, "--model_args", arguments, "--include_path", str(tasks), "--tasks",
                "val_bits,endings", "--device", "cpu", "--output_path", str(tmp_path / name))  # fmt: skip
            (path,) = (tmp_path / name).rglob("results*.json")
            results.append(json.loads(path.read_text(encoding="utf-8"))["results"])
    hf, served = results
    assert math.isclose(hf["val_bits"]["bits_per_byte,none"], served["val_bits"]["bits_per_byte,none"], rel_tol=1e-5)
    assert hf["endings"]["acc,none"] == served["endings"]["acc,none"]
