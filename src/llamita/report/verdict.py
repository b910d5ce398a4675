"""The top of the page of a run: what came of it in plain words, and the command that comes next."""

from __future__ import annotations

from html import escape

from llamita.commands import command_line, export_commands
from llamita.report.gains import find_gains
from llamita.report.history import History, objective, objective_unit

FEW_EPOCHS, MANY_EPOCHS = 0.9, 3.0  # three are worth 2.3 of new text (docs/experiments.md)
CLEARLY_WORSE = 0.01  # relative


def verdict(history: History) -> str:
    """A box with the verdict and the next commands."""
    shown = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(history))
    commands = "".join(f"<code>{escape(command)}</code>" for command in next_commands(history))
    return f'<section class="verdict">{shown}<div class="next"><span>Next</span>{commands}</div></section>'


def sentences(history: History) -> list[str]:
    """The verdict: how far the run is, what it learned, what would help."""
    return [_progress(history), *_generations(history), *_learning(history), *_advice(history)]


def next_commands(history: History) -> list[str]:
    """Resume an interrupted run, or export a finished one and use it."""
    if not history.summary.get("finished", bool(history.summary)):
        return [command_line(history.command, "--out", history.path, "--resume")]
    can_chat = history.command == "finetune" and not history.series("eval", "bpb", "step")[1]
    return list(export_commands(history.path, can_chat=can_chat))


def _progress(history: History) -> str:
    step = f" at step {history.lines[-1]['step']:,}" if history.lines else ""
    if not history.summary:
        return f"The run is in progress{step}, or was killed."
    if not history.summary.get("finished", True):
        return f"The run was interrupted{step}."
    rollbacks = len(history.rollbacks)
    times = "" if not rollbacks else f", after it diverged {'once' if rollbacks == 1 else f'{rollbacks} times'}"
    return f"The run has finished{step}{times}."


def _generations(history: History) -> list[str]:
    """That the model had teachers, if it had."""
    if not history.generations:
        return []
    number, of = history.generations[-1]["generation"], history.config.get("generations")
    taught = "each learns from the best one before it, and its training loss has the teacher's share in it"
    return [f"It trained {number} of {of} generations: {taught}."]


def _learning(history: History) -> list[str]:
    """How the held-out data changed."""
    key = objective([history])
    steps, values = history.series("eval", key, "step")
    unit = objective_unit(key, history.targets)
    if not values:
        return ["Nothing was evaluated yet: how good the model is on new text is unknown."]
    best, best_step = min(zip(values, steps, strict=True))
    if len(values) == 1:
        return [f"On held-out data it reaches {best:.4f} {unit}; lower is better."]
    if best_step == 0:
        is_short = (history.last("train", "epoch") or 0.0) < FEW_EPOCHS
        advice = "." if is_short else ": more examples or a lower --learning-rate may help."
        return [f"No step improved on the checkpoint it began with ({best:.4f} {unit} on held-out data){advice}"]
    found = [f"On held-out data it went from {values[0]:.4f} to {best:.4f} {unit}; lower is better."]
    if history.config.get("from_") and (gains := find_gains(history.lines)):
        found = [gains.sentence()]
    if values[-1] > best * (1 + CLEARLY_WORSE):
        found.append(
            f"It overfits: held-out data is best at step {best_step:,.0f} and gets worse after it. The checkpoint best "
            "is of that step; more text or fewer epochs would help."
        )
    return found


def _advice(history: History) -> list[str]:
    """What more text or more time would do. Fine-tuning repeats its examples on purpose."""
    epochs = history.last("train", "epoch")
    overlap = history.summary.get("samples", {}).get("overlap") or {}
    if overlap.get("memorizes"):
        return ["The model memorizes: its samples copy long passages of the training text. More text would help."]
    if epochs is None or not history.summary.get("finished", True):
        return []
    limit = next((name for name in ("minutes", "steps", "epochs") if history.config.get(name)), None)
    if epochs < FEW_EPOCHS and limit:
        longer = command_line(
            history.command, "--out", history.path, "--resume", f"--{limit}", f"{2 * history.config[limit]:g}"
        )
        seen = f"{epochs:.0%} of its {'examples' if history.command == 'finetune' else 'text'}"
        return [f"It has read {seen}: training longer would help ({longer})."]
    if epochs > MANY_EPOCHS and history.command == "train":
        return [f"It has read its text {epochs:.1f} times: more text would help more than more time."]
    return []
