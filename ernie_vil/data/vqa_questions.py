"""The questions of VQA v2 as the official files have them, with the annotators' answers."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Optional, Protocol, Sequence, Union

import numpy as np

from ernie_vil.data.json_stream import json_items
from ernie_vil.data.regions import LmdbRegionStore, Regions
from ernie_vil.data.vqa_answers import AnswerList, annotated_answers
from ernie_vil.errors import BadRecord, UserError

Scores = tuple[np.ndarray, np.ndarray]
"""Classes and their scores; all other classes have 0."""


@dataclass(frozen=True)
class VqaQuestion:
    """A question with what is known of its answer.

    Attributes:
        targets: what the classifier is trained on; empty if no answer of the list is right, or none is known.
        accuracies: what an answer earns at evaluation, from 0 to 1; ``None`` if that is not known.
        question_type, answer_type: as annotated ("what color is the", "other"); empty if they are not.
    """

    question_id: int
    text: str
    targets: Scores
    accuracies: Optional[Scores] = None
    question_type: str = ""
    answer_type: str = ""


class Questions(Protocol):
    """The questions of one source."""

    skipped: Sequence[str]  # messages for records that cannot be used
    question_ids: np.ndarray  # int64, in the order of the questions

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> VqaQuestion: ...

    def regions(self, index: int) -> Regions:
        """Raises :class:`BadRecord`."""

    def where(self, index: int) -> str:
        """The record in words, for messages."""


@dataclass(frozen=True)
class QuestionRow:
    """What :class:`QuestionTable` is filled with, in any order; ``place`` is the one that the question has in its file.

    ``accuracies`` is ``None`` in all rows of a table or in none.
    """

    place: int
    question_id: int
    image_id: int
    text: str
    targets: Mapping[int, float]
    accuracies: Optional[Mapping[int, float]] = None
    question_type: str = ""
    answer_type: str = ""


class QuestionTable:
    """Questions in a few arrays: half a million of them take some 60 MB, and forked workers share them.

    Args:
        path: named in messages.
        rows: the questions.
        skipped: messages for records that cannot be used; may grow while ``rows`` is walked.
        store: region features by image id; may be ``None`` where nobody asks for them.
    """

    def __init__(
        self,
        path: Union[str, Path],
        rows: Iterable[QuestionRow],
        skipped: Sequence[str],
        store: Optional[LmdbRegionStore],
    ) -> None:
        self.path, self.skipped, self.store = Path(path), skipped, store
        ids, images, texts, ends = array("q"), array("q"), bytearray(), array("q", [0])
        self._targets, self._accuracies = _SparseRows(), _SparseRows()
        names: dict[tuple[str, str], int] = {}
        types, places = array("q"), array("q")
        for row in rows:
            places.append(row.place)
            ids.append(row.question_id)
            images.append(row.image_id)
            texts += row.text.encode("utf-8", "surrogatepass")
            ends.append(len(texts))
            self._targets.append(row.targets)
            if row.accuracies is not None:
                self._accuracies.append(row.accuracies)
            types.append(names.setdefault((row.question_type, row.answer_type), len(names)))
        self._texts, self._ends, self._types, self._names = bytes(texts), ends, types, list(names)
        self._ids, self._images = np.array(ids, np.int64), np.array(images, np.int64)
        self._rows = np.argsort(np.array(places, np.int64), kind="stable")

    @property
    def question_ids(self) -> np.ndarray:
        return self._ids[self._rows]

    @property
    def image_ids(self) -> np.ndarray:
        """int64, one for each question."""
        return self._images[self._rows]

    def select(self, kept: np.ndarray) -> QuestionTable:
        """The same table with the questions for which ``kept`` (bool, one for each) is true."""
        other = object.__new__(QuestionTable)
        other.__dict__.update(self.__dict__, _rows=self._rows[kept])
        return other

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> VqaQuestion:
        row = int(self._rows[index])
        text = self._texts[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogatepass")
        accuracies = self._accuracies[row] if len(self._accuracies) else None
        return VqaQuestion(int(self._ids[row]), text, self._targets[row], accuracies, *self._names[self._types[row]])

    def regions(self, index: int) -> Regions:
        """The regions of the question's image. Raises :class:`BadRecord` if the store does not give them."""
        assert self.store is not None, "a table without a store was asked for regions"
        return self.store[str(self._images[self._rows[index]])]

    def where(self, index: int) -> str:
        return f"{self.path}, question {self._ids[self._rows[index]]}"


class _SparseRows:
    """For each row some classes with their scores."""

    def __init__(self) -> None:
        self._ends, self._labels, self._scores = array("q", [0]), array("i"), array("d")

    def append(self, scores: Mapping[int, float]) -> None:
        self._labels.extend(scores)
        self._scores.extend(scores.values())
        self._ends.append(len(self._labels))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> Scores:
        own = slice(self._ends[row], self._ends[row + 1])
        return np.array(self._labels[own], np.int64), np.array(self._scores[own])


def read_official(
    questions: Union[str, Path],
    annotations: Union[str, Path, None],
    answers: AnswerList,
    store: Optional[LmdbRegionStore] = None,
) -> QuestionTable:
    """The questions of an official file, in its order, with the answers from the official annotations.

    Left out and named in ``skipped`` are: an entry without a number ``question_id`` or ``image_id`` or without a
    text, a second one with the same id, a question without annotation, an annotation without question or on another
    image or without answers. Both files are streamed.

    Args:
        annotations: ``None`` for a test split, whose answers are not public.
        answers: what the classes mean.
        store: region features by COCO image id.

    Raises:
        UserError: a file is missing or damaged, there is no usable question, or no annotation belongs to any.
    """
    skipped: list[str] = []
    found = _read_questions(Path(questions), skipped)
    if not found:
        raise UserError(f"{questions}: no usable question{_listed(skipped)}")
    if annotations is None:
        rows = (QuestionRow(place, number, image, text, {}) for number, (place, image, text) in found.items())
        return QuestionTable(questions, rows, skipped, store)
    _require(Path(annotations))
    table = QuestionTable(questions, _annotated(questions, annotations, found, answers, skipped), skipped, store)
    if not len(table):
        raise UserError(
            f"{annotations}: no usable annotation of a question in {questions}; are both of the same split?"
            + _listed(skipped)
        )
    return table


def _read_questions(path: Path, skipped: list[str]) -> dict[int, tuple[int, int, str]]:
    """Place in the file, image id and text by question id."""
    _require(path)
    found: dict[int, tuple[int, int, str]] = {}
    for place, item in enumerate(json_items(path, "questions")):
        try:
            question_id = whole_number(item, "question_id")
            if question_id in found:
                raise BadRecord("its id stands for the second time")
            found[question_id] = (place, whole_number(item, "image_id"), question_text(item))
        except BadRecord as error:
            skipped.append(f"{path}, {_name(item, 'question', place)}: {error}")
    return found


def _annotated(
    path: Union[str, Path],
    annotations: Union[str, Path],
    found: dict[int, tuple[int, int, str]],
    answers: AnswerList,
    skipped: list[str],
) -> Iterator[QuestionRow]:
    """In the order of the annotations; takes every question that it gives out of ``found``."""
    taken: set[int] = set()
    for number, item in enumerate(json_items(annotations, "annotations")):
        try:
            question_id, image_id = (whole_number(item, name) for name in ("question_id", "image_id"))
            if question_id in taken:
                raise BadRecord("its id stands for the second time")
            if question_id not in found:
                raise BadRecord(f"there is no such question in {path}")
            taken.add(question_id)
            place, image, text = found.pop(question_id)
            if image != image_id:
                raise BadRecord(f"it is of image {image_id}, the question in {path} of image {image}")
            given = annotated_answers(item)
            types = [item.get(name, "") for name in ("question_type", "answer_type")]
            if not all(isinstance(name, str) for name in types):
                raise BadRecord("its `question_type` or `answer_type` is no text")
        except BadRecord as error:
            skipped.append(f"{annotations}, {_name(item, 'annotation of question', number)}: {error}")
            continue
        yield QuestionRow(place, question_id, image, text, answers.targets(given), answers.accuracies(given), *types)
    skipped += [f"{path}, question {question_id}: it has no annotation in {annotations}" for question_id in found]


def whole_number(item: Any, name: str) -> int:
    """The number ``item[name]``. Raises :class:`BadRecord`."""
    if not isinstance(item, dict):
        raise BadRecord(f"expected a JSON object, found {type(item).__name__}")
    value = item.get(name)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise BadRecord(f"`{name}` is {repr(value)[:40]}, not a whole number")
    return value


def question_text(item: Mapping[str, Any]) -> str:
    """``item["question"]``. Raises :class:`BadRecord` if it is no text or empty."""
    text = item.get("question")
    if not isinstance(text, str) or not text.strip():
        raise BadRecord(f"`question` is {repr(text)[:40]}, not a text")
    return text


def _name(item: Any, kind: str, place: int) -> str:
    number = item.get("question_id") if isinstance(item, dict) else None
    return f"{kind} {number}" if isinstance(number, int) else f"{kind}, entry {place}"


def _require(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such file")


def _listed(skipped: Sequence[str]) -> str:
    return "".join(f"\n  {message}" for message in skipped[:20])
