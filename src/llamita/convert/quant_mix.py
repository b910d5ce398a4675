"""The type that a person wants for a GGUF file, and the names and shapes of its tensors, to the type of each tensor.

Vectors (norms, RoPE factors) are F32: runtimes demand it. A matrix whose rows are not whole blocks of its type gets, as
in llama.cpp, the type of blocks of 32 that is nearest above, or F16 where its rows are not whole blocks of 32 either.

As in llama.cpp the output matrix (the embedding, where the two are one) gets Q6_K where the others have fewer bits:
every token is chosen by it. SmolLM2-135M in Q4_0 has 11 % more bits per byte than in F32 if its output matrix has four
bits as well, and 7 % with this choice.

`q4_k_m` is llama.cpp's mixture: Q4_K, with Q6_K where errors cost most: the output matrix, and attn_v and ffn_down in
the first eighth of the layers, the last eighth and every third between.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from llamita.errors import ConfigError
from llamita.formats.tensor_types import BLOCK, SUPER, TYPES, TypeName

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class QuantMix:
    """name: as people write it. main: of most matrices. file_type: its name in gguf.FILE_TYPES. mixed: some matrices
    get more than main."""

    name: str
    main: TypeName
    file_type: str
    mixed: bool = False


QUANT_MIXES: dict[str, QuantMix] = {
    wanted.name: wanted
    for wanted in (
        *(QuantMix(name.lower(), name, name) for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")),
        *(QuantMix(name.lower(), name, name) for name in ("Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")),
        QuantMix("q4_k_m", "Q4_K", "Q4_K_M", mixed=True),
    )
}

# Those with fewer bits than Q6_K, which the output matrix gets instead.
_FEW_BITS: frozenset[TypeName] = frozenset(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K"))

# For rows that are not whole blocks of 256; llama.cpp's choice.
_NEAREST_ABOVE: dict[TypeName, TypeName] = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def quant_mix(name: str, where: str) -> QuantMix:
    """The type of this name. Raises ConfigError "cannot `where`: …" if there is none."""
    if name not in QUANT_MIXES:
        nearest = difflib.get_close_matches(name, QUANT_MIXES, n=1, cutoff=0.3)
        hint = f"; perhaps you meant {nearest[0]}" if nearest else ""
        raise ConfigError(f"cannot {where}: type: expected one of {', '.join(QUANT_MIXES)}, found {name!r}{hint}")
    return QUANT_MIXES[name]


def assign_types(shapes: Mapping[str, Shape], wanted: QuantMix) -> dict[str, TypeName]:
    """The type of each tensor. shapes: GGUF's names, and [rows, row length] or [length]."""
    return {name: _that_fits(_planned(name, shapes, wanted), shape) for name, shape in shapes.items()}


def quant_mix_notes(shapes: Mapping[str, Shape], wanted: QuantMix) -> tuple[str, ...]:
    """A sentence for each pair of types, got and planned, of tensors whose rows are not whole blocks of the planned."""
    groups: dict[tuple[TypeName, TypeName], list[str]] = {}
    for name, type in assign_types(shapes, wanted).items():
        planned = _planned(name, shapes, wanted)
        if type != planned:
            groups.setdefault((type, planned), []).append(name)
    notes = []
    for (type, planned), names in groups.items():
        kinds = sorted({name.split(".")[-2] for name in names})
        lengths = sorted({shapes[name][-1] for name in names})
        notes.append(
            f"stored as {type} instead of {planned}: {len(names)} of the tensors ({', '.join(kinds)}), whose rows of "
            f"{', '.join(map(str, lengths))} numbers are not whole blocks of {BLOCK if type == 'F16' else SUPER}"
        )
    return tuple(notes)


def _planned(name: str, shapes: Mapping[str, Shape], wanted: QuantMix) -> TypeName:
    """The type by the tensor's role."""
    if len(shapes[name]) == 1:
        return "F32"
    output = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    if name == output:
        return "Q6_K" if wanted.main in _FEW_BITS else wanted.main
    parts = name.split(".")
    sensitive = (
        wanted.mixed
        and len(parts) == 4
        and parts[2] in ("attn_v", "ffn_down")
        and _gets_more_bits(int(parts[1]), sum(other.endswith(f".{parts[2]}.weight") for other in shapes))
    )
    return "Q6_K" if sensitive else wanted.main


def _gets_more_bits(layer: int, num_layers: int) -> bool:
    return layer < num_layers // 8 or layer >= 7 * num_layers // 8 or (layer - num_layers // 8) % 3 == 2


def _that_fits(planned: TypeName, shape: Shape) -> TypeName:
    if TYPES[planned].fits(shape[-1]):
        return planned
    nearest = _NEAREST_ABOVE.get(planned, planned)
    return nearest if TYPES[nearest].fits(shape[-1]) else "F16"
