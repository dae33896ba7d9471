"""Referring expressions (RefCOCO, RefCOCO+, RefCOCOg): which region of a picture does a phrase speak of?

The annotations are those of the ``refer`` package (:mod:`ernie_vil.data.refer`). Region features come from stores, as
ViLBERT's multi-task release keeps them: one of detected boxes and one of annotated boxes, each with all of an image.
:mod:`ernie_vil.data.refcoco_tsv` reads the original's own table instead; samples are the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Protocol, Sequence

import numpy as np
import paddle

from ernie_vil.data.refer import Detections, Expression, ReferAnnotations
from ernie_vil.data.regions import LmdbRegionStore, Regions, box_locations, with_whole_image
from ernie_vil.data.text_pair import pad_sequences
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.data.vcr import pad_regions
from ernie_vil.errors import BadRecord, UserError

TRACKS = ("detected", "ground_truth", "all")
"""Which boxes may be the answer at evaluation."""
SPLITS = ("train", "val", "testA", "testB", "test")
_LOWEST_TARGET = 0.5


@dataclass(frozen=True)
class ReferredRegions:
    """The regions of an expression's image, and what they have to do with the box that is meant.

    Attributes:
        regions: features ``[n, F]`` and boxes ``[n, 4]``; unlike the regions of a store there may be none.
        ious: float64 ``[n]``, intersection over union with the target.
        candidates: bool ``[n]``, the regions that may be the answer at evaluation.
        target: float64 ``[4]``, the box that is meant: x1, y1, x2, y2 in pixels.
    """

    regions: Regions
    ious: np.ndarray
    candidates: np.ndarray
    target: np.ndarray


class Expressions(Protocol):
    """The expressions of a split, of either format."""

    texts: Sequence[str]
    skipped: Sequence[str]  # messages for records that cannot be used

    def referred(self, index: int) -> ReferredRegions:
        """Raises :class:`BadRecord`."""

    def where(self, index: int) -> str:
        """The record in words, for messages."""

    def identity(self, index: int) -> dict[str, Any]:
        """What names the record in a file of predictions."""


def box_ious(boxes: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Intersection over union of ``boxes [n, 4]`` with one box ``[4]``, float64 ``[n]``.

    Corners are pixels that belong to the box, so that a side is ``x2 - x1 + 1`` long: the convention of ViLBERT and of
    the original's tables. MAttNet counts ``x2 - x1``; that matters for boxes of a few pixels only.
    """
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).T
    left, top, right, bottom = np.asarray(target, np.float64)
    width = np.clip(np.minimum(x2, right) - np.maximum(x1, left) + 1, 0, None)
    height = np.clip(np.minimum(y2, bottom) - np.maximum(y1, top) + 1, 0, None)
    areas = (x2 - x1 + 1) * (y2 - y1 + 1) + (right - left + 1) * (bottom - top + 1)
    return width * height / (areas - width * height)


class ReferExpressions:
    """The expressions of one split with their regions from the stores.

    In training the regions are all that there are: detected boxes, then annotated ones. At evaluation they are those of
    the ``track`` alone, since an annotated box among the regions of a detector gives the answer away.

    Args:
        annotations: of the ``refer`` package. split: one of :data:`SPLITS`.
        detected: store of detected boxes; ``None`` if there is none.
        ground_truth: store of annotated boxes; ``None`` if there is none.
        training: see above.
        track: one of :data:`TRACKS`.
        detections: the detections that may be the answer; other boxes of ``detected`` are context at evaluation. By
            default all of its boxes may.

    Raises:
        UserError: no usable expression in the split, or the track needs a store that is ``None``.
    """

    def __init__(
        self,
        annotations: ReferAnnotations,
        split: str,
        detected: Optional[LmdbRegionStore],
        ground_truth: Optional[LmdbRegionStore],
        training: bool = False,
        track: str = "detected",
        detections: Optional[Detections] = None,
    ) -> None:
        self.expressions, self.skipped = annotations.split(split)
        self.texts = [expression.text for expression in self.expressions]
        self._path = annotations.path
        self._detected = detected if training or track != "ground_truth" else None
        self._ground_truth = ground_truth if training or track != "detected" else None
        self._detections = None if training else detections
        if self._detected is None and self._ground_truth is None:
            raise UserError(f"{split}: there is no store of regions for the track {track!r}")

    def referred(self, index: int) -> ReferredRegions:
        """See :class:`ReferredRegions`.

        Raises:
            BadRecord: a store lacks the image, cannot read it or holds it in another size, or it lacks a detection.
        """
        expression = self.expressions[index]
        found = []
        candidates = []
        for store in (self._detected, self._ground_truth):
            if store is None:
                continue
            regions = store[str(expression.image_id)]
            if (regions.width, regions.height) != expression.size:
                raise BadRecord(
                    f"{store.path}, image {expression.image_id}: the boxes are of an image of {regions.width} x "
                    f"{regions.height} pixels, the annotations of {expression.size[0]} x {expression.size[1]}"
                )
            found.append(regions)
            if store is self._detected and self._detections is not None:
                candidates.append(self._detections.among(expression.image_id, regions.boxes, f"{store.path}"))
            else:
                candidates.append(np.ones(len(regions.boxes), bool))
        boxes = np.concatenate([regions.boxes for regions in found])
        target = np.array(expression.target)
        return ReferredRegions(
            Regions(np.concatenate([regions.features for regions in found]), boxes, *expression.size),
            box_ious(boxes, target),
            np.concatenate(candidates),
            target,
        )

    def where(self, index: int) -> str:
        return f"{self._path}, {self.expressions[index].name()}"

    def identity(self, index: int) -> dict[str, Any]:
        expression: Expression = self.expressions[index]
        return {"ref_id": expression.ref_id, "sent_id": expression.sent_id, "image_id": expression.image_id}


class RefcocoDataset(paddle.io.Dataset):
    """Samples found by the key ``(0, epoch, index)``; they do not change from epoch to epoch.

    Args:
        expressions: of a split.
        tokenizer: of the model.
        training: labels below 0.5 become 0, as in the original. An expression whose target no region covers then has
            only zero labels and is trained on all the same: nothing in the picture is what it says.
        max_length: longest sequence, with ``[CLS]`` and ``[SEP]``; the end of a longer one is cut off. The original has
            512 whatever it is asked for.
        max_regions: most regions of an image, the whole image included; the last ones are cut off.
        feature_size: width of the features of an image without regions.

    Raises:
        BadRecord: on a look-up, regions that cannot be read, or in training an image without any.
    """

    def __init__(
        self,
        expressions: Expressions,
        tokenizer: WordPieceTokenizer,
        training: bool,
        max_length: int = 512,
        max_regions: int = 200,
        feature_size: int = 2048,
    ) -> None:
        super().__init__()
        self.expressions = expressions
        self.tokenizer = tokenizer
        self.training = training
        self.max_length = max_length
        self.max_regions = max_regions
        self.feature_size = feature_size

    def __len__(self) -> int:
        return len(self.expressions.texts)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        """One expression with the regions of its image; row 0 is the whole image.

        Returns:
            ``index``; ``input_ids``; ``region_features`` float32 ``[n, F]``, ``region_locations`` ``[n, 5]``; ``boxes``
            ``[n, 4]`` in pixels; ``labels`` ``[n]``, the overlap with the target; ``candidates`` ``[n]``, 1 for what
            may be the answer at evaluation; ``target`` ``[4]``; ``size``: width and height of the image.
        """
        _, _, index = key
        encoded = self.tokenizer.encode(self.expressions.texts[index])[: self.max_length - 2]
        try:
            found = self.expressions.referred(index)
        except BadRecord as error:
            raise BadRecord(f"{self.expressions.where(index)}: {error}") from error
        regions, kept = found.regions, self.max_regions - 1
        width, height = regions.width, regions.height
        features, boxes = regions.features[:kept], np.asarray(regions.boxes[:kept], np.float64)
        if len(boxes):
            features, locations = with_whole_image(features, box_locations(boxes, width, height))
        elif self.training:
            raise BadRecord(f"{self.expressions.where(index)}: no regions to train on")
        else:
            features = np.zeros((1, self.feature_size), np.float32)
            locations = np.array([[0.0, 0.0, 1.0, 1.0, 1.0]])
        overlaps, share = found.ious[:kept], box_share(found.target, width, height)
        return {
            "index": index,
            "input_ids": [self.tokenizer.cls_id, *encoded, self.tokenizer.sep_id],
            "region_features": features,
            "region_locations": locations,
            "boxes": np.concatenate([[[0.0, 0.0, width, height]], boxes]),
            # The whole image's label is cut at evaluation too, where nothing reads it.
            "labels": np.concatenate([_without_low([share]), _without_low(overlaps) if self.training else overlaps]),
            "candidates": np.concatenate([[False], found.candidates[:kept]]),
            "target": found.target,
            "size": (width, height),
        }


def box_share(box: np.ndarray, width: int, height: int) -> float:
    """Share of the image that a box covers, corners included; see :func:`box_ious`."""
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    return float((x2 - x1 + 1) * (y2 - y1 + 1) / (width * height))


def _without_low(ious: Any) -> np.ndarray:
    return np.where(np.asarray(ious) < _LOWEST_TARGET, 0.0, ious)


def collate_refcoco(samples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Put B samples together; regions are padded to the largest number in the batch.

    Returns:
        ``input_ids``, ``token_type_ids``, ``position_ids`` int64 and ``attention_mask`` float32 ``[B, L]``;
        ``region_features`` ``[B, N, F]``, ``region_locations`` ``[B, N, 5]``, ``boxes`` ``[B, N, 4]``, ``region_mask``,
        ``labels`` and ``candidates`` ``[B, N]``, ``target`` ``[B, 4]`` and ``size`` ``[B, 2]``, all float32; ``index``
        int64 ``[B]``.
    """
    batch = pad_sequences(
        [sample["input_ids"] for sample in samples], [[0] * len(sample["input_ids"]) for sample in samples]
    )
    batch.update(pad_regions([(sample["region_features"], sample["region_locations"]) for sample in samples]))
    shape = batch["region_mask"].shape
    for name, trailing in (("boxes", (4,)), ("labels", ()), ("candidates", ())):
        batch[name] = np.zeros((*shape, *trailing), np.float32)
        for row, sample in enumerate(samples):
            batch[name][row, : len(sample[name])] = sample[name]
    for name in ("target", "size"):
        batch[name] = np.array([sample[name] for sample in samples], np.float32)
    batch["index"] = np.array([sample["index"] for sample in samples], np.int64)
    return batch
