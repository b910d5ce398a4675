"""Checks training on a CUDA GPU in eight minutes: PASS or FAIL line by line, and step timings.

    python benchmarks/gpu.py --out FOLDER                 FOLDER/gpu.json, and a log of each section
    python benchmarks/gpu.py --out FOLDER --device cpu    a dry run, with tiny shapes
    python benchmarks/gpu.py --out FOLDER --only speed    one section

Each section is a separate process, so that a crash ends only that section. Sections that measure
nothing run side by side first:

    equality     losses and gradients beside the CPU's, in float32, bfloat16 and compiled
    runs         the command: train, repeat, interrupt, resume, accumulate, checkpoint, compile
    processes    DDP, FSDP2 and resharding over NCCL, with the code for many in a single process
    finetuning   LoRA, QLoRA (if bitsandbytes is installed), all weights, a teacher, DPO, merging
    warmup       fills the compiler's cache for the shapes that are timed below

The others run alone: attention (which kernel each call takes), speed (15M and 110M), minutes (does
a run take the given time).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend

from llamita.cli import main as llamita
from llamita.config import ModelConfig, TrainConfig
from llamita.finetune.dpo_loss import DpoLoss
from llamita.finetune.linear_4bit import Linear4bit
from llamita.finetune.lora import LoraConfig, add_lora, lora_specs, replace_layer
from llamita.finetune.loss import ConversationLoss
from llamita.finetune.packing import document_starts
from llamita.model.llama import Llama
from llamita.model.sdpa import attend, can_attend_packed, shared_mask
from llamita.stories.generate import generate_stories
from llamita.training import run as training_run
from llamita.training.distillation import DistillationLoss
from llamita.training.distributed import Ranks, choose_device
from llamita.training.flops import flops_per_token, peak_flops
from llamita.training.loss import SummedLoss, packed_mask
from llamita.training.optimizer import build_optimizer, orthogonalize_each

# time limits in seconds
TOGETHER = {"equality": 120, "runs": 150, "processes": 150, "finetuning": 150, "warmup": 150}
ALONE = {"attention": 40, "speed": 150, "minutes": 80}
STEP_TOKENS = 65536
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
# layers, hidden, heads, ffn, context
SHAPES = {"15M": (6, 288, 6, 768, 256), "110M": (12, 768, 12, 2048, 1024)}
# model, vocabulary, tokens per step, compiled
SPEEDS = (
    ("15M", 4096, STEP_TOKENS, False), ("15M", 4096, STEP_TOKENS, True), ("110M", 4096, STEP_TOKENS, False),
    ("110M", 4096, STEP_TOKENS, True), ("110M", 32000, STEP_TOKENS, False), ("110M", 32000, STEP_TOKENS, True),
    ("110M", 4096, 2 * STEP_TOKENS, True),
)  # fmt: skip


class Checks:
    """Results of a section: lines on the terminal, and checks.jsonl."""

    def __init__(self, out: Path, device: str) -> None:
        self.out, self.runs, self.device, self.start = out, out / "runs", device, time.monotonic()
        self.is_dry_run = device == "cpu"
        self.runs.mkdir(parents=True, exist_ok=True)

    def say(self, *parts: object) -> None:
        print(f"[{time.monotonic() - self.start:6.1f}]", *parts, flush=True)

    def check(self, name: str, holds: bool, note: object = "") -> None:
        self.say("PASS" if holds else "FAIL", name, note)
        self.write("checks.jsonl", {"name": name, "holds": bool(holds), "note": str(note)})

    def write(self, name: str, line: dict[str, Any]) -> None:
        with open(self.out / name, "a") as file:
            file.write(json.dumps(line) + "\n")

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A named part of a section. An exception in it is a failed check."""
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            self.check(name, False, f"{type(error).__name__}: {str(error)[:300]}")
        self.say(f"-- {name}: {time.monotonic() - start:.1f} s")

    def synchronize(self) -> None:
        if not self.is_dry_run:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object], repeats: int = 10) -> float:
        """Mean time of a call, after an untimed one."""
        work()
        self.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        self.synchronize()
        return (time.perf_counter() - start) / repeats * 1e3


# ---------------------------------------------------------------- equality


def equality(checks: Checks) -> None:
    """Five losses with their gradients, and Muon's direction, beside the CPU in float32."""
    torch.set_float32_matmul_precision("highest")
    if not checks.is_dry_run:
        checks.say(torch.__version__, "cuDNN", torch.backends.cudnn.version(), torch.cuda.get_device_name())
    for kind in ("pretraining", "conversations", "varlen", "lora", "qlora", "dpo", "distillation"):
        if kind == "qlora" and not HAS_BITSANDBYTES:
            checks.say("SKIP qlora: bitsandbytes is not installed")
            continue
        with checks.part(kind):
            loss, gradient = _loss_and_gradient(kind, "cpu", torch.float32, compiled=False)
            variants = [("float32", torch.float32, False, 1e-5, 1e-4), ("bfloat16", torch.bfloat16, False, 5e-3, 5e-2)]
            if kind == "qlora":  # a scale may be rounded otherwise
                variants[0] = ("float32", torch.float32, False, 1e-3, 1e-2)
            if kind == "varlen" and not checks.is_dry_run:
                takes = can_attend_packed(torch.device(checks.device), torch.bfloat16, 32)
                checks.check("packed rows take varlen_attn", takes)
            if kind == "pretraining" and not checks.is_dry_run:
                variants.append(("bfloat16 compiled", torch.bfloat16, True, 5e-3, 5e-2))
            for label, dtype, compiled, loss_limit, gradient_limit in variants:
                found, found_gradient = _loss_and_gradient(kind, checks.device, dtype, compiled=compiled)
                off = abs(found - loss) / abs(loss)
                gradient_off = ((found_gradient - gradient).norm() / gradient.norm()).item()
                holds = off < loss_limit and gradient_off < gradient_limit and math.isfinite(found)
                checks.check(f"{kind} {label} equals the CPU's", holds, f"loss {off:.1e} gradient {gradient_off:.1e}")
    with checks.part("muon"):
        matrices = [torch.randn(288, 288), torch.randn(768, 2048), torch.randn(2048, 768)]
        expected = orthogonalize_each(matrices)
        found_matrices = orthogonalize_each([m.to(checks.device) for m in matrices])
        for matrix, on_gpu in zip(expected, found_matrices, strict=True):
            off = ((on_gpu.cpu() - matrix).norm() / matrix.norm()).item()
            checks.check(f"Muon's direction of {tuple(matrix.shape)} equals the CPU's", off < 0.03, f"{off:.1e}")


def _loss_and_gradient(kind: str, device: str, dtype: torch.dtype, *, compiled: bool) -> tuple[float, Tensor]:
    """Of a small grouped-query network; the gradient is one vector on the CPU."""
    shape = ModelConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=192,
    )  # fmt: skip

    def network(seed: int) -> Llama:
        return Llama(shape).initialize(torch.Generator().manual_seed(seed))

    torch.manual_seed(0)
    inputs, targets = torch.randint(1000, (6, 192)), torch.randint(1000, (6, 192))
    targets[:, ::5] = -100
    segments = torch.arange(192).div(50, rounding_mode="floor").expand(6, 192).contiguous()
    reference = torch.randn(2, 4, dtype=torch.float64)
    model = network(1).to(device)
    batch = [inputs, targets]
    if kind == "qlora":
        for name, _ in lora_specs(shape):
            weight = model.get_submodule(name).weight
            replace_layer(model, name, lambda linear: Linear4bit(linear, torch.device(device), dtype))
            model.load_state_dict({f"{name}.weight": weight}, strict=False)
    if kind in ("lora", "qlora"):
        add_lora(model, LoraConfig(4), torch.Generator().manual_seed(2))
        with torch.no_grad():
            for index, (name, weight) in enumerate(model.named_parameters()):
                if "lora_B" in name:
                    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)) * 0.02)
    loss: torch.nn.Module
    if kind in ("conversations", "varlen", "lora", "qlora"):
        loss, batch = ConversationLoss(model, dtype), [*batch, segments]
        if kind == "varlen":
            batch += [(targets.flatten() != -100).nonzero()[:, 0], torch.from_numpy(document_starts(segments.numpy()))]
    elif kind == "dpo":
        pairs = segments[:3].clamp_max(3)
        loss, batch = DpoLoss(model, "dpo", 0.1, 0.0, dtype), [*batch, torch.cat((pairs, pairs)), reference]
    elif kind == "distillation":
        loss = DistillationLoss(model, network(3).to(device, dtype), dtype)
    else:
        loss = SummedLoss(model, dtype, compiled=compiled)
    found = loss(*(array.to(device) for array in batch))
    (found / 900).backward()
    gradients = [p.grad.float().flatten().cpu() for p in model.parameters() if p.grad is not None]
    return found.item(), torch.cat(gradients)


# ---------------------------------------------------------------- attention


def attention(checks: Checks) -> None:
    """No call may use the kernel that stores all T² scores, or compile a plan for each length."""
    if checks.is_dry_run:
        return
    names = {int(backend): name for name, backend in SDPBackend.__members__.items()}
    half, single = torch.bfloat16, torch.float32
    calls = (
        (64, 1024, 12, 12, False, half), (64, 1024, 12, 6, False, half), (16, 1024, 12, 6, False, single),
        (16, 1024, 9, 3, True, half), (4, 4096, 9, 3, True, half),
    )  # fmt: skip
    chosen: list[int] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def recording(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        options = more["attn_mask"], more["dropout_p"], more["is_causal"]
        chosen.append(torch._fused_sdp_choice(query, key, value, *options, enable_gqa=more["enable_gqa"]))
        return plain(query, key, value, **more)

    for rows, time_, heads, kv_heads, has_mask, dtype in calls:
        name = f"{rows} rows of {time_}, {heads}/{kv_heads} heads, {'mask, ' if has_mask else ''}{str(dtype)[6:]}"
        with checks.part(name):
            query, key, value = (
                torch.randn(rows, time_, n, 64, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_()
                for n in (heads, kv_heads, kv_heads)
            )
            mask = torch.ones(rows, 1, time_, time_, dtype=torch.bool, device="cuda").tril() if has_mask else None

            def work(q: Tensor = query, k: Tensor = key, v: Tensor = value, m: Tensor | None = mask) -> None:
                attend(q, k, v, m).sum().backward()

            torch.nn.functional.scaled_dot_product_attention = recording
            work()
            torch.nn.functional.scaled_dot_product_attention = plain
            torch.cuda.reset_peak_memory_stats()
            before, ms = torch.cuda.memory_allocated(), checks.milliseconds(work)
            peak = (torch.cuda.max_memory_allocated() - before) / 1e9
            kernel = names.get(chosen[-1], str(chosen[-1]))
            checks.check(f"attention of {name}", kernel != "MATH", f"{kernel}: {ms:.2f} ms, {peak:.2f} GB")
    with checks.part("packed rows"):
        _attend_packed(checks)
    with checks.part("new lengths"), torch.no_grad():

        def one(length: int) -> None:
            attend(*(torch.randn(8, n, length, 64, device="cuda", dtype=half) for n in (9, 3, 3)))

        one(299)
        checks.synchronize()
        start = time.perf_counter()
        for length in range(300, 324):
            one(length)
        checks.synchronize()
        ms = (time.perf_counter() - start) / 24 * 1e3
        checks.check("new lengths compile nothing", ms < 5, f"{ms:.1f} ms")


def _attend_packed(checks: Checks) -> None:
    """varlen_attn beside a mask: 16 rows of 4,096 tokens, in documents of 100 to 900."""
    lengths = torch.tensor([100, 900, 300, 500, 248]).repeat(2)
    segments = torch.arange(10).repeat_interleave(lengths).expand(16, 4096)
    starts = torch.from_numpy(document_starts(segments.numpy())).cuda()
    query, key, value = (
        torch.randn(16, 4096, n, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for n in (9, 3, 3)
    )
    mask = shared_mask(packed_mask(segments.cuda()), query)
    found: list[list[Tensor]] = []
    measured: list[str] = []
    for each in (mask, starts):

        def work(mask: Tensor = each) -> Tensor:
            out = attend(query, key, value, mask)
            out.square().sum().backward()
            return out

        out = work()
        found.append([out.detach(), *(x.grad for x in (query, key, value))])
        query.grad = key.grad = value.grad = None
        torch.cuda.reset_peak_memory_stats()
        before, ms = torch.cuda.memory_allocated(), checks.milliseconds(work)
        measured.append(f"{ms:.2f} ms, {(torch.cuda.max_memory_allocated() - before) / 1e9:.2f} GB")
        query.grad = key.grad = value.grad = None
    off = max(((b - a).norm() / a.norm()).item() for a, b in zip(*found, strict=True))
    checks.check("varlen_attn equals the mask", off < 2e-2, f"{off:.1e}; {measured[1]}, with the mask {measured[0]}")


# ---------------------------------------------------------------- speed


@dataclasses.dataclass
class Trained:
    """A network, and a training step on random tokens."""

    checks: Checks
    name: str
    vocab_size: int
    tokens: int
    compiled: bool

    def __post_init__(self) -> None:
        # as `llamita train` does; part of the compiler cache's key
        torch.set_float32_matmul_precision("high")
        layers, hidden, heads, ffn, context = (2, 64, 2, 96, 32) if self.checks.is_dry_run else SHAPES[self.name]
        self.tokens = 256 if self.checks.is_dry_run else self.tokens
        self.shape = ModelConfig(
            vocab_size=self.vocab_size, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, head_dim=hidden // heads,
            max_position_embeddings=context,
        )  # fmt: skip
        device = self.checks.device
        self.model = Llama(self.shape).initialize(torch.Generator().manual_seed(0)).to(device)
        config = TrainConfig(
            data=Path(), out=Path(), steps=9, learning_rate=0.01, embedding_lr=0.01, beta2=0.95, weight_decay=0.1
        )
        self.optimizer = build_optimizer(self.model, config)
        self.loss = SummedLoss(self.model, torch.bfloat16, compiled=self.compiled)
        self.batch = [
            torch.randint(self.vocab_size, (self.tokens // context, context), device=device) for _ in range(2)
        ]

    def backward(self) -> None:
        (self.loss(*self.batch) / self.tokens).backward()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def step(self) -> None:
        self.backward()
        self.update()
        self.optimizer.zero_grad()


def warmup(checks: Checks) -> None:
    """Compile what `speed` times, one process per case."""
    if checks.is_dry_run:
        return
    code = "import sys; sys.path.insert(0, {!r}); import gpu; from pathlib import Path; "
    code += "gpu.Trained(gpu.Checks(Path({!r}), 'cuda'), *{!r}).backward()"
    folder = str(Path(__file__).parent)
    jobs = [
        subprocess.Popen([sys.executable, "-c", code.format(folder, str(checks.out), speed_)])
        for speed_ in SPEEDS if speed_[3]
    ]  # fmt: skip
    checks.check("compiles", all(job.wait() == 0 for job in jobs))


def speed(checks: Checks) -> None:
    """Milliseconds per step and its parts, tokens per second, memory."""
    for case in SPEEDS[:1] if checks.is_dry_run else SPEEDS:
        with checks.part(f"{case[0]}, vocabulary {case[1]}, {case[2]} tokens, {'compiled' if case[3] else 'eager'}"):
            _measure(checks, *case)
            if not checks.is_dry_run:
                torch.cuda.empty_cache()
    if not checks.is_dry_run:
        with checks.part("the command, stories15M compiled"):
            command, run = Command(checks), checks.runs / "stories15M"
            pace = ["--preset", "stories15M", "--steps", 80, "--compile", "on", "--log-interval", 20]
            command("train", command.store, "--out", run, *pace, "--eval-interval", 80)
            found = [round(line["tokens_per_second"]) for line in command.lines("stories15M")]
            checks.say("tokens/s, every 20 steps:", found)


def _measure(checks: Checks, name: str, vocab_size: int, tokens: int, compiled: bool) -> None:
    trained = Trained(checks, name, vocab_size, tokens, compiled)
    start = time.perf_counter()
    trained.step()
    checks.synchronize()
    first_seconds = time.perf_counter() - start
    if not checks.is_dry_run:
        torch.cuda.reset_peak_memory_stats()
    step_ms = checks.milliseconds(trained.step, 20 if name == "15M" else 10)
    start = time.perf_counter()
    trained.step()  # the queue is empty, so this is the CPU's own time
    host_ms = (time.perf_counter() - start) * 1e3
    backward_ms = checks.milliseconds(trained.backward, 5)
    update_ms = checks.milliseconds(trained.update, 5)
    per_second = trained.tokens / step_ms * 1e3
    device = choose_device(checks.device)
    peak, context = peak_flops(device, torch.bfloat16), trained.shape.max_position_embeddings
    line = {
        "model": name, "vocab_size": vocab_size, "tokens": trained.tokens, "compiled": compiled,
        "first_seconds": round(first_seconds, 1), "step_ms": round(step_ms, 1), "host_ms": round(host_ms, 1),
        "backward_ms": round(backward_ms, 1), "update_ms": round(update_ms, 1), "tokens_per_second": round(per_second),
        "mfu": round(per_second * flops_per_token(trained.shape, context) / peak, 3) if peak else None,
        "peak_gb": 0 if checks.is_dry_run else round(torch.cuda.max_memory_allocated() / 1e9, 1),
    }  # fmt: skip
    checks.say(json.dumps(line))
    checks.write("speed.jsonl", line)
    checks.check(f"{name} trains, vocabulary {vocab_size}, {'compiled' if compiled else 'eager'}", True)
    if compiled and tokens == STEP_TOKENS and not checks.is_dry_run:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            trained.step()
            checks.synchronize()
        table = profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90)
        (checks.out / f"profile-{name}-{vocab_size}.txt").write_text(table)


# ---------------------------------------------------------------- the command


def runs(checks: Checks) -> None:
    """Same seed, same losses: repeated, interrupted, resumed, accumulated, compiled."""
    command = Command(checks)
    with checks.part("train"):
        command.train("plain", "--compile", "off")
        checks.say("evaluations", [round(line["evaluation_seconds"], 2) for line in command.lines("plain", "eval")])
    with checks.part("repeated"):
        command.train("again", "--compile", "off")
        command.check_same("plain", "again", 1e-3)
    with checks.part("interrupted and resumed"):
        checks.check("interrupted and saved", command.interrupted("cut", "--compile", "off"))
        command.train("cut", "--compile", "off", "--resume")
        command.check_same("plain", "cut", 5e-3)
    with checks.part("accumulate, checkpoint activations"):
        half = command.rows // 2
        command.train(
            "halves",
            "--compile",
            "off",
            "--micro-batch-size",
            half,
            "--grad-accum-steps",
            2,
            "--activation-checkpointing",
        )
        command.check_same("plain", "halves", 5e-3)
    if not checks.is_dry_run:
        with checks.part("compiled"):
            command.train("compiled", "--compile", "on")
            command.check_same("plain", "compiled", 1e-2)
    with checks.part("dropout"):
        command.train("dropout", "--compile", "off", "--dropout", 0.1, "--steps", 10)


def processes(checks: Checks) -> None:
    """DDP and FSDP2 with NCCL, with the code for many processes in a single one."""
    command = Command(checks)
    with checks.part("train"):
        command.train("plain", "--compile", "off")
    alone = training_run.start_ranks
    training_run.start_ranks = lone_ranks
    with checks.part("DDP"):
        command.train("ddp", "--compile", "off")
        command.check_same("plain", "ddp", 5e-3)
    with checks.part("FSDP2"):
        command.train("fsdp", "--fsdp")
        command.check_same("plain", "fsdp", 2e-2)
        checks.check("shards are written", (checks.runs / "fsdp/latest/training/optimizer").is_dir())
    with checks.part("FSDP2, resumed by one process"):
        checks.check("interrupted and saved", command.interrupted("cut", "--fsdp"))
        training_run.start_ranks = alone
        command.train("cut", "--compile", "off", "--resume")
        command.check_same("plain", "cut", 2e-2)
    training_run.start_ranks = alone


def finetuning(checks: Checks) -> None:
    """The validation loss falls; adapters merge."""
    command = Command(checks)
    base = checks.runs / "base"
    with checks.part("base"):
        command.train("base", "--compile", "off")
    context = ["--chat-template", "zephyr", "--context", 64 if checks.is_dry_run else 256, "--device", checks.device]
    small = ["--lora", "--load-in-4bit"]
    for name, more in (("lora", ["--lora"]), ("qlora", small), ("all", []), ("teacher", ["--teacher", base])):
        if name == "qlora" and not HAS_BITSANDBYTES:
            checks.say("SKIP qlora: bitsandbytes is not installed")
            continue
        with checks.part(name):
            pace = ["--steps", 20, "--log-interval", 5, "--eval-interval", 10]
            questions = checks.out / "questions.jsonl"
            command("finetune", base, questions, "--out", checks.runs / name, *pace, *context, *more)
            evaluations = command.lines(name, "eval")
            first, last = evaluations[0]["loss"], evaluations[-1]["loss"]
            seconds = [round(line["evaluation_seconds"], 2) for line in evaluations]
            checks.check(f"{name} learns", last < first, f"{first:.3f} to {last:.3f}; evaluations {seconds} s")
    with checks.part("dpo"):
        pairs, out = checks.out / "pairs.jsonl", checks.runs / "dpo"
        command("finetune", base, pairs, "--out", out, "--steps", 10, "--preference", "dpo", *context)
    with checks.part("merge"):
        command("merge", base, checks.runs / "lora", "--out", checks.runs / "merged")
        if HAS_BITSANDBYTES:
            command("merge", base, checks.runs / "qlora", "--out", checks.runs / "merged-qlora")


def minutes(checks: Checks) -> None:
    """--minutes, with a plan made on this GPU."""
    command, given = Command(checks), 0.3 if checks.is_dry_run else 0.8
    with checks.part("minutes"):
        run = checks.runs / "minutes"
        command("train", command.store, "--out", run, "--minutes", given, "--device", checks.device)
        found = json.loads((run / "summary.json").read_text())
        is_kept = abs(found["seconds"] - 60 * given) < 0.15 * 60 * given
        note = f"{found['seconds']:.1f} of {60 * given:.0f} s, {found['steps']} steps, {found['num_parameters']:,} "
        note += f"weights, {found['tokens_per_second']:,.0f} tokens/s, MFU {found['mfu']}"
        min_steps = 1 if checks.is_dry_run else 21
        checks.check("the run takes the given minutes", is_kept and found["steps"] >= min_steps, note)


class Command:
    """The command line, called in this process, on a small store of generated stories."""

    def __init__(self, checks: Checks) -> None:
        self.checks, self.store = checks, Path(os.environ["STORE"])
        layers, hidden, heads, context, self.rows = (2, 64, 2, 64, 4) if checks.is_dry_run else (4, 256, 8, 256, 32)
        self.flags = [
            "--layers", layers, "--hidden", hidden, "--heads", heads, "--kv-heads", heads // 2, "--context", context,
            "--log-interval", 5, "--eval-interval", 20, "--seed", 1, "--device", checks.device,
        ]  # fmt: skip

    def __call__(self, *arguments: object, expected: int = 0) -> None:
        start = time.monotonic()
        texts = [str(argument) for argument in arguments]
        code = llamita(texts)
        self.checks.say(f"llamita {' '.join(texts)[:100]}: {code} in {time.monotonic() - start:.1f} s")
        self.checks.check(f"llamita {texts[0]} {' '.join(texts[-2:])}", code == expected)

    def train(self, name: str, *more: object, expected: int = 0) -> None:
        own = [] if "--micro-batch-size" in more else ["--micro-batch-size", self.rows]
        own += [] if "--steps" in more else ["--steps", 40]
        self("train", self.store, "--out", self.checks.runs / name, *self.flags, *own, *more, expected=expected)

    def interrupted(self, name: str, *more: object) -> bool:
        """Train, and send SIGINT after five lines of metrics; whether it saved before the end."""

        def interrupt() -> None:
            while not (self.checks.runs / name / "metrics.jsonl").exists() or len(self.lines(name)) < 5:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        self.train(name, *more, expected=130)
        return self.lines(name)[-1]["step"] < 40

    def lines(self, run: str, kind: str = "train") -> list[dict[str, Any]]:
        text = (self.checks.runs / run / "metrics.jsonl").read_text()
        return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]

    def check_same(self, run: str, other: str, limit: float) -> None:
        one, two = ({line["step"]: line["loss"] for line in self.lines(name)} for name in (run, other))
        worst = max(abs(one[step] - two.get(step, math.inf)) / one[step] for step in one)
        self.checks.check(f"{other} has the losses of {run}", worst < limit, f"largest difference {worst:.1e}")


class LoneWorld(int):
    """1 as a number of processes that claims to be more than one."""

    def __gt__(self, other: int) -> bool:
        return int(self) == 1 or int.__gt__(self, other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoneWorld) or (int(self) != 1 and int.__eq__(self, other))

    __hash__ = int.__hash__


@contextlib.contextmanager
def lone_ranks(device: str, threads: int | None) -> Iterator[Ranks]:
    """start_ranks with a process group of one."""
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    bound = chosen if chosen.type == "cuda" else None
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=bound)
    try:
        yield Ranks(0, LoneWorld(1), chosen, "lone", 0)
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------- all sections


def write_data(out: Path, num_stories: int) -> None:
    """A token store of generated stories; questions and pairs made from their first sentences."""
    flags = ["--num-stories", str(num_stories), "--vocab-size", "2048", "--out", str(out / "store")]
    llamita(["prepare", "stories", *flags])
    sentences = [each.split(". ")[:2] for each in generate_stories(3000, seed=1)]
    asked = [parts for parts in sentences if len(parts) == 2 and max(map(len, parts)) < 150]
    with open(out / "questions.jsonl", "w") as file:
        for first, second in asked[:2000]:
            file.write(json.dumps({"question": f"Go on: {first}.", "answer": f"{second}."}) + "\n")
    with open(out / "pairs.jsonl", "w") as file:
        for (first, second), (_, other) in zip(asked[:600], asked[1000:1600], strict=False):
            answers = {"chosen": f"{second}.", "rejected": f"{other}."}
            file.write(json.dumps({"prompt": f"Go on: {first}.", **answers}) + "\n")


def run_all(out: Path, device: str, limit: float) -> int:
    """Run every section as a process; returns the number of failed checks."""
    start = time.monotonic()
    jobs: dict[str, subprocess.Popen[bytes]] = {}

    def left() -> float:
        return limit - (time.monotonic() - start)

    def begin(name: str) -> None:
        (out / name).mkdir(exist_ok=True)
        for data in ("questions.jsonl", "pairs.jsonl"):
            (out / name / data).write_bytes((out / data).read_bytes())
        words = [sys.executable, __file__, "--out", str(out / name), "--device", device, "--only", name]
        environment = os.environ | {"STORE": str(out / "store"), "OMP_NUM_THREADS": "4"}
        log = open(out / f"{name}.log", "w")  # noqa: SIM115
        jobs[name] = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def finish(name: str, seconds: float) -> None:
        try:
            code = jobs[name].wait(max(1.0, min(seconds, left())))
        except subprocess.TimeoutExpired:
            jobs[name].kill()
            code = 124
        print(f"[{time.monotonic() - start:6.1f}] {name}: {'done' if code == 0 else f'FAIL {code}'}", flush=True)
        if code:
            Checks(out / name, device).check(f"section {name}", False, code)

    write_data(out, 2000 if device == "cpu" else 20_000)
    for name in TOGETHER:
        begin(name)
    for name, seconds in TOGETHER.items():
        finish(name, seconds - (time.monotonic() - start))
    for name, seconds in ALONE.items():
        if left() > 15:
            begin(name)
            finish(name, seconds)
    found: dict[str, Any] = {"checks": [], "speed": []}
    for name in (*TOGETHER, *ALONE):
        for key in found:
            path = out / name / f"{key}.jsonl"
            found[key] += [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    (out / "gpu.json").write_text(json.dumps(found, indent=1))
    failed = [check for check in found["checks"] if not check["holds"]]
    for line in found["speed"]:
        print(json.dumps(line))
    for check in failed:
        print("FAIL", check["name"], check["note"])
    print(f"{len(found['checks']) - len(failed)} of {len(found['checks'])} checks hold")
    return len(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--only", choices=[*TOGETHER, *ALONE])
    parser.add_argument("--seconds", type=float, default=480.0, help="limit of all sections")
    flags = parser.parse_args()
    out = flags.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if flags.only is None:
        return min(1, run_all(out, flags.device, flags.seconds))
    if "STORE" not in os.environ:
        write_data(out, 2000)
        os.environ["STORE"] = str(out / "store")
    globals()[flags.only](Checks(out, flags.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
