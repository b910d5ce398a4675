"""Our losses of preferences beside TRL's on the same batch, rendered and packed by us and padded by
TRL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamita.checkpoint import load_config, load_model
from llamita.data.file_formats import Row
from llamita.finetune.dpo_data import DpoBatches, Pair, Pairs, read_preference, render_pairs
from llamita.finetune.dpo_evaluate import answer_log_probabilities, score_pairs
from llamita.finetune.dpo_loss import DpoLoss
from llamita.finetune.rendering import Renderer
from llamita.tokenizer import load_tokenizer

pytestmark = pytest.mark.compat

BETA, SMOOTHING = 0.3, 0.1
ROWS = [
    {"prompt": "Who are you?", "chosen": "A llama, of course.", "rejected": "A goat."},
    {"prompt": "How old?", "chosen": "Two.", "rejected": "Nobody counted the years, and nobody will."},
    {"prompt": "Why?", "chosen": "Because the sheep could not sleep.", "rejected": "Because."},
]


def as_trl(pair: Pair) -> dict[str, list[int]]:
    prompt = int(np.flatnonzero(pair.chosen.loss_mask)[0])
    assert pair.chosen.ids[:prompt].tolist() == pair.rejected.ids[:prompt].tolist()
    chosen, rejected = (each.ids[prompt:].tolist() for each in pair)
    return {"prompt_ids": pair.chosen.ids[:prompt].tolist(), "chosen_ids": chosen, "rejected_ids": rejected}


@pytest.fixture(scope="module")
def made(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Pairs]:
    """(the reference, another network, pairs with what the reference gives them)"""
    folder = tmp_path_factory.mktemp("trl")
    base = make_checkpoint(folder / "base", max_position_embeddings=256)
    other = make_checkpoint(folder / "other", seed=1, max_position_embeddings=256)
    with Renderer(load_tokenizer(base), load_config(base)) as renderer:
        pairs = Pairs(render_pairs([read_preference(Row("x", row)) for row in ROWS], renderer)[0])
    said = answer_log_probabilities(DpoLoss(load_model(base)), pairs)
    assert said is not None
    pairs.reference = said.numpy()
    return base, other, pairs


def trl_trainer(trl: Any, base: Path, other: Path, pairs: Pairs, kind: str, out: Path) -> Any:
    transformers, datasets = pytest.importorskip("transformers"), pytest.importorskip("datasets")
    settings = trl.DPOConfig(
        output_dir=str(out), beta=BETA, loss_type=[kind], label_smoothing=SMOOTHING if kind == "aot" else 0.0,
        report_to=[], use_cpu=True, bf16=False, max_length=None, disable_dropout=True, precompute_ref_log_probs=False,
    )  # fmt: skip
    load = transformers.AutoModelForCausalLM.from_pretrained
    return trl.DPOTrainer(
        load(other, dtype=torch.float32),
        load(base, dtype=torch.float32),
        settings,
        train_dataset=datasets.Dataset.from_list(ROWS),  # which are not what is compared: see as_trl
        processing_class=transformers.AutoTokenizer.from_pretrained(base),
    )


@pytest.mark.parametrize(("ours", "theirs"), [("dpo", "sigmoid"), ("ipo", "ipo"), ("smoothed", "aot")])
def test_losses_and_gradients(made: tuple[Path, Path, Pairs], tmp_path: Path, ours: str, theirs: str) -> None:
    """TRL's "aot" of a single pair is DPO with label smoothing."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    base, other, pairs = made
    if ours == "smoothed":
        pairs = Pairs(pairs.pairs[1:2], pairs.reference[:, 1:2])
    trainer = trl_trainer(trl, base, other, pairs, theirs, tmp_path)
    batch = trainer.data_collator([as_trl(pair) for pair in pairs.pairs])
    expected = trainer._compute_loss(trainer.model, batch, False)
    expected.backward()

    loss = DpoLoss(load_model(other), "ipo" if ours == "ipo" else "dpo", BETA, SMOOTHING * (ours == "smoothed"))
    packed = next(DpoBatches(pairs, 256, 1, seed=0))
    assert packed.num_targets == len(pairs.pairs)  # all of them in one row, and one below
    found = loss(*(torch.from_numpy(part) for part in packed if isinstance(part, np.ndarray))) / packed.num_targets
    found.backward()
    difference = abs(found.item() - expected.item())
    print(f"{ours}: ours {found.item():.7f}, TRL {trl.__version__} {expected.item():.7f}")
    assert difference < 1e-5 * max(1.0, abs(expected.item()))
    gradients = dict(loss.model.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        scale = parameter.grad.abs().max().item()
        assert torch.allclose(gradients[name].grad, parameter.grad, rtol=1e-3, atol=1e-4 * scale), name

    said = answer_log_probabilities(loss, pairs)
    assert said is not None
    score = score_pairs(loss, pairs, said)
    logged = trainer._metrics["train" if trainer.model.training else "eval"]
    means = {
        "rewards/margins": score.margin,
        "rewards/accuracies": score.accuracy,
        "rewards/chosen": score.chosen_reward,
        "rewards/rejected": score.rejected_reward,
    }
    for name, value in means.items():
        assert logged[name][-1] == pytest.approx(value, rel=1e-4), name
