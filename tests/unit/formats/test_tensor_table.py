"""The table of tensors: complete, correct in three naming schemes, and strict."""

from __future__ import annotations

import dataclasses
import math

import pytest

from llamita.config import ModelConfig
from llamita.errors import FormatError
from llamita.formats.tensor_table import MAX_LAYERS, check_tensors, tensor_table

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=16,
)  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_counts_add_up(tied: bool) -> None:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    table = tensor_table(config)
    assert sum(math.prod(spec.shape) for spec in table) == config.num_parameters
    for naming in ("huggingface", "gguf", "llama2c"):
        assert len({spec.name(naming) for spec in table}) == len(table)


def test_names_and_shapes() -> None:
    by_name = {spec.huggingface: spec for spec in tensor_table(dataclasses.replace(CONFIG, tie_word_embeddings=False))}
    query = by_name["model.layers.1.self_attn.q_proj.weight"]
    assert (query.gguf, query.name("llama2c"), query.shape) == (
        "blk.1.attn_q.weight", "layers.1.attention.wq.weight", (32, 24),
    )  # fmt: skip
    assert query.rope_heads(CONFIG) == 4
    key = by_name["model.layers.0.self_attn.k_proj.weight"]
    assert key.shape == (16, 24) and key.rope_heads(CONFIG) == 2
    assert by_name["model.layers.0.self_attn.v_proj.weight"].rope_heads(CONFIG) is None
    up = by_name["model.layers.0.mlp.up_proj.weight"]
    assert (up.gguf, up.name("llama2c")) == ("blk.0.ffn_up.weight", "layers.0.feed_forward.w3.weight")
    assert by_name["model.layers.0.mlp.down_proj.weight"].shape == (24, 40)
    assert by_name["lm_head.weight"].gguf == "output.weight"


def test_names_are_those_of_the_network() -> None:
    torch = pytest.importorskip("torch")
    from llamita.model.llama import Llama

    for tied in (True, False):
        config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
        with torch.device("meta"):
            model = Llama(config)
        ours = {spec.huggingface: spec.shape for spec in tensor_table(config)}
        assert ours == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def found(naming: str = "gguf") -> list[tuple[str, tuple[int, ...]]]:
    return [(spec.name(naming), spec.shape) for spec in tensor_table(CONFIG)]  # type: ignore[arg-type]


@pytest.mark.parametrize("naming", ["huggingface", "gguf", "llama2c"])
def test_complete_tables_are_accepted(naming: str) -> None:
    check_tensors(found(naming), CONFIG, naming, "file")  # type: ignore[arg-type]
    check_tensors(dict(found(naming)), CONFIG, naming, "file")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[1:], "token_embd.weight is missing"),
        (lambda rows: rows[2:], "token_embd.weight is missing and 1 more"),
        (lambda rows: [*rows, rows[0]], "token_embd.weight occurs twice"),
        (lambda rows: [*rows, ("blk.0.attn_q.bias", (32,))], "unknown tensor blk.0.attn_q.bias"),
        (lambda rows: [*rows, ("output.weight", (50, 24))], "unknown tensor output.weight"),
        (lambda rows: [(rows[0][0], (24, 50)), *rows[1:]], r"expected shape \[50, 24\], found \[24, 50\]"),
    ],
)
def test_errors_name_the_tensor(change, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        check_tensors(change(found()), CONFIG, "gguf", "model.gguf")


def test_absurd_layer_counts_are_refused_at_once() -> None:
    with pytest.raises(FormatError, match=f"at most {MAX_LAYERS}"):
        tensor_table(dataclasses.replace(CONFIG, num_hidden_layers=2**31 - 1))
