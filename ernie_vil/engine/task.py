"""What the engine asks of a task: data to train and evaluate on, losses, predictions, metrics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable, Mapping, Protocol, Sequence

from paddle import Tensor, nn


@dataclasses.dataclass(frozen=True)
class TrainSet:
    """What a task trains on: a dataset keyed by ``(part, epoch, index)``, and how its parts take turns.

    See :class:`ernie_vil.engine.data.JointBatches` for the meaning of the numbers. ``records`` is the
    number of records in the files, to which ``data.max_skip_ratio`` refers; ``unreadable`` names those that the dataset
    had to leave out when it was opened.
    """

    dataset: Any
    collate: Callable[[list], dict]
    sizes: tuple[int, ...]
    records: int
    turn: int = 1
    drop_last: bool = False
    drop_incomplete_turns: bool = False
    unreadable: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """What a task evaluates on: the keys of a dataset, each of which is counted exactly once.

    ``records`` and ``unreadable`` as in :class:`TrainSet`.
    """

    dataset: Any
    collate: Callable[[list], dict]
    keys: Sequence[Any]
    records: int
    unreadable: Sequence[str] = ()


class Task(Protocol):
    """A task. Its losses are sums; the trainer divides them by the counts of the whole global batch.

    So micro-batches and processes of unequal size still give the gradient of the global batch.
    """

    sections: Mapping[str, type]  # schemas of the config's sections "model" and "data"
    splits: Sequence[str]
    unlabelled: Sequence[str]  # splits that can be predicted but not evaluated
    model: nn.Layer
    metric: str  # the evaluation metric that "best" follows
    metric_names: Sequence[str]  # the metrics that it may follow instead: larger is better

    @staticmethod
    def mini_data() -> dict[str, Any]:
        """The section "data" of a miniature run; makes the data on first use."""

    @staticmethod
    def missing_files(files: Any, splits: Sequence[str]) -> list[str]:
        """A message for each file that work on ``splits`` needs and that is not there."""

    def largest_batch(self, examples: int) -> tuple[int, int, int]:
        """Texts, tokens and regions of the largest batch that so many examples can make."""

    def train_set(self) -> TrainSet: ...

    def eval_set(self, split: str) -> EvalSet: ...

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """For each loss of this batch, the number of elements it is summed over."""

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The losses of a batch by name, each a sum over its elements, weighted as they enter the total."""

    def predict(self, batch: Mapping[str, Any]) -> list[dict]:
        """One record per example of a batch; ``record["key"]`` is the example's key in the evaluation set."""

    def metrics(self, records: list[dict]) -> dict[str, float]:
        """Numbers over all records of a split, which come in the split's order."""

    def write_predictions(self, records: list[dict], split: str, path: Path) -> None:
        """Write the official result file of a split."""

    def save_pretrained(self, folder: Path) -> None:
        """Write a model folder that ``from_pretrained`` opens."""
