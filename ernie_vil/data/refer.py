"""Files of the ``refer`` package (Yu et al., "Modeling context in referring expressions", ECCV 2016) and of MAttNet.

``refs(unc).p`` (RefCOCO, RefCOCO+) and ``refs(umd).p`` (RefCOCOg) are pickled lists of references: ``ref_id``,
``ann_id``, ``image_id``, ``split`` and ``sentences`` with ``sent_id``, ``sent`` and ``raw``. ``instances.json`` has the
annotations and images in COCO's layout. MAttNet's ``res101_coco_minus_refer_notime_dets.json`` is a list of detections
with ``image_id`` and ``box``.
"""

from __future__ import annotations

import collections
import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence, Union

import numpy as np

from ernie_vil import pickles
from ernie_vil.data.json_stream import json_items, json_keys
from ernie_vil.errors import BadRecord, UserError

_TOLERANCE = 1.0  # pixels, as for the boxes of stores
# Corners are written with and without the last pixel, and single precision rounds a little more.
_SAME_BOX = 1.01


@dataclass(frozen=True)
class Expression:
    """One sentence about one object.

    ``target`` is the object's box, x1, y1, x2, y2 in pixels with ``x2 = x1 + width``; ``size`` the image's width and
    height.
    """

    text: str
    ref_id: int
    sent_id: int
    image_id: int
    target: tuple[float, float, float, float]
    size: tuple[int, int]

    def name(self) -> str:
        return f"ref {self.ref_id}, sentence {self.sent_id}"


@dataclass(frozen=True)
class _Reference:
    """What came of an entry of the file; ``split`` is ``None`` if it does not say."""

    split: Optional[str]
    expressions: list[Expression]
    skipped: list[str]


class ReferAnnotations:
    """The references of a data set with the boxes of their objects.

    Args:
        path: ``refs(...).p``, of Python 2 or 3; only plain data are read from it.
        instances: ``instances.json``.

    Raises:
        UserError: a file is missing, damaged, or not what it should be.
    """

    def __init__(self, path: Union[str, Path], instances: Union[str, Path]) -> None:
        self.path, self.instances = Path(path), Path(instances)
        try:
            refs = pickles.load(path)
        except BadRecord as error:
            raise UserError(f"{error}. The file is damaged; fetch it again.") from None
        if not isinstance(refs, list) or not refs:
            raise UserError(f"{path}: not a list of references, as the refer package has it in refs(unc).p")
        self._sizes = {
            item["id"]: (item["width"], item["height"]) for item in self._items("images", ("id", "width", "height"))
        }
        # Outlines make nine tenths of the file; nothing here needs them.
        self._boxes = {item["id"]: item["bbox"] for item in self._items("annotations", ("id", "bbox"))}
        seen: tuple[set[int], set[int]] = set(), set()
        # What the references hold besides is 500 MB in memory.
        self._refs = [self._parse(number, ref, *seen) for number, ref in enumerate(refs)]

    def split(self, split: str) -> tuple[list[Expression], list[str]]:
        """The expressions of a split in the order of the file, and messages for those that cannot be used.

        As in the refer package ``test`` is testA and testB together. Unusable are: references and sentences whose id
        stood before, in whichever split; a reference whose annotation or image is missing, or without a split (it is
        named for every split); a box that is empty or leaves the image by more than a pixel; a sentence without text.

        Raises:
            UserError: no usable expression in the split.
        """
        chosen = [ref for ref in self._refs if ref.split is None or _in_split(ref.split, split)]
        expressions = [expression for ref in chosen for expression in ref.expressions]
        skipped = [message for ref in chosen for message in ref.skipped]
        if not expressions:
            raise UserError(f"{self.path}: no usable expression in split {split}; {self._why_empty(skipped)}")
        return expressions, skipped

    def _parse(self, number: int, ref: Any, refs_seen: set[int], sentences_seen: set[int]) -> _Reference:
        split = None
        expressions: list[Expression] = []
        skipped: list[str] = []
        try:
            split = _field(ref, "split", str)
            ref_id = _new(_field(ref, "ref_id", int), refs_seen, "ref_id")
            image_id = _field(ref, "image_id", int)
            target, size = self._target(ref, image_id)
            sentences = _field(ref, "sentences", list)
        except BadRecord as error:
            identity = f"ref {ref['ref_id']}" if isinstance(ref, dict) and "ref_id" in ref else f"entry {number}"
            return _Reference(split, [], [f"{self.path}, {identity}: {error}"])
        for position, sentence in enumerate(sentences):
            try:
                sent_id = _new(_field(sentence, "sent_id", int), sentences_seen, "sent_id")
                expressions.append(Expression(_text(sentence), ref_id, sent_id, image_id, target, size))
            except BadRecord as error:
                skipped.append(f"{self.path}, ref {ref_id}, its sentence {position}: {error}")
        return _Reference(split, expressions, skipped)

    def _target(self, ref: dict, image_id: int) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
        ann_id = _field(ref, "ann_id", int)
        if ann_id not in self._boxes:
            raise BadRecord(f"{self.instances} has no annotation {ann_id}")
        if image_id not in self._sizes:
            raise BadRecord(f"{self.instances} has no image {image_id}")
        box, size = self._boxes[ann_id], self._sizes[image_id]
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise BadRecord(f"image {image_id} has the size {size[0]!r} x {size[1]!r}")
        return check_target(from_width_and_height(box), *size), size

    def _items(self, key: str, fields: Sequence[str]) -> Iterator[dict]:
        if not self.instances.is_file():
            raise UserError(f"{self.instances}: no such file; it comes with {self.path.name}")
        for item in json_items(self.instances, key):
            if not isinstance(item, dict) or any(field not in item for field in fields):
                raise UserError(f"{self.instances}: an entry of `{key}` lacks one of {', '.join(fields)}")
            yield item

    def _why_empty(self, skipped: Sequence[str]) -> str:
        if skipped:
            return f"all {len(skipped)} of its entries are bad:" + "".join(f"\n  {text}" for text in skipped[:20])
        found = collections.Counter(str(ref.split) for ref in self._refs)
        return "the file has " + ", ".join(f"{count} references of {name}" for name, count in sorted(found.items()))


class Detections:
    """Detected boxes by image, from MAttNet's file: a JSON list of ``{"image_id": .., "box": [x, y, width, height]}``.

    Width and height count both edge pixels there (``x2 - x1 + 1``). The list may also stand under the key ``dets``.
    Raises :class:`UserError` for a file that is not of this form.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path}: no such file of detections; MAttNet's page has them, in detections.zip")
        boxes: dict[str, list] = {}
        for number, item in enumerate(json_items(path, None if json_keys(path) is None else "dets")):
            try:
                x1, y1, x2, y2 = from_width_and_height(item["box"])
                boxes.setdefault(str(item["image_id"]), []).append((x1, y1, x2 - 1, y2 - 1))
            except (TypeError, KeyError, BadRecord):
                raise UserError(f"{path}: detection {number} has no `image_id`, or no `box` of four numbers") from None
        self._boxes = {image_id: np.array(found) for image_id, found in boxes.items()}

    def among(self, image_id: int, boxes: np.ndarray, where: str) -> np.ndarray:
        """Which of ``boxes [n, 4]`` (x1, y1, x2, y2) are detections of the image: bool ``[n]``, no corner off by more
        than a pixel. All false for an image in which nothing was detected.

        Raises:
            BadRecord: a detection is not among the boxes of the store, which ``where`` names.
        """
        detected = self._boxes.get(str(image_id))
        if detected is None:
            return np.zeros(len(boxes), bool)
        same = np.abs(boxes[:, None].astype(np.float64) - detected[None]).max(2) <= _SAME_BOX
        if not same.any(0).all():
            missing = detected[int(np.argmin(same.any(0)))]
            raise BadRecord(
                f"{where}, image {image_id}: has no region at the detection {np.round(missing, 1).tolist()} of "
                f"{self.path}; extract features at the detected boxes"
            )
        return same.any(1)


def from_width_and_height(box: Any) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a box x, y, width, height. Raises :class:`BadRecord` unless it has four numbers."""
    numbers = isinstance(box, (list, tuple)) and all(type(value) in (int, float) for value in box)
    if not numbers or len(box) != 4:
        raise BadRecord(f"the box is {box!r}, not four numbers")
    return float(box[0]), float(box[1]), float(box[0]) + float(box[2]), float(box[1]) + float(box[3])


def check_target(box: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    """The box of a target. Raises :class:`BadRecord` if it is empty or leaves the image by more than a pixel."""
    x1, y1, x2, y2 = box
    if not all(math.isfinite(value) for value in box) or x2 <= x1 or y2 <= y1:
        raise BadRecord(f"the target {list(box)} is no box")
    if min(x1, y1) < -_TOLERANCE or x2 > width + _TOLERANCE or y2 > height + _TOLERANCE:
        raise BadRecord(f"the target {list(box)} lies outside the {width} x {height} image")
    return box


def _in_split(own: str, split: str) -> bool:
    if split in ("testA", "testB"):
        return own.startswith("test") and split[-1] in own[4:]
    return own.startswith("test") if split == "test" else own == split


def _field(item: Any, name: str, kind: type) -> Any:
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadRecord(f"`{name}` is {repr(value)[:40]}")
    return value


def _new(identity: int, seen: set[int], name: str) -> int:
    if identity in seen:
        raise BadRecord(f"the {name} {identity} stood before; the first one is used")
    seen.add(identity)
    return identity


def _text(sentence: Any) -> str:
    """What was typed, which ViLBERT trains on too; the cleaned ``sent`` where it is absent."""
    raw: Optional[Any] = sentence.get("raw")
    text = raw if isinstance(raw, str) and raw.strip() else _field(sentence, "sent", str)
    # Python 2's byte strings come as one character a byte.
    with contextlib.suppress(UnicodeEncodeError, UnicodeDecodeError):
        text = text.encode("latin1").decode("utf-8")
    if not text.strip():
        raise BadRecord("the sentence has no text")
    return text.strip()
