"""Supervised fine-tuning runs: what is trained and saved, plain text, teachers, resuming,
errors."""

from __future__ import annotations

import json
import random
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.checkpoint import load_config, load_model, load_tensors, save_checkpoint
from llamita.cli import main
from llamita.cli.finetune import adapter_rows, next_commands
from llamita.config import FinetuneConfig, ModelConfig
from llamita.errors import (
    ChatError,
    CheckpointError,
    ConfigError,
    SourceError,
    StoreError,
    TokenizerError,
    TrainingError,
)
from llamita.finetune import evaluate, sft
from llamita.finetune.adapter import load_adapter
from llamita.finetune.dataset import is_text, open_sft_dataset
from llamita.finetune.evaluate import generate_answer
from llamita.finetune.lora import LoraConfig, add_lora
from llamita.finetune.loss import ConversationLoss
from llamita.finetune.merge_lora import merge_adapter
from llamita.finetune.packing import ConversationBatches, Examples
from llamita.finetune.run import finetune
from llamita.tokenizer import load_tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES
from llamita.training.trainer import Trainer
from tests.unit.finetune.conftest import WORDS, evaluations, make_config

IDS = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(3))


def test_training_all_weights_and_end_tokens(plain_base: Path, questions: Path, tmp_path: Path) -> None:
    general = tmp_path / "general.txt"
    general.write_text("She counted sheep.\n<|endoftext|>\nThe moon wasn't tired.\n")
    run = tmp_path / "run"
    config = make_config(plain_base, questions, run, steps=30, eval_interval=15, learning_rate=3e-3)
    result = finetune(FinetuneConfig(**(vars(config) | {"general_text": general})))
    assert not result.interrupted
    lines = evaluations(run)
    assert [line["step"] for line in lines] == [0, 15, 30]
    assert lines[2]["loss"] < lines[0]["loss"] - 1 and {"exact", "contains", "general_bpb"} <= lines[0].keys()
    assert lines[2]["general_bpb"] != lines[0]["general_bpb"] and lines[0]["sample"].startswith("> ")
    saved = load_config(run)
    assert saved.eos_token_ids == (0, 2)  # <|im_end|> too, for transformers
    assert json.loads((run / "best" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    assert load_tokenizer(run / "best").chat_template == CHAT_TEMPLATES["chatml"]
    before, after = load_tensors(plain_base), load_tensors(run)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["objective"] == "loss" and summary["best"] == min(line["loss"] for line in lines)


@pytest.mark.parametrize("lora", [False, True])
def test_bfloat16_on_a_cpu_learns_the_same(chat_base: Path, questions: Path, tmp_path: Path, lora: bool) -> None:
    found = {}
    for dtype in ("float32", "bfloat16"):
        run = tmp_path / dtype
        finetune(make_config(chat_base, questions, run, steps=20, learning_rate=3e-3, lora=lora, dtype=dtype))
        found[dtype] = [line["loss"] for line in evaluations(run)]
    assert found["float32"][-1] < found["float32"][0] - 0.3
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.05) and found["bfloat16"] != found["float32"]


def test_minutes_bound_evaluations_and_samples(
    chat_base: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replace_clock: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Simulated: a second for the loss of a conversation, half a second for a generated token, so
    that all 20 held-out ones would take most of a minute each time, and a run of ten minutes once
    trained one step. Later everything takes three times as long."""
    clock, slower = [0.0], [1.0]
    replace_clock(monotonic=lambda: clock[0])

    def after(function: Any, seconds: Callable[..., float]) -> Any:
        def slow(*args: Any, **options: Any) -> Any:
            clock[0] += slower[0] * seconds(*args)
            return function(*args, **options)

        return slow

    def slow_tokens(*args: Any, **options: Any) -> Iterator[int]:
        for token in generate(*args, **options):
            clock[0] += slower[0] * 0.5
            yield token

    generate = evaluate.generate
    monkeypatch.setattr(evaluate, "generate", slow_tokens)
    monkeypatch.setattr(sft, "target_nats", after(sft.target_nats, lambda loss, examples, *_: len(examples)))
    monkeypatch.setattr(Trainer, "_backward", after(Trainer._backward, lambda *_, **__: 0.5))
    options = {"steps": None, "minutes": 3.0, "val_fraction": 0.5, "eval_interval": None}
    config = make_config(chat_base, questions, tmp_path / "run", **options)
    real_log = Trainer._log

    def log(self: Trainer) -> None:
        slower[0] = 3.0 if self.state.progress.seconds > 60 else 1.0
        real_log(self)

    monkeypatch.setattr(Trainer, "_log", log)
    result = finetune(config)
    said = capfd.readouterr().err
    assert re.search(r"evaluation: on \d+ % of the held-out data, which takes 0:18 of --minutes 3", said)
    lines = evaluations(tmp_path / "run")
    assert lines[0]["step"] == 0 and lines[-1]["step"] == result.summary["steps"] > 50
    assert result.summary["seconds"] < 1.05 * 180


def test_training_an_adapter(chat_base: Path, questions: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = make_config(
        chat_base,
        questions,
        run,
        lora=True,
        rank=4,
        learning_rate=2e-2,
        steps=20,
        eval_interval=10,
        dropout=0.1,
        prompt="Who?",
    )
    finetune(config)
    lines = evaluations(run)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5 and lines[0]["sample"].startswith("> Who?\n")
    adapter = load_adapter(run / "latest", load_config(chat_base))
    assert len(adapter.updates) == 14 and adapter.dropout == 0.1
    assert all(update.b.abs().max() > 0 and update.rank == 4 for update in adapter.updates.values())
    assert json.loads((run / "best" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(chat_base)
    merged = merge_adapter(chat_base, run, tmp_path / "merged")  # a run directory is its best adapter
    assert merged.num_layers == 14 and load_tokenizer(tmp_path / "merged").chat_template == CHAT_TEMPLATES["chatml"]
    assert not torch.allclose(load_model(tmp_path / "merged")(IDS), load_model(chat_base)(IDS), atol=1e-3)
    with pytest.raises(CheckpointError, match=r"it is an adapter .LoRA.*llamita merge"):
        load_model(run)
    steps = dict(adapter_rows(config))
    assert str(run) in steps["merge"] and "--adapter" in steps["adapter alone"]
    assert [shlex.split(line)[1:] for line in next_commands(config)] == [
        ["export", str(run), f"{run.name}.gguf"], ["chat", f"{run.name}.gguf"]
    ]  # fmt: skip


def test_training_on_plain_text(plain_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"Once upon a time there were {number} llamas who could not sleep.")
    assert is_text(folder)
    for lora in (False, True):
        run = tmp_path / f"run{lora}"
        finetune(make_config(plain_base, folder, run, lora=lora, steps=8, eval_interval=4, learning_rate=1e-2))
        lines = evaluations(run)
        assert lines[-1]["bpb"] < lines[0]["bpb"] and json.loads((run / "summary.json").read_text())["objective"] == (
            "bpb"
        )
    with pytest.raises(ConfigError, match=r"--system is for conversations, and .* is plain text"):
        finetune(make_config(plain_base, folder, tmp_path / "x", system="Be brief."))
    (folder / "a.jsonl").write_text("{}")
    with pytest.raises(SourceError, match=r"it holds both texts \(0.txt\) and examples \(a.jsonl\)"):
        is_text(folder)


def test_training_on_a_token_store(
    plain_base: Path, story_store: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(StoreError, match="its tokenizer is not the checkpoint's"):
        finetune(make_config(plain_base, story_store, tmp_path / "x"))
    tokenizer = load_tokenizer(story_store)
    config = load_config(plain_base)
    config = ModelConfig(**(vars(config) | {"vocab_size": tokenizer.vocab_size}))
    from llamita.model.llama import Llama

    weights = Llama(config).initialize(torch.Generator().manual_seed(0)).state_dict()
    save_checkpoint(tmp_path / "base", config, weights, story_store)
    finetune(
        make_config(tmp_path / "base", story_store, tmp_path / "run", steps=2, eval_interval=2, micro_batch_size=2)
    )
    assert evaluations(tmp_path / "run")[-1]["bpb"] < evaluations(tmp_path / "run")[0]["bpb"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"context": 8}, TrainingError, r"none of 36 conversations fits.*raise --context \(this checkpoint allows"),
        ({"chat_template": "llama3"}, TokenizerError, "cannot use chat template llama3"),
        ({"chat_template": "nothing"}, ChatError, "expected one of .*chatml.*or the path of a Jinja template"),
        ({"columns": ("frage", "answer")}, SourceError, r"questions\.jsonl:1: it has no 'frage'"),
        ({"context": 999}, ConfigError, "--context: expected at most 128, the context of .*, found 999"),
        ({"lora": True, "rank": 65}, ConfigError, "--rank: expected at most 64, the width of .*, found 65"),
    ],
)
def test_refusals(
    chat_base: Path, questions: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        finetune(make_config(chat_base, questions, tmp_path / "x", **changes))
    assert not (tmp_path / "x").exists()


def test_texts_that_cannot_be_learned(
    plain_base: Path, story_store: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    empty, text = tmp_path / "empty.txt", tmp_path / "text.txt"
    empty.write_text("\n \n")
    text.write_text("Once upon a time.\n<|endoftext|>\nThe end.\n")
    with pytest.raises(SourceError, match=r"cannot use .*empty\.txt: it has no text"):
        finetune(make_config(plain_base, empty, tmp_path / "x"))
    with pytest.raises(ConfigError, match=r"is a token store with its own held-out documents; remove --val"):
        finetune(make_config(plain_base, story_store, tmp_path / "x", val_fraction=0.1))
    with pytest.raises(SourceError, match="it has no text"):
        finetune(make_config(plain_base, text, tmp_path / "x", general_text=empty))
    endless = make_checkpoint(tmp_path / "endless")
    settings = json.loads((endless / "tokenizer_config.json").read_text())
    (endless / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    if load_tokenizer(endless).eos_id is None:
        with pytest.raises(TokenizerError, match="has no end-of-text token"):
            finetune(make_config(endless, text, tmp_path / "x"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}", "writes no end token after the answer"),
        (CHAT_TEMPLATES["chatml"].replace("assistant", "helper"), "not prefix-stable"),
    ],
)
def test_templates_that_cannot_be_trained_on(
    chat_base: Path, questions: Path, tmp_path: Path, template: str, message: str
) -> None:
    (tmp_path / "a.jinja").write_text(template)
    with pytest.raises(ChatError, match=rf"questions\.jsonl:\d+: .*{message}"):
        finetune(make_config(chat_base, questions, tmp_path / "x", chat_template=str(tmp_path / "a.jinja")))


def test_settings_that_do_not_go_together() -> None:
    for changes, message in (
        ({"rank": 4}, "--rank is a setting of --lora"),
        ({"val": Path("a"), "val_fraction": 0.1}, "exclude each other"),
        ({"val_fraction": 0.9}, "--val-fraction: expected 0 to 0.5"),
        ({"lora": True, "optimizer": "muon"}, "expected adamw with --lora"),
        ({"lora": True, "embedding_lr": 0.1}, "--embedding-lr"),
        ({"steps": 1, "minutes": 1.0}, "--minutes and --steps exclude each other"),
    ):
        with pytest.raises(ConfigError, match=message):
            FinetuneConfig(checkpoint=Path("a"), data=Path("b"), out=Path("c"), **changes)


def test_resumed_runs_must_be_the_same(chat_base: Path, questions: Path, tmp_path: Path) -> None:
    finetune(make_config(chat_base, questions, tmp_path / "run", lora=True, targets=("q_proj", "v_proj"), steps=2))
    for changes, message in (
        ({"rank": 4}, "--rank: expected 8, as in run.json, found 4"),
        ({"chat_template": "zephyr"}, "--chat-template"),
    ):
        values: dict[str, Any] = {"lora": True, "targets": ("q_proj", "v_proj"), "steps": 2, "resume": True} | changes
        with pytest.raises(ConfigError, match=message):
            finetune(make_config(chat_base, questions, tmp_path / "run", **values))
    more = tmp_path / "more.jsonl"
    more.write_text(questions.read_text() + '{"question": "new?", "answer": "yes"}\n')
    again = make_config(
        chat_base, more, tmp_path / "run", lora=True, targets=("q_proj", "v_proj"), steps=2, resume=True
    )
    with pytest.raises(ConfigError, match="of the data: expected"):
        finetune(again)


def test_resuming_a_finished_run_changes_nothing(
    chat_base: Path, questions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["finetune", str(chat_base), str(questions), "--out", str(run), "--steps=2", "--device=cpu", "--threads=1"]
    assert main(words) == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capfd.readouterr()
    assert main([*words, "--resume"]) == 0
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and f"{run} finished after 2 steps" in said.err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize("more", [[], ["--lora", "--targets", "q_proj", "v_proj"]])
def test_a_fine_tuning_is_resumed_without_its_flags(
    chat_base: Path, questions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str]
) -> None:
    run = tmp_path / "run"
    words = ["finetune", str(chat_base), str(questions), "--out", str(run), "--steps=2", "--device=cpu", "--threads=1"]
    assert main([*words, "--learning-rate=1e-3", "--system=Be brief.", *more]) == 0
    again = ["finetune", "--out", str(run), "--resume"]
    assert main([*again, "--steps=4"]) == 0
    assert "the schedule is laid anew over steps 2 to 4" in capfd.readouterr().err
    assert json.loads((run / "summary.json").read_text())["steps"] == 4
    assert main([*again, "--learning-rate=2e-3"]) == 2
    assert "--learning-rate: expected 0.001, as in run.json, found 0.002; leave it out" in capfd.readouterr().err
    assert main(["train", "--out", str(run), "--resume"]) == 2
    assert "found one of llamita finetune; use llamita finetune --resume" in capfd.readouterr().err


def test_a_frozen_base_in_bfloat16(chat_base: Path, questions: Path) -> None:
    """What CUDA does, on the CPU: matrices in bfloat16, updates in float32, about the same loss and
    gradients."""
    dataset = open_sft_dataset(make_config(chat_base, questions, Path("x"), lora=True), "cpu")
    examples = Examples(dataset.train)
    batch = next(ConversationBatches(examples, 128, 4, 0))
    arrays = [torch.from_numpy(array) for array in (batch.inputs, batch.targets, batch.segments)]
    nats, gradients = [], []
    for dtype in (torch.float32, torch.bfloat16):
        model = dataset.base.build(0.0, torch.device("cpu"), dtype)
        dataset.base.fill(model)
        add_lora(model, LoraConfig(rank=4), torch.Generator().manual_seed(0))
        loss = ConversationLoss(model, dtype)
        loss(*arrays).backward()
        nats.append(loss(*arrays).item())
        layer = model.get_submodule("model.layers.1.mlp.down_proj")
        assert layer.weight.dtype == dtype and layer.weight.grad is None and layer.lora_B.weight.dtype == torch.float32
        gradients.append(layer.lora_B.weight.grad)
        answer = generate_answer(model, dataset.base.tokenizer, dataset.questions[0], 4, compute=loss.compute)
        assert isinstance(answer, str)
    assert nats[1] == pytest.approx(nats[0], rel=0.02) and nats[0] != nats[1]
    assert torch.nn.functional.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.99


@pytest.mark.parametrize("kind", ["conversations", "text"])
def test_distillation_in_fine_tuning(
    chat_checkpoint: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """With the teacher's share at 1, the student's answers come nearer to the teacher's, whatever
    the targets say."""
    teacher = make_checkpoint(tmp_path / "teacher", seed=3, num_hidden_layers=3, max_position_embeddings=256)
    chosen = random.Random(2)
    texts = [" ".join(chosen.choices(WORDS, k=12)) for _ in range(40)]
    if kind == "text":
        data = tmp_path / "a.txt"
        data.write_text("\n<|endoftext|>\n".join(texts))
    else:
        data = tmp_path / "a.jsonl"
        data.write_text("\n".join(json.dumps({"prompt": text, "completion": text[::-1]}) for text in texts))
    config = FinetuneConfig(
        checkpoint=chat_checkpoint, data=data, out=tmp_path / "run", teacher=teacher, teacher_weight=1.0, steps=30,
        learning_rate=3e-3, device="cpu", threads=1, val_fraction=0.2,
    )  # fmt: skip
    finetune(config)
    ids = torch.randint(3, 300, (4, 32), generator=torch.Generator().manual_seed(0))

    def distance(folder: Path) -> float:
        with torch.no_grad():
            p, q = (load_model(each).eval()(ids).log_softmax(-1) for each in (teacher, folder))
        return (p.exp() * (p - q)).sum(-1).mean().item()

    assert distance(tmp_path / "run" / "latest") < 0.9 * distance(chat_checkpoint)
