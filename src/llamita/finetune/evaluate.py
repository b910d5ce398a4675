"""Evaluation on held-out conversations: the loss of their answers, and generated answers."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from llamita.data.batches import IGNORED
from llamita.eval.bits_per_byte import TOKENS_PER_BATCH
from llamita.eval.sample_metrics import ALONE
from llamita.finetune.conversations import Conversation, Turn
from llamita.finetune.loss import ConversationLoss
from llamita.finetune.rendering import Example, Renderer, split_thought
from llamita.model.device import accumulator_type
from llamita.model.generate import generate, take_while
from llamita.model.llama import Llama
from llamita.progress import Progress
from llamita.tokenizer import Tokenizer
from llamita.training.distributed import Ranks

SHORT_TOKENS = 32  # longer answers are too rarely reproduced exactly to be compared
MAX_GRADED = 32
MAX_ASKED = 3
SAMPLE_TOKENS = 96

Ids = npt.NDArray[np.int64]


# ---------------------------------------------------------------- loss


@torch.no_grad()
def target_nats(
    loss: ConversationLoss, examples: Sequence[Example], ranks: Ranks, num_batches: int | None, progress: Progress
) -> tuple[float, int]:
    """Σ nats over the targets of the examples, and their number, summed over all processes.

    num_batches: only the first few, for timing. progress: counts the targets.
    """
    device, was_training = ranks.device, loss.training
    loss.eval()
    nats, num_targets = torch.zeros((), dtype=accumulator_type(device), device=device), 0
    all_targets = sum(example.num_targets for example in examples)
    batches = padded_batches(examples, TOKENS_PER_BATCH[device.type])
    try:
        for index, arrays in enumerate(itertools.islice(batches, num_batches)):
            if index % ranks.world_size == ranks.rank:
                inputs, targets = (torch.from_numpy(array).to(device) for array in arrays[:2])
                nats += loss(inputs, targets)  # one conversation per row needs no mask
            num_targets += int((arrays[1] != IGNORED).sum())
            progress("evaluating", num_targets, all_targets)
    finally:
        loss.train(was_training)
    return ranks.sum(nats).item(), num_targets


def padded_batches(examples: Sequence[Example], tokens_per_batch: int) -> Iterator[tuple[Ids, Ids, Ids]]:
    """Inputs, targets and segments [B, T], one example a row, the longest first; B · T is at most
    tokens_per_batch, unless a single row is longer."""
    ordered, at = sorted(examples, key=lambda example: -example.length), 0
    while at < len(ordered):
        width = ordered[at].length
        chosen = ordered[at : at + max(1, tokens_per_batch // width)]
        inputs = np.zeros((len(chosen), width), dtype=np.int64)
        targets = np.full((len(chosen), width), IGNORED, dtype=np.int64)
        for row, example in enumerate(chosen):
            inputs[row, : example.length], targets[row, : example.length] = example.inputs, example.targets
        yield inputs, targets, np.zeros_like(inputs)
        at += len(chosen)


# ---------------------------------------------------------------- generated answers


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of a held-out conversation. ids: the whole prompt, up to where the answer begins.
    num_tokens: of the reference answer, without its end token."""

    text: str
    ids: tuple[int, ...]
    reference: str
    num_tokens: int


def find_questions(conversations: Sequence[Conversation], renderer: Renderer, limit: int) -> list[Question]:
    """The first target answer of each conversation that leaves room for one, up to a limit. Answers
    with thoughts or tool calls are left out: they cannot be compared."""
    questions: list[Question] = []
    for conversation in conversations:
        if len(questions) == limit:
            break
        turns = conversation.turns
        number = next((index for index, turn in enumerate(turns) if turn.is_target and _is_plain(turn)), None)
        if number is None:
            continue
        ids = renderer.prompt(conversation, number)
        if len(ids) < renderer.context_tokens:
            reference = turns[number].text
            num_tokens = len(renderer.tokenizer.encode(reference))
            questions.append(Question(turns[number - 1].text, tuple(ids), reference, num_tokens))
    return questions


def _is_plain(turn: Turn) -> bool:
    return not turn.more and not split_thought(turn)[0]


def generate_answer(
    model: Llama,
    tokenizer: Tokenizer,
    question: Question,
    max_tokens: int,
    go_on: Callable[[], bool] = lambda: True,
    compute: torch.dtype | None = None,
) -> str:
    """The greedy answer; it stops at the first token after which go_on() is False. compute: see
    `generate`."""
    was_training = model.training
    ids = generate(model, list(question.ids), max_tokens, temperature=0.0, end_ids=tokenizer.end_ids, compute=compute)
    text = tokenizer.decode(take_while(ids, go_on)).decode("utf-8", errors="replace").strip()
    model.train(was_training)
    return text


def grade(answer: str, reference: str) -> tuple[bool, bool]:
    """Whether the answer equals the reference, and whether it contains it, as whole words where
    there are spaces between words; ignoring case, white space and final punctuation."""
    answer, reference = _normalized(answer), _normalized(reference)
    if not reference:  # nothing but marks, which every text contains
        return answer == reference, answer == reference
    before = rf"(?<!{_SPACED})" if re.match(_SPACED, reference) else ""
    after = rf"(?!{_SPACED})" if re.match(_SPACED, reference[-1:]) else ""
    return answer == reference, re.search(before + re.escape(reference) + after, answer) is not None


_SPACED = rf"[^\W{ALONE}]"  # a letter or digit of a script with spaces between words
# Spaces beside Han, kana and the punctuation of both are a matter of taste: 用 GPU, 用GPU.
_IDEOGRAPHIC = "\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff65\U00020000-\U000323af"
_TASTE = re.compile(rf"(?<=[{_IDEOGRAPHIC}]) | (?=[{_IDEOGRAPHIC}])")


def _normalized(text: str) -> str:
    return _TASTE.sub("", " ".join(text.casefold().split())).rstrip(" .。．｡!！?？…⋯")


def count_matches(
    loss: ConversationLoss, tokenizer: Tokenizer, questions: Sequence[Question], ranks: Ranks, progress: Progress
) -> tuple[int, int]:
    """How many greedy answers equal the reference, and how many contain it, over all processes."""
    counts = torch.zeros(2, dtype=accumulator_type(ranks.device), device=ranks.device)
    for index, question in enumerate(questions):
        if index % ranks.world_size == ranks.rank:
            max_tokens = 2 * question.num_tokens + 8
            answer = generate_answer(loss.model, tokenizer, question, max_tokens, compute=loss.compute)
            counts += torch.tensor(grade(answer, question.reference), dtype=counts.dtype, device=ranks.device)
        progress("evaluating", index + 1, len(questions))
    ranks.sum(counts)
    return int(counts[0].item()), int(counts[1].item())
