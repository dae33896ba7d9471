"""The tasks by name. A task is one file here and says what a batch, its loss and its metric are."""

from __future__ import annotations

from typing import Any

from ernie_vil.tasks.cloze import ClozeTask
from ernie_vil.tasks.pretrain import PretrainTask
from ernie_vil.tasks.refcoco import RefcocoTask
from ernie_vil.tasks.vcr import VcrTask
from ernie_vil.tasks.vqa import VqaTask

TASKS: dict[str, Any] = {
    "vcr": VcrTask,
    "vqa": VqaTask,
    "refcoco": RefcocoTask,
    "pretrain": PretrainTask,
    "cloze": ClozeTask,
}
