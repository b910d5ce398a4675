"""Damaged files of every kind that we read are read or refused in one line, with nothing left
behind.

Files are damaged by their structure: a value anywhere in a JSON file or in a safetensors header, a
line of a text file, bytes of a header. The same cases each time; `make fuzz` runs others for
--fuzz-seconds, with the seed --fuzz-seed.
"""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_config, load_tensors, resolve_checkpoint  # noqa: E402
from llamita.convert.export import export  # noqa: E402
from llamita.convert.import_model import import_model  # noqa: E402
from llamita.data.documents import read_documents  # noqa: E402
from llamita.data.file_formats import read_rows  # noqa: E402
from llamita.data.token_store import TokenStore  # noqa: E402
from llamita.errors import LlamitaError  # noqa: E402
from llamita.finetune.adapter import load_adapter, save_adapter  # noqa: E402
from llamita.finetune.conversations import read_conversation  # noqa: E402
from llamita.finetune.dpo_data import read_preference  # noqa: E402
from llamita.finetune.lora import LoraConfig, add_lora, updates_of  # noqa: E402
from llamita.tokenizer import load_tokenizer  # noqa: E402

NUM_CASES = 100  # of each kind
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # in a message on a terminal
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 4}

# ---- damage

EXTREMES = (b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"-1", b"1e999", b"null", b"[" * 40)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), "",
    "a", "1", "\0", "\n\x1b[31m", "\ud800", "x" * 5000, [], [1], [[]], ["a", None], {}, {"a": 1}, {"content": "<s>"},
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values inside a JSON value; of long lists, to the first of them."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:40]) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*path, key)
        yield from places(each, (*path, key))


def damage_json(content: Any, chosen: random.Random) -> Any:
    """Replace, remove, rename or repeat a value somewhere."""
    content = copy.deepcopy(content)
    found = list(places(content))
    if not found:
        return chosen.choice(VALUES)
    *path, key = chosen.choice(found)
    parent = content
    for each in path:
        parent = parent[each]
    kind = chosen.randrange(8)
    if kind == 0 and isinstance(parent, dict):
        parent[str(chosen.choice(("", "a", key * 2, key.upper())))] = parent.pop(key)
    elif kind == 1:
        del parent[key]
    elif kind == 2 and isinstance(parent, list):
        parent.insert(key, parent[key])
    else:
        number = isinstance(parent[key], (int, float)) and chosen.random() < 0.5
        parent[key] = parent[key] + chosen.choice((-1, 1, 0.5)) if number else chosen.choice(VALUES)
    return content


def damage_bytes(data: bytearray, chosen: random.Random) -> None:
    """One change, mostly near the start, where the headers are."""
    place = chosen.randrange(min(len(data), 3000) if chosen.random() < 0.7 else len(data)) if data else 0
    kind = chosen.randrange(5)
    if kind == 0:
        data[place : place + 1] = chosen.randbytes(1)
    elif kind == 1 and data:
        data[place] ^= 1 << chosen.randrange(8)
    elif kind == 2:
        extreme = chosen.choice(EXTREMES)
        data[place : place + len(extreme)] = extreme
    elif kind == 3:
        del data[place : place + chosen.randrange(1, 9)]
    else:
        data[place:place] = chosen.randbytes(chosen.randrange(1, 9))


def damage_lines(data: bytearray, chosen: random.Random) -> None:
    """Put what separates or quotes fields and lines where it does not belong; or swap pieces."""
    place, other = sorted(chosen.randrange(len(data) + 1) for _ in range(2))
    if chosen.random() < 0.3:
        data[place:place] = data[other : other + 20]
    else:
        data[place:place] = chosen.choice(
            (b'"', b",", b"\n", b"\r", b"\0", b"\xef\xbb\xbf", b"\xff", b"{", b"]", b"\\u")
        )


def damaged(path: Path, data: bytes, chosen: random.Random) -> bytes:
    """The content of this file with one to three changes."""
    result = bytearray(data)
    for _ in range(chosen.randrange(1, 4)):
        try:
            if chosen.random() < 0.3:
                raise ValueError
            if path.suffix == ".json":
                result = bytearray(json.dumps(damage_json(json.loads(result), chosen)).encode())
            elif path.suffix == ".safetensors":
                (length,) = struct.unpack_from("<Q", result)
                header = damage_json(json.loads(result[8 : 8 + length]), chosen)
                encoded = json.dumps(header).encode()
                result[: 8 + length] = struct.pack("<Q", len(encoded)) + encoded
            elif path.suffix == ".jsonl":
                lines = result.splitlines() or [b""]
                number = chosen.randrange(len(lines))
                lines[number] = bytearray(json.dumps(damage_json(json.loads(lines[number]), chosen)).encode())
                result = bytearray(b"\n".join(lines))
            elif path.suffix in (".csv", ".txt"):
                damage_lines(result, chosen)
            else:
                raise ValueError
        except (ValueError, RecursionError, struct.error, TypeError):
            damage_bytes(result, chosen)
    return bytes(result)


# ---- what is damaged, and how it is read


def import_it(folder: Path) -> None:
    model = next((path for path in folder.iterdir() if path.name in ("model.gguf", "model.bin")), folder)
    out = folder.parent / "out"
    import_model(model, out, verify=False)
    shutil.rmtree(out)


def open_checkpoint(folder: Path) -> None:
    checkpoint = resolve_checkpoint(folder)
    load_config(checkpoint)
    load_tensors(checkpoint)


def use_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("the llama 12 床 \n")
    tokenizer.decode(ids)


def open_store(folder: Path) -> None:
    store = TokenStore(folder)
    for name in ("train", "val"):
        store.split(name)  # type: ignore[arg-type]


def read_examples(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        for row in read_rows(path):
            for read in (read_conversation, read_preference):
                try:
                    read(row)
                except LlamitaError as error:
                    check_message(error)
        list(read_documents([str(path)]))


READERS: dict[str, Callable[[Path], object]] = {
    **dict.fromkeys(("shards", "pickled", "gguf-gpt2", "gguf-llama", "v0", "v1", "v2", "meta2", "meta3"), import_it),
    "checkpoint": open_checkpoint,
    "tokenizer": use_tokenizer,
    "adapter": lambda folder: load_adapter(folder, load_config(folder.parent / "base")),
    "store": open_store,
    "jsonl": read_examples,
    "json": read_examples,
    "csv": read_examples,
    "parquet": read_examples,
}

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "text": "one"},
    {"messages": [{"role": "system", "content": "Be"}, {"role": "user", "content": "a"},
                  {"role": "assistant", "content": "b"}], "text": "two, \"quoted\"\nlines"},
]  # fmt: skip
PAIRS = [
    {"prompt": "Why?", "chosen": "So", "rejected": "No", "text": "床前"},
    {"instruction": "Add", "output": "3", "text": ""},
]


def write_rows(root: Path) -> None:
    for kind in ("jsonl", "json", "csv", "parquet"):
        (root / kind).mkdir()
    rows: list[dict[str, Any]] = [*ROWS, *PAIRS]
    (root / "jsonl" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "json" / "a.json").write_text(json.dumps(rows))
    (root / "csv" / "a.csv").write_text('prompt,chosen,rejected,text\nWhy?,So,No,"a, ""b""\n c"\nx,y,z,床\n')
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number, part in enumerate((ROWS, PAIRS)):
        parquet.write_table(pyarrow.Table.from_pylist(part), root / "parquet" / f"{number}.parquet")


@pytest.fixture(scope="module")
def sources(
    make_checkpoint: Callable[..., Path], make_meta: Callable[..., Any], story_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """A folder with a small valid folder of each kind."""
    root = tmp_path_factory.mktemp("sources")
    byte_level, pieces = make_checkpoint(root / "checkpoint", **SMALL), make_checkpoint(root / "b", "llama", **SMALL)
    export(byte_level, root / "shards", shard_bytes=12_000, verify=False)
    pickled = Path(shutil.copytree(pieces, root / "pickled"))
    torch.save(load_tensors(pieces), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for kind, checkpoint in (("gpt2", byte_level), ("llama", pieces)):
        export(checkpoint, root / f"gguf-{kind}" / "model.gguf", "f16", verify=False)
    for version in (0, 1, 2):
        export(pieces, root / f"v{version}" / "model.bin", version=version, verify=False)
    for rules in ("2", "3"):
        made = make_meta(root / f"made{rules}", 2, rules, num_hidden_layers=1).path
        shutil.copytree(made, root / f"meta{rules}")
    (root / "tokenizer").mkdir()
    for path in byte_level.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens")):
            shutil.copy(path, root / "tokenizer")
    from llamita.checkpoint import load_model

    model = load_model(byte_level)
    lora = LoraConfig(rank=2)
    add_lora(model, lora)
    save_adapter(root / "adapter", updates_of(model), lora, str(byte_level))
    shutil.copytree(story_store, root / "store")
    write_rows(root)
    return root


def check_message(error: LlamitaError) -> None:
    message = str(error)
    assert not UNSAFE.search(message) and len(message) <= 500, message


@pytest.mark.parametrize("kind", READERS)
def test_damaged_anywhere(sources: Path, tmp_path: Path, kind: str, pytestconfig: pytest.Config) -> None:
    seconds, seed = pytestconfig.getoption("--fuzz-seconds"), pytestconfig.getoption("--fuzz-seed")
    source, read = Path(shutil.copytree(sources / kind, tmp_path / "source")), READERS[kind]
    (tmp_path / "base").symlink_to(sources / "checkpoint")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    read(source)
    refused = case = 0
    end = time.monotonic() + seconds / len(READERS)
    while time.monotonic() < end if seconds else case < NUM_CASES:
        chosen = random.Random(f"{kind} {seed} {case}")
        path = chosen.choice(files)
        path.write_bytes(damaged(path, whole[path], chosen))
        try:
            read(source)
        except LlamitaError as error:
            refused += 1
            check_message(error)
        except Exception as error:
            raise AssertionError(f"--fuzz-seed {seed}, kind {kind}, case {case}: {path.name}") from error
        path.write_bytes(whole[path])
        assert sorted(each.name for each in tmp_path.iterdir()) == ["base", "source"], (seed, case)
        case += 1
    if seconds:
        print(f"{kind}: {case} cases")
    assert seconds or refused > case // 10  # in a share of seconds there may be few cases, or none
