"""Exports an adapter as GGUF, for `llamita run --adapter` and llama.cpp's --lora.

Metadata: general.type = "adapter", general.base_model.0.name (the model file's general.name),
adapter.type = "lora", adapter.lora.alpha. Each layer has two F32 tensors, NAME.lora_a [R, in] and
NAME.lora_b [out, R], where NAME is the tensor in the model file; the runtime adds alpha / R · B A.
The rows of B for q and k are in GGUF's RoPE order, as in the model file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llamita.checkpoint import has_tokenizer, load_config, resolve_checkpoint
from llamita.convert.export import model_name
from llamita.finetune.adapter import load_adapter, other_base, resolve_adapter
from llamita.finetune.lora import lora_specs
from llamita.formats.gguf import Value, write_gguf
from llamita.formats.rope_order import permute_qk
from llamita.formats.tensor_types import Bytes, Floats, quantize
from llamita.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class AdapterExportReport:
    """What was written. alpha: adapter.lora.alpha; layers with another scale have it multiplied
    into B. chat_template: whether the checkpoint has one; None if it has no tokenizer either.
    other_base: the checkpoint that the adapter was made for, if it is another one."""

    path: Path
    num_bytes: int
    num_layers: int
    num_parameters: int
    alpha: float
    chat_template: bool | None
    other_base: str | None = None


def export_adapter(adapter: Path, checkpoint: Path, out: Path) -> AdapterExportReport:
    """Write an adapter for this checkpoint as the .gguf `out`, whole or not at all.

    Raises CheckpointError, TokenizerError, FormatError (non-finite numbers), OutputError.
    """
    config, base, directory = load_config(checkpoint), resolve_checkpoint(checkpoint), resolve_adapter(adapter)
    loaded, made_for = load_adapter(directory, config), other_base(directory, base)
    loaded.check_only_layers("write as a GGUF adapter")
    updates = loaded.updates
    first = next(iter(updates.values()))
    alpha = float(np.float32(first.scale * first.rank))
    specs = {module: spec for module, spec in lora_specs(config) if module in updates}
    infos: list[tuple[str, str, tuple[int, ...]]] = []
    for module, spec in specs.items():
        infos.append((f"{spec.gguf}.lora_a", "F32", tuple(updates[module].a.shape)))
        infos.append((f"{spec.gguf}.lora_b", "F32", tuple(updates[module].b.shape)))

    def encoded() -> Iterator[Bytes]:
        for module, spec in specs.items():
            update = updates[module]
            a: Floats = update.a.numpy()
            b: Floats = update.b.numpy() * np.float32(update.scale * update.rank / alpha)
            heads = spec.rope_heads(config)
            yield quantize(a, "F32", f"tensor {module}.lora_A")
            yield quantize(b if heads is None else permute_qk(b, heads), "F32", f"tensor {module}.lora_B")

    metadata: dict[str, Value] = {
        "general.architecture": config.architecture,
        "general.type": "adapter",
        "general.name": model_name(Path(adapter)),
        "general.base_model.count": 1,
        # equal to general.name in the model file of the checkpoint that the adapter was made for
        "general.base_model.0.name": model_name(Path(made_for or checkpoint)),
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }
    num_bytes = write_gguf(Path(out), metadata, infos, encoded())
    has_template = load_tokenizer(base).chat_template is not None if has_tokenizer(base) else None
    return AdapterExportReport(Path(out), num_bytes, len(specs), loaded.num_parameters, alpha, has_template, made_for)
