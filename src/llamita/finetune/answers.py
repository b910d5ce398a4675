"""Questions of held-out conversations to the network's own answers, and how many of them are the right ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from llamita.finetune.conversations import Conversation
from llamita.finetune.rendering import Renderer
from llamita.model.generate import generate, take_while
from llamita.model.llama import Llama
from llamita.tokenizer import Tokenizer

SHORT_TOKENS = 32  # an answer of at most so many can be right or wrong; longer ones only likely or not
MAX_GRADED = 32
MAX_ASKED = 3
SAMPLE_TOKENS = 96


@dataclasses.dataclass(frozen=True)
class Question:
    """ids: of all that stands before the answer. num_tokens: the reference's, its end token not counted."""

    text: str
    ids: tuple[int, ...]
    reference: str
    num_tokens: int


def find_questions(conversations: Sequence[Conversation], renderer: Renderer, most: int) -> list[Question]:
    """The first learned answer of each of the first conversations that has room for one."""
    questions: list[Question] = []
    for conversation in conversations:
        if len(questions) == most:
            break
        turns = conversation.turns
        number = next(index for index, turn in enumerate(turns) if turn.learned)
        ids = renderer.prompt(conversation, number)
        if len(ids) < renderer.context_tokens:
            reference = turns[number].text
            num_tokens = len(renderer.tokenizer.encode(reference))
            questions.append(Question(turns[number - 1].text, tuple(ids), reference, num_tokens))
    return questions


def answer(
    model: Llama,
    tokenizer: Tokenizer,
    question: Question,
    most_tokens: int,
    go_on: Callable[[], bool] = lambda: True,
) -> str:
    """The most probable answer, token by token, while go_on()."""
    was_training = model.training
    ids = generate(model, list(question.ids), most_tokens, temperature=0.0, end_ids=tokenizer.end_ids)
    text = tokenizer.decode(take_while(ids, go_on)).decode("utf-8", errors="replace").strip()
    model.train(was_training)
    return text


def grade(said: str, reference: str) -> tuple[bool, bool]:
    """Whether the answer is the reference, and whether it contains it: but for case, spaces and the last full stop."""
    said, reference = _plain(said), _plain(reference)
    return said == reference, re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", said) is not None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".。!?")
