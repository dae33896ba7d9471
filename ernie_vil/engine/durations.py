"""Durations: how long a training lasts, or how often something happens in it, in any unit.

Every duration of a run goes through :func:`to_steps`, so the same text means the same number of steps everywhere.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Dict, Optional

UNITS = ("steps", "epochs", "examples", "percent")
_SPELLINGS = {"step": "steps", "epoch": "epochs", "example": "examples", "%": "percent"}
_HOW = "give exactly one of steps, epochs, examples, percent, as in {epochs: 6} or '6 epochs'"


@dataclass(frozen=True)
class Duration:
    """A length of training.

    Attributes:
        value: how many units, finite and not negative; at most 100 for percent.
        unit: ``steps`` (optimizer steps), ``epochs``, ``examples`` (each presentation of an example counts once) or
            ``percent`` (of the whole training).

    Raises:
        ValueError: the value or the unit is not one of these.
    """

    value: float
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            near = difflib.get_close_matches(str(self.unit).lower(), UNITS, 1, 0.4)
            advice = f"did you mean {near[0]}?" if near else _HOW
            raise ValueError(f"unknown unit of duration {self.unit!r}; {advice}")
        object.__setattr__(self, "value", _number(self.value))
        if self.value < 0:
            raise ValueError(f"a duration cannot be negative: {self}")
        if self.unit == "percent" and self.value > 100:
            raise ValueError(f"a duration cannot be more than 100 percent of the training: {self}")

    @classmethod
    def parse(cls, raw: Any) -> Duration:
        """Read ``{epochs: 6}``, ``"6 epochs"``, ``"1e6 examples"``, ``"10%"`` or a duration itself.

        Raises:
            ValueError: no unit, several units, an unknown unit, or a value that is no finite number from 0 up.
        """
        if isinstance(raw, Duration):
            return raw
        if isinstance(raw, dict):
            if len(raw) != 1:
                named = ", ".join(map(str, raw)) or "nothing"
                kind = "contradictory" if len(raw) > 1 else "empty"
                raise ValueError(f"{kind}: {_HOW}; got {named}")
            ((unit, value),) = raw.items()
            return cls(value, unit)
        # The number ends in a digit, so that "6epochs" is 6 epochs and not 6e pochs.
        found = re.fullmatch(r"\s*(\S*[\d.])\s*(%|[a-z]+)\s*", raw, re.IGNORECASE) if isinstance(raw, str) else None
        if found is None:
            raise ValueError(f"not a duration: {raw!r}; {_HOW}")
        unit = found[2].lower()
        return cls(found[1], _SPELLINGS.get(unit, unit))  # type: ignore[arg-type]

    def as_mapping(self) -> Dict[str, float]:
        """The mapping that :meth:`parse` reads back to an equal duration; whole numbers are ints."""
        return {self.unit: int(self.value) if self.value.is_integer() else self.value}

    def __str__(self) -> str:
        return f"{self.value:.15g} {self.unit[:-1] if self.value == 1 and self.unit != 'percent' else self.unit}"


def _number(raw: Any) -> float:
    """A finite float; texts are read too, because YAML 1.1 takes ``1e6`` for a text."""
    try:
        value = math.nan if isinstance(raw, bool) or not isinstance(raw, (int, float, str)) else float(raw)
    except (ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"the value of a duration must be a finite number, not {raw!r}")
    return value


def to_steps(duration: Duration, *, steps_per_epoch: int, batch_size: int, total_steps: Optional[int] = None) -> int:
    """The number of optimizer steps that a duration takes.

    Rounded up to whole steps: what was asked for is reached, so one epoch is never less than a whole epoch and only
    a duration of 0 takes 0 steps. Computed on the decimal value as written (0.07 epochs of 100 steps are 7 steps, not
    the 8 of binary fractions).

    Args:
        duration: what to convert.
        steps_per_epoch: optimizer steps of one pass over the training data, at least 1.
        batch_size: examples of one optimizer step over all devices and micro-batches, at least 1.
        total_steps: optimizer steps of the whole training; needed for percent only.

    Raises:
        ValueError: a duration in percent without ``total_steps``, or a size below 1.
    """
    if steps_per_epoch < 1 or batch_size < 1:
        raise ValueError(f"steps_per_epoch {steps_per_epoch} and batch_size {batch_size} must be at least 1")
    value = Fraction(repr(duration.value))
    if duration.unit == "epochs":
        value *= steps_per_epoch
    elif duration.unit == "examples":
        value /= batch_size
    elif duration.unit == "percent":
        if total_steps is None:
            raise ValueError(f"{duration} of the training is unknown here: the length of the training is not given")
        value = value * total_steps / 100
    return math.ceil(value)
