"""The original's table of questions: everything of a question, its picture's regions included, on one line.

Nine columns, separated by tabs: question id, question, classes of the answers and their scores (separated by ``|``;
both empty if no answer of the list is right), image width, height, number of boxes, boxes (base64 of float32) and
features (likewise).
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any, Union

import numpy as np

from ernie_vil.data.json_lines import JsonLines
from ernie_vil.data.regions import Regions, _regions_from_record, check_regions
from ernie_vil.data.vqa_questions import Scores, VqaQuestion
from ernie_vil.errors import BadRecord, UserError

_COLUMNS = ("question_id", "question", "labels", "scores", "image_w", "image_h", "num_boxes", "boxes", "features")


class TsvQuestions:
    """The questions of one table. Keeps the places of the lines, not their contents.

    Every line but its boxes and features is checked once, on construction; one that cannot be used, or whose question
    id stood before, is left out and named in ``skipped`` (``FILE:LINE: reason``). A question earns at evaluation what
    its training target is, since the table has no annotators; the original does the same.

    Args:
        path: the file.
        classes: number of answers.
        feature_size: width of the features.
        unique: refuse second occurrences of a question id.

    Raises:
        UserError: missing file, or no usable line.
        BadRecord: on a look-up, boxes or features that cannot be read. The original goes on with those of the line
            before.
    """

    def __init__(self, path: Union[str, Path], classes: int, feature_size: int = 2048, unique: bool = True) -> None:
        self.path, self._classes, self._feature_size = Path(path), classes, feature_size
        if not self.path.is_file():
            raise UserError(f"{path}: no such table of questions")
        self._ids = array("q")
        self._seen: set[int] = set()
        self._unique = unique
        self._lines = JsonLines(self.path, self._check)
        self.skipped = self._lines.skipped
        self.question_ids = np.array(self._ids, np.int64)
        del self._seen
        if not len(self):
            raise UserError(f"{path}: no usable question; {self._lines.why_empty()}")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> VqaQuestion:
        return self._question(_columns(self._lines[index]))

    def regions(self, index: int) -> Regions:
        """The regions that stand on the line. Raises :class:`BadRecord`."""
        columns: dict[str, Any] = _columns(self._lines[index])
        regions = _regions_from_record(columns, self._feature_size, "its regions")
        check_regions(regions, "its regions")
        return regions

    def where(self, index: int) -> str:
        return self._lines.where(index)

    def _check(self, line: bytes, where: str) -> None:
        try:
            question_id = self._question(_columns(line)).question_id
            if self._unique and question_id in self._seen:
                raise BadRecord(f"the question id {question_id} stands for the second time")
        except BadRecord as error:
            raise BadRecord(f"{where}: {error}") from None
        self._seen.add(question_id)
        self._ids.append(question_id)

    def _question(self, columns: dict[str, str]) -> VqaQuestion:
        targets = self._targets(columns["labels"], columns["scores"])
        if not columns["question"].strip():
            raise BadRecord("the question is empty")
        number = columns["question_id"].strip()
        if not (number.isascii() and number.isdigit() and len(number) < 19):
            raise BadRecord(f"the question id is {number[:40]!r}, not a whole number")
        return VqaQuestion(int(number), columns["question"], targets, targets)

    def _targets(self, labels: str, scores: str) -> Scores:
        try:
            found = [int(text) for text in labels.split("|")] if labels.strip() else []
            values = [float(text) for text in scores.split("|")] if scores.strip() else []
        except ValueError:
            raise BadRecord(f"the answers {labels[:40]!r} with scores {scores[:40]!r} are not numbers") from None
        if len(found) != len(values):
            raise BadRecord(f"{len(found)} answers with {len(values)} scores")
        if not all(0 <= label < self._classes for label in found):
            raise BadRecord(f"an answer is not a class from 0 to {self._classes - 1}: {labels[:40]}")
        if not all(0 <= value <= 1 for value in values):
            raise BadRecord(f"a score is not from 0 to 1: {scores[:40]}")
        return np.array(found, np.int64), np.array(values)


def _columns(line: bytes) -> dict[str, str]:
    columns = line.rstrip(b"\r\n").split(b"\t")
    if len(columns) != len(_COLUMNS):
        raise BadRecord(f"{len(columns)} columns instead of {len(_COLUMNS)}")
    # As in the original, bytes that are not UTF-8 are passed over.
    return {name: column.decode("utf-8", "ignore") for name, column in zip(_COLUMNS, columns)}
