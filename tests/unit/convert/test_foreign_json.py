"""Any JSON value at any key of any JSON file of other programs: success, or one short clean line."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_config  # noqa: E402
from llamita.convert.export import export  # noqa: E402
from llamita.convert.import_model import open_source  # noqa: E402
from llamita.convert.model_source import ImportOptions  # noqa: E402
from llamita.errors import LlamitaError  # noqa: E402
from llamita.finetune.adapter import load_adapter, other_base  # noqa: E402
from llamita.tokenizer import load_tokenizer  # noqa: E402

VALUES = [
    "null", "true", "-1", "3", str(10**99), "1.5", "NaN", '""', '"\\u0000\\n\\u001b[31m"', '"' + "long " * 400 + '"',
    "[]", "[[1]]", "{}", '{"a": {"content": []}}',
]  # fmt: skip
# The parser refuses these wherever they are.
REFUSED = ["9" * 5000, '"\\ud800"', '["\\ud800"]', "[" * 150 + "]" * 150, "[" * 100000]
Parts = tuple[str | int, ...]
CONFIG_KEYS: dict[str, Any] = {
    "rope_scaling": {"rope_type": "llama3", "type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0},
    "eos_token_id": [0, 2], "pad_token_id": 0, "sliding_window": 128, "quantization_config": None,
    "partial_rotary_factor": 1.0, "is_encoder_decoder": False,
}  # fmt: skip
TOKEN = {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


def places(value: Any, path: Parts = ()) -> Iterator[Parts]:
    """The paths of all values in a JSON value; of long lists and objects, the first two."""
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    some = list(children)
    for key, child in some if len(some) < 60 else some[:2]:
        yield from places(child, (*path, key))


def replaced(content: Any, path: Parts, raw: str) -> str:
    """The JSON with the value at this path replaced by raw text."""
    changed = json.loads(json.dumps(content))
    place = changed
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = "@@@"
    return json.dumps(changed).replace('"@@@"', raw)


def refuses_cleanly(action: Callable[[], object], what: object) -> bool:
    """Whether the action failed; then with one printable line under 500 characters."""
    try:
        action()
    except LlamitaError as error:
        line = str(error)
        assert line.isprintable() and len(line) < 500 and line.encode("utf-8"), (what, line)
        return True
    except BaseException as error:
        raise AssertionError(f"{what}: {error!r:.300}") from error
    return False


def throw_at(
    path: Path, content: Any, action: Callable[[], object], write: Callable[[str], bytes] = str.encode, below: str = ""
) -> int:
    """Replace every value of the file by every kind of value; returns how often that was refused.
    below: only values of this key."""
    path.write_bytes(write(json.dumps(content)))
    action()
    refused = 0
    for number, place in enumerate(each for each in places(content) if below in ("", each[0])):
        for raw in VALUES if number else (*VALUES, *REFUSED):
            path.write_bytes(write(replaced(content, place, raw)))
            refused += refuses_cleanly(action, (path.name, place, raw[:40]))
    for raw in (*VALUES, *REFUSED):
        path.write_bytes(write(raw))
        refused += refuses_cleanly(action, (path.name, raw[:40]))
    path.write_bytes(write(json.dumps(content)))
    return refused


@pytest.fixture
def folder(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 4}
    return make_checkpoint(tmp_path / "model", **small)


@pytest.fixture
def pieces(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with tokenizer.model and no tokenizer.json."""
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 4}
    folder = make_checkpoint(tmp_path / "pieces", "llama", **small)
    (folder / "tokenizer.json").unlink()
    return folder


def opened(folder: Path) -> None:
    source = open_source(folder, ImportOptions())
    out = folder.with_name("written")
    out.mkdir(exist_ok=True)
    source.write_tokenizer(out)


def test_config_json(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content |= CONFIG_KEYS
    newer = {key: value for key, value in content.items() if key != "rope_scaling"}
    older = {key: value for key, value in content.items() if key != "rope_parameters"}
    assert throw_at(folder / "config.json", newer, lambda: load_config(folder)) > 20
    assert throw_at(folder / "config.json", older, lambda: load_config(folder), below="rope_scaling") > 20
    assert throw_at(folder / "config.json", older, lambda: opened(folder), below="eos_token_id") > 20


def test_generation_config_json(folder: Path) -> None:
    assert throw_at(folder / "generation_config.json", {"eos_token_id": [0, 1]}, lambda: opened(folder)) > 20


def test_tokenizer_json(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    assert throw_at(folder / "tokenizer.json", content, lambda: load_tokenizer(folder)) > 20


@pytest.mark.parametrize("kind", ["folder", "pieces"])
def test_tokenizer_config_json(request: pytest.FixtureRequest, kind: str) -> None:
    folder = request.getfixturevalue(kind)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content |= {"chat_template": [{"name": "default", "template": "x"}], "additional_special_tokens": ["<s>"],
                "bos_token": {"content": content["bos_token"]}, "tokenizer_class": "LlamaTokenizer",
                "added_tokens_decoder": {}}  # fmt: skip
    if kind == "pieces":
        content["added_tokens_decoder"] = {"0": {**TOKEN, "content": "<unk>"}}
    assert throw_at(path, content, lambda: load_tokenizer(folder)) > 20


@pytest.mark.parametrize("kind", ["folder", "pieces"])
def test_special_tokens_map_json(request: pytest.FixtureRequest, kind: str) -> None:
    folder = request.getfixturevalue(kind)
    token = "<|im_end|>" if kind == "folder" else "</s>"
    content = {"bos_token": token, "eos_token": {**TOKEN, "content": token}, "additional_special_tokens": [token]}
    (folder / "tokenizer_config.json").write_text("{}")
    assert throw_at(folder / "special_tokens_map.json", content, lambda: load_tokenizer(folder)) > 20


def test_added_tokens_json(pieces: Path) -> None:
    assert throw_at(pieces / "added_tokens.json", {"<s>": 1, "</s>": 2}, lambda: load_tokenizer(pieces)) > 20


def test_vocab_json(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (folder / "merges.txt").write_text("\n".join(" ".join(merge) for merge in model["merges"]))
    assert throw_at(folder / "vocab.json", model["vocab"], lambda: load_tokenizer(folder)) > 20


def test_safetensors_index(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "shards", shard_bytes=12_000, verify=False)
    path = tmp_path / "shards" / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    assert throw_at(path, content, lambda: opened(tmp_path / "shards")) > 20


def test_safetensors_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    content = json.loads(data[8 : 8 + length])

    def write(header: str) -> bytes:
        raw = header.encode()
        return struct.pack("<Q", len(raw)) + raw + data[8 + length :]

    assert throw_at(path, content, lambda: opened(folder), write) > 20


def test_params_json(make_meta: Callable[..., Any], tmp_path: Path) -> None:
    made = make_meta(tmp_path, 1, "3", {"use_scaled_rope": True, "rope_scaling_factor": 8.0,
                                        "rope_high_freq_factor": 4.0}, num_hidden_layers=1)  # fmt: skip
    content = json.loads((made.path / "params.json").read_text()) | {"ffn_dim_multiplier": None, "vocab_size": -1}
    for values in (content, {"model": content}):
        assert throw_at(made.path / "params.json", values, lambda: opened(made.path)) > 20


def test_adapter_config_json(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    from llamita.formats.safetensors_io import TensorEntry, write_safetensors

    config = load_config(folder)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{module}.lora_A.weight": torch.ones(2, 16), f"{module}.lora_B.weight": torch.ones(16, 2)}
    entries = [TensorEntry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    write_safetensors(adapter / "adapter_model.safetensors", entries, lambda name: tensors[name])
    content = {
        "peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 4.0, "lora_dropout": 0.1,
        "use_rslora": False, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}, "init_lora_weights": True,
        "bias": "none", "use_dora": False, "fan_in_fan_out": False, "modules_to_save": None, "loftq_config": {},
        "target_modules": ["q_proj"], "layers_to_transform": None, "task_type": "CAUSAL_LM", "unheard_of": None,
    }  # fmt: skip

    def action() -> None:
        load_adapter(adapter, config)
        other_base(adapter, folder)

    assert throw_at(adapter / "adapter_config.json", content, action) > 20
    throw_at(adapter / "adapter_config.json", content, lambda: refuses_cleanly(lambda: load_config(adapter), "base"))


@pytest.mark.parametrize("content", [b"caf\xe9", b"\xef\xbb\xbf{{ messages }}", b"\0" * 9, b"{{" * 1000, b""])
def test_chat_template_files(folder: Path, content: bytes) -> None:
    (folder / "chat_template.jinja").write_bytes(content)
    refuses_cleanly(lambda: opened(folder), content[:20])
    shutil.rmtree(folder)
