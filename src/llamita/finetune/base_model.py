"""The checkpoint that fine-tuning starts from: weights, tokenizer and chat template."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from llamita.checkpoint import copy_tokenizer, load_config, open_tensors, resolve_checkpoint
from llamita.errors import ChatError, CheckpointError, ConfigError, FormatError, SourceError, TokenizerError
from llamita.finetune.linear_4bit import Linear4bit
from llamita.finetune.lora import lora_specs, replace_layer
from llamita.finetune.rendering import default_template
from llamita.formats import tensor_table
from llamita.formats.safetensors_io import checked
from llamita.model.llama import Llama
from llamita.model_card import load_card
from llamita.tokenizer import load_tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES, check_template_fits

CHATML_TOKENS: Final = ("<|im_start|>", "<|im_end|>")
_VOCABULARY_TENSORS: Final = ("model.embed_tokens.weight", "lm_head.weight")


class BaseModel:
    """A checkpoint, with the chat template, control tokens and end tokens of the result."""

    def __init__(self, checkpoint: Path) -> None:
        """Raises CheckpointError, and TokenizerError if the tokenizer does not fit the model."""
        self.directory = resolve_checkpoint(checkpoint).resolve()
        self.loaded_config = load_config(self.directory)
        self.config = self.loaded_config  # of the result: some fields change
        self.stored = open_tensors(self.directory)
        try:
            tensor_table.check_tensors(self.stored.shapes, self.config, "huggingface", str(self.directory))
        except FormatError as error:
            raise CheckpointError(str(error)) from error
        self.tokenizer = load_tokenizer(self.directory)
        self.card = load_card(self.directory)
        self.num_learned_rows = self.tokenizer.vocab_size  # new tokens' rows come after
        if self.tokenizer.vocab_size > self.config.vocab_size:
            raise TokenizerError(
                f"the tokenizer of {checkpoint} does not fit the model: expected at most {self.config.vocab_size:,} "
                f"tokens, found {self.tokenizer.vocab_size:,}; use the checkpoint's own"
            )
        self.own_template = self.tokenizer.chat_template
        self._changed = False

    @property
    def bos_or_eos_id(self) -> int:
        """The token before a document's first one. Raises TokenizerError."""
        bos_id = self.tokenizer.bos_id
        return self.eos_id if bos_id is None else bos_id

    @property
    def eos_id(self) -> int:
        """Raises TokenizerError if there is none."""
        if self.tokenizer.eos_id is None:
            raise TokenizerError(
                f"cannot fine-tune {self.directory} on texts: its tokenizer has no end-of-text token; set eos_token "
                "in tokenizer_config.json"
            )
        return self.tokenizer.eos_id

    def context(self, wanted: int | None, longest: int) -> int:
        """Tokens of a row: as wanted, else at most `longest`. Raises ConfigError if the model's
        context is shorter."""
        limit = self.config.max_position_embeddings
        if wanted is not None and wanted > limit:
            raise ConfigError(
                f"finetune: --context: expected at most {limit:,}, the context of {self.directory}, found {wanted:,}"
            )
        return wanted or min(longest, limit)

    def use_template(self, wanted: str | None) -> str:
        """Set and return the chat template: by name or file, else the checkpoint's own, else ChatML.

        "chatml" adds ChatML's control tokens to a tokenizer without them. Raises ChatError,
        TokenizerError, SourceError.
        """
        pieces = self.tokenizer.pieces()
        if wanted is None:
            template = self.own_template or default_template(pieces)
        elif wanted == "chatml":
            template = CHAT_TEMPLATES["chatml"]
            missing = [token for token in CHATML_TOKENS if token not in pieces]
            if missing:
                self._add_tokens(missing)
        elif wanted in CHAT_TEMPLATES:
            check_template_fits(wanted, pieces, str(self.directory))
            template = CHAT_TEMPLATES[wanted]
        else:
            template = _read_template(Path(wanted))
        self._changed = self._changed or template != self.own_template
        self.tokenizer.chat_template = template
        return template

    def _add_tokens(self, tokens: list[str]) -> None:
        self.tokenizer = self.tokenizer.with_control_tokens(tokens)
        size = max(self.config.vocab_size, self.tokenizer.vocab_size)
        self.config = dataclasses.replace(self.config, vocab_size=size)
        self._changed = True

    def add_end_tokens(self, ids: set[int]) -> None:
        """Make generation stop at these tokens, which end the answers in the data."""
        ends = (*self.config.eos_token_ids, *sorted(ids - set(self.config.eos_token_ids)))
        if ends != self.config.eos_token_ids:
            self.config = dataclasses.replace(self.config, eos_token_id=ends if len(ends) > 1 else ends[0])

    def check_control_tokens(self, used: set[int], known: set[int]) -> None:
        """Raise ConfigError if LoRA needs control tokens that the checkpoint was not trained on.

        used: by the examples. known: written by the checkpoint's own chat template.
        """
        new = used - known - {self.tokenizer.bos_id, self.tokenizer.eos_id}
        if new:
            names = " and ".join(repr(self.tokenizer.pieces()[i]) for i in sorted(new))
            raise ConfigError(
                f"finetune: --lora: the chat template writes {names}, which the checkpoint was not trained on, and "
                "LoRA does not train embeddings; fine-tune without --lora first, or choose a template without control "
                "tokens: --chat-template zephyr"
            )

    def begin_texts_with_bos(self) -> None:
        """Let the result's tokenizer begin texts as the documents of the training do."""
        changed = self.tokenizer.beginning_with_bos()
        self._changed = self._changed or changed is not self.tokenizer
        self.tokenizer = changed

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files, with the chat template, into a folder."""
        if self._changed:
            self.tokenizer.save(folder)
        else:
            copy_tokenizer(self.directory, folder)

    def fingerprint(self) -> str:
        """sha256 (hex) of the checkpoint's config and of two small tensors, which any training changes."""
        last = self.config.num_hidden_layers - 1
        digest = hashlib.sha256(repr(dataclasses.astuple(self.loaded_config)).encode())
        for name in ("model.norm.weight", f"model.layers.{last}.self_attn.k_proj.weight"):
            digest.update(self._read(name).numpy().tobytes())
        return digest.hexdigest()

    # ---------------------------------------------------------------- the network

    def build(
        self, dropout: float, device: torch.device, frozen: torch.dtype = torch.float32, *, in_4bit: bool = False
    ) -> Llama:
        """A network on the device with uninitialized weights: float32, but the decoder's matrices
        in the type `frozen`, or in four bits once they are filled and computed in that type."""
        with torch.device("meta"):
            model = Llama(self.config, dropout)
        if in_4bit:
            for name, _ in lora_specs(self.config):
                replace_layer(model, name, lambda linear: Linear4bit(linear, device, frozen))
        for module in model.modules():
            dtype = frozen if isinstance(module, nn.Linear) and module is not getattr(model, "lm_head", None) else None
            for name, weight in module.named_parameters(recurse=False):
                empty = torch.empty(weight.shape, dtype=dtype or torch.float32, device=device)
                setattr(module, name, nn.Parameter(empty))
        model.fill_rope(device)
        return model

    @torch.no_grad()
    def fill(self, model: Llama) -> None:
        """Copy the checkpoint's weights, one tensor at a time. Raises CheckpointError."""
        for spec in tensor_table.tensor_table(self.config):
            name = spec.huggingface
            weight = self._read(name)
            if name in _VOCABULARY_TENSORS:
                weight = self._with_new_rows(weight)
            model.load_state_dict({name: weight}, strict=False)  # it shards them if needed

    def _read(self, name: str) -> Tensor:
        try:
            return checked(self.stored.read(name), name, f"cannot fine-tune {self.directory}", torch.float32)
        except FormatError as error:
            raise CheckpointError(str(error)) from error

    def _with_new_rows(self, weight: Tensor) -> Tensor:
        """The weight [V, D] with rows for new tokens, in unused slots first: the mean of the
        learned rows, so that no new token is likely at first (J. Hewitt, "Initializing New Word
        Embeddings", 2021)."""
        if self.num_learned_rows == self.tokenizer.vocab_size:
            return weight
        rows = torch.empty(self.config.vocab_size, weight.shape[1])
        rows[: len(weight)] = weight
        rows[self.num_learned_rows : self.tokenizer.vocab_size] = weight[: self.num_learned_rows].mean(dim=0)
        return rows


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(CHAT_TEMPLATES)
        raise ChatError(
            f"chat template {str(path)!r}: expected one of {known}, or the path of a Jinja template; no such file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read chat template {path}: {error}") from None
