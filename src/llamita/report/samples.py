"""The part of the report about generated text: samples of each evaluation, and memorization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from llamita.console import format_count
from llamita.report.charts import color_key
from llamita.report.history import History
from llamita.report.page import lang
from llamita.run_directory import scalars

MAX_START = 160  # characters of a folded sample


def copies_text(overlap: Mapping[str, Any]) -> str:
    """The length of copies of the training text, on one line."""
    val = overlap["val"]
    return (
        f"longest {overlap['length_tokens']:,} tokens, median {overlap['median_tokens']:g} per text; "
        f"held-out text: longest {val['length_tokens']:,}, median {val['median_tokens']:g}"
    )


def memorization(history: History) -> str:
    """What summary.json says about the samples of the best checkpoint after training."""
    samples = history.summary.get("samples", {})
    if not (overlap := samples.get("overlap")):
        return ""
    title = "<h2>Copies of training text</h2>"
    verdict = "Not clearly longer than in held-out text: no sign of memorization."
    if overlap["memorizes"]:
        title = '<h2 class="warn">The model memorizes</h2>'
        verdict = "Clearly longer than in held-out text: more text or fewer epochs would help."
    if overlap["val_known"] > 0.5:
        verdict = "No conclusion: the held-out text is part of the training text."
    numbers = (
        f"{samples['num_samples']} samples of the best checkpoint, {samples['mean_tokens']:.0f} tokens on average: "
        f"{samples['stop_rate']:.0%} ended with EOS; distinct-1, -2, -3: {samples['distinct_1']:.3f}, "
        f"{samples['distinct_2']:.3f}, {samples['distinct_3']:.3f}; repetition (seq-rep-4): "
        f"{samples['repetition']:.1%}."
    )
    return (
        f"{title}<p>Verbatim copies: {escape(copies_text(overlap))}. {verdict} The longest copy:</p>"
        f'<div class="sample"{lang(overlap["text"])}>{escape(overlap["text"])}</div>'
        f'<p class="soft">{escape(numbers)}</p>'
    )


def newest_sample(history: History) -> str:
    """The sample of the last evaluation of a run."""
    evaluations = history.sampled_evaluations()
    if not evaluations:
        return ""
    prompt = escape(str(history.config.get("prompt") or ""))
    if "checkpoint" in history.config and any(str(line["sample"]).startswith("> ") for line in evaluations):
        title = "What it answers"
        how = f"Greedy answers to {f'“{prompt}”' if prompt else 'held-out questions'}."
    else:
        title = "What it writes"
        how = f"Temperature 0.8, {f'prompt “{prompt}”' if prompt else 'no prompt'}."
    return f'<h2>{title}</h2><p class="soft">{how}</p>{_folded(history, evaluations[-1:])}'


def earlier_samples(history: History) -> str:
    """The samples of the evaluations before the last one."""
    evaluations = history.sampled_evaluations()[:-1]
    return (
        f"<h2>Earlier samples, newest first</h2>{_folded(history, evaluations, is_open=False)}" if evaluations else ""
    )


def samples_side_by_side(histories: Sequence[History]) -> str:
    """The samples of several runs, a column each."""
    columns = [
        f"<div><h3>{color_key(index)}{escape(history.name)}</h3>{_folded(history, history.sampled_evaluations())}</div>"
        for index, history in enumerate(histories)
    ]
    return f'<h2>Samples, newest first</h2><div class="side-by-side">{"".join(columns)}</div>'


def _folded(history: History, evaluations: Sequence[dict[str, Any]], *, is_open: bool = True) -> str:
    """Samples from the newest, which is_open, to the oldest."""
    newest_first = list(reversed(evaluations))
    return "".join(
        _sample(line, history.targets, is_open=is_open and index == 0) for index, line in enumerate(newest_first)
    )


def _sample(line: Mapping[str, Any], targets: str, *, is_open: bool) -> str:
    text = str(line["sample"])
    start = escape(" ".join(text.split())[:MAX_START])
    numbers = scalars(line)
    score = next((f"<b>{numbers[key]:.4f}</b> · " for key in ("bpb", "loss") if key in numbers), "")
    tokens = f", {format_count(numbers['tokens'])} {targets}" if "tokens" in numbers else ""
    return (
        f'<details{" open" if is_open else ""}><summary><span class="when">{score}step {line["step"]:,}{tokens}</span>'
        f'<span class="start"{lang(text)}>{start}</span></summary>'
        f'<div class="sample"{lang(text)}>{escape(text)}</div></details>'
    )
