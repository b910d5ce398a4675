"""Chooses the type of each tensor in a GGUF file from the type that the user asked for.

Vectors (norms, RoPE factors) are F32, as runtimes require. A matrix whose rows are not whole blocks
of its type gets, as in llama.cpp, the next larger type with blocks of 32, or F16 if its rows are
not whole blocks of 32 either.

As in llama.cpp, the output matrix (the embedding, if tied) gets Q6_K if the others have fewer bits:
it decides every token. SmolLM2-135M in Q4_0 has 11 % more bits per byte than in F32 with an output
matrix of four bits, and 7 % with this rule.

`q4_k_m` is llama.cpp's mixture: Q4_K, with Q6_K where errors cost most: the output matrix, and
attn_v and ffn_down in the first eighth of the layers, the last eighth and every third between.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from llamita.errors import ConfigError
from llamita.formats.tensor_types import BLOCK, SUPER, TYPES, WRITTEN_TYPES, TypeName

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class QuantMix:
    """name: of the --type flag. main: type of most matrices. file_type: its name in
    gguf.FILE_TYPES. mixed: sensitive matrices get a larger type than main."""

    name: str
    main: TypeName
    file_type: str
    mixed: bool = False


QUANT_MIXES: dict[str, QuantMix] = {
    mix.name: mix
    for mix in (
        *(QuantMix(name.lower(), name, name) for name in WRITTEN_TYPES),
        QuantMix("q4_k_m", "Q4_K", "Q4_K_M", mixed=True),
    )
}

# Replacements for rows that are not whole blocks of 256, as in llama.cpp.
_BLOCK_32_TYPES: dict[TypeName, TypeName] = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def quant_mix(name: str, command: str) -> QuantMix:
    """The mix of this name, in small or capital letters (llama.cpp writes Q4_K_M).

    Raises ConfigError("cannot `command`: …") if there is none.
    """
    if name.lower() not in QUANT_MIXES:
        nearest = difflib.get_close_matches(name.lower(), QUANT_MIXES, n=1, cutoff=0.3)
        hint = f"; perhaps you meant {nearest[0]}" if nearest else ""
        raise ConfigError(f"cannot {command}: type: expected one of {', '.join(QUANT_MIXES)}, found {name!r}{hint}")
    return QUANT_MIXES[name.lower()]


def assign_types(shapes: Mapping[str, Shape], mix: QuantMix) -> dict[str, TypeName]:
    """The type of each tensor. shapes: by GGUF name, [rows, row length] or [length]."""
    return {name: _that_fits(_planned(name, shapes, mix), shape) for name, shape in shapes.items()}


def quant_mix_notes(shapes: Mapping[str, Shape], mix: QuantMix) -> tuple[str, ...]:
    """A sentence for each group of tensors that do not get their planned type."""
    groups: dict[tuple[TypeName, TypeName], list[str]] = {}
    for name, type in assign_types(shapes, mix).items():
        planned = _planned(name, shapes, mix)
        if type != planned:
            groups.setdefault((type, planned), []).append(name)
    notes = []
    for (type, planned), names in groups.items():
        kinds = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in names})
        lengths = sorted({shapes[name][-1] for name in names})
        notes.append(
            f"stored as {type} instead of {planned}: {len(names)} tensors ({', '.join(kinds)}), whose rows of "
            f"{', '.join(map(str, lengths))} weights are not whole blocks of {BLOCK if type == 'F16' else SUPER}"
        )
    return tuple(notes)


def _planned(name: str, shapes: Mapping[str, Shape], mix: QuantMix) -> TypeName:
    """The type for the tensor's role."""
    if len(shapes[name]) == 1:
        return "F32"
    output = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    if name == output:
        return "Q6_K" if TYPES[mix.main].bits < TYPES["Q6_K"].bits else mix.main
    parts = name.split(".")
    sensitive = (
        mix.mixed
        and len(parts) == 4
        and parts[1].isdecimal()
        and parts[2] in ("attn_v", "ffn_down")
        and _gets_more_bits(int(parts[1]), sum(other.endswith(f".{parts[2]}.weight") for other in shapes))
    )
    return "Q6_K" if sensitive else mix.main


def _gets_more_bits(layer: int, num_layers: int) -> bool:
    return layer < num_layers // 8 or layer >= 7 * num_layers // 8 or (layer - num_layers // 8) % 3 == 2


def _that_fits(planned: TypeName, shape: Shape) -> TypeName:
    if TYPES[planned].fits(shape[-1]):
        return planned
    fallback = _BLOCK_32_TYPES.get(planned, planned)
    return fallback if TYPES[fallback].fits(shape[-1]) else "F16"
