"""The type that each tensor gets, by its role and its rows, and the notes about it."""

from __future__ import annotations

import pytest

from llamita.convert.quant_mix import QUANT_MIXES, assign_types, quant_mix, quant_mix_notes
from llamita.errors import ConfigError
from llamita.formats.gguf import FILE_TYPES
from llamita.formats.tensor_types import WRITTEN_TYPES

LAYER = {
    "attn_norm": (1,), "attn_q": (1, 1), "attn_k": (1, 1), "attn_v": (1, 1), "attn_output": (1, 1), "ffn_norm": (1,),
    "ffn_gate": (1, 1), "ffn_up": (1, 1), "ffn_down": (1, 3),
}  # fmt: skip


def shapes(hidden: int, num_layers: int = 8, tied: bool = True) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (300, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        found["output.weight"] = (300, hidden)
    for layer in range(num_layers):
        found |= {f"blk.{layer}.{name}.weight": tuple(n * hidden for n in shape) for name, shape in LAYER.items()}
    return found


def test_every_type_can_be_written_and_has_a_number() -> None:
    assert {wanted.main for wanted in QUANT_MIXES.values()} == set(WRITTEN_TYPES)
    assert all(wanted.file_type in FILE_TYPES for wanted in QUANT_MIXES.values())


OUTPUTS = pytest.mark.parametrize(("tied", "output"), [(True, "token_embd.weight"), (False, "output.weight")])


@OUTPUTS
@pytest.mark.parametrize("name", [name for name in QUANT_MIXES if name != "q4_k_m"])
def test_a_plain_type_applies_to_every_matrix_except_the_output(name: str, tied: bool, output: str) -> None:
    model = shapes(256, tied=tied)
    types = assign_types(model, quant_mix(name, "export"))
    for tensor, shape in model.items():
        plain = "F32" if len(shape) == 1 else name.upper()
        few_bits = tensor == output and name in ("q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k")
        assert types[tensor] == ("Q6_K" if few_bits else plain)
    assert quant_mix_notes(model, quant_mix(name, "export")) == ()


@OUTPUTS
def test_the_mixture_spends_bits_where_errors_cost(tied: bool, output: str) -> None:
    types = assign_types(shapes(256, num_layers=16, tied=tied), quant_mix("q4_k_m", "export"))
    more = {name for name, type in types.items() if type == "Q6_K"}
    layers = (0, 1, 4, 7, 10, 13, 14, 15)  # two at each end, every third between
    assert more == {output} | {f"blk.{i}.{part}.weight" for i in layers for part in ("attn_v", "ffn_down")}
    assert {type for name, type in types.items() if name not in more} == {"Q4_K", "F32"}


def test_rows_that_are_not_whole_blocks_of_256() -> None:
    for name, expected in (("q4_k", "Q5_0"), ("q5_k", "Q5_1"), ("q6_k", "Q8_0")):
        wanted = quant_mix(name, "export")
        types = assign_types(shapes(576), wanted)
        assert types["token_embd.weight"] == "Q8_0"
        assert {t for n, t in types.items() if n.startswith("blk.") and "norm" not in n} == {expected}
    assert assign_types(shapes(576), quant_mix("q4_0", "export"))["token_embd.weight"] == "Q8_0"
    mixed = assign_types(shapes(576), quant_mix("q4_k_m", "export"))
    assert mixed["token_embd.weight"] == "Q8_0" and mixed["blk.0.attn_q.weight"] == "Q5_0"


def test_a_note_names_the_type_that_did_not_fit() -> None:
    output = (
        "stored as Q8_0 instead of Q6_K: 1 tensors (token_embd), whose rows of 576 weights are not whole blocks of 256"
    )
    others = (
        "stored as Q5_1 instead of Q5_K: 56 tensors (attn_k, attn_output, attn_q, attn_v, ffn_down, ffn_gate,"
        " ffn_up), whose rows of 576, 1728 weights are not whole blocks of 256"
    )
    assert quant_mix_notes(shapes(576), quant_mix("q4_0", "export")) == (output,)
    assert quant_mix_notes(shapes(576), quant_mix("q5_k", "export")) == (output, others)


def test_tensors_of_other_names() -> None:
    """Files of others may have any."""
    found = {"extra": (4, 40), "blk.x.attn_v.weight": (4, 256), "blk.0.attn_v.weight": (4, 256)}
    types = assign_types(found, quant_mix("q4_k_m", "export"))
    assert types["blk.x.attn_v.weight"] == "Q4_K" and types["extra"] == "F16"
    assert "(extra)" in quant_mix_notes(found, quant_mix("q4_k_m", "export"))[0]


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_k", "q6_k", "q4_k_m"])
def test_rows_that_are_not_whole_blocks_of_32(name: str) -> None:
    wanted = quant_mix(name, "export")
    types = assign_types(shapes(172), wanted)
    assert {type for tensor, type in types.items() if "norm" not in tensor} == {"F16"}
    notes = quant_mix_notes(shapes(172), wanted)
    assert all("stored as F16 instead of Q" in r and "whose rows of 172" in r for r in notes) and notes


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot quantize: type: expected one of f32, .*found 'q4km'; perhaps you"):
        quant_mix("q4km", "quantize")
