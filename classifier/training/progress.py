"""Where a run stands."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

STORED = ("step", "evaluated", "seconds", "token_budget", "skipped", "best")  # in a checkpoint


@dataclass
class Progress:
    """The only mutable truth of where a run stands; the rest is derived from it."""

    examples: int  # of an epoch
    step_size: int  # examples of a step; an epoch's last may have fewer
    epochs: int
    max_steps: int  # 0: no limit but the epochs
    token_budget: int  # of a micro-batch; halved when memory runs out
    eval_interval: int = 0  # steps between evaluations from an epoch's beginning on; its end is one, too
    best_by: str = "accuracy"  # or macro_f1
    patience: int = 0  # evaluations without a better one before the run ends; 0: no limit
    step: int = 0  # steps that have been taken
    evaluated: int = 0  # step of the last evaluation that was regular
    seconds: float = 0.0  # of training, earlier parts of a resumed run included
    skipped: int = 0  # steps whose gradient was not finite in float16
    best: dict[str, Any] = field(default_factory=dict)  # the best evaluation so far: that of best.pt

    @classmethod
    def planned(cls, settings: SimpleNamespace, examples: int) -> "Progress":
        """Return the progress of a run that has yet to take its first step."""
        step_size = settings.batch_size * settings.gradient_accumulation_steps
        token_budget = settings.token_budget or settings.batch_size * settings.block_size
        names = ("epochs", "max_steps", "eval_interval", "best_by", "patience")
        plan = {name: getattr(settings, name) for name in names}
        return cls(examples=examples, step_size=step_size, token_budget=token_budget, **plan)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.step_size)

    @property
    def all_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        return min(self.all_steps, self.max_steps or self.all_steps)

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def is_done(self) -> bool:
        return self.step >= self.last_step or self.is_out_of_patience

    @property
    def is_out_of_patience(self) -> bool:
        if not self.patience or self.step != self.evaluated:
            return False
        since_best = range(self.best.get("step", 0) + 1, self.step + 1)
        return sum(self.is_regular(step) for step in since_best) >= self.patience

    @property
    def evaluation_is_due(self) -> bool:
        return self.step > self.evaluated if self.is_regular(self.step) else self.is_done

    def is_regular(self, step: int) -> bool:
        """Return whether a run evaluates after so many steps wherever it ends: at the interval and an epoch's end."""
        return step % self.steps_per_epoch % (self.eval_interval or self.steps_per_epoch) == 0

    def examples_before(self, step: int) -> int:
        """Return how many examples all steps before this one take together; steps are counted from 0."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * self.examples + steps * self.step_size

    def is_better(self, one: dict[str, Any], other: dict[str, Any]) -> bool:
        """Return whether one evaluation (step, epoch, loss, accuracy ...) is better than another, or {}: by best_by,
        then by loss.

        Only regular evaluations compete. That at an end by max_steps counts only where there is nothing else, until
        another takes its place.
        """
        if not one or not other:
            return bool(one)
        if not self.is_regular(other["step"]):
            return one["step"] != other["step"]
        rank, other_rank = ((each[self.best_by], -each["loss"]) for each in (one, other))
        return self.is_regular(one["step"]) and rank > other_rank

    def stored(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return {"epoch": self.epoch} | {name: getattr(self, name) for name in STORED}

    def restore(self, stored: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds; micro-batches stay as small as they had to be."""
        token_budget = min(self.token_budget, stored["token_budget"])
        for name in STORED:
            setattr(self, name, stored[name])
        self.token_budget = token_budget
