"""The state of a trainer: what a checkpoint holds for --resume besides tensors and batches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llamita.json_file import Key, Schema
from llamita.model.device import accumulator_type
from llamita.training.budget import Progress
from llamita.training.distributed import Ranks

_COUNT = Key("integer", required=True, minimum=0, maximum=2**53)
_STEP = Key("integer", required=True, minimum=-1, maximum=2**53)  # -1: none yet
_NUMBER = Key("number", required=True)
_SECONDS = Key("number", required=True, minimum=0, maximum=1e12)
STATE: Schema = {  # state.json
    "trainer": Key("object", required=True, keys={
        "pending": Key("object", required=True, keys={
            "nats": _NUMBER, "largest_norm": _NUMBER, "tokens": _COUNT, "steps": _COUNT,
        }),
        "progress": Key("object", required=True, keys={
            **{name: _COUNT for name in ("step", "tokens", "first_step", "first_tokens")},
            **{name: _SECONDS for name in ("seconds", "first_second", "training_seconds")},
        }),
        "learning_rate": _NUMBER,
        "evaluations": _COUNT,
        "evaluated_step": _STEP,
        "saved_step": _STEP,
        "best": Key("list"),
        "num_worse": _COUNT,
        "val": Key("number"),
        "to_beat": Key("number"),
        "first_factor": _NUMBER,
        "val_share": Key("number", required=True, positive=True, maximum=1),
        "rollbacks": dataclasses.replace(_COUNT, maximum=1000),
        "generation": Key("integer", default=0, null=False, minimum=0, maximum=1000),
        "has_learned": Key("boolean", required=True),
        "averaged_steps": dataclasses.replace(_COUNT, required=False, default=0, null=False),
        "is_finished": Key("boolean", default=False, null=False),
        "metrics_bytes": _COUNT,
    }),
    "batches": Key("object", required=True, keys={
        "epoch": dataclasses.replace(_COUNT, maximum=2**40), "window": _COUNT, "row": _COUNT,
    }),
}  # fmt: skip


@dataclasses.dataclass
class MetricsAccumulator:
    """Metrics of the steps since the last line of metrics.jsonl."""

    nats: Tensor  # scalar of accumulator_type on the device: the sum of this process's losses
    largest_norm: Tensor  # float32 scalar on the device: of the gradients of all processes
    tokens: int = 0  # of all processes
    steps: int = 0

    @classmethod
    def empty(cls, device: torch.device) -> MetricsAccumulator:
        return cls(torch.zeros((), dtype=accumulator_type(device), device=device), torch.zeros((), device=device))

    def state_dict(self, ranks: Ranks) -> dict[str, Any]:
        nats = ranks.sum(self.nats.clone()).item()
        return {**vars(self), "nats": nats, "largest_norm": self.largest_norm.item()}

    @classmethod
    def from_state_dict(cls, values: dict[str, Any], ranks: Ranks) -> MetricsAccumulator:
        nats = values["nats"] if ranks.is_first else 0.0  # it is the sum over all processes
        return cls(
            torch.tensor(nats, dtype=accumulator_type(ranks.device), device=ranks.device),
            torch.tensor(values["largest_norm"], device=ranks.device),
            values["tokens"],
            values["steps"],
        )


class Best(NamedTuple):
    """The best evaluation of a run."""

    objective: float
    step: int


@dataclasses.dataclass
class TrainerState:
    """Every field is saved and restored."""

    pending: MetricsAccumulator
    progress: Progress = dataclasses.field(default_factory=Progress)
    learning_rate: float = 0.0  # of the last step
    evaluations: int = 0  # after the first step
    evaluated_step: int = -1  # the last evaluation's; -1: none yet
    saved_step: int = -1  # the last checkpoint's; -1: none yet
    val: float | None = None  # the objective of the last evaluation
    best: Best | None = None
    num_worse: int = 0  # evaluations since the one to beat
    to_beat: float | None = None  # the best objective since the schedule began, for early stopping
    first_factor: float = 0.0  # of the peak learning rate, where the schedule begins
    val_share: float = 1.0  # of the held-out data that is evaluated, see Task.limit_evaluation
    rollbacks: int = 0
    generation: int = 0  # see generations.py
    averaged_steps: int = 0  # of the schedule: whose weights the averages have
    has_learned: bool = False  # the loss was below that of a uniform distribution once
    is_finished: bool = False  # the weights are averaged, and as Task.finish leaves them
    metrics_bytes: int = 0  # the length of metrics.jsonl

    def note_evaluation(self, objective: float, counts: bool = True) -> bool:
        """Record an evaluation of the current step; True if it is the best so far. counts: for early
        stopping. NaN is worse than any number."""
        step, is_number = self.progress.step, not math.isnan(objective)
        self.val, self.evaluated_step = objective if is_number else None, step
        self.evaluations += step > 0
        if counts:
            is_better = is_number and (self.to_beat is None or objective < self.to_beat)
            self.to_beat, self.num_worse = (objective, 0) if is_better else (self.to_beat, self.num_worse + 1)
        if is_number and (self.best is None or objective < self.best.objective):
            self.best = Best(objective, step)
            return True
        return False

    def begin_generation(self) -> None:
        """Start the schedule of a new model here."""
        self.generation += 1
        self.has_learned = False
        self.begin_schedule(0.0)

    def begin_schedule(self, factor: float) -> None:
        """Start a new schedule here, from this factor of the peak learning rate.

        The rate rises again, so the next evaluations may be worse than the best one."""
        at = self.progress
        at.first_step, at.first_tokens, at.first_second = at.step, at.tokens, at.seconds
        self.first_factor, self.evaluations, self.num_worse, self.to_beat = factor, 0, 0, None
        self.averaged_steps, self.is_finished = 0, False

    def state_dict(self, ranks: Ranks) -> dict[str, Any]:
        """JSON values. A collective: the pending loss is summed over all processes."""
        progress, pending = dataclasses.asdict(self.progress), self.pending.state_dict(ranks)
        return {**vars(self), "progress": progress, "pending": pending}

    @classmethod
    def from_state_dict(cls, values: dict[str, Any], ranks: Ranks) -> TrainerState:
        """values: checked against STATE. Raises ValueError for an objective that is no number."""
        for name in ("val", "best", "to_beat"):
            if name not in values:
                raise ValueError(f"trainer.{name} is missing")
        fields: dict[str, Any] = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        best, step = fields["best"] or [], fields["progress"]["step"]
        if best and (len(best) != 2 or not isinstance(best[1], int) or not 0 <= best[1] <= step):
            raise ValueError("trainer.best: expected an objective and a step")
        for value in (fields["val"], fields["to_beat"], *best[:1]):  # NaN or infinite after divergence
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ValueError("trainer.val, best, to_beat: expected numbers or null")
        names = {field.name for field in dataclasses.fields(Progress)}
        fields["progress"] = Progress(**{name: fields["progress"][name] for name in names})
        fields["pending"] = MetricsAccumulator.from_state_dict(fields["pending"], ranks)
        fields["best"] = Best(best[0], best[1]) if best else None
        return cls(**fields)
