"""Fine-tuning through the loop: what learns, what is saved, what is judged, and every way to ask for nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rich.console import Console  # noqa: E402

from llamita.checkpoint import load_config, load_model, load_tensors, save_checkpoint  # noqa: E402
from llamita.cli import main  # noqa: E402
from llamita.cli.finetune import next_steps  # noqa: E402
from llamita.config import FinetuneConfig, ModelConfig  # noqa: E402
from llamita.errors import (  # noqa: E402
    ChatError,
    CheckpointError,
    ConfigError,
    SourceError,
    StoreError,
    TokenizerError,
    TrainingError,
)
from llamita.finetune.adapter import load_adapter  # noqa: E402
from llamita.finetune.answers import answer, grade  # noqa: E402
from llamita.finetune.base_model import BaseModel  # noqa: E402
from llamita.finetune.dataset import open_sft_dataset  # noqa: E402
from llamita.finetune.lora import LoraConfig, add_lora  # noqa: E402
from llamita.finetune.loss import ConversationLoss  # noqa: E402
from llamita.finetune.merge_lora import merge_adapter  # noqa: E402
from llamita.finetune.packing import ConversationBatches, Examples  # noqa: E402
from llamita.finetune.run import finetune, show_preview  # noqa: E402
from llamita.finetune.sft import row_length, tokens_that_fit  # noqa: E402
from llamita.finetune.splits import hold_out, is_text  # noqa: E402
from llamita.run_directory import read_metrics  # noqa: E402
from llamita.tokenizer import load_tokenizer  # noqa: E402
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES  # noqa: E402

IDS = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(3))


def make_config(base: Path, data: Path, out: Path, **changes: Any) -> FinetuneConfig:
    values: dict[str, Any] = {"steps": 6, "eval_interval": 3, "log_interval": 2, "device": "cpu", "threads": 1}
    return FinetuneConfig(checkpoint=base, data=data, out=out, **(values | changes))


def judged(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["kind"] == "eval"]


def test_all_weights_learn_and_the_result_stops_where_answers_do(
    plain_base: Path, questions: Path, tmp_path: Path
) -> None:
    general = tmp_path / "general.txt"
    general.write_text("She counted sheep.\n<|endoftext|>\nThe moon wasn't tired.\n")
    run = tmp_path / "run"
    config = make_config(plain_base, questions, run, steps=30, eval_interval=15, learning_rate=3e-3)
    result = finetune(FinetuneConfig(**(vars(config) | {"general_text": general})))
    assert not result.interrupted
    lines = judged(run)
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


def test_updates_alone_learn(chat_base: Path, questions: Path, tmp_path: Path) -> None:
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
    lines = judged(run)
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
    steps = dict(next_steps(config))
    assert str(run) in steps["merge"] and "--adapter" in steps["adapter alone"]


def test_what_is_held_out_never_trains_and_stays_when_data_grow(chat_base: Path, questions: Path) -> None:
    dataset = open_sft_dataset(make_config(chat_base, questions, Path("x")), "cpu")
    assert len(dataset.examples) == 36 and len(dataset.val) == 4
    wheres = {each.where for each in dataset.examples}
    assert not wheres & {each.where for each in dataset.val}
    keys = [str(number) for number in range(200)]
    chosen = hold_out(keys, 0.1, None)
    assert chosen.sum() == 20 and hold_out(keys, 0.0, None).sum() == 0 and hold_out(["a"], None, 5).sum() == 0
    more = hold_out([*keys, *map(str, range(200, 220))], 0.1, None)
    assert (chosen & ~more[:200]).sum() <= 3
    assert hold_out(["a"] * 9 + ["b"] * 9, 0.5, None).sum() == 9  # equal ones stand on one side
    assert hold_out(keys * 10, None, 8).sum() == 80


def test_rows_hold_the_longest_example() -> None:
    assert row_length(np.array([10, 300]), 1024) == 640
    assert row_length(np.array([1000, 10]), 1024) == 1024
    assert row_length(np.array([5, 5]), 1024) == 64 and row_length(np.array([90]), 100) == 100


def test_a_pass_fits_the_gpu() -> None:
    """A 7B with frozen weights leaves 66 of 80 GB, of which a pass of some thousand tokens may take half; a 135M leaves
    room for more than is wanted; where the weights do not fit, a row is tried."""
    seven = ModelConfig(32000, 4096, 11008, 32, 32, 32, 128, 4096, tie_word_embeddings=False)
    assert 4_000 < tokens_that_fit(80 * 10**9, seven, lora=True) < 8_000
    assert tokens_that_fit(80 * 10**9, seven, lora=False) == 0
    small = ModelConfig(49152, 576, 1536, 30, 9, 3, 64, 8192)
    assert tokens_that_fit(80 * 10**9, small, lora=True) > 30_000


def test_grades() -> None:
    assert grade("Paris.", "paris") == (True, True)
    assert grade("It is  Paris, of course", "Paris") == (False, True)
    assert grade("Parisian", "Paris") == (False, False) and grade("", "42") == (False, False)


def test_plain_text_goes_on(plain_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"Once upon a time there were {number} llamas who could not sleep.")
    assert is_text(folder)
    for lora in (False, True):
        run = tmp_path / f"run{lora}"
        finetune(make_config(plain_base, folder, run, lora=lora, steps=8, eval_interval=4, learning_rate=1e-2))
        lines = judged(run)
        assert lines[-1]["bpb"] < lines[0]["bpb"] and json.loads((run / "summary.json").read_text())["objective"] == (
            "bpb"
        )
    with pytest.raises(ConfigError, match=r"--system: .* is plain text"):
        finetune(make_config(plain_base, folder, tmp_path / "x", system="Be brief."))
    (folder / "a.jsonl").write_text("{}")
    with pytest.raises(SourceError, match=r"it holds texts \(0.txt\) and examples \(a.jsonl\)"):
        is_text(folder)


def test_stores_go_on(
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
    assert judged(tmp_path / "run")[-1]["bpb"] < judged(tmp_path / "run")[0]["bpb"]


# ---------------------------------------------------------------- refusals


def test_a_base_that_never_saw_the_marks_refuses_updates(plain_base: Path, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'<\|im_start\|>' and '<\|im_end\|>'.*has not learned yet.*zephyr"):
        finetune(make_config(plain_base, questions, tmp_path / "x", lora=True))
    finetune(make_config(plain_base, questions, tmp_path / "run", lora=True, chat_template="zephyr", steps=1))
    assert load_tokenizer(tmp_path / "run" / "best").chat_template == CHAT_TEMPLATES["zephyr"]


def test_new_marks_get_rows_of_their_own(make_checkpoint: Callable[..., Path], questions: Path, tmp_path: Path) -> None:
    """A SentencePiece vocabulary without ChatML's marks: added at its end, beginning as the mean of the others."""
    folder = make_checkpoint(tmp_path / "base", "llama")
    size = load_config(folder).vocab_size
    with pytest.raises(ChatError, match="no chat template, and not ChatML's marks"):
        finetune(make_config(folder, questions, tmp_path / "x"))
    base = BaseModel(folder)
    base.use_template("chatml")
    model = base.build(0.0, torch.device("cpu"))
    base.fill(model)
    embeddings = model.output_weight.detach()
    assert embeddings.shape[0] == size + 2 == base.tokenizer.vocab_size
    mean = load_tensors(folder)["model.embed_tokens.weight"].mean(dim=0)
    assert torch.allclose(embeddings[size], mean, atol=1e-6) and torch.equal(embeddings[size], embeddings[size + 1])
    with pytest.raises(ConfigError, match="has not learned yet"):
        finetune(make_config(folder, questions, tmp_path / "x", lora=True, chat_template="chatml"))
    finetune(make_config(folder, questions, tmp_path / "run", chat_template="chatml"))
    saved, tokenizer = load_config(tmp_path / "run"), load_tokenizer(tmp_path / "run" / "best")
    assert saved.vocab_size == size + 2 and saved.eos_token_ids[-1] == size + 1
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [size + 1]
    assert tokenizer.encode("a llama") == load_tokenizer(folder).encode("a llama")
    roomy = make_checkpoint(tmp_path / "roomy", "llama", vocab_size=size + 4)  # slots that no token uses
    other = BaseModel(roomy)
    other.use_template("chatml")
    assert other.config.vocab_size == size + 4 and other.tokenizer.vocab_size == size + 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"context": 8}, TrainingError, "all answers of the 36 conversations were cut off.*raise --context"),
        ({"chat_template": "llama3"}, TokenizerError, "cannot use chat template llama3"),
        ({"chat_template": "nothing"}, ChatError, "expected one of .*chatml.*or a file of Jinja"),
        ({"columns": ("frage", "answer")}, SourceError, r"questions\.jsonl:1: no 'frage' in it"),
        ({"dtype": "bfloat16"}, ConfigError, "--dtype bfloat16 needs CUDA"),
        ({"context": 999}, ConfigError, "--context: expected at most 128, which .* sees; found 999"),
        ({"lora": True, "rank": 65}, ConfigError, "--rank: expected at most 64, the width of .*, found 65"),
    ],
)
def test_refusals(
    chat_base: Path, questions: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        finetune(make_config(chat_base, questions, tmp_path / "x", **changes))
    assert not (tmp_path / "x").exists()


def test_held_out_conversations_that_do_not_fit_are_counted(chat_base: Path, questions: Path, tmp_path: Path) -> None:
    """And if none fits, there is nothing to judge by: `best` would mean nothing."""
    long = json.dumps({"question": "Why? " * 200, "answer": "So."}) + "\n"
    val = tmp_path / "val.jsonl"
    val.write_text(long + '{"question": "Who?", "answer": "She."}\n' + long)
    dataset = open_sft_dataset(make_config(chat_base, questions, tmp_path / "x", val=val), "cpu")
    assert len(dataset.val) == 1 and dataset.held_counts.too_long == 2
    val.write_text(long + long)
    with pytest.raises(
        TrainingError, match=r"nothing to judge by: all answers of the 2 .*val\.jsonl:1.*raise --context"
    ):
        open_sft_dataset(make_config(chat_base, questions, tmp_path / "x", val=val), "cpu")


def test_texts_that_cannot_be_learned(
    plain_base: Path, story_store: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    empty, text = tmp_path / "empty.txt", tmp_path / "text.txt"
    empty.write_text("\n \n")
    text.write_text("Once upon a time.\n<|endoftext|>\nThe end.\n")
    with pytest.raises(SourceError, match=r"cannot fine-tune on .*empty\.txt: no text in it"):
        finetune(make_config(plain_base, empty, tmp_path / "x"))
    with pytest.raises(ConfigError, match=r"is a token store, which has held-out documents; leave --val\* out"):
        finetune(make_config(plain_base, story_store, tmp_path / "x", val_fraction=0.1))
    with pytest.raises(SourceError, match="no text in it"):
        finetune(make_config(plain_base, text, tmp_path / "x", general_text=empty))
    endless = make_checkpoint(tmp_path / "endless")
    settings = json.loads((endless / "tokenizer_config.json").read_text())
    (endless / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    if load_tokenizer(endless).eos_id is None:
        with pytest.raises(TokenizerError, match="has no end-of-text token"):
            finetune(make_config(endless, text, tmp_path / "x"))


def test_a_template_that_cannot_be_read(chat_base: Path, questions: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match=r"cannot read chat template .*bytes\.jinja"):
        finetune(make_config(chat_base, questions, tmp_path / "x", chat_template=str(tmp_path / "bytes.jinja")))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}", "writes no end token after the answer"),
        (CHAT_TEMPLATES["chatml"].replace("assistant", "helper"), "not prefix-stable"),
    ],
)
def test_templates_that_teach_the_wrong_thing(
    chat_base: Path, questions: Path, tmp_path: Path, template: str, message: str
) -> None:
    (tmp_path / "a.jinja").write_text(template)
    with pytest.raises(ChatError, match=rf"questions\.jsonl:\d+: .*{message}"):
        finetune(make_config(chat_base, questions, tmp_path / "x", chat_template=str(tmp_path / "a.jinja")))


def test_a_tokenizer_that_does_not_fit(make_checkpoint: Callable[..., Path], questions: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "base", vocab_size=300)
    with pytest.raises(TokenizerError, match="does not fit the model: expected at most 300 tokens, found 320"):
        finetune(make_config(folder, questions, tmp_path / "x"))


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


def test_a_finished_run_resumes_into_nothing(
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


def test_the_preview_trains_nothing(
    chat_base: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", str(chat_base), str(questions), "--out", str(tmp_path / "run"), "--preview", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("«") == 3 and "<|im_end|>»" in shown and "36 kept" in shown
    assert not (tmp_path / "run").exists()
    text = tmp_path / "a.txt"
    text.write_text("Once")
    with pytest.raises(ConfigError, match="of plain text everything is learned"):
        show_preview(make_config(chat_base, text, tmp_path / "x", preview=1), Console(file=io.StringIO()))


def test_another_template_of_known_marks_may_be_chosen(chat_base: Path, questions: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jinja").write_text(CHAT_TEMPLATES["chatml"].replace("{%- for", "{{- '<|im_start|>' -}}{%- for", 1))
    dataset = open_sft_dataset(
        make_config(chat_base, questions, tmp_path / "x", lora=True, chat_template=str(tmp_path / "a.jinja")), "cpu"
    )
    assert dataset.examples[0].ids[:2].tolist() == [1, 1]


def test_a_frozen_base_in_bfloat16(chat_base: Path, questions: Path) -> None:
    """What CUDA does, on the CPU: matrices in bfloat16, updates in float32, about the same loss and gradients."""
    dataset = open_sft_dataset(make_config(chat_base, questions, Path("x"), lora=True), "cpu")
    examples = Examples(dataset.examples)
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
        with loss.autocast():
            assert isinstance(answer(model, dataset.base.tokenizer, dataset.questions[0], 4), str)
    assert nats[1] == pytest.approx(nats[0], rel=0.02) and nats[0] != nats[1]
    assert torch.nn.functional.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.99
