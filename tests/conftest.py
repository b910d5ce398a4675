"""What several tests share: where the real data lies, the built engine, and tiny models that tests make themselves."""

from __future__ import annotations

import base64
import dataclasses
import gc
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(ROOT / "tests"))
from refusals import refusals_are_clean_lines  # noqa: E402, F401 (a fixture for every test)

# Threads that wait for one another sleep instead of spinning: on a busy machine spinning makes everything many times
# slower. Set before torch is imported; the programs that tests start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell lets what it starts in the background ignore Ctrl-C, and the programs that tests interrupt would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Property tests try the same examples in each run, however slow the machine; `make fuzz` looks for new ones.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    """For tests/unit/test_damaged_files.py, from `make fuzz`."""
    parser.addoption("--fuzz-seconds", type=float, default=0, help="damage files at random for as long; 0: fixed cases")
    parser.addoption("--fuzz-seed", type=int, default=1, help="of the damage")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (TinyStories, trained models, tokenizers); tests that need it skip without it."""
    path = Path(os.environ.get("LLAMITA_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "INDEX.md").is_file():
        pytest.skip(f"real data not present at {path} (set LLAMITA_SHARED_DATA)")
    return path


@pytest.fixture(autouse=True)
def no_full_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training collects garbage before its first step, here among the objects of all tests: that takes longer than
    the training. Only the youngest are collected."""
    collect = gc.collect
    monkeypatch.setattr(gc, "collect", lambda generation=0: collect(generation))


@pytest.fixture(autouse=True)
def real_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test may replace functions of `time`. Servers run in other threads of this process: the event loop of one
    that is idle would wait for hours by a clock that starts at 0, and would not end with the tests."""
    before = dict(vars(time))
    yield
    assert vars(time) == before, "use replace_clock"  # before monkeypatch restores them


@pytest.fixture
def replace_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """replace_clock(monotonic=function, ...): functions of `time` as the modules that train see them."""

    def replace(**functions: Callable[[], float]) -> None:
        clock = types.SimpleNamespace(**vars(time) | functions)
        for name, module in list(sys.modules.items()):
            if name.startswith(("llamita.training.", "llamita.finetune.")) and getattr(module, "time", None) is time:
                monkeypatch.setattr(module, "time", clock)

    return replace


def build_engine(*targets: str) -> Path:
    """engine/build with these targets up to date (default: all). Test processes wait for each other here."""
    build = ROOT / "engine" / "build"
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    cmake = shutil.which("cmake", path=environment["PATH"])
    assert cmake, "cmake is needed: pip install 'llamita[dev]'"
    build.mkdir(exist_ok=True)
    with open(build / "lock", "w", encoding="utf-8") as lock:
        if os.name == "posix":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        commands = [[cmake, "--build", str(build), "--parallel", "2", *(["--target", *targets] if targets else [])]]
        if not (build / "CMakeCache.txt").is_file():
            commands.insert(0, [cmake, "-S", str(ROOT / "engine"), "-B", str(build), "-G", "Ninja"])
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
            assert done.returncode == 0, done.stdout + done.stderr
    return build


@pytest.fixture(scope="session")
def engine_build() -> Path:
    """engine/build with an up-to-date `run`, `run_reference` and shared library."""
    return build_engine()


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """A llama2.c v0 model and its tokenizer, as files, and the numbers that are in them."""

    path: Path
    tokenizer: Path
    shape: dict[str, int]
    tensors: dict[str, np.ndarray]


class TinyModels:
    """Makes models of some kilobytes. Ids: 0 unknown, 1 BOS, 2 EOS, 3 to 258 the bytes, then PIECES."""

    PIECES = (" ", *"abcdefghijklmnopqrstuvwxyz", "th", "he", "the", " the", "日", "ab")
    NUM_BYTES_FIRST = 3
    VOCAB_SIZE = 3 + 256 + len(PIECES)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = folder / "tokenizer.bin"
        self.tokenizer.write_bytes(self.tokenizer_bytes())

    @classmethod
    def tokenizer_bytes(cls) -> bytes:
        """A llama2.c tokenizer.bin."""
        entries = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{i:02X}>".encode() for i in range(256))]
        scored = [(piece, 0.0) for piece in entries]
        scored += [(piece.encode(), -float(rank)) for rank, piece in enumerate(cls.PIECES)]
        body = b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in scored)
        return struct.pack("<i", max(len(piece) for piece, _ in scored)) + body

    @staticmethod
    def tensor_shapes(shape: dict[str, int]) -> dict[str, tuple[int, ...]]:
        """llama2.c's v0 order; the RoPE tables are written as zeros, which readers skip."""
        d, f, n, v = shape["hidden"], shape["ffn"], shape["layers"], shape["vocab"]
        kv = d // shape["heads"] * shape["kv_heads"]
        return {
            "embedding": (v, d),
            "attention_norm": (n, d),
            "query": (n, d, d),
            "key": (n, kv, d),
            "value": (n, kv, d),
            "attention_output": (n, d, d),
            "ffn_norm": (n, d),
            "gate": (n, f, d),
            "down": (n, d, f),
            "up": (n, f, d),
            "output_norm": (d,),
            "rope_tables": (shape["context"], d // shape["heads"]),
            "output": (v, d),
        }

    def write(self, name: str, shape: dict[str, int], tensors: dict[str, np.ndarray], *, tied: bool) -> TinyModel:
        numbers = [shape[key] for key in ("hidden", "ffn", "layers", "heads", "kv_heads", "vocab", "context")]
        numbers[5] *= 1 if tied else -1
        body = b"".join(
            np.broadcast_to(tensors.get(key, np.zeros(())), size).astype("<f4").tobytes()
            for key, size in self.tensor_shapes(shape).items()
            if not (tied and key == "output")
        )
        path = self.folder / f"{name}.bin"
        path.write_bytes(struct.pack("<7i", *numbers) + body)
        return TinyModel(path, self.tokenizer, shape, tensors)

    def random(self, seed: int = 0, *, tied: bool = True, kv_heads: int = 2, context: int = 32) -> TinyModel:
        """Random weights: 2 layers, width 16, 4 heads."""
        shape = {"hidden": 16, "ffn": 24, "layers": 2, "heads": 4, "kv_heads": kv_heads, "vocab": self.VOCAB_SIZE}
        shape["context"] = context
        generator = np.random.default_rng(seed)
        tensors = {key: generator.normal(0, 0.4, size) for key, size in self.tensor_shapes(shape).items()}
        if tied:
            tensors["output"] = tensors["embedding"]
        return self.write(f"random{seed}{tied}{kv_heads}{context}", shape, tensors, tied=tied)

    def successor(self, name: str, follows: dict[int, int], *, context: int = 32) -> TinyModel:
        """A model in which, greedily, token follows[i] comes after token i whatever came before: the blocks add
        nothing, the embedding is the identity, and the output matrix holds the successors."""
        v = self.VOCAB_SIZE + self.VOCAB_SIZE % 2
        shape = {"hidden": v, "ffn": 1, "layers": 1, "heads": v // 2, "kv_heads": 1, "vocab": self.VOCAB_SIZE}
        shape["context"] = context
        output = np.zeros((self.VOCAB_SIZE, v))
        for before, after in follows.items():
            output[after, before] = 1.0
        ones = np.ones(())
        tensors = {"embedding": np.eye(self.VOCAB_SIZE, v), "output_norm": ones, "output": output}
        return self.write(name, shape, tensors, tied=False)

    @classmethod
    def byte_id(cls, byte: int) -> int:
        return cls.NUM_BYTES_FIRST + byte

    @classmethod
    def piece_id(cls, piece: str) -> int:
        return 3 + 256 + cls.PIECES.index(piece)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return TinyModels(tmp_path_factory.mktemp("tiny"))


TEXTS = (
    "Once upon a time there was a little llama who could not sleep. ",
    "She counted 1, 2, 3 and 1024 sheep; the moon wasn't tired, and she'll try again.\n\n",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "El niño comió 12 manzanas — ¡qué rico! ",
    "🦙 says: “good night” 🌙✨ ",
)


@pytest.fixture(scope="session")
def tiny_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer folder of each kind, trained on TEXTS: "gpt2" (byte-level BPE), "llama" (SentencePiece)."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from llamita.tokenizer import load_tokenizer, train_bpe

    root = tmp_path_factory.mktemp("tokenizers")
    train_bpe(TEXTS * 3, 320).save(root / "gpt2")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3), model_prefix=str(root / "tiny"), vocab_size=420, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, minloglevel=2,
    )  # fmt: skip
    load_tokenizer(root / "tiny.model").save(root / "llama")
    return {"gpt2": root / "gpt2", "llama": root / "llama"}


@pytest.fixture(scope="session")
def make_checkpoint(tiny_tokenizers: dict[str, Path]) -> Callable[..., Path]:
    """make_checkpoint(folder, kind="gpt2", seed=0, **config): a checkpoint with random weights that are far from alike,
    so that wrong rows, signs or positions change what it generates."""
    torch = pytest.importorskip("torch")
    from llamita.checkpoint import save_checkpoint
    from llamita.config import ModelConfig
    from llamita.formats.tensor_table import tensor_table
    from llamita.tokenizer import load_tokenizer

    def make(folder: Path, kind: str = "gpt2", seed: int = 0, **changes: Any) -> Path:
        tokenizer = load_tokenizer(tiny_tokenizers[kind])
        values: dict[str, Any] = {
            "vocab_size": tokenizer.vocab_size, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
            "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id,
        }  # fmt: skip
        config = ModelConfig(**(values | changes))
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for spec in tensor_table(config):
            noise = torch.randn(spec.shape, generator=generator)
            tensors[spec.huggingface] = 1 + 0.2 * noise if spec.kind == "norm" else 0.2 * noise
        save_checkpoint(folder, config, tensors, tiny_tokenizers[kind])
        return folder

    return make


# Chat templates in the spellings that models are published with, by family.
PUBLISHED_TEMPLATES = {
    "chatml": (  # SmolLM2: a system prompt of its own
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "qwen": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
        "message['role'] + '\n' + message['content']}}{% if (loop.last and add_generation_prompt) or not loop.last %}"
        "{{ '<|im_end|>' + "
        "'\n'}}{% endif %}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
        "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "zephyr": (  # TinyLlama
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
        "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
}


@dataclasses.dataclass(frozen=True)
class ChatModel:
    """A model that answers with nonsense: its checkpoint, and the same as a model file."""

    checkpoint: Path
    path: Path


@pytest.fixture(scope="session")
def make_chat_model(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., ChatModel]:
    """make_chat_model(template, context=256): a chat template's text, or a name of PUBLISHED_TEMPLATES with a
    tokenizer of the right kind."""
    import tokenizers

    from llamita.convert.export import export

    def make(template: str, context: int = 256) -> ChatModel:
        folder = tmp_path_factory.mktemp("chat") / "model"
        kind = "llama" if template in ("llama2", "zephyr") else "gpt2"
        make_checkpoint(folder, kind, vocab_size=432, max_position_embeddings=context)
        if template == "llama3":
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            backend.add_special_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
            backend.save(str(folder / "tokenizer.json"))
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text()) | {"chat_template": PUBLISHED_TEMPLATES.get(template, template)}
        path.write_text(json.dumps(config))
        export(folder, folder.parent / "model.gguf", "f32", verify=False)
        return ChatModel(folder, folder.parent / "model.gguf")

    return make


@pytest.fixture(scope="session")
def random_texts() -> list[str]:
    """10,000 texts of words, numbers, contractions, spaces of all kinds, and characters from all planes."""
    chosen = random.Random(7)
    words = (
        "the",
        " llama",
        "'ll",
        "'S",
        " 2024",
        "don't",
        "\n\n",
        "  ",
        "\t",
        " \r\n",
        "日本",
        "niño",
        "🦙",
        "—",
        "ſ",
    )
    texts = []
    for _ in range(10_000):
        parts = []
        for _ in range(chosen.randrange(1, 12)):
            kind = chosen.randrange(4)
            if kind == 0:
                parts.append(chosen.choice(words))
            elif kind == 1:
                parts.append("".join(chr(chosen.randrange(32, 127)) for _ in range(chosen.randrange(1, 8))))
            elif kind == 2:
                parts.append("".join(chr(chosen.randrange(0xA0, 0x3000)) for _ in range(chosen.randrange(1, 4))))
            else:
                code = chosen.randrange(0x110000)
                parts.append(chr(code if not 0xD800 <= code < 0xE000 else 0x4E00))
        texts.append("".join(parts))
    return texts


@pytest.fixture(scope="session")
def tiktoken_ranks(tiny_tokenizers: dict[str, Path]) -> bytes:
    """The content of a small file of tiktoken's ranks, as Llama 3's tokenizer.model is one: bytes, then merges."""
    from llamita.tokenizer import load_tokenizer
    from llamita.tokenizer.byte_level import BYTE_OF_SYMBOL

    def raw(piece: str) -> bytes:
        return bytes(BYTE_OF_SYMBOL[symbol] for symbol in piece)

    merges = [raw(merge.replace(" ", "")) for merge in load_tokenizer(tiny_tokenizers["gpt2"]).merges()]
    tokens = list(dict.fromkeys([*(bytes([byte]) for byte in range(256)), *merges]))
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))


@dataclasses.dataclass(frozen=True)
class MetaModel:
    """A folder as Meta publishes it, and the checkpoint with the same weights in Hugging Face's order."""

    path: Path
    checkpoint: Path


@pytest.fixture(scope="session")
def make_meta(
    make_checkpoint: Callable[..., Path], tiny_tokenizers: dict[str, Path], tiktoken_ranks: bytes
) -> Callable[..., MetaModel]:
    """make_meta(folder, shards, rules="2" or "3", params={}, dtype=None, **config): random weights, cut as fairscale
    cuts them among so many processes: rows of ColumnParallelLinear's, columns of RowParallelLinear's, the embedding by
    columns (Llama 1, 2) or by rows (Llama 3), norms whole, kv heads repeated where there are fewer than shards."""
    torch = pytest.importorskip("torch")
    from llamita.checkpoint import load_config, load_tensors
    from llamita.formats.rope_order import permute_qk
    from llamita.formats.tensor_table import tensor_table

    axes = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1}

    def parts(name: str, whole: Any, shards: int, kv_heads: int, embedding_axis: int) -> list[Any]:
        if whole.ndim == 1:
            return [whole.clone() for _ in range(shards)]
        pieces = min(shards, kv_heads) if name in ("wk", "wv") else shards
        cut = [part.clone() for part in whole.chunk(pieces, axes.get(name, embedding_axis))]
        assert len(cut) == pieces and len({part.shape for part in cut}) == 1
        return [cut[number * pieces // shards] for number in range(shards)]

    def make(
        folder: Path, shards: int, rules: str = "2", params: dict[str, Any] | None = None, dtype: Any = None,
        **changes: Any,
    ) -> MetaModel:  # fmt: skip
        heads = 16 if shards == 16 else 8
        ranks = tiktoken_ranks.count(b"\n")
        values: dict[str, Any] = {
            "hidden_size": 8 * heads, "intermediate_size": 192 if heads == 8 else 352, "num_attention_heads": heads,
            "num_key_value_heads": 8, "head_dim": 8, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
            "vocab_size": 432 if rules == "2" else -(-(ranks + 256) // 16) * 16,
        }  # fmt: skip
        checkpoint = make_checkpoint(folder / "checkpoint", "llama", **(values | changes))
        config, tensors = load_config(checkpoint), load_tensors(checkpoint)
        states: list[dict[str, Any]] = [{} for _ in range(shards)]
        for spec in tensor_table(config):
            rope_heads = spec.rope_heads(config)
            whole = tensors[spec.huggingface]
            if rope_heads is not None:
                whole = torch.from_numpy(permute_qk(whole.numpy(), rope_heads))
            whole = whole if dtype is None else whole.to(dtype)
            embedding_axis = 1 if rules == "2" else 0
            cut = parts(spec.llama2c, whole, shards, config.num_key_value_heads, embedding_axis)
            for state, part in zip(states, cut, strict=True):
                state[spec.name("llama2c")] = part
        out = folder / "meta"
        out.mkdir()
        for number, state in enumerate(states):
            state["rope.freqs"] = torch.ones(config.head_dim // 2)
            torch.save(state, out / f"consolidated.{number:02d}.pth")
        said: dict[str, Any] = {
            "dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads,
            "multiple_of": 32, "norm_eps": config.rms_norm_eps, "vocab_size": -1 if rules == "2" else config.vocab_size,
        }  # fmt: skip
        if config.num_key_value_heads != config.num_attention_heads:
            said["n_kv_heads"] = config.num_key_value_heads
        if rules == "3":
            said["rope_theta"] = config.rope_theta
        (out / "params.json").write_text(json.dumps(said | (params or {})))
        model = tiktoken_ranks if rules == "3" else (tiny_tokenizers["llama"] / "tokenizer.model").read_bytes()
        (out / "tokenizer.model").write_bytes(model)
        return MetaModel(out, checkpoint)

    return make


@pytest.fixture(scope="session")
def story_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token store of 300 stories with a vocabulary of 320, 10 % of them held out."""
    pytest.importorskip("tokenizers")
    from llamita.config import PrepareConfig
    from llamita.data.prepare import prepare

    out = tmp_path_factory.mktemp("stories") / "store"
    prepare(PrepareConfig(sources=("stories",), out=out, vocab_size=320, num_stories=300, val_fraction=0.1))
    return out
