"""train --from: what is taken from the earlier run, what is measured, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_tensors, load_training_state  # noqa: E402
from llamita.cli import main  # noqa: E402
from llamita.config import PrepareConfig, TrainConfig  # noqa: E402
from llamita.data.prepare import prepare  # noqa: E402
from llamita.errors import CheckpointError, ConfigError, LlamitaError, StoreError  # noqa: E402
from llamita.model_card import load_card  # noqa: E402
from llamita.run_directory import read_metrics, remembered_run  # noqa: E402
from llamita.training import cpu_dtype  # noqa: E402
from llamita.training.budget import Budget  # noqa: E402
from llamita.training.continued import MAX_FORGETTING, PEAK_SHARE, REPLAY_SHARE  # noqa: E402
from llamita.training.optimizer import optimizer_tensors  # noqa: E402
from llamita.training.pretraining import ContinuedPretraining, train  # noqa: E402
from llamita.training.trainer import Trainer  # noqa: E402
from tests.training_runs import stop_at, untimed  # noqa: E402

NEW = [f"Number {i} met number {i + 1} and said hello to it." for i in range(900)]


@dataclasses.dataclass(frozen=True)
class Folders:
    """A finished run on `old`, a store of new documents, and one with another tokenizer."""

    run: Path
    old: Path
    new: Path
    strange: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("continued")
    found = Folders(*(folder / name for name in ("run", "old", "new", "strange")))
    (folder / "new.txt").write_text("<|endoftext|>".join(NEW))
    prepare(PrepareConfig(sources=("stories",), out=found.old, vocab_size=320, num_stories=200, val_fraction=0.1))
    shape: dict[str, Any] = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "ffn": 64, "context": 64}
    train(TrainConfig(
        data=found.old, out=found.run, steps=20, micro_batch_size=4, log_interval=5, eval_interval=20, device="cpu",
        threads=1, license="apache-2.0", description="Stories.", **shape,
    ))  # fmt: skip
    sources = (str(folder / "new.txt"),)
    prepare(PrepareConfig(sources=sources, out=found.new, tokenizer=found.run / "best"))
    prepare(PrepareConfig(sources=sources, out=found.strange, vocab_size=280))
    return found


def continued(made: Folders, out: Path, **changes: Any) -> TrainConfig:
    values = {"data": made.new, "from_": made.run, "steps": 12, "log_interval": 5, "eval_interval": 6}
    return TrainConfig(out=out, device="cpu", threads=1, **(values | changes))


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["kind"] == "eval"]


def recorded(run: Path) -> dict[str, Any]:
    found = remembered_run(run)
    assert found is not None
    return found


def test_it_goes_on_where_the_run_ended_and_says_what_changed(
    made: Folders, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["train", str(made.new), "--from", str(made.run), "--out", str(run), "--steps", "12", "--threads", "1"]
    assert main([*command, "--device", "cpu", "--name", "second"]) == 0
    said = capfd.readouterr().err
    first, last = evaluations(run)[0], evaluations(run)[-1]
    assert first["step"] == 0 and first["old_bpb"] == pytest.approx(evaluations(made.run)[-1]["bpb"], rel=1e-6)
    assert last["bpb"] < first["bpb"] - 0.1
    before, after = recorded(made.run)["config"], recorded(run)["config"]
    kept = ("layers", "hidden", "heads", "kv_heads", "ffn", "context", "micro_batch_size", "optimizer", "weight_decay")
    assert [after[name] for name in kept] == [before[name] for name in kept]
    assert after["learning_rate"] == PEAK_SHARE * before["learning_rate"]
    assert after["embedding_lr"] == PEAK_SHARE * before["embedding_lr"]
    assert (
        after["replay"] == REPLAY_SHARE
        and after["max_forgetting"] == MAX_FORGETTING
        and after["replay_data"] == [str(made.old)]
    )
    card = load_card(run / "best")
    assert card.license == "apache-2.0" and card.name == "second" and card.description is not None
    for values in ((first["bpb"], last["bpb"]), (first["old_bpb"], last["old_bpb"])):
        shown = "{:.4f} → {:.4f}".format(*values)
        assert said.count(shown) == 1, "the table at the end"
        assert shown in (run / "report.html").read_text() and shown in card.description
        assert shown in (run / "best" / "README.md").read_text()


def test_the_old_text_keeps_its_noise(made: Folders, tmp_path: Path) -> None:
    """It is read many times more: without noise the model would learn it by heart."""
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(made.run, base, symlinks=True)
    description = recorded(base)
    description["config"]["token_noise"] = 0.17
    (base / "run.json").write_text(json.dumps(description))
    command = ["train", str(made.new), "--from", str(base), "--replay-data", str(made.old), "--out", str(run)]
    assert main([*command, "--steps", "2", "--threads", "1", "--device", "cpu"]) == 0
    assert recorded(run)["config"]["token_noise"] == 0.17


def test_the_optimizer_goes_on_where_it_was(made: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is the run's, if the optimizer is the same and the state is there."""
    begun: list[dict[str, Any]] = []
    real = Trainer._decide

    def note(self: Trainer, stop: Any) -> Any:
        if self.state.progress.step == 0:
            begun.append({name: each.clone() for name, each in optimizer_tensors(self.optimizer, self.model).items()})
        return real(self, stop)

    monkeypatch.setattr(Trainer, "_decide", note)
    train(continued(made, tmp_path / "same", steps=1))
    state = load_training_state(made.run / "best").tensors
    assert begun[0].keys() == state.keys() and all(torch.equal(begun[0][name], state[name]) for name in state)
    begun.clear()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(made.run, elsewhere, symlinks=True)
    shutil.rmtree((elsewhere / "best").resolve() / "training")
    train(continued(made, tmp_path / "without", from_=elsewhere, steps=1))
    train(continued(made, tmp_path / "other", optimizer="adamw", steps=1))
    assert not any(begun)


def test_it_computes_as_its_run_did(made: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.run, run, symlinks=True)
    content = json.loads((run / "run.json").read_text())
    content["config"]["dtype"] = "bfloat16"
    (run / "run.json").write_text(json.dumps(content))
    monkeypatch.setattr(cpu_dtype, "product_speedup", lambda: 2.0)
    train(continued(made, tmp_path / "out", from_=run, steps=1))
    assert recorded(tmp_path / "out")["config"]["dtype"] == "bfloat16"


def test_killed_and_resumed_it_ends_with_the_same_bytes(
    made: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(continued(made, tmp_path / "whole"))
    with monkeypatch.context() as patched:
        stop_at(patched, 7)
        assert train(continued(made, tmp_path / "parts")).interrupted
    assert not train(continued(made, tmp_path / "parts", resume=True)).interrupted
    for name in ("model.safetensors", "training/state.safetensors", "README.md"):
        whole, parts = ((tmp_path / run / "latest" / name).read_bytes() for run in ("whole", "parts"))
        assert whole == parts, name
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")


@pytest.mark.parametrize("percent", [0.0, 1e4])
def test_the_old_text_loses_no_more_than_it_may(percent: float, made: Folders, tmp_path: Path) -> None:
    """The weights at the end lie between the base's and those of the last step."""
    train(continued(made, tmp_path / "free", max_forgetting=1e4, replay=0.0, learning_rate=0.05))
    train(continued(made, tmp_path / "run", max_forgetting=percent, replay=0.0, learning_rate=0.05))
    (first, *_, last), share = evaluations(tmp_path / "run"), evaluations(tmp_path / "run")[-1]["trained_share"]
    assert evaluations(tmp_path / "free")[-1]["old_bpb"] > first["old_bpb"], "or nothing is tested"
    assert share == 1 if percent else 0 <= share < 1
    assert last["old_bpb"] <= (1 + percent / 100) * first["old_bpb"] * 1.0001
    base, free, found = (load_tensors(run / "best") for run in (made.run, tmp_path / "free", tmp_path / "run"))
    for name in base:
        assert torch.allclose(found[name], torch.lerp(base[name], free[name], share), atol=1e-6)
    assert (tmp_path / "run" / "best").resolve().name == "step-00000012", "also if an earlier one knew more"
    assert f"{first['bpb']:.4f} → {last['bpb']:.4f}" in (tmp_path / "run" / "report.html").read_text()


def test_also_if_an_evaluation_of_the_last_step_used_up_the_time(
    made: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That evaluation was an ordinary one; the run ended with it."""
    evaluated: list[float] = []
    real = Budget.note_evaluation

    def note(self: Budget, seconds: float, count: int) -> None:
        evaluated.append(seconds)
        real(self, seconds, count)

    monkeypatch.setattr(Budget, "note_evaluation", note)
    monkeypatch.setattr(Budget, "is_over", lambda self, at: at.step >= 6 and len(evaluated) > 1)
    train(continued(made, tmp_path / "run", max_forgetting=0.0, replay=0.0, learning_rate=0.05))
    first, ordinary, last = evaluations(tmp_path / "run")
    assert (first["step"], ordinary["step"]) == (0, 6) and ordinary["old_bpb"] > first["old_bpb"]
    assert last["old_bpb"] <= first["old_bpb"] * 1.0001 and 0 <= last["trained_share"] < 1


@pytest.mark.parametrize(("place", "name", "call"), [(Trainer, "_evaluate", 2), (ContinuedPretraining, "_old_bits", 3)])
def test_interrupted_at_the_end_and_resumed_it_ends_with_the_same_bytes(
    place: type, name: str, call: int, made: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last evaluation, and while the weights move towards the base's."""
    options: dict[str, Any] = {"max_forgetting": 0.0, "replay": 0.0, "learning_rate": 0.05, "eval_interval": None}
    train(continued(made, tmp_path / "whole", **options))
    real, calls = getattr(place, name), iter(range(1, 100))

    def stop(*arguments: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(place, name, stop)
        assert train(continued(made, tmp_path / "parts", **options)).interrupted
    assert not train(continued(made, tmp_path / "parts", resume=True, **options)).interrupted
    whole, parts = ((tmp_path / each / "latest" / "model.safetensors").read_bytes() for each in ("whole", "parts"))
    assert whole == parts


def test_an_update_of_an_update_replays_all_older_text(made: Folders, tmp_path: Path) -> None:
    train(continued(made, tmp_path / "second", steps=2))
    (tmp_path / "third.txt").write_text("<|endoftext|>".join(text.replace("hello", "good bye") for text in NEW))
    prepare(PrepareConfig(sources=(str(tmp_path / "third.txt"),), out=tmp_path / "store", tokenizer=made.old))
    train(continued(made, tmp_path / "third", data=tmp_path / "store", from_=tmp_path / "second", steps=2))
    second, third = (recorded(tmp_path / name) for name in ("second", "third"))
    assert third["config"]["replay_data"] == [str(made.new), str(made.old)]
    weights = [each["weight"] for each in third["data"]["stores"]]
    assert weights[0] == 1 and weights[1] == weights[2], "all older documents alike"
    rates = [each["config"]["learning_rate"] for each in (second, third)]
    assert rates[0] == rates[1], "it was lowered once"


def test_a_checkpoint_from_elsewhere_needs_a_word_about_its_text(made: Folders, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(made.run / "best", elsewhere)
    with pytest.raises(ConfigError, match=r"does not say which token stores.*--replay-data.*--replay 0"):
        train(continued(made, tmp_path / "run", from_=elsewhere))
    train(continued(made, tmp_path / "alone", from_=elsewhere, replay=0.0, steps=2))
    assert all("old_bpb" not in line for line in evaluations(tmp_path / "alone"))
    assert "of old text" not in (tmp_path / "alone" / "report.html").read_text()
    train(continued(made, tmp_path / "beside", from_=elsewhere, replay_data=(str(made.old),), steps=2))
    assert evaluations(tmp_path / "beside")[0]["old_bpb"] == pytest.approx(evaluations(made.run)[-1]["bpb"], rel=1e-6)


def test_old_stores_that_are_gone_or_others(made: Folders, tmp_path: Path) -> None:
    old, run = tmp_path / "old", tmp_path / "run"
    shutil.copytree(made.run, run, symlinks=True)
    content = json.loads((run / "run.json").read_text())
    content["config"]["data"] = str(old)
    (run / "run.json").write_text(json.dumps(content))
    config = continued(made, tmp_path / "out", from_=run, steps=2)
    with pytest.raises(StoreError, match=r"cannot replay the text of .*old is gone; put it back, give others"):
        train(config)
    prepare(PrepareConfig(sources=("stories",), out=old, tokenizer=made.old, num_stories=210))
    with pytest.raises(StoreError, match=r"old: expected the documents that it was trained on, found others"):
        train(config)
    train(dataclasses.replace(config, replay=0.0))
    assert recorded(tmp_path / "out")["config"]["replay_data"] == []
    assert recorded(tmp_path / "out")["config"]["max_forgetting"] is None
    train(dataclasses.replace(config, out=tmp_path / "other", replay_data=(str(made.old),)))
    assert recorded(tmp_path / "other")["config"]["replay"] == REPLAY_SHARE


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers": 2, "hidden": 32, "heads": 2}, "--layers: expected 1, as in --from"),
        ({"tie_embeddings": False}, "--tie-embeddings: expected True, as in --from"),
        ({"context": 65}, "--context: expected at most 64"),
        ({"preset": "0.5M"}, "--preset: the shape is that of --from"),
        ({"replay": 1.0}, "--replay: expected a share of 0 or more, below 1"),
        ({"max_forgetting": -1.0}, "--max-forgetting: expected 0 percent or more, found -1"),
        ({"max_forgetting": float("nan")}, "--max-forgetting: expected 0 percent or more, found nan"),
        ({"from_": None, "max_forgetting": 1.0}, "--max-forgetting is a setting of --from; give both"),
        ({"from_": None, "replay": 0.0}, "--replay is a setting of --from; give both"),
        ({"from_": None, "replay_data": ("x",)}, "--replay-data is a setting of --from; give both"),
        ({"from_": Path("nowhere")}, "cannot open checkpoint nowhere: no such folder"),
        ({"data": "strange"}, "different tokenizers"),
        ({"data": "strange", "replay": 0.0}, "different tokenizers"),
        ({"data": "old"}, "is given twice"),
    ],
)
def test_wrong_input(made: Folders, tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    if "data" in changes:
        changes = {**changes, "data": getattr(made, changes["data"])}
    with pytest.raises(LlamitaError, match=expected):
        train(continued(made, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_that_has_not_finished_is_refused(made: Folders, tmp_path: Path) -> None:
    run = tmp_path / "begun"
    shutil.copytree(made.run, run, symlinks=True)
    (run / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"expected a finished run; finish it first: llamita train --out .* --resume"):
        train(continued(made, tmp_path / "run", from_=run))


def test_resuming_with_another_base_is_refused(made: Folders, tmp_path: Path) -> None:
    config = continued(made, tmp_path / "run", steps=2)
    train(config)
    with pytest.raises(ConfigError, match="base of the data: expected"):
        train(dataclasses.replace(config, from_=tmp_path / "run", resume=True, steps=4))


def test_a_base_of_another_shape_than_it_says_is_refused(made: Folders, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(made.run / "best", base)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "intermediate_size": 96}))
    with pytest.raises(CheckpointError, match="expected shape"):
        train(continued(made, tmp_path / "run", from_=base, replay=0.0))
    assert load_tensors(made.run)
