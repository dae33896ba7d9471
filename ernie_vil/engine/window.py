"""Sums of what a run measures between two log entries, kept on the device until they are read."""

from __future__ import annotations

import math
from typing import Any, Mapping

from ernie_vil.engine.distributed import Processes, gather_objects
from ernie_vil.errors import UserError


class Window:
    """Sums and counts by name since step ``start``. Each process sums its own share."""

    def __init__(self, start: int = 0, sums: Mapping[str, Any] | None = None) -> None:
        self.start = start
        self.sums = {name: (pair[0], pair[1]) for name, pair in (sums or {}).items()}

    def add(self, name: str, value: Any, count: float) -> None:
        """Add without reading the value: reading would wait for the device."""
        total, number = self.sums.get(name, (0.0, 0.0))
        if not isinstance(value, float):
            value = value.astype("float64")
        self.sums[name] = (total + value, number + count)

    def read(self, step: int) -> dict[str, tuple[float, float]]:
        """The sums as numbers. Raises :class:`UserError` naming a loss that stopped being finite, and since when."""
        self.sums = {name: (float(total), number) for name, (total, number) in self.sums.items()}
        for name, (total, _) in self.sums.items():
            if not math.isfinite(total):
                raise UserError(
                    f"{name} became {total} between step {self.start + 1} and step {step}; the last checkpoint is from "
                    "before. Try a smaller optimizer.learning_rate or a longer optimizer.warmup."
                )
        return dict(self.sums)

    def means(self, processes: Processes) -> dict[str, float]:
        """Sum over count for every name, over all processes; call :meth:`read` before."""
        total: dict[str, tuple[float, float]] = {}
        for part in gather_objects(self.sums, processes):
            for name, (value, count) in part.items():
                before = total.get(name, (0.0, 0.0))
                total[name] = (before[0] + value, before[1] + count)
        return {name: value / count for name, (value, count) in sorted(total.items()) if count}
