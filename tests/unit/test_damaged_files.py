"""Damaged sources of every kind are imported or refused in one line, with nothing left behind."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamita.convert.export import export  # noqa: E402
from llamita.convert.import_model import import_model  # noqa: E402
from llamita.errors import LlamitaError  # noqa: E402

NUM_CASES = 150  # of each kind; seeded, so the same ones each time
EXTREMES = (b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"-1", b"1e999", b"null", b"[" * 40)


@pytest.fixture(scope="module")
def sources(
    make_checkpoint: Callable[..., Path], make_meta: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A minimal folder of each kind."""
    root = tmp_path_factory.mktemp("sources")
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 4}
    byte_level, pieces = make_checkpoint(root / "a", **small), make_checkpoint(root / "b", "llama", **small)
    export(byte_level, root / "shards", shard_bytes=12_000, verify=False)
    pickled = Path(shutil.copytree(pieces, root / "pickled"))
    from llamita.checkpoint import load_tensors

    torch.save(load_tensors(pieces), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for kind, checkpoint in (("gpt2", byte_level), ("llama", pieces)):
        export(checkpoint, root / f"gguf-{kind}" / "model.gguf", "f16", verify=False)
    for version in (0, 1, 2):
        export(pieces, root / f"v{version}" / "model.bin", version=version, verify=False)
    found = {name: root / name for name in ("shards", "pickled", "gguf-gpt2", "gguf-llama", "v0", "v1", "v2")}
    for rules in ("2", "3"):
        found[f"meta{rules}"] = make_meta(root / f"meta{rules}", 2, rules, num_hidden_layers=1).path
    return found


def damage(data: bytearray, chosen: random.Random) -> None:
    """Make one to four changes, mostly near the start, where the headers are."""
    for _ in range(chosen.randrange(1, 5)):
        place = chosen.randrange(min(len(data), 3000) if chosen.random() < 0.7 else len(data))
        kind = chosen.randrange(5)
        if kind == 0:
            data[place] = chosen.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << chosen.randrange(8)
        elif kind == 2:
            extreme = chosen.choice(EXTREMES)
            data[place : place + len(extreme)] = extreme
        elif kind == 3:
            del data[place : place + chosen.randrange(1, 9)]
        else:
            data[place:place] = chosen.randbytes(chosen.randrange(1, 9))


KINDS = ["shards", "pickled", "gguf-gpt2", "gguf-llama", "v0", "v1", "v2", "meta2", "meta3"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_anywhere(sources: dict[str, Path], tmp_path: Path, kind: str) -> None:
    chosen = random.Random(KINDS.index(kind))
    source = Path(shutil.copytree(sources[kind], tmp_path / "source"))
    files = sorted(path for path in source.iterdir() if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    named = next((path for path in files if path.name in ("model.gguf", "model.bin")), source)
    import_model(named, tmp_path / "whole", verify=False)
    refused = 0
    for case in range(NUM_CASES):
        path = chosen.choice(files)
        data = bytearray(whole[path])
        damage(data, chosen)
        path.write_bytes(data)
        try:
            import_model(named, tmp_path / "out", verify=False)
            shutil.rmtree(tmp_path / "out")
        except LlamitaError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 700, (case, str(error))
        path.write_bytes(whole[path])
        assert sorted(each.name for each in tmp_path.iterdir()) == ["source", "whole"], case
    assert refused > NUM_CASES // 4
