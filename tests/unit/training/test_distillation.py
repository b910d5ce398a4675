"""Distillation: the chunked loss and its gradients beside the plain formula, and teacher checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.checkpoint import load_config, load_model, load_tensors
from llamita.config import TrainConfig
from llamita.data.batches import IGNORED
from llamita.errors import ConfigError, TrainingError
from llamita.finetune.lora import LoraConfig, add_lora
from llamita.finetune.loss import ConversationLoss
from llamita.model.llama import Llama
from llamita.run_directory import read_metrics
from llamita.tokenizer import load_tokenizer
from llamita.training import distillation
from llamita.training.distillation import DistillationLoss, load_teacher
from llamita.training.loss import SummedLoss, packed_mask
from llamita.training.pretraining import train
from tests.training_runs import TINY


@pytest.fixture(scope="module")
def student(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("student") / "base")


@pytest.fixture(scope="module")
def teacher(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("teacher") / "base", seed=1, num_hidden_layers=3, hidden_size=96, intermediate_size=128,
        tie_word_embeddings=False,
    )  # fmt: skip


def some_batch(vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """inputs, targets, segments [2, 24]; a third of the targets do not count."""
    generator = torch.Generator().manual_seed(3)
    inputs, targets = torch.randint(0, vocab_size, (2, 2, 24), generator=generator)
    targets = torch.where(torch.rand(targets.shape, generator=generator) < 0.3, IGNORED, targets)
    segments = (torch.arange(24) >= 9).long().expand(2, 24)
    return inputs, targets, segments


def plain(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, alpha: float, temperature: float) -> Tensor:
    """The formula at the top of distillation.py, with all logits at once."""
    counts = targets != IGNORED
    q, p, t = student_logits[counts], teacher_logits[counts].detach(), temperature
    distance = (F.softmax(p / t, -1) * (F.log_softmax(p / t, -1) - F.log_softmax(q / t, -1))).sum()
    return (1 - alpha) * F.cross_entropy(q, targets[counts], reduction="sum") + alpha * t**2 * distance


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 1.0), (0.3, 2.0), (1.0, 4.0)])
def test_loss_and_gradients(
    student: Path, teacher: Path, packed: bool, alpha: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "tokens_per_chunk", lambda weight: 7)
    model, larger = load_model(student), load_model(teacher)
    inputs, targets, segments = some_batch(model.config.vocab_size)
    more = (segments,) if packed else ()

    def logits(network: Llama) -> Tensor:
        hidden = network.hidden_states(inputs, mask=packed_mask(segments) if packed else None)
        return F.linear(hidden, network.output_weight)

    expected = plain(logits(model), logits(larger), targets, alpha, temperature)
    wanted = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(expected, list(model.parameters())), strict=True)
    )
    loss = DistillationLoss(model, larger, alpha=alpha, temperature=temperature).train()
    found = loss(inputs, targets, *more)
    (3 * found).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        scale = wanted[name].abs().max().item()
        assert torch.allclose(parameter.grad, 3 * wanted[name], rtol=1e-3, atol=1e-5 * scale), name
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in larger.parameters())
    with torch.no_grad():
        assert loss(inputs, targets, *more).item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_the_lora_weights_learn(student: Path, teacher: Path) -> None:
    model = add_lora(load_model(student), LoraConfig(rank=2), torch.Generator().manual_seed(0))
    loss = DistillationLoss(model, load_model(teacher), alpha=0.7)
    loss(*some_batch(model.config.vocab_size)).backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned and all("lora_" in name for name in learned)
    assert any(dict(model.named_parameters())[name].grad.abs().max() > 0 for name in learned)


def test_evaluation_is_plain_cross_entropy(student: Path, teacher: Path) -> None:
    """With eval() it is the plain loss; the teacher's weights are not the module's."""
    model = load_model(student)
    inputs, targets, segments = some_batch(model.config.vocab_size)
    loss = DistillationLoss(model, load_model(teacher), alpha=0.9).eval()
    assert torch.allclose(loss(inputs, targets), SummedLoss(model)(inputs, targets))
    packed = DistillationLoss(model, load_model(teacher)).eval()
    assert torch.allclose(packed(inputs, targets, segments), ConversationLoss(model)(inputs, targets, segments))
    assert {name.removeprefix("model.") for name in loss.state_dict()} == set(model.state_dict())
    assert not loss.train().teacher.training
    with torch.no_grad():
        all_targets = DistillationLoss(model, load_model(teacher), alpha=0.0).train()(inputs, targets)
    assert torch.allclose(all_targets, SummedLoss(model)(inputs, targets))


def test_a_student_of_itself_has_nothing_to_learn(student: Path) -> None:
    model = load_model(student)
    loss = DistillationLoss(model, load_model(student), alpha=1.0, temperature=2.0)
    inputs, targets, _ = some_batch(model.config.vocab_size)
    found = loss(inputs, targets)
    found.backward()
    assert abs(found.item()) < 1e-3
    assert max(parameter.grad.abs().max().item() for parameter in model.parameters()) < 1e-3


def test_bfloat16_is_close(student: Path, teacher: Path) -> None:
    model, tokenizer = load_model(student), load_tokenizer(student)
    inputs, targets, _ = some_batch(model.config.vocab_size)
    teachers = [load_teacher(teacher, tokenizer, model.config, 24, torch.device("cpu"), each)
            for each in (torch.float32, torch.bfloat16)]  # fmt: skip
    exact, rounded = (DistillationLoss(model, each, each.output_weight.dtype)(inputs, targets) for each in teachers)
    rounded.backward()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_unfit_teachers_are_rejected(
    student: Path, teacher: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    config, tokenizer = load_config(student), load_tokenizer(student)

    def load(folder: Path, context: int = 24) -> Llama:
        return load_teacher(folder, tokenizer, config, context, torch.device("cpu"), torch.float32)

    assert load(teacher).config.num_hidden_layers == 3
    with pytest.raises(TrainingError, match="expected a teacher with the student's tokenizer, found another"):
        load(make_checkpoint(tmp_path / "other", "llama", vocab_size=config.vocab_size + 200))
    wider = make_checkpoint(tmp_path / "wider", vocab_size=config.vocab_size + 8)
    with pytest.raises(TrainingError, match="expected the student's vocabulary size of 320, found 328"):
        load(wider)
    with pytest.raises(TrainingError, match="expected a context of at least 129 tokens, found 128; lower --context"):
        load(teacher, 129)


def make_config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    values = {"steps": 10, "log_interval": 5, "eval_interval": 5}
    return TrainConfig(data=store, out=out, **(TINY | values | changes))


def test_a_run_with_a_teacher(story_store: Path, tmp_path: Path) -> None:
    """Only the student is saved, and validation is measured as without a teacher."""
    train(make_config(story_store, tmp_path / "teacher", layers=2, hidden=64, steps=30))
    options: dict[str, Any] = {"teacher": tmp_path / "teacher", "teacher_weight": 0.8, "temperature": 2.0}
    train(make_config(story_store, tmp_path / "student", **options))
    train(make_config(story_store, tmp_path / "alone"))
    student, alone = (
        {line["step"]: line for line in read_metrics(tmp_path / name) if line["kind"] == "eval"}
        for name in ("student", "alone")
    )
    assert abs(student[10]["bpb"] - alone[10]["bpb"]) < 0.5 and student[10]["bpb"] != alone[10]["bpb"]
    tensors = load_tensors(tmp_path / "student")
    assert tensors.keys() == load_tensors(tmp_path / "alone").keys()
    assert all(each.shape == load_tensors(tmp_path / "alone")[name].shape for name, each in tensors.items())


def test_settings_without_a_teacher(tmp_path: Path) -> None:
    for changes in ({"temperature": 2.0}, {"teacher_weight": 0.5}):
        with pytest.raises(ConfigError, match=r"is a setting of --teacher; give both"):
            make_config(tmp_path, tmp_path, **changes)
    with pytest.raises(ConfigError, match=r"--teacher-weight: expected a share above 0, at most 1, found 1\.5"):
        make_config(tmp_path, tmp_path, teacher=tmp_path, teacher_weight=1.5)
