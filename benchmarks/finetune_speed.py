"""Turns a shape into samples a second and memory of LoRA fine-tuning, here and with peft and transformers' Trainer.

    python benchmarks/finetune_speed.py            # SmolLM2-135M's shape, random weights: some ten minutes on two cores
    python benchmarks/finetune_speed.py --quick    # four of its thirty layers, two rounds
    python benchmarks/finetune_speed.py --shape llama2-7b --layers 2   # a 7B: how memory grows with layers

Both sides train the same weights on the same conversations, so many a step, each in a process of its own; a step of the
one follows a step of the other. Ours packs the conversations into rows and computes logits where something is learned;
the Trainer pads them (its collator's way) and computes all. Rank 8, all linear layers, AdamW, float32. The first losses
must agree to 1e-3, or it was not the same work: status 1. Memory is the largest resident set of the process, with the
same imports on both sides: torch, and what the side itself needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 2048,
}  # fmt: skip
LLAMA2_7B = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {"smollm2-135m": SMOLLM2, "llama2-7b": LLAMA2_7B}
MIN_VOCABULARY = min(shape["vocab_size"] for shape in SHAPES.values())
RANK = 8
QUICK_LAYERS = 4


def make_conversations(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """ids and which of them are learned: questions of 10 to 40 tokens, answers of 30 to 350, as MedQuAD's are."""
    random = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        asked, answered = int(random.integers(10, 40)), int(np.clip(random.lognormal(4.9, 0.6), 30, 350))
        ids = random.integers(3, MIN_VOCABULARY, asked + answered)
        result.append((ids, np.arange(asked + answered) >= asked))
    return result


# ---------------------------------------------------------------- the sides, each in a process of its own


def reply(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def wait_for_turn() -> None:
    """Until the parent says that it is this side's turn; at its end, the end."""
    if not sys.stdin.readline():
        sys.exit(0)


class Stopwatch:
    """What a step takes, from here on."""

    def __init__(self) -> None:
        self.start, self.processor = time.perf_counter(), time.process_time()

    def reply(self, loss: float) -> None:
        now, processor = time.perf_counter(), time.process_time()
        reply({
            "seconds": now - self.start, "processor": processor - self.processor, "loss": loss,
            "peak": peak_megabytes(),
        })  # fmt: skip


def peak_megabytes() -> float:
    """The largest resident set of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("no VmHWM in /proc/self/status: this benchmark needs Linux")


def run_ours(checkpoint: Path, per_step: int, steps: int) -> None:
    """The parts that the loop is made of, one step a turn."""
    import torch

    from llamita.config import FinetuneConfig
    from llamita.data.batches import pack_rows
    from llamita.finetune.base_model import BaseModel
    from llamita.finetune.lora import LoraConfig, add_lora, initialize_updates
    from llamita.finetune.loss import ConversationLoss
    from llamita.finetune.packing import ConversationBatches, Examples
    from llamita.finetune.rendering import Example
    from llamita.finetune.sft import row_length
    from llamita.training.optimizer import build_optimizer

    config = FinetuneConfig(
        checkpoint=checkpoint, data=checkpoint, out=checkpoint, lora=True, rank=RANK, learning_rate=1e-3, beta2=0.999
    )
    base = BaseModel(checkpoint)
    model = base.build(0.0, torch.device("cpu"))
    base.fill(model)
    add_lora(model, LoraConfig(RANK))
    initialize_updates(model, torch.Generator().manual_seed(0))
    loss, optimizer = ConversationLoss(model), build_optimizer(model, config)
    reply({"ready": True})
    for step in range(steps):
        examples = Examples([Example(ids, learned, "") for ids, learned in make_conversations(per_step, step)])
        row = row_length(examples.lengths, 1024)
        rows = len(pack_rows(np.arange(per_step), examples.lengths, row, split=False))
        wait_for_turn()
        watch = Stopwatch()
        batch = next(ConversationBatches(examples, row, rows, seed=0))
        arrays = [torch.from_numpy(array) for name, array in batch._asdict().items() if name != "num_targets"]
        mean = loss(*arrays) / batch.num_targets
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        watch.reply(mean.item())


def run_theirs(checkpoint: Path, per_step: int, steps: int) -> None:
    """peft's model in transformers' Trainer, which waits for its turn before each step."""
    import peft
    import torch
    import transformers

    class Turns(transformers.TrainerCallback):
        """One step a turn."""

        watch: Stopwatch

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            wait_for_turn()
            self.watch = Stopwatch()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.watch.reply(losses[-1])

    losses: list[float] = []

    class Trainer(transformers.Trainer):
        """The Trainer, its losses kept."""

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            losses.append(loss.item())
            return loss

    def pad(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(sample["input_ids"]) for sample in samples)
        batch = {
            "input_ids": torch.zeros(len(samples), width, dtype=torch.long),
            "attention_mask": torch.zeros(len(samples), width, dtype=torch.long),
            "labels": torch.full((len(samples), width), -100),
        }
        for row, sample in enumerate(samples):
            length = len(sample["input_ids"])
            batch["input_ids"][row, :length] = torch.from_numpy(sample["input_ids"])
            batch["attention_mask"][row, :length] = 1
            batch["labels"][row, :length] = torch.from_numpy(sample["labels"])
        return batch

    samples = [
        {"input_ids": ids, "labels": np.where(learned, ids, -100)}
        for step in range(steps)
        for ids, learned in make_conversations(per_step, step)
    ]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as out:
        arguments = transformers.TrainingArguments(
            out, per_device_train_batch_size=per_step, max_steps=steps, learning_rate=1e-3, use_cpu=True,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
            lr_scheduler_type="constant", train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer = Trainer(
            peft.get_peft_model(model, settings), arguments, data_collator=pad, train_dataset=samples,
            callbacks=[Turns()],
        )  # fmt: skip
        reply({"ready": True})
        trainer.train()


# ---------------------------------------------------------------- the comparison


class Side:
    """A process of one side."""

    def __init__(self, name: str, checkpoint: Path, per_step: int, steps: int) -> None:
        command = [sys.executable, __file__, "--side", name, str(checkpoint), str(per_step), str(steps)]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()
        self.steps: list[dict[str, float]] = []

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                values: dict[str, Any] = json.loads(line)
                return values
        raise SystemExit(f"{self.name} ended with status {self.process.wait()}")

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.steps.append(self.read())

    def all(self, name: str) -> list[float]:
        """A measurement of each step, without the first."""
        return [step[name] for step in self.steps[1:]]


def make_checkpoint(folder: Path, shape: str, layers: int) -> None:
    """Random weights of the shape, with a byte-level tokenizer, which nothing uses."""
    import torch

    from llamita.checkpoint import save_checkpoint
    from llamita.config import ModelConfig
    from llamita.data.tales import generate_tales
    from llamita.model.llama import Llama
    from llamita.tokenizer import train_bpe

    config = ModelConfig(**SHAPES[shape] | {"num_hidden_layers": layers}, rope_theta=100000.0)
    model = Llama(config).initialize(torch.Generator().manual_seed(0))
    save_checkpoint(folder, config, model.state_dict(), train_bpe(generate_tales(50), 300).save)


def compare(shape: str, layers: int, per_step: int, rounds: int) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "base"
        make_checkpoint(checkpoint, shape, layers)
        sides = [Side(name, checkpoint, per_step, rounds + 1) for name in ("ours", "theirs")]
        for number in range(rounds + 1):  # the first is the warm-up
            for side in sides:
                side.step()
            print(f"round {number}: " + ", ".join(f"{s.name} {s.steps[-1]['seconds']:.2f} s" for s in sides))
        for side in sides:
            side.process.kill()
            side.process.wait()
    ours, theirs = sides
    for side in sides:
        times, processor = side.all("seconds"), statistics.median(side.all("processor"))
        print(
            f"{side.name:7} {per_step / statistics.median(times):6.2f} samples/s "
            f"({per_step / max(times):.2f} to {per_step / min(times):.2f}), {processor:.2f} processor seconds a step, "
            f"first loss {side.steps[0]['loss']:.4f}, "
            f"peak {side.steps[-1]['peak']:,.0f} MB"
        )
    ratio, work = (
        statistics.median(theirs.all(name)) / statistics.median(ours.all(name)) for name in ("seconds", "processor")
    )
    print(
        f"ours / theirs: {ratio:.2f} x samples/s, {work:.2f} x samples a processor second, "
        f"{ours.steps[-1]['peak'] / theirs.steps[-1]['peak']:.2f} x memory"
    )
    if abs(ours.steps[0]["loss"] - theirs.steps[0]["loss"]) > 1e-3:
        print("the first losses differ: this was not the same work")
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LAYERS} layers, two rounds")
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2-135m")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--samples", type=int, default=8, help="conversations a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.side:
        name, checkpoint, per_step, steps = flags.side
        (run_ours if name == "ours" else run_theirs)(Path(checkpoint), int(per_step), int(steps))
        return 0
    if flags.quick:
        return compare(flags.shape, QUICK_LAYERS, flags.samples, 2)
    return compare(flags.shape, flags.layers or SHAPES[flags.shape]["num_hidden_layers"], flags.samples, flags.rounds)


if __name__ == "__main__":
    sys.exit(main())
