"""Masking the regions of an image for pre-training (paper, section 3.3, masked region prediction).

A share of the region rows is drawn (15 %), never the whole-image row. 80 % of them are zeroed, 10 % get the features of
another region and 10 % keep their own; all of them are predicted.

**What a masked region shows is not shown elsewhere.** A detector gives several boxes of one thing, and the whole-image
row is the mean of all regions. Therefore:

* every region whose box overlaps with a masked one by ``SAME_THING`` (intersection over union, IoU) or more is zeroed
  too, without being predicted;
* the whole-image row is the mean of the regions that still show something; boxes that ``max_regions`` cuts off count in
  it, as they always do, unless they overlap with a masked one;
* features that replace others come from a region that is shown and hardly overlaps.

Regions drawn to keep their features are to be seen, and so are those around them, unless another masked region overlaps
with them; then they are zeroed and predicted as masked ones.

The measure is IoU alone, at ViLBERT's threshold. Boxes within the masked box, or around it, that differ much from it in
size stay: in bottom-up features of COCO photos, features of two boxes are alike to the degree of their IoU (cosine 0.27
without overlap, 0.49 at IoU 0.1 to 0.2, 0.61 at 0.2 to 0.3, above 0.77 from 0.4 on) and no more alike at the same IoU
when one box contains the other. Hiding what lies by 70 % inside a masked box as well would blank 56 % of all regions
instead of 29 %, since a box of the whole scene contains nearly everything, and leave the caption without an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

import numpy as np

from ernie_vil.data.region_arrays import Regions, box_locations, kept_boxes, merge_with_ground_truth
from ernie_vil.data.sampling import systematic_sample
from ernie_vil.errors import BadRecord

SAME_THING = 0.4  # IoU from which on a box shows what another one shows
APART = 0.1  # IoU up to which a region may lend its features to another one
ZERO_SHARE, REPLACE_SHARE = 0.8, 0.1
_ZERO, _REPLACE, _KEEP = range(3)


@dataclass(frozen=True)
class MaskedRegions:
    """The region rows of an image, some of them masked.

    Attributes:
        features: [n, F] float32; row 0 is the whole image.
        locations: [n, 5].
        rows: int64 [k], the rows to predict, ascending.
        targets: float32 [k, C] class distributions or [k, F] features of these rows; None if none were asked for.
        hidden: bool [n], the rows that show nothing, predicted or not.
    """

    features: np.ndarray
    locations: np.ndarray
    rows: np.ndarray
    targets: Optional[np.ndarray]
    hidden: np.ndarray


def mask_regions(
    detected: Regions,
    ground_truth: Optional[Regions],
    max_regions: int,
    rate: float,
    rng: np.random.Generator,
    target: str = "none",
    fates: tuple[float, float] = (ZERO_SHARE, REPLACE_SHARE),
) -> MaskedRegions:
    """Draw a mask for the regions of one image; the module's description has the rule.

    Without a masked region the rows are those of :func:`ernie_vil.data.region_arrays.merge_with_ground_truth`. The draw
    depends on the number of rows, not on what was cut off.

    Args:
        detected, ground_truth, max_regions: as for ``merge_with_ground_truth``.
        rate: share of the rows, without the whole-image row, that is masked.
        rng: source of all randomness.
        target: ``classes`` (``class_probs`` of the regions, which must be there), ``features`` or ``none``.
        fates: shares of the masked rows that are zeroed and that are replaced; the others stay.

    Raises:
        BadRecord: the ``class_probs`` of a masked box are no distribution.
    """
    features, locations = merge_with_ground_truth(detected, ground_truth, max_regions)
    sets = [detected] if ground_truth is None else [detected, ground_truth]
    boxes = _boxes(sets)
    count = len(detected.boxes)
    kept, kept_true = kept_boxes(count, len(boxes) - count, max_regions)
    # Place of every row but the first among the boxes of both sets.
    places = np.concatenate([np.arange(kept), count + np.arange(kept_true)])

    rows = np.sort(systematic_sample([rate] * len(places), rng))
    draws, lenders = rng.random(len(rows)), rng.random(len(rows))
    fate = np.select([draws < fates[0], draws < fates[0] + fates[1]], [_ZERO, _REPLACE], _KEEP)
    drawn = places[rows]
    overlaps = intersection_over_union(boxes[drawn], boxes)
    hidden = _hidden(fate, drawn, overlaps)

    original = np.concatenate([regions.features for regions in sets])
    shown, visible = original.copy(), ~hidden
    for place, overlap, lender in zip(drawn[fate == _REPLACE], overlaps[fate == _REPLACE], lenders[fate == _REPLACE]):
        others = places[~hidden[places] & (overlap[places] <= APART)]
        if len(others):
            shown[place] = original[others[int(lender * len(others))]]
            visible[place] = True
    shown[~visible] = 0
    if hidden.any():
        features[0] = _whole_image(sets, shown, visible)
        features[1:] = shown[places]
    targets = None
    if target == "features":
        targets = original[drawn].astype(np.float32)
    elif target == "classes":
        targets = _class_distributions(np.concatenate([regions.class_probs for regions in sets])[drawn])
    return MaskedRegions(features, locations, rows + 1, targets, np.concatenate([[False], ~visible[places]]))


def intersection_over_union(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 [n, m] of boxes [n, 4] and [m, 4], x1, y1, x2, y2 in pixels, the last ones included.

    So a box without extent is one pixel, and equal boxes always have 1.
    """
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])
    other_corner = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.clip(other_corner - corner + 1, 0, None).prod(axis=-1)
    areas, other_areas = (np.prod(array[:, 2:] - array[:, :2] + 1, axis=-1) for array in (boxes, others))
    return common / (areas[:, None] + other_areas - common)


def _boxes(sets: list[Regions]) -> np.ndarray:
    """The boxes of both sets in pixels of the first, should their images differ in size."""
    first = sets[0]
    scale = np.array([first.width, first.height] * 2)
    return np.concatenate([box_locations(s.boxes, s.width, s.height)[:, :4] * scale for s in sets])


def _hidden(fate: np.ndarray, drawn: np.ndarray, overlaps: np.ndarray) -> np.ndarray:
    """bool per box: whether its own features are kept from sight. Changes ``fate`` **in place** where one may not stay.

    Args:
        fate: [k] of the drawn boxes. drawn: [k] their places. overlaps: [k, boxes] IoU.
    """
    while True:
        hidden = (overlaps[fate != _KEEP] >= SAME_THING).any(axis=0)
        caught = (fate == _KEEP) & hidden[drawn]
        if not caught.any():
            return hidden
        # Zeroed and predicted: now what overlaps with this one must not show either.
        fate[caught] = _ZERO


def _whole_image(sets: list[Regions], shown: np.ndarray, visible: np.ndarray) -> np.ndarray:
    count = len(sets[0].boxes)
    parts = []
    for regions, features, mask in zip(sets, (shown[:count], shown[count:]), (visible[:count], visible[count:])):
        if mask.any():
            parts.append(replace(regions, features=features[mask], boxes=regions.boxes[mask], class_probs=None))
    if not parts:
        return np.zeros(shown.shape[1], np.float32)
    return merge_with_ground_truth(parts[0], parts[1] if len(parts) == 2 else None, 1)[0][0]


def _class_distributions(probabilities: np.ndarray) -> np.ndarray:
    totals = probabilities.sum(axis=1, keepdims=True, dtype=np.float64)
    if (probabilities < 0).any() or (totals <= 0).any():
        raise BadRecord("class_probs of a box are negative or all zero")
    return (probabilities / totals).astype(np.float32)
