"""How good are a model's answers to held-out questions? Compares them with the answers they should be.

    python benchmarks/answers.py before.gguf after.gguf --questions val.jsonl [--count 200] \\
        [--terms dominant recessive X-linked] [--save answers.jsonl]

--questions has a conversation or a question and its answer a line, as for `llamita finetune`. Each
model answers the first --count of them at temperature 0, in at most --max-new-tokens. The table has

- F1 of the words (harmonic mean of precision and recall, as SQuAD scores answers, arXiv 1606.05250,
  but no word is left out), the mean over all answers, of the reference cut to as many words;
- the same against the answer to another question, half of the list away: what a model gets that
  knows only the form;
- with --terms, of the references that name exactly one of them: the share of answers that name the
  same one and no other. "majority" is the share of the commonest term: what always saying it gets.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from markdown_table import markdown_table

from llamita import Chat, load
from llamita.errors import LlamitaError
from llamita.eval.sample_metrics import split_words
from llamita.finetune.conversations import read_conversations


@dataclasses.dataclass(frozen=True)
class Scores:
    """Means over the answers, shares between 0 and 1. named, majority: of `asked` references that
    name exactly one of the terms."""

    f1: float
    f1_of_others: float
    asked: int
    named: float
    majority: float


def word_f1(answer: str, reference: str) -> float:
    """F1 of the bags of words; the reference is cut to the answer's length, because an answer is."""
    found = split_words(answer)
    wanted = split_words(reference)[: max(1, len(found))]
    shared = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0


def named_terms(text: str, terms: Sequence[str]) -> set[str]:
    """Those of the terms that the text names, ignoring case."""
    return {term for term in terms if term.casefold() in text.casefold()}


def score(answers: Sequence[str], references: Sequence[str], terms: Sequence[str]) -> Scores:
    """Scores of one model's answers."""
    far = (len(references) + 1) // 2  # neighbors in a file are often alike
    others = [*references[far:], *references[:far]]
    single = [
        (answer, names)
        for answer, reference in zip(answers, references, strict=True)
        if len(names := named_terms(reference, terms)) == 1
    ]
    counts = collections.Counter(next(iter(names)) for _, names in single)
    right = sum(named_terms(answer, terms) == names for answer, names in single)
    return Scores(
        f1=statistics.fmean(map(word_f1, answers, references)),
        f1_of_others=statistics.fmean(map(word_f1, answers, others)),
        asked=len(single),
        named=right / max(1, len(single)),
        majority=max(counts.values(), default=0) / max(1, len(single)),
    )


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The first question of each conversation and its answer. Raises SourceError."""
    pairs = []
    for conversation in read_conversations(path):
        number = next(index for index, turn in enumerate(conversation.turns) if turn.is_target)
        pairs.append((conversation.turns[number - 1].text, conversation.turns[number].text))
    return pairs


def ask_all(path: Path, questions: Sequence[str], flags: argparse.Namespace) -> list[str]:
    """The model's answer to each question, in a conversation of its own."""
    answers = []
    chat = Chat(
        load(path), temperature=0.0, repetition_penalty=flags.repetition_penalty, max_new_tokens=flags.max_new_tokens
    )
    for number, question in enumerate(questions, 1):
        chat.reset()
        answers.append("".join(chat.ask(question)).strip())
        print(f"\r{path.name}: {number} of {len(questions)} answered", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return answers


def table(found: dict[str, Scores]) -> str:
    """A Markdown table with a line per model."""
    asked = next(iter(found.values())).asked
    columns = ["model", "F1 of words", "with another question's answer"]
    columns += [f"right of {asked} terms", "majority"] if asked else []
    rows = []
    for name, each in found.items():
        cells = [name, f"{each.f1:.3f}", f"{each.f1_of_others:.3f}"]
        cells += [f"{100 * each.named:.0f} %", f"{100 * each.majority:.0f} %"] if asked else []
        rows.append(cells)
    return markdown_table(columns, rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model files with a chat template")
    parser.add_argument(
        "--questions", type=Path, required=True, help="held-out conversations, or questions and answers"
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=120)
    parser.add_argument("--repetition-penalty", type=float, default=1.1)
    parser.add_argument("--terms", nargs="+", default=[], help="words of which a right answer names one")
    parser.add_argument("--save", type=Path, help="write questions, references and answers to this .jsonl")
    flags = parser.parse_args(argv)
    try:
        pairs = read_pairs(flags.questions)[: flags.count]
        questions, references = [question for question, _ in pairs], [answer for _, answer in pairs]
        answers = {str(path): ask_all(path, questions, flags) for path in flags.models}
    except LlamitaError as error:
        print(error, file=sys.stderr)
        return 1
    print(table({name: score(given, references, flags.terms) for name, given in answers.items()}))
    if flags.save is not None:
        rows = (
            {"question": question, "reference": reference, **{name: answers[name][number] for name in answers}}
            for number, (question, reference) in enumerate(pairs)
        )
        flags.save.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
