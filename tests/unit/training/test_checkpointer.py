"""Checkpoints in the background: consistent copies, one at a time, errors are raised."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import TrainingState  # noqa: E402
from llamita.config import FinetuneConfig, ModelConfig, TrainConfig  # noqa: E402
from llamita.errors import ConfigError, OutputError  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.run_directory import describe_run, open_run  # noqa: E402
from llamita.training.activation_checkpointing import checkpoint_activations  # noqa: E402
from llamita.training.checkpointer import Checkpointer  # noqa: E402
from llamita.training.distributed import Ranks  # noqa: E402
from llamita.training.loss import SummedLoss  # noqa: E402

TINY = ModelConfig(50, 16, 24, 2, 4, 2, 4, 32)
ALONE = Ranks(0, 1, torch.device("cpu"))


def test_what_is_written_is_the_moment_of_saving() -> None:
    weight, moment, may_write = torch.ones(4), torch.full((4,), 2.0), threading.Event()
    written: list[tuple[list[float], list[float], int]] = []

    def write(weights: Mapping[str, torch.Tensor], state: TrainingState) -> None:
        assert may_write.wait(60)
        written.append((weights["w"].tolist(), state.tensors["m/w"].tolist(), state.values["step"]))

    with Checkpointer(ALONE, sharded=False) as checkpointer:
        checkpointer.save(Path("step-1"), {"w": weight}, {"m/w": moment}, {"step": 1}, write)
        weight.zero_()  # training goes on while the writer has not even begun
        moment.zero_()
        assert not written
        checkpointer.check()
        may_write.set()
        checkpointer.save(Path("step-2"), {"w": weight}, {"m/w": moment}, {"step": 2}, write)
        assert written[0] == ([1.0] * 4, [2.0] * 4, 1), "the one before is written before its copies are"
        checkpointer.wait()
    assert written[1] == ([0.0] * 4, [0.0] * 4, 2)
    assert checkpointer.stalled_seconds > 0


def test_a_writers_error_surfaces_once() -> None:
    def write(weights: Mapping[str, torch.Tensor], state: TrainingState) -> None:
        raise OutputError("cannot write: no space left")

    with Checkpointer(ALONE, sharded=False) as checkpointer:
        checkpointer.save(Path("step-1"), {}, {}, {}, write)
        with pytest.raises(OutputError, match="no space left"):
            checkpointer.wait()
        checkpointer.wait()


def test_leaving_waits_for_the_writer() -> None:
    done = threading.Event()
    with pytest.raises(KeyError), Checkpointer(ALONE, sharded=False) as checkpointer:
        checkpointer.save(Path("step-1"), {}, {}, {}, lambda weights, state: done.set())
        raise KeyError
    assert done.is_set()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_layers_give_the_same(dropout: float) -> None:
    """With dropout both run the plain forward and drop the same values: same bits."""
    ids, results, calls = torch.arange(24).view(2, 12), [], []
    for recomputes in (False, True):
        model = Llama(TINY, dropout).initialize(torch.Generator().manual_seed(0))
        if recomputes:
            checkpoint_activations(model)
            model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        torch.manual_seed(5)
        loss = SummedLoss(model)(ids, ids.flip(0))
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
        if recomputes:
            assert len(calls) == 2, "forward, and again for backward"
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain, rtol=0.0 if dropout else 1e-4, atol=0.0 if dropout else 1e-5)


@pytest.mark.parametrize(
    ("launch", "restarted", "resumes"), [("a", True, True), ("b", True, False), ("a", False, False)]
)
def test_only_the_same_launch_resumes_by_itself(tmp_path: Path, launch: str, restarted: bool, resumes: bool) -> None:
    config = TrainConfig(data=tmp_path / "store", out=tmp_path / "run", steps=1)
    open_run(config, describe_run(config, TINY, 8, {}, "a"))
    (config.out / "step-00000001" / "training").mkdir(parents=True)
    (config.out / "latest").symlink_to("step-00000001")
    again = describe_run(config, TINY, 8, {}, launch)
    if resumes:
        assert open_run(config, again, restarted=restarted)
    else:
        with pytest.raises(OutputError, match="--resume"):
            open_run(config, again, restarted=restarted)


def test_fsdp_excludes_compile_and_fine_tuning() -> None:
    with pytest.raises(ConfigError, match="--compile on and --fsdp exclude each other"):
        TrainConfig(data=Path("store"), out=Path("run"), fsdp=True, compile="on")
    assert not hasattr(FinetuneConfig, "fsdp"), "sampling and evaluation in fine-tuning need the whole network"
