"""Speed and memory of LoRA fine-tuning: ours, and peft with transformers' Trainer.

    python benchmarks/finetune_speed.py            # SmolLM2-135M's shape: ten minutes on two cores
    python benchmarks/finetune_speed.py --quick    # four of its thirty layers, two rounds
    python benchmarks/finetune_speed.py --shape llama2-7b --layers 2   # memory per layer of a 7B

Both sides train the same weights on the same conversations, in turns, one step each, in processes
of their own. Ours packs conversations into rows and computes logits only where there is a target;
the Trainer pads them and computes all. Rank 8 on all linear layers, AdamW, float32. The first
losses must agree to 1e-3, or the exit status is 1. Memory is the largest resident set of the
process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import Worker, open_replies, peak_memory_bytes

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
MIN_VOCAB_SIZE = min(shape["vocab_size"] for shape in SHAPES.values())
RANK = 8
QUICK_LAYERS = 4


def make_conversations(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """ids and the mask of targets: questions of 10 to 40 tokens, answers of 30 to 350, as in
    MedQuAD."""
    random = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        asked, answered = int(random.integers(10, 40)), int(np.clip(random.lognormal(4.9, 0.6), 30, 350))
        ids = random.integers(3, MIN_VOCAB_SIZE, asked + answered)
        result.append((ids, np.arange(asked + answered) >= asked))
    return result


# ---------------------------------------------------------------- workers


class Turns:
    """A worker's side of measure.Worker: wait() before each step, done() after it."""

    def __init__(self) -> None:
        self._reply = open_replies()

    def ready(self) -> None:
        self._reply({})

    def wait(self) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self._start = time.perf_counter(), time.process_time()

    def done(self, loss: float) -> None:
        seconds, processor = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        self._reply({"seconds": seconds, "processor": processor, "loss": loss, "peak": peak_memory_bytes() / 1e6})


def run_ours(checkpoint: Path, per_step: int, steps: int) -> None:
    """Our training step, without the trainer's loop."""
    import torch

    from llamita.config import FinetuneConfig
    from llamita.data.batches import pack_rows
    from llamita.finetune.base_model import BaseModel
    from llamita.finetune.defaults import row_length
    from llamita.finetune.lora import LoraConfig, add_lora, initialize_updates
    from llamita.finetune.loss import ConversationLoss
    from llamita.finetune.packing import ConversationBatches, Examples
    from llamita.finetune.rendering import Example
    from llamita.training.optimizer import build_optimizer

    config = FinetuneConfig(
        checkpoint=checkpoint, data=checkpoint, out=checkpoint, lora=True, rank=RANK, learning_rate=1e-3, beta2=0.999
    )
    base = BaseModel(checkpoint)
    model = base.build(0.0, torch.device("cpu"))
    base.fill(model)
    add_lora(model, LoraConfig(RANK))
    initialize_updates(model, torch.Generator().manual_seed(0))
    loss, optimizer, turns = ConversationLoss(model), build_optimizer(model, config), Turns()
    turns.ready()
    for step in range(steps):
        examples = Examples([Example(ids, mask, "") for ids, mask in make_conversations(per_step, step)])
        row = row_length(examples.lengths, 1024)
        rows = len(pack_rows(np.arange(per_step), examples.lengths, row, split=False))
        turns.wait()
        batch = next(ConversationBatches(examples, row, rows, seed=0))
        arrays = [torch.from_numpy(array) for name, array in batch._asdict().items() if name != "num_targets"]
        mean = loss(*arrays) / batch.num_targets
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.done(mean.item())


def run_theirs(checkpoint: Path, per_step: int, steps: int) -> None:
    """peft's model in transformers' Trainer."""
    import peft
    import torch
    import transformers

    turns, losses = Turns(), [0.0]

    class TakeTurns(transformers.TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.wait()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.done(losses[-1])

    class Trainer(transformers.Trainer):
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
            callbacks=[TakeTurns()],
        )  # fmt: skip
        turns.ready()
        trainer.train()


# ---------------------------------------------------------------- comparison


def make_checkpoint(folder: Path, shape: str, layers: int) -> None:
    """Random weights of the shape, and a small tokenizer, which is not used."""
    import torch

    from llamita.checkpoint import save_checkpoint
    from llamita.config import ModelConfig
    from llamita.model.llama import Llama
    from llamita.stories.generate import generate_stories
    from llamita.tokenizer import train_bpe

    config = ModelConfig(**SHAPES[shape] | {"num_hidden_layers": layers}, rope_theta=100000.0)
    model = Llama(config).initialize(torch.Generator().manual_seed(0))
    save_checkpoint(folder, config, model.state_dict(), train_bpe(generate_stories(50), 300).save)


def compare(shape: str, layers: int, samples: int, rounds: int) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "base"
        make_checkpoint(checkpoint, shape, layers)
        command = [sys.executable, __file__, "--worker"]
        sides = ("ours", "theirs")
        workers = [Worker(side, [*command, side, checkpoint, str(samples), str(rounds + 1)]) for side in sides]
        steps: list[list[dict[str, float]]] = [[], []]
        for number in range(rounds + 1):  # the first is the warm-up
            for worker, done in zip(workers, steps, strict=True):
                done.append(worker.ask())
            last = [f"{side} {done[-1]['seconds']:.2f} s" for side, done in zip(sides, steps, strict=True)]
            print(f"round {number}: {', '.join(last)}", flush=True)
        for worker in workers:
            worker.close()
    medians = []
    for side, (first, *rest) in zip(sides, steps, strict=True):
        times = [step["seconds"] for step in rest]
        processor, peak = statistics.median(step["processor"] for step in rest), rest[-1]["peak"]
        medians.append((statistics.median(times), processor, peak))
        print(
            f"{side:7} {samples / medians[-1][0]:6.2f} samples/s ({samples / max(times):.2f} to "
            f"{samples / min(times):.2f}), {processor:.2f} processor seconds per step, first loss {first['loss']:.4f}, "
            f"peak {peak:,.0f} MB"
        )
    speed, work, memory = (theirs / ours for ours, theirs in zip(*medians, strict=True))
    print(f"ours is {speed:.2f} x as fast ({work:.2f} x by processor time), with {1 / memory:.2f} x the memory")
    if abs(steps[0][0]["loss"] - steps[1][0]["loss"]) > 1e-3:
        print("the first losses differ: the two sides did not do the same work")
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LAYERS} layers, two rounds")
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2-135m")
    parser.add_argument("--layers", type=int, help="number of layers (default: the shape's)")
    parser.add_argument("--samples", type=int, default=8, help="conversations per step (default: 8)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        side, checkpoint, samples, steps = flags.worker
        (run_ours if side == "ours" else run_theirs)(Path(checkpoint), int(samples), int(steps))
        return 0
    if flags.quick:
        return compare(flags.shape, QUICK_LAYERS, flags.samples, 2)
    return compare(flags.shape, flags.layers or SHAPES[flags.shape]["num_hidden_layers"], flags.samples, flags.rounds)


if __name__ == "__main__":
    sys.exit(main())
