"""The index of --fsdp's shards is a pickle, of which no code is executed."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.distributed.checkpoint.filesystem import FileSystemWriter  # noqa: E402
from torch.distributed.checkpoint.state_dict_saver import save  # noqa: E402

from llamita.checkpoint import TrainingState  # noqa: E402
from llamita.errors import CheckpointError  # noqa: E402
from llamita.training.fsdp import reshard_optimizer_state  # noqa: E402
from tests.pickle_bomb import PickleBomb  # noqa: E402


@pytest.fixture
def saved(tmp_path: Path) -> tuple[TrainingState, torch.nn.Module, dict[str, Any]]:
    """A checkpoint as --fsdp writes it, of every type that an optimizer's state has."""
    model = torch.nn.Linear(4, 3)
    tensors = {
        "exp_avg/weight": torch.randn(3, 4), "momentum/weight": torch.randn(3, 4).bfloat16(),
        "step/bias": torch.tensor(3.0), "codes/bias": torch.arange(3, dtype=torch.uint8),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(dict(tensors), storage_writer=FileSystemWriter(tmp_path / "shards"), no_dist=True)
    return TrainingState({}, {}, tmp_path / "shards"), model, tensors


def test_the_state_is_read(saved: tuple[TrainingState, torch.nn.Module, dict[str, Any]]) -> None:
    state, model, tensors = saved
    found = reshard_optimizer_state(state, model)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def set_in_index(folder: Path, name: str, value: Any) -> None:
    """Give the index of the shards another attribute."""
    index = folder / "shards" / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    setattr(metadata, name, value)
    index.write_bytes(pickle.dumps(metadata))


def test_code_is_refused_by_name_and_not_run(
    saved: tuple[TrainingState, torch.nn.Module, dict[str, Any]], tmp_path: Path
) -> None:
    state, model, _ = saved
    set_in_index(tmp_path, "planner_data", PickleBomb(tmp_path / "ran"))
    with pytest.raises(CheckpointError, match=r"the pickle contains code \((posix|nt)\.system\), which was not exec"):
        reshard_optimizer_state(state, model)
    assert not (tmp_path / "ran").exists()


def test_no_other_index_is_read_in_its_place(
    saved: tuple[TrainingState, torch.nn.Module, dict[str, Any]], tmp_path: Path
) -> None:
    """PyTorch reads the index of a single process, where it cannot use that of all."""
    state, model, _ = saved
    set_in_index(tmp_path, "storage_meta", torch.Size([1]))  # which takes no attributes
    (tmp_path / "shards" / "__0.metadata").write_bytes(pickle.dumps(PickleBomb(tmp_path / "ran")))
    with contextlib.suppress(CheckpointError):
        reshard_optimizer_state(state, model)
    assert not (tmp_path / "ran").exists()


def test_damaged_indexes_are_refused(saved: tuple[TrainingState, torch.nn.Module, dict[str, Any]]) -> None:
    state, model, _ = saved
    assert state.shards is not None
    index = state.shards / ".metadata"
    whole = index.read_bytes()
    for raw in (b"", b"\x80\x04.", whole[:-9], whole.replace(b"exp_avg/weight", b"exp_avg/wei"), pickle.dumps({})):
        index.write_bytes(raw)
        with pytest.raises(CheckpointError, match="cannot read the optimizer's shards"):
            reshard_optimizer_state(state, model)
