"""Checks that two processes run together, launched by test_fsdp.py. A failure is a traceback."""

from __future__ import annotations

import math
import os
import sys

import torch
import torch.distributed as dist
from torch import nn

from llamita.config import ModelConfig
from llamita.finetune.dpo_loss import DpoLoss
from llamita.finetune.lora import LoraConfig, add_lora, load_update, lora_layers
from llamita.model.llama import Llama
from llamita.training.activation_checkpointing import checkpoint_activations
from llamita.training.distributed import Ranks, full_tensor, local_tensor, start_ranks
from llamita.training.distributed_muon import distribute_replicated, distribute_row_sharded, shard_rows
from llamita.training.fsdp import gathered, shard, unsharded
from llamita.training.loss import SummedLoss
from llamita.training.optimizer import orthogonalize_each

TINY = ModelConfig(50, 16, 24, 3, 4, 2, 4, 32, tie_word_embeddings=True)
# one of them has fewer rows than there are processes
SHAPES = [(24, 16), (16, 24), (1, 16), (5, 16), (16, 16), (16, 24), (7, 3)]


def check_matrices(ranks: Ranks) -> None:
    """Matrices orthogonalized by their owners equal those of one process, replicated and
    sharded."""
    generator = torch.Generator().manual_seed(3)
    for shapes in (SHAPES, SHAPES[:1]):  # with a single matrix, one process has nothing to do
        matrices = [torch.randn(shape, generator=generator) for shape in shapes]
        alone = [orthogonalize_each([matrix])[0] for matrix in matrices]
        for got, expected in zip(
            distribute_replicated(orthogonalize_each, torch.float32)(matrices, shapes), alone, strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        cuts = [shard_rows(ranks.rank, rows, ranks.world_size) for rows, _ in shapes]
        parts = [matrix[cut.start : cut.stop] for matrix, cut in zip(matrices, cuts, strict=True)]
        results = distribute_row_sharded(orthogonalize_each)(parts, shapes)
        for got, expected, cut in zip(results, alone, cuts, strict=True):
            torch.testing.assert_close(got, expected[cut.start : cut.stop], rtol=1e-5, atol=1e-6)


def make(model_seed: int = 0) -> SummedLoss:
    return SummedLoss(Llama(TINY).initialize(torch.Generator().manual_seed(model_seed)))


def check_accumulation(ranks: Ranks) -> None:
    """Gradients of two passes, reduced only at the second, with activation checkpointing."""
    rows = torch.randint(50, (4 * ranks.world_size, 12), generator=torch.Generator().manual_seed(1))
    inputs, targets = rows[:, :-1], rows[:, 1:]
    alone = make()
    alone(inputs, targets).backward()
    sharded = make()
    checkpoint_activations(sharded.model)
    parallel = shard(sharded, sharded.model, ranks.device, torch.float32)
    own = slice(4 * ranks.rank, 4 * ranks.rank + 2), slice(4 * ranks.rank + 2, 4 * ranks.rank + 4)
    with ranks.local_gradients(parallel):
        (parallel(inputs[own[0]], targets[own[0]]) * ranks.world_size).backward()
    assert all(parameter.grad is None for parameter in sharded.parameters()), "nothing has been reduced yet"
    (parallel(inputs[own[1]], targets[own[1]]) * ranks.world_size).backward()
    for (name, parameter), expected in zip(sharded.named_parameters(), alone.parameters(), strict=True):
        assert local_tensor(parameter).shape != parameter.shape, f"{name} is not sharded"
        assert parameter.grad is not None and expected.grad is not None
        torch.testing.assert_close(full_tensor(parameter.grad), expected.grad, rtol=1e-4, atol=1e-5, msg=name)
    ids = inputs[:1]
    with unsharded(parallel), torch.no_grad():
        torch.testing.assert_close(sharded.model(ids), alone.model(ids), rtol=1e-5, atol=1e-6)
    other = make(model_seed=1)
    sharded.model.load_state_dict(other.model.state_dict())  # complete tensors are sharded
    for parameter, expected in zip(sharded.parameters(), other.parameters(), strict=True):
        assert torch.equal(full_tensor(parameter.detach()), expected)


def check_mixed_precision(ranks: Ranks) -> None:
    """Computes in bfloat16; stores and reduces in float32."""
    rows = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))
    inputs, targets = rows[:, :-1], rows[:, 1:]
    alone, half = make(), make()
    seen = set()
    half.model.model.layers[0].mlp.register_forward_pre_hook(lambda module, arguments: seen.add(arguments[0].dtype))
    half.compute = torch.bfloat16
    parallel = shard(half, half.model, ranks.device, torch.bfloat16)
    loss = parallel(inputs, targets)
    loss.backward()
    assert seen == {torch.bfloat16} and loss.dtype == torch.float32
    expected = alone(inputs, targets)
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0.0)
    parameter: nn.Parameter = next(half.parameters())
    assert parameter.dtype == torch.float32 and parameter.grad is not None and parameter.grad.dtype == torch.float32


def check_reference(ranks: Ranks) -> None:
    """DPO's reference stays float64, also where layers compute in bfloat16."""
    rows = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))
    model = Llama(TINY).initialize(torch.Generator().manual_seed(0))
    loss = DpoLoss(model, "dpo", 0.1, compute=torch.bfloat16)
    inputs, targets, segments = rows[:, :-1], rows[:, 1:], torch.zeros(2, 11, dtype=torch.int64)
    reference = loss.log_probabilities(inputs, targets, segments, 1)[0].detach()
    parallel = shard(loss, model, ranks.device, torch.bfloat16)
    torch.testing.assert_close(
        parallel(inputs, targets, segments, reference).item(), math.log(2.0), rtol=0.0, atol=1e-4
    )


def check_updates(ranks: Ranks) -> None:
    """LoRA: frozen bfloat16 matrices and float32 updates in one shard; gathered for evaluation,
    where processes compute different things."""
    rows = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))
    inputs, targets = rows[:, :-1], rows[:, 1:]

    def updated() -> SummedLoss:
        loss = make()
        for layer in loss.model.model.layers:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
        generator = torch.Generator().manual_seed(2)
        add_lora(loss.model, LoraConfig(2), generator)
        for name, layer in lora_layers(loss.model):
            b = torch.randn(layer.lora_B.weight.shape, generator=generator).mul_(0.1)
            load_update(loss.model, name, layer.lora_A.weight.detach(), b)
        loss.compute = torch.bfloat16
        return loss

    alone, half = updated(), updated()
    alone(inputs, targets).backward()
    parallel = shard(half, half.model, ranks.device, torch.bfloat16)
    other = SummedLoss(half.model, torch.bfloat16)  # as --general-text is evaluated, here before a step
    for _ in range(2):
        with gathered(parallel, half.model), torch.no_grad():
            for _ in range(1 + 2 * ranks.rank):
                torch.testing.assert_close(other(inputs, targets), alone(inputs, targets), rtol=1e-2, atol=0.0)
        assert all(local_tensor(parameter).shape != parameter.shape for parameter in half.parameters())
        half.zero_grad()
        parallel(inputs, targets).backward()
        for (name, parameter), expected in zip(half.named_parameters(), alone.parameters(), strict=True):
            assert (parameter.grad is None) == (expected.grad is None), name
            if parameter.grad is not None and expected.grad is not None:
                torch.testing.assert_close(full_tensor(parameter.grad), expected.grad, rtol=0.1, atol=0.02, msg=name)
    for name, layer in lora_layers(half.model):  # sharded on loading
        load_update(half.model, name, torch.ones(layer.lora_A.weight.shape), torch.ones(layer.lora_B.weight.shape))
        assert bool((full_tensor(layer.lora_A.weight.detach()) == 1).all())


def check_turns(ranks: Ranks) -> None:
    """Passes are dealt in turn: processes with one less than the first must join."""
    assert [ranks.must_join(passes) for passes in range(4)] == [False, ranks.rank == 1, False, ranks.rank == 1]


if __name__ == "__main__":
    os.environ["TORCHELASTIC_RESTART_COUNT"] = os.environ["RANK"]  # as if the first machine were new
    with start_ranks("cpu", 1) as ranks:
        assert dist.get_world_size() == 2 and ranks.restarts == 1
        check_turns(ranks)
        check_matrices(ranks)
        check_accumulation(ranks)
        check_mixed_precision(ranks)
        check_reference(ranks)
        check_updates(ranks)
        if ranks.is_first:
            print("all checks passed")
    sys.stdout.flush()
    os._exit(0)  # as llamita/__main__.py does under torchrun
