"""Questions of Visual Genome as additional training data for VQA, in the first epochs or in all of them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Collection, Iterator, Union

import numpy as np

from ernie_vil.data.json_stream import json_items
from ernie_vil.data.regions import LmdbRegionStore
from ernie_vil.data.vqa_answers import AnswerList, normalize_answer
from ernie_vil.data.vqa_questions import QuestionRow, QuestionTable, question_text, whole_number
from ernie_vil.errors import BadRecord, UserError


def read_visual_genome(
    path: Union[str, Path],
    image_data: Union[str, Path],
    answers: AnswerList,
    store: LmdbRegionStore,
    without: Collection[int] = (),
) -> QuestionTable:
    """The questions of ``question_answers.json`` whose answer, normalised, is in the list; its score is 1.

    Only questions on images of COCO are taken, for which VQA has region features; ``image_data.json`` says which those
    are. That, and what becomes of an answer, is the usual recipe (public code of bilinear attention networks).

    Args:
        without: COCO images to leave out, such as those of the validation split.

    Raises:
        UserError: a file is missing, damaged or of another form, or no question can be used.
    """
    for file in (path, image_data):
        if not Path(file).is_file():
            raise UserError(f"{file}: no such file")
    coco_ids = {image: coco for image, coco in _coco_ids(image_data).items() if coco not in without}
    skipped: list[str] = []
    table = QuestionTable(path, _rows(Path(path), coco_ids, answers, skipped), skipped, store)
    if not len(table):
        raise UserError(f"{path}: no question on an image of COCO has an answer of {answers.source}")
    return table


def _coco_ids(path: Union[str, Path]) -> dict[int, int]:
    """COCO image id by Visual Genome's."""
    found = {}
    for number, item in enumerate(json_items(path)):
        # Releases before 1.2 call it `id`.
        image = item.get("image_id", item.get("id")) if isinstance(item, dict) else None
        if type(image) is not int or "coco_id" not in item:
            raise UserError(
                f"{path}: entry {number} has no `image_id` or no `coco_id`; image_data.json is expected here"
            )
        if item["coco_id"] is not None:
            found[image] = item["coco_id"]
    return found


def _rows(path: Path, coco_ids: dict[int, int], answers: AnswerList, skipped: list[str]) -> Iterator[QuestionRow]:
    place = 0
    for number, image in enumerate(json_items(path)):
        if not isinstance(image, dict) or not isinstance(image.get("qas"), list):
            raise UserError(f"{path}: entry {number} has no list `qas`; question_answers.json is expected here")
        for position, item in enumerate(image["qas"]):
            try:
                coco_id = coco_ids.get(whole_number(item, "image_id"))
                answer = item.get("answer")
                if not isinstance(answer, str):
                    raise BadRecord(f"`answer` is {repr(answer)[:40]}, not a text")
                label = answers.label(normalize_answer(answer))
                if coco_id is None or label is None:
                    continue
                # Releases before 1.2 call it `id`.
                identity = whole_number(item, "qa_id" if "qa_id" in item else "id")
                row = QuestionRow(place, identity, coco_id, question_text(item), {label: 1.0})
            except BadRecord as error:
                skipped.append(f"{path}, image entry {number}, question {position}: {error}")
                continue
            place += 1
            yield row


class Mix:
    """Which question stands at a place of a training whose first passes walk additional questions too.

    The training walks passes over all questions while ``passes`` last, then passes over its own questions alone. An
    epoch of the run is ``size`` places of this walk, **as many as it has own questions**, so that durations in epochs
    mean the same with and without additional questions. Within a pass the order is random, and every question stands
    in it once.

    Args:
        size: number of own questions; they come first in the numbering.
        extra: number of additional ones.
        passes: passes with them.
        seed: of the order.
    """

    def __init__(self, size: int, extra: int, passes: int, seed: int) -> None:
        self.size, self._all, self._passes, self._seed = size, size + extra, passes, seed

    def question(self, epoch: int, index: int) -> int:
        """The number of the question at place ``index`` of an epoch."""
        place = epoch * self.size + index
        number, rank = divmod(place, self._all)
        if number < self._passes:
            return int(_order(self._seed, number, self._all)[rank])
        number, rank = divmod(place - self._passes * self._all, self.size)
        return int(_order(self._seed, self._passes + number, self.size)[rank])


# An epoch reaches into two or three passes.
@functools.lru_cache(maxsize=4)
def _order(seed: int, number: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(size)
