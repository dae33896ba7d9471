"""Learning-rate schedules as pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import dataclasses
import math
from typing import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate of every optimizer step; ``schedule(step)`` with ``step`` counted from 0.

    ``noam``, ``linear`` and ``manual`` compute what the original program computes: warm-up from 0 (the first step has
    rate 0 with ``linear`` and ``manual``), and *no warm-up means a constant rate* whatever the schedule. ``cosine`` and
    ``constant`` are the usual ones.
    """

    name: str
    learning_rate: float
    warmup_steps: int
    total_steps: int
    decay_steps: Sequence[int] = ()
    decay_ratio: float = 0.1
    final_ratio: float = 0.0

    def __call__(self, step: int) -> float:
        return SCHEDULES[self.name](self, step)


def _warmup(schedule: Schedule, step: int) -> float | None:
    if step < schedule.warmup_steps:
        return schedule.learning_rate * step / schedule.warmup_steps
    return None


def constant(schedule: Schedule, step: int) -> float:
    warmup = _warmup(schedule, step)
    return schedule.learning_rate if warmup is None else warmup


def noam(schedule: Schedule, step: int) -> float:
    """``sqrt(warmup) * rate * min(s^-0.5, s * warmup^-1.5)`` with ``s`` counted from 1 (Vaswani et al. 2017, eq. 3)."""
    if schedule.warmup_steps == 0:
        return schedule.learning_rate
    run, warmup = step + 1, schedule.warmup_steps
    return warmup**0.5 * schedule.learning_rate * min(run**-0.5, run * warmup**-1.5)


def linear(schedule: Schedule, step: int) -> float:
    """After the warm-up ``rate * (1 - step / total)``: the decay counts from step 0, so there is a jump at its end."""
    if schedule.warmup_steps == 0:
        return schedule.learning_rate
    warmup = _warmup(schedule, step)
    if warmup is not None:
        return warmup
    return schedule.learning_rate * (1.0 - min(step, schedule.total_steps) / max(schedule.total_steps, 1))


def manual(schedule: Schedule, step: int) -> float:
    """After the warm-up ``rate * decay_ratio ** (number of decay steps <= step)``."""
    warmup = _warmup(schedule, step)
    if warmup is not None:
        return warmup
    if schedule.warmup_steps == 0:
        return schedule.learning_rate
    return schedule.learning_rate * schedule.decay_ratio ** sum(border <= step for border in schedule.decay_steps)


def cosine(schedule: Schedule, step: int) -> float:
    """After the warm-up half a cosine from the full rate to ``final_ratio`` of it where the training ends."""
    warmup = _warmup(schedule, step)
    if warmup is not None:
        return warmup
    length = max(schedule.total_steps - schedule.warmup_steps, 1)
    done = min((step - schedule.warmup_steps) / length, 1.0)
    low = schedule.final_ratio
    return schedule.learning_rate * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * done)))


SCHEDULES: dict[str, Callable[[Schedule, int], float]] = {
    "constant": constant,
    "noam": noam,
    "linear": linear,
    "manual": manual,
    "cosine": cosine,
}
