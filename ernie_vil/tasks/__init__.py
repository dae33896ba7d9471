"""The tasks by name. A task is one file here and says what a batch, its loss and its metric are."""

from __future__ import annotations

from ernie_vil.tasks.vcr import VcrTask

TASKS: dict[str, type[VcrTask]] = {"vcr": VcrTask}
