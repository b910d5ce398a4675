"""Apple's GPUs without one: the device is chosen, float64 is avoided, and PyTorch has an MPS kernel
for every operation of training, fine-tuning, evaluation and generation."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
torchgen = pytest.importorskip("torchgen", reason="torchgen, which comes with PyTorch, lists its kernels")

from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from llamita.config import ModelConfig, TrainConfig  # noqa: E402
from llamita.environment import describe_environment  # noqa: E402
from llamita.errors import TrainingError  # noqa: E402
from llamita.eval import bits_per_byte as bits_per_byte_module  # noqa: E402
from llamita.finetune import dpo_loss  # noqa: E402
from llamita.finetune.dpo_loss import DpoLoss  # noqa: E402
from llamita.finetune.lora import LINEAR_LAYERS, LoraConfig, add_lora  # noqa: E402
from llamita.finetune.loss import ConversationLoss  # noqa: E402
from llamita.model.device import accumulator_type  # noqa: E402
from llamita.model.generate import generate  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.training import trainer_state  # noqa: E402
from llamita.training.compile import resolve_compile  # noqa: E402
from llamita.training.defaults import default_dtype, fill_defaults  # noqa: E402
from llamita.training.distributed import Ranks, choose_device  # noqa: E402
from llamita.training.flops import peak_flops  # noqa: E402
from llamita.training.loss import SummedLoss  # noqa: E402
from llamita.training.memory import free_bytes  # noqa: E402
from llamita.training.optimizer import build_optimizer  # noqa: E402
from llamita.training.planner import describe_device  # noqa: E402
from llamita.training.speed import StepQueue  # noqa: E402

MPS = torch.device("mps")
SHAPE = ModelConfig(
    vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=3, head_dim=8, max_position_embeddings=32,
)  # fmt: skip


def flags(**values: Any) -> TrainConfig:
    return TrainConfig(data=Path("store"), out=Path("run"), **values)


def test_auto_chooses_the_gpu_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match=r"'mps': expected a Mac with an Apple GPU .* use --device cpu"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("mps") == MPS and choose_device("cpu").type == "cpu"
    assert choose_device("auto", one_per_process=True).type == "cpu"
    assert describe_environment("auto")["gpu"] == describe_device(MPS) == "Apple GPU"
    with pytest.raises(TrainingError, match="'mps': expected a single process"):
        choose_device("mps", one_per_process=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto").type == "cuda"


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 unless bfloat16 is asked for; attention keeps all scores, so passes are smaller."""
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 << 30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 << 30)
    assert free_bytes(MPS) == 10 << 30 and default_dtype(MPS) == "float32"
    assert peak_flops(MPS, torch.float32) is None
    free = 10 << 30
    config = fill_defaults(flags(steps=9, preset="stories110M"), MPS, 1, free=free)
    on_cuda = fill_defaults(
        flags(steps=9, preset="stories110M", dtype="float32"), torch.device("cuda"), 1, free=10 << 30
    )
    assert config.dtype == "float32" and config.micro_batch_size < on_cuda.micro_batch_size == 1 * 4
    assert fill_defaults(flags(steps=9, dtype="bfloat16"), MPS, 1, free=free).dtype == "bfloat16"
    ranks = Ranks(0, 1, MPS)
    assert resolve_compile(config, None, ranks)[0].compile == "off"  # type: ignore[arg-type]


def test_at_most_two_steps_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    made: list[int] = []

    def event() -> SimpleNamespace:
        made.append(number := len(made) + 1)
        return SimpleNamespace(record=lambda: None, synchronize=lambda: waited.append(number))

    monkeypatch.setattr(torch.mps, "Event", event, raising=False)
    queue = StepQueue()
    for step in range(1, 6):
        queue.add(MPS)
        assert waited == list(range(1, step - 1))


# ---------------------------------------------------------------- operations


@functools.cache
def kernels() -> frozenset[str]:
    """The operations that MPS computes, by PyTorch's own table: with a kernel for MPS, or made of
    other operations."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    keys: dict[str, set[str]] = {}
    delegates: dict[str, str] = {}
    for entry in table.read_text(encoding="utf-8").split("\n- func: ")[1:]:
        name, _, rest = entry.partition("(")
        _, has_dispatch, dispatch = rest.partition("\n  dispatch:\n")
        found = re.findall(r"^    ([\w, ]+):", dispatch.partition("\n\n")[0], re.MULTILINE)
        keys[name] = {key.strip() for each in found for key in each.split(",")} if has_dispatch else {"Composite"}
        if delegate := re.search(r"\n  structured_delegate: (\S+)", rest):
            delegates[name] = delegate[1]
    keys |= {name: keys[delegate] for name, delegate in delegates.items()}
    return frozenset(
        f"aten::{name}" for name, of in keys.items() if any(key == "MPS" or key.startswith("Composite") for key in of)
    )


class Recorder(TorchDispatchMode):
    """Notes the operations on tensors and the float64 among their results."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.doubles: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = str(func).removesuffix(".default").replace(".", "::", 1)
        if name.startswith("aten::"):
            self.operations.add(name)
        for each in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(each, torch.Tensor) and each.dtype == torch.float64:
                self.doubles.add(func._schema.name)
        return found


def network(dropout: float = 0.0) -> Llama:
    return Llama(SHAPE, dropout).initialize(torch.Generator().manual_seed(0))


def rows() -> tuple[Any, Any, Any]:
    ids = torch.randint(61, (4, 17), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[:, 3] = -100
    segments = torch.arange(16).expand(4, 16) // 8 % 2
    return ids[:, :-1].contiguous(), targets, segments.contiguous()


def train_steps(optimizer: str, dropout: float = 0.0, compute: Any = torch.float32) -> None:
    model, (inputs, targets, _) = network(dropout), rows()
    loss, state = SummedLoss(model, compute), trainer_state.MetricsAccumulator.empty(torch.device("cpu"))
    config = flags(steps=2, optimizer=optimizer, layers=2, hidden=48, heads=6, context=16, dtype="float32")
    steps = build_optimizer(model, fill_defaults(config, torch.device("cpu"), 1))
    for _ in range(2):
        nats = loss(inputs, targets)
        (nats / 60).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        state.largest_norm = torch.maximum(state.largest_norm, norm)
        state.nats += nats.detach()
        steps.step()
        steps.zero_grad()


def finetune_step(make_loss: Callable[[Llama], Any], *arrays: Any) -> None:
    model = network()
    add_lora(model, LoraConfig(4, None, 0.1, False, LINEAR_LAYERS))
    make_loss(model)(*arrays).backward()


def evaluate() -> None:
    model, (inputs, targets, _) = network(), rows()
    with torch.no_grad():
        nats = torch.zeros((), dtype=bits_per_byte_module.accumulator_type(MPS))
        nats += SummedLoss(model)(inputs, targets)
        nats += ConversationLoss(model)(inputs, targets)


PASSES: dict[str, Callable[[], object]] = {
    "adamw": lambda: train_steps("adamw"),
    "muon, dropout": lambda: train_steps("muon", 0.1),
    "bfloat16": lambda: train_steps("muon", 0.0, torch.bfloat16),
    "chat": lambda: finetune_step(ConversationLoss, *rows()),
    "dpo": lambda: finetune_step(DpoLoss, *rows(), torch.zeros(2, 2)),
    "evaluation": evaluate,
    "generation": lambda: list(generate(network(), [1, 2, 3], 4, temperature=0.8, top_p=0.9, top_k=5, seed=1)),
}


@pytest.mark.parametrize("name", PASSES)
def test_every_operation_has_a_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that PYTORCH_ENABLE_MPS_FALLBACK is not needed. Attention is the composite that MPS trains
    with; what is recorded here ran on the CPU."""
    assert len(kernels()) > 1000 and "aten::linalg_eig" not in kernels() and "aten::svd" in kernels()
    assert accumulator_type(MPS) == torch.float32
    for module in (trainer_state, dpo_loss, bits_per_byte_module):
        monkeypatch.setattr(module, "accumulator_type", lambda device: accumulator_type(MPS))
    monkeypatch.setattr("llamita.training.loss.can_fuse", lambda model: False)
    with Recorder() as recorder, sdpa_kernel(SDPBackend.MATH):
        PASSES[name]()
    assert len(recorder.operations) > 20
    assert not recorder.doubles, "MPS has no float64"
    assert not sorted(recorder.operations - kernels()), "operations without an MPS kernel"
