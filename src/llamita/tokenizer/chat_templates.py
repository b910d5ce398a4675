"""Jinja chat templates of common model families, by name.

The variables are transformers': messages (role, content), bos_token, eos_token,
add_generation_prompt, and the function raise_exception. The templates are our own, written from
descriptions of the formats; tests compare their output with the published ones. The engine
recognizes them by their text: engine/src/tokenizer/chat_template.c.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from llamita.atomic import atomic_write_bytes
from llamita.errors import ConfigError, TokenizerError
from llamita.json_file import read_json_object

NO_TEMPLATE: Final = "none"

# Llama 2 and Code Llama: the system prompt is part of the first user turn; user and assistant
# alternate.
_LLAMA2 = """\
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}
  {%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
  {%- if turn['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
    {{- raise_exception('roles must alternate: user, assistant, user, assistant, …') -}}
  {%- elif turn['role'] == 'user' -%}
    {{- bos_token + '[INST] ' + ((system if loop.first else '') + turn['content']).strip() + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + turn['content'].strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
  {{- message['content'].strip() + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

_CHATML = """\
{%- for message in messages -%}
  {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_ZEPHYR = """\
{%- for message in messages -%}
  {{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>\\n' -}}
{%- endif -%}
"""

CHAT_TEMPLATES: Final[dict[str, str]] = {"llama2": _LLAMA2, "llama3": _LLAMA3, "chatml": _CHATML, "zephyr": _ZEPHYR}

# Tokens that the vocabulary must have, because they would be plain text otherwise.
_REQUIRED_TOKENS: Final = {"llama3": "<|start_header_id|>", "chatml": "<|im_start|>"}


def check_template_name(name: str | None) -> None:
    """Raise ConfigError unless it is None, a name of CHAT_TEMPLATES or "none"."""
    if name is not None and name != NO_TEMPLATE and name not in CHAT_TEMPLATES:
        known = ", ".join([*CHAT_TEMPLATES, NO_TEMPLATE])
        raise ConfigError(f"chat template: expected one of {known}, found {name!r}")


def check_template_fits(name: str, pieces: list[str], where: str) -> None:
    """Raise TokenizerError if the vocabulary lacks a token that the template requires."""
    token = _REQUIRED_TOKENS.get(name)
    if token is not None and token not in pieces:
        raise TokenizerError(f"cannot use chat template {name} with tokenizer {where}: it has no token {token}")


def replace_chat_template(folder: Path, name: str) -> None:
    """Set the chat template of the tokenizer in a folder; "none" removes it. Raises
    TokenizerError."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    config = read_json_object(path, TokenizerError) if path.is_file() else {}
    config.pop("chat_template", None)
    if name != NO_TEMPLATE:
        config["chat_template"] = CHAT_TEMPLATES[name]
    atomic_write_bytes(path, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
