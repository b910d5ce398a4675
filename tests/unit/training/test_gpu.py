"""GPU behavior tested without a GPU: fake tensors, a fake torch.cuda, simulated clocks, gloo."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode  # noqa: E402
from torch.nn.attention import SDPBackend  # noqa: E402

from llamita.config import FinetuneConfig, ModelConfig, TrainConfig  # noqa: E402
from llamita.errors import TrainingError  # noqa: E402
from llamita.finetune import run as finetune_run  # noqa: E402
from llamita.finetune.dpo_data import DpoBatches, Pair, Pairs  # noqa: E402
from llamita.finetune.dpo_loss import DpoLoss  # noqa: E402
from llamita.finetune.lora import LoraConfig, add_lora  # noqa: E402
from llamita.finetune.loss import ConversationLoss  # noqa: E402
from llamita.finetune.packing import ConversationBatches, Examples  # noqa: E402
from llamita.finetune.rendering import Example  # noqa: E402
from llamita.model import sdpa  # noqa: E402
from llamita.model.kv_cache import KVCache  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.progress import no_progress  # noqa: E402
from llamita.training import checkpointer as checkpointer_module  # noqa: E402
from llamita.training import compile as compilation  # noqa: E402
from llamita.training import distillation, distributed, loss  # noqa: E402
from llamita.training.budget import Budget, Progress  # noqa: E402
from llamita.training.checkpointer import Checkpointer  # noqa: E402
from llamita.training.compile import ProbeResult, resolve_compile  # noqa: E402
from llamita.training.defaults import default_dtype, fill_defaults  # noqa: E402
from llamita.training.distillation import DistillationLoss  # noqa: E402
from llamita.training.distributed import Ranks  # noqa: E402
from llamita.training.flops import peak_flops  # noqa: E402
from llamita.training.memory import split_rows, token_bytes, tokens_that_fit  # noqa: E402
from llamita.training.pretraining import train  # noqa: E402
from llamita.training.run import explain_lost_process, explain_out_of_memory  # noqa: E402
from llamita.training.speed import SpeedMeter, StepQueue  # noqa: E402
from llamita.training.trainer import Trainer  # noqa: E402
from llamita.training.trainer_state import MetricsAccumulator, TrainerState  # noqa: E402

CUDA = torch.device("cuda", 0)
ALONE = Ranks(0, 1, torch.device("cpu"))
SHAPE = ModelConfig(
    vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=3, head_dim=8, max_position_embeddings=32,
)  # fmt: skip


def flags(tmp_path: Path = Path("run"), **values: Any) -> TrainConfig:
    return TrainConfig(data=Path("store"), out=tmp_path / "run", **values)


def network(seed: int = 0) -> Llama:
    return Llama(SHAPE).initialize(torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- processes that must agree

TWO_PROCESSES = """
import sys, types
from pathlib import Path
import torch, torch.distributed as dist
from llamita.config import FinetuneConfig, ModelConfig
from llamita.errors import TrainingError
from llamita.finetune import defaults as finetune_defaults
from llamita.training import fsdp as sharding
from llamita.training import run
from llamita.training.distributed import Ranks

rank = int(sys.argv[1])
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
ranks = Ranks(rank, 2, torch.device("cpu"))
assert ranks.min(3 + rank, -rank) == (3.0, -1.0)

# all processes get the same rows, even if one GPU has less free memory
finetune_defaults.free_bytes = lambda device: 6e9 - 3e9 * rank
shape = ModelConfig(49152, 576, 1536, 30, 9, 3, 64, 8192)
base = types.SimpleNamespace(config=shape, directory=Path("base"))
config = FinetuneConfig(checkpoint=Path("base"), data=Path("x"), out=Path("y"), lora=True, dtype="bfloat16")
on_gpu = Ranks(rank, 2, torch.device("cuda", 0))
rows = finetune_defaults.fill_defaults(config, base, on_gpu, 256, 256, 10**8).micro_batch_size
assert rows > 1 and ranks.min(rows, -rows) == (rows, -rows), rows

def task(rows, dtype):
    return types.SimpleNamespace(micro_batch_size=rows, config=types.SimpleNamespace(grad_accum_steps=1, dtype=dtype))

run._check_same_step(task(4, "float32"), ranks)
bad = ((task(4 + rank, "float32"), "4 to 5"), (task(4, ("float32", "bfloat16")[rank]), "same data type"))
for differing, message in bad:
    try:
        run._check_same_step(differing, ranks)
    except TrainingError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)

# all processes get the same logits, so that they agree on the end of a text
logits = torch.tensor([1.0, 1.0 + 1e-7 * rank])
assert sharding._first_process_logits(torch.nn.Identity(), (), logits).tolist() == [1.0, 1.0]

# DDP copies no gradients and sends no buffers
parallel = ranks.parallel(torch.nn.Linear(2, 2))
assert parallel.gradient_as_bucket_view and not parallel.broadcast_buffers
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_agree(tmp_path: Path) -> None:
    """Two gloo processes run the script above."""
    command = [sys.executable, "-c", TWO_PROCESSES]
    jobs = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for job in jobs:
        errors = job.communicate(timeout=180)[1]
        assert job.returncode == 0, errors


# ---------------------------------------------------------------- attention


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of PyTorch's attention; nothing is computed."""
    seen: list[dict[str, Any]] = []

    def note(query: Any, key: Any, value: Any, **more: Any) -> Any:
        seen.append({"kv_heads": key.shape[1], **more})
        return query

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", note)
    return seen


@pytest.mark.parametrize(
    ("dtype", "has_mask", "kv_heads"),
    [(torch.bfloat16, False, 3), (torch.bfloat16, True, 9), (torch.float32, False, 9), (torch.float32, True, 9)],
)
def test_attention_always_has_a_fused_kernel(
    dtype: Any, has_mask: bool, kv_heads: int, calls: list[dict[str, Any]]
) -> None:
    """Groups of query heads are kept only where a fused kernel takes them on every card."""
    with FakeTensorMode():
        query, key = (torch.empty(2, heads, 16, 64, device="cuda", dtype=dtype) for heads in (9, 3))
        mask = torch.ones(16, 16, dtype=torch.bool, device="cuda") if has_mask else None
        sdpa.attend(query, key, key, mask)
    assert calls[0]["kv_heads"] == kv_heads and calls[0]["enable_gqa"] == (kv_heads == 3)
    assert calls[0]["is_causal"] is not has_mask


def test_layers_share_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made once, in the type of the queries: made in each layer of SmolLM2-135M, and kept for the
    backward pass, it took 12 GB of 48."""
    masks: list[Any] = []

    def note(query: Any, key: Any, value: Any, mask: Any, dropout: float) -> Any:
        masks.append(mask)
        assert mask.dtype == query.dtype
        return query

    monkeypatch.setattr("llamita.model.llama.attend", note)
    model = network().to("meta")
    ids = torch.zeros(2, 16, dtype=torch.int64, device="meta")
    model.hidden_states(ids, mask=loss.packed_mask(ids), compute=torch.bfloat16)
    assert len(masks) == SHAPE.num_hidden_layers and all(mask is masks[0] for mask in masks)
    assert masks[0].shape == (2, 1, 16, 16)


def test_a_shared_mask_is_the_same_mask() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 1, 2]])
    mask = loss.packed_mask(segments)
    query, key, value = torch.randn(3, 1, 2, 6, 8, generator=torch.Generator().manual_seed(1))
    expected = sdpa.attend(query, key, value, mask)
    torch.testing.assert_close(sdpa.attend(query, key, value, sdpa.shared_mask(mask, query)), expected)


def kernel_on_meta(query: Any, key: Any, value: Any, attn_mask: Any, is_causal: bool, **more: Any) -> Any:
    """What PyTorch calls on an A100, with what that keeps for the backward pass."""
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, False)[0]
    assert not more["enable_gqa"] and attn_mask.dtype == query.dtype, "another kernel, or another mask"
    mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, True, 0.0, False)[0]


@pytest.mark.parametrize(("packed", "limit"), [("no", 41e9), ("by a mask", 41e9), ("by varlen_attn", 34e9)])
def test_memory_kept_a_token(packed: str, limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA of SmolLM2-135M on 80 GB: 41 GB for a pass of the default size, not 272, also where
    several conversations share a row."""
    monkeypatch.setattr(sdpa, "needs_whole_heads", lambda query, mask: mask is not None)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel_on_meta)
    shape = ModelConfig(49152, 576, 1536, 30, 9, 3, 64, 8192, tie_word_embeddings=True)
    with torch.device("meta"):
        model = Llama(shape)
        for layer in model.model.layers:
            for part in layer.modules():
                if isinstance(part, torch.nn.Linear):
                    part.to(torch.bfloat16)
        add_lora(model, LoraConfig(8))
    model.to("meta")
    own = {id(parameter) for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        if id(tensor) not in own and not tensor.is_leaf:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    ids = torch.zeros(2, 4096, dtype=torch.int64, device="meta")
    starts = torch.arange(0, ids.numel() + 1, 512, dtype=torch.int32, device="meta")
    mask = {"no": None, "by a mask": loss.packed_mask(ids), "by varlen_attn": starts}[packed]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.hidden_states(ids, mask=mask, compute=torch.bfloat16)
    each = sum(storage.nbytes() for storage in kept.values()) / ids.numel()
    tokens = tokens_that_fit(79e9, shape.num_parameters, 2, token_bytes(30, 576, 1536))
    assert 25e9 < tokens * each < limit, (tokens, each)


def test_new_lengths_do_not_use_cudnn(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient, lengths vary, so cuDNN is excluded; training keeps it."""
    chosen: list[Any] = []

    def note(kernels: Any) -> Any:
        chosen.append(kernels)
        return contextlib.nullcontext()

    monkeypatch.setattr(sdpa, "sdpa_kernel", note)
    with FakeTensorMode():
        query = torch.empty(2, 3, 16, 64, device="cuda", dtype=torch.bfloat16)
        sdpa.attend(query, query, query)
        assert not chosen
        with torch.no_grad():
            sdpa.attend(query, query, query)
    assert SDPBackend.CUDNN_ATTENTION not in chosen[0] and SDPBackend.FLASH_ATTENTION in chosen[0]


def test_single_queries_and_conversations_need_no_mask() -> None:
    """The results are the same without a mask."""
    cache = KVCache(SHAPE, 1, 8)
    assert cache.causal_mask(1) is None and cache.causal_mask(3) is not None
    ids = torch.randint(SHAPE.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    targets = ids.roll(1, 1)
    targets[:, 15:] = -100
    answers = ConversationLoss(network())
    assert torch.equal(answers(ids, targets), answers(ids, targets, torch.zeros_like(ids)))


# ---------------------------------------------------------------- types, memory, devices


def test_emulated_bfloat16_is_not_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 claims bfloat16 support unless asked about hardware."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert default_dtype(CUDA) == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert default_dtype(CUDA) == "bfloat16" and default_dtype(torch.device("cpu")) == "float32"


def test_steps_are_divided_into_passes_that_fit() -> None:
    """64 rows of stories110M fit in one pass on 80 GB, in several on 24 and 16 GB; the tokens per
    step stay the same."""

    def passes(gigabytes: float, **values: Any) -> tuple[int | None, int]:
        config = flags(steps=1, preset="stories110M", **({"dtype": "bfloat16"} | values))
        filled = fill_defaults(config, CUDA, 1, free=gigabytes * 1e9)
        return filled.micro_batch_size, filled.grad_accum_steps

    assert passes(79) == (64, 1)
    assert passes(24) == (16, 4) and passes(16) == (16, 4)
    assert passes(24, dtype="float32") == (8, 8)
    assert passes(24, activation_checkpointing=True) == (64, 1)
    assert passes(24, micro_batch_size=40) == (40, 1) and passes(24, grad_accum_steps=2) == (64, 2), (
        "given values are kept"
    )
    assert split_rows(6, 100, 350) == (3, 2) and split_rows(7, 100, 350) == (1, 7) and split_rows(4, 9, 0) == (1, 4)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA L40", 181), ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("NVIDIA RTX A1000", None),
        ("NVIDIA T400", None), ("Tesla T4", 65), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A40", 150),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)  # fmt: skip
def test_gpu_names_match_whole_words(name: str, teraflops: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An L40S is not an L4, a T400 is not a T4."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = peak_flops(CUDA, torch.bfloat16)
    assert found == (None if teraflops is None else teraflops * 1e12)


def test_preview_uses_the_device_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """--device auto means the GPU, whose rows are longer."""
    seen: list[str] = []

    def open_sft_dataset(config: FinetuneConfig, device: str) -> Any:
        seen.append(device)
        raise TrainingError("enough")

    monkeypatch.setattr(finetune_run, "open_sft_dataset", open_sft_dataset)
    monkeypatch.setattr(finetune_run, "is_text", lambda data: False)
    config = FinetuneConfig(checkpoint=Path("base"), data=Path("x.jsonl"), out=Path("y"), preview=1)
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=available: answer)
        with pytest.raises(TrainingError, match="enough"):
            finetune_run.show_preview(config, SimpleNamespace())
    assert seen == ["cuda", "cpu"]


# ---------------------------------------------------------------- the loss


def test_the_compiled_loss_equals_the_chunked_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not compiled here; on a GPU the kernel is compiled from the same function."""
    monkeypatch.setattr(loss, "_compiled_softmax_gradient", lambda: loss.softmax_gradient)
    monkeypatch.setattr(loss, "tokens_per_chunk", lambda weight: 5)
    torch.manual_seed(0)
    targets = torch.randint(50, (37,))
    targets[::4] = -100
    results = []
    for function in (loss.summed_cross_entropy, loss.compiled_cross_entropy):
        torch.manual_seed(1)
        hidden, weight = torch.randn(37, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
        total = function(hidden, weight, targets)
        (3 * total).backward()
        results.append((total.detach(), hidden.grad, weight.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert [s.stop - s.start for s in loss.even_slices(65536, 8388)] == [8192] * 8


def test_layers_compute_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers and norms get bfloat16, as with FSDP2; weights and gradients stay float32."""
    monkeypatch.setattr(loss, "can_fuse", lambda model: False)  # as on a GPU
    model = network()
    seen: set[Any] = set()
    for module in model.modules():
        if module is not model and not list(module.children()):
            module.register_forward_pre_hook(lambda module, arguments: seen.add(arguments[0].dtype))
    ids = torch.randint(SHAPE.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    loss.SummedLoss(model, torch.bfloat16)(ids, ids).backward()
    assert seen == {torch.int64, torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_distillation_takes_smaller_chunks_on_a_gpu() -> None:
    """Eight copies of a chunk's logits exist there at once, and took 4 GB."""
    for is_cuda, share in ((True, 4), (False, 1)):
        weight: Any = SimpleNamespace(
            is_cuda=is_cuda, device=torch.device("cuda" if is_cuda else "cpu"), shape=(32000, 8)
        )
        assert distillation.tokens_per_distillation_chunk(weight) == max(1, loss.tokens_per_chunk(weight) // share)


@pytest.mark.parametrize("kind", ["answers", "distillation", "preferences"])
def test_losses_do_not_wait_for_the_number_of_targets(kind: str) -> None:
    """Selecting by a mask waits for all queued work; fake tensors refuse it, and have no values to
    compare. With the positions of a batch the losses are the same."""
    examples = [Example(np.arange(1, 9) + n, np.arange(8) >= 4, "") for n in range(6)]
    if kind == "preferences":
        pairs = Pairs([Pair(a, b) for a, b in itertools.pairwise(examples)], np.zeros((2, 5)))
        batch: Any = next(DpoBatches(pairs, 16, 2, seed=0))
        function: Any = DpoLoss(network())
    else:
        batch = next(ConversationBatches(Examples(examples), 16, 2, seed=0))
        function = ConversationLoss(network()) if kind == "answers" else DistillationLoss(network(), network(1))
    arrays = [torch.from_numpy(array) for name, array in batch._asdict().items() if name != "num_targets"]
    assert function(*arrays) == function(*arrays[:-2]) != 0  # without positions and cu_seqlens
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        arrays = [fake.from_tensor(array) for array in arrays]
        function(*arrays).backward()
        with pytest.raises(DynamicOutputShapeException):
            function(*arrays[:-2])


# ---------------------------------------------------------------- compiling


@pytest.mark.parametrize(
    ("steps", "device", "chosen"), [(100, "cuda", "off"), (5000, "cuda", "on"), (5000, "cpu", "off")]
)
def test_long_runs_counted_in_steps_are_compiled_on_gpus(
    steps: int, device: str, chosen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run of 17 seconds is not worth it, one of 14 minutes is. On a CPU, runs counted in steps
    should be the same everywhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation, "describe_environment", lambda device: {})
    monkeypatch.setattr(compilation, "eager_seconds", lambda *_: 0.17)
    monkeypatch.setattr(compilation, "processor_slowdown", lambda: 1.0)
    monkeypatch.setattr(compilation, "probe", lambda *_: ProbeResult(0.17, 0.1))
    config = flags(tmp_path, steps=steps, micro_batch_size=2, context=16, dtype="bfloat16")
    ranks = Ranks(0, 1, torch.device(device))
    assert resolve_compile(config, network(), ranks, float(steps))[0].compile == chosen


def test_the_probe_has_the_strides_of_a_batch() -> None:
    """Other strides would compile the network a second time."""
    config = flags(micro_batch_size=2, context=16, dtype="float32")
    one = compilation._Pass(config, network(), torch.device("cpu"), compiled=False)
    assert one.inputs.stride() == one.targets.stride() == (16, 1) and one.seconds() > 0


# ---------------------------------------------------------------- the clock


def test_an_overestimate_does_not_end_a_run() -> None:
    """A cold probe once estimated 57 seconds for an evaluation, and a run of a minute ended after
    its first step."""
    budget = Budget(flags(minutes=1.0), tokens_per_step=10, epoch_tokens=10**6, val_tokens=10)
    at = Progress(step=1, tokens=10, seconds=6.6, first_second=6.0)
    budget.plan_evaluations(57.0, at)
    assert not budget.is_over(at) and budget.training_seconds == 60 - 20 - 2
    budget.plan_evaluations(2.0, Progress(step=9, tokens=90, seconds=12.0, first_second=6.0))
    assert budget.training_seconds == 60 - 2 - 2


def test_the_first_estimate_follows_a_warm_up(
    monkeypatch: pytest.MonkeyPatch, replace_clock: Callable[..., None]
) -> None:
    """On a GPU the first batches load kernels and wait for queued work."""
    clock, waits = [0.0], []
    costs = iter([9.0, 0.5])

    def evaluate(*, num_batches: int, progress: Any = no_progress) -> None:
        assert num_batches == 2
        clock[0] += next(costs)
        progress("evaluating", 1, 4)

    replace_clock(monotonic=lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    planned: list[float] = []
    trainer = Trainer.__new__(Trainer)
    trainer.ranks, trainer.state = Ranks(0, 1, CUDA), TrainerState(MetricsAccumulator.empty(torch.device("cpu")))
    trainer.task, trainer.speed = SimpleNamespace(val_tokens=9, evaluate=evaluate), SpeedMeter(1.0, None)
    trainer.budget = SimpleNamespace(plan_evaluations=lambda seconds, at: planned.append(seconds))
    trainer._plan_evaluations()
    assert planned == [2.0] and waits == [CUDA] and trainer.speed.start == 9.5


def test_at_most_two_steps_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the clock measures how fast steps are launched, and --minutes is exceeded."""
    waited: list[int] = []
    made: list[Any] = []

    class Event:
        def __init__(self) -> None:
            made.append(self)
            self.number = len(made)

        def record(self) -> None: ...

        def synchronize(self) -> None:
            waited.append(self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    queue = StepQueue()
    for step in range(1, 6):
        queue.add(CUDA)
        assert waited == list(range(1, step - 1))


# ---------------------------------------------------------------- seeds, messages, initial weights


def test_64_bit_seeds(story_store: Path, tmp_path: Path) -> None:
    """Seeds derived from the largest seed exceed what PyTorch takes."""
    config = TrainConfig(
        data=story_store, out=tmp_path / "run", steps=2, layers=1, hidden=32, heads=2, context=32, micro_batch_size=2,
        seed=(1 << 63) - 1, device="cpu", threads=1,
    )  # fmt: skip
    assert train(config).summary["steps"] == 2


def test_little_memory_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """84 GB of a model's state cannot be pinned on a host of 128 GB; the rest is copied unpinned.
    PyTorch rounds pinned sizes up to powers of two."""
    pins: list[bool] = []
    with FakeTensorMode():
        tensors = {f"w{n}": torch.zeros(25, device="cuda") for n in range(3)}  # 100 bytes, rounded to 128
    real = torch.empty
    monkeypatch.setattr(checkpointer_module, "memory_bytes", lambda: 1000)
    monkeypatch.setattr(
        torch, "empty", lambda *size, pin_memory, device, **more: pins.append(pin_memory) or real(*size, **more)
    )
    checkpointer = Checkpointer(Ranks(0, 1, CUDA), sharded=False)
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other, non_blocking: self)
    checkpointer._copy("weights", tensors)
    checkpointer._copy("weights", tensors)
    assert pins == [True, False, False], "a quarter is 250 bytes, and buffers are kept"
    monkeypatch.setattr(checkpointer_module, "memory_bytes", lambda: None)
    assert not Checkpointer(ALONE, sharded=False)._may_pin(1), "of a memory of unknown size nothing is pinned"


def test_training_leaves_the_precision_of_products_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 stayed switched on for the whole process."""
    monkeypatch.setattr(distributed, "choose_device", lambda *_, **__: CUDA)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    before = torch.get_float32_matmul_precision()
    assert before == "highest"
    with pytest.raises(KeyError), distributed.start_ranks("cuda", None):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'",
        "CUDA error: out of memory",
    ],
)
def test_out_of_memory_errors_are_recognized(message: str) -> None:
    """Out-of-memory errors of cuBLAS, NCCL and CUDA."""
    with pytest.raises(TrainingError, match="out of memory"), explain_out_of_memory():
        raise RuntimeError(message)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/x/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:2: Connection reset"),
        RuntimeError("Connection closed by peer [10.0.0.7]:4711"),
        torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:2, remote process exited\nmore"),
        torch.distributed.DistNetworkError("Failed to recv, got 0 bytes."),
    ],
)
def test_a_lost_process_is_named(error: RuntimeError) -> None:
    """In one line; other errors keep their traceback."""
    message = r"lost the connection to another process .* with --resume"
    with pytest.raises(TrainingError, match=message) as caught, explain_lost_process():
        raise error
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="shapes"), explain_lost_process():
        raise RuntimeError("shapes do not match")


def test_initial_weights_can_be_drawn_one_by_one() -> None:
    """They equal those of a network initialized at once."""
    whole, generator = network(7), torch.Generator().manual_seed(7)
    for name, weight in whole.named_parameters():
        assert torch.equal(weight, whole.fresh_weight(name, weight.shape, generator)), name
