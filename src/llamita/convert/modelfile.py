"""Writes an Ollama Modelfile beside a .gguf: template, system prompt, sampling defaults, license."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from llamita.atomic import atomic_write_bytes
from llamita.chat_template import ChatTemplate
from llamita.errors import ChatError, ConfigError
from llamita.model_card import ModelCard
from llamita.tokenizer import Tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES

# Ollama's templates are Go's; .Messages begin with the system prompt.
_TEMPLATES: Final = {
    "chatml": "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n",
    "llama3": "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n"
    "{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n",
    "zephyr": "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}</s>\n{{ end }}<|assistant|>\n",
    "llama2": "[INST] {{ if .System }}<<SYS>>\n{{ .System }}\n<</SYS>>\n\n{{ end }}{{ .Prompt }} [/INST] "
    "{{ .Response }}</s>",
}
_STOPS: Final = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "zephyr": "</s>", "llama2": "</s>"}
_MARKS: Final = {"chatml": "<|im_start|>", "llama3": "<|start_header_id|>"}  # no other family has them
_TALK: Final = [
    {"role": "user", "content": "Hello, who are you?"},
    {"role": "assistant", "content": "A llama."},
    {"role": "user", "content": "Where?"},
]
_CONVERSATIONS: Final = (_TALK[:1], _TALK, [{"role": "system", "content": "Be brief."}, *_TALK])
_PARAMETERS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


def write_modelfile(model: Path, card: ModelCard, tokenizer: Tokenizer) -> tuple[Path, tuple[str, ...]]:
    """Write MODEL.Modelfile; returns its path, and notes for the user. Raises OutputError."""
    path = model.with_suffix(".Modelfile")
    lines, notes = [f"FROM ./{model.name}"], tuple[str, ...]()
    family = _family(tokenizer)
    if family is not None:
        lines += [f"TEMPLATE {_quoted(_TEMPLATES[family])}", f'PARAMETER stop "{_STOPS[family]}"']
    elif tokenizer.chat_template is not None:
        notes = (
            f"{path.name} has no TEMPLATE: the chat template renders as none of a known family; Ollama reads the "
            "model's own",
        )
    if card.system:
        lines.append(f"SYSTEM {_quoted(card.system)}")
    lines += [f"PARAMETER {_PARAMETERS[name]} {value:g}" for name, value in card.sampling().items()]
    if card.license:
        lines.append(f"LICENSE {_quoted(card.license)}")
    atomic_write_bytes(path, ("\n".join(lines) + "\n").encode("utf-8"))
    return path, notes


def _family(tokenizer: Tokenizer) -> str | None:
    """The family of a chat template: it is one of our own, or has a mark of one family alone and
    renders conversations as ours does. Others have a system prompt of their own, say, which
    TEMPLATE would replace."""
    template = tokenizer.chat_template
    if template is None:
        return None
    known = [name for name, text in CHAT_TEMPLATES.items() if text == template]
    if known:
        return known[0]
    marked = [name for name, mark in _MARKS.items() if mark in template]
    if len(marked) != 1 or _rendered(tokenizer, template) != _rendered(tokenizer, CHAT_TEMPLATES[marked[0]]):
        return None
    return marked[0]


def _rendered(tokenizer: Tokenizer, template: str) -> list[str | None]:
    """Some prompts, without the beginning-of-text token, which Ollama adds; None: refused."""
    pieces = tokenizer.pieces()
    bos, eos = ("" if i is None else pieces[i] for i in (tokenizer.bos_id, tokenizer.eos_id))
    prompts = list[str | None]()
    with ChatTemplate(template, bos_token=bos, eos_token=eos) as chat:
        for messages in _CONVERSATIONS:
            try:
                prompts.append(chat.render(messages).removeprefix(bos))
            except ChatError:
                prompts.append(None)
    return prompts


def _quoted(text: str) -> str:
    """A text of several lines. Raises ConfigError."""
    if '"""' in text:
        raise ConfigError("cannot write a Modelfile: expected a text without three quotes in a row; remove them")
    return f'"""{text}"""'
