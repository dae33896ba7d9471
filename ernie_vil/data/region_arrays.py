"""The regions of one image as arrays: what is plausible, box locations, and the whole-image region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence

import numpy as np

from ernie_vil.errors import BadRecord, UserError

OPTIONAL_ARRAYS = ("class_probs", "attribute_probs")
_BOX_TOLERANCE = 1.0  # pixels; extractors round, and count the last pixel in different ways


@dataclass(frozen=True)
class Regions:
    """The regions of one image.

    Attributes:
        features: [n, F] float32, one row per box.
        boxes: [n, 4] float32, x1, y1, x2, y2 in pixels.
        width, height: size of the image in pixels.
        class_probs, attribute_probs: [n, classes] float32 of the detector, where the store has them.
    """

    features: np.ndarray
    boxes: np.ndarray
    width: int
    height: int
    class_probs: Optional[np.ndarray] = None
    attribute_probs: Optional[np.ndarray] = None


def optional_arrays(regions: Regions) -> list[tuple[str, np.ndarray]]:
    """Those of :data:`OPTIONAL_ARRAYS` that the regions have, with their names."""
    arrays = ((name, getattr(regions, name)) for name in OPTIONAL_ARRAYS)
    return [(name, array) for name, array in arrays if array is not None]


def check_regions(regions: Regions, where: str) -> None:
    """Raise :class:`BadRecord` naming ``where`` and the fault unless the regions can be used.

    Refused: no boxes, arrays of other shapes than [n, F] and [n, 4], NaN or infinite values, a width or height
    that is not positive, a box whose corners are out of order or that leaves the image by more than one pixel.
    """
    features, boxes = regions.features, regions.boxes
    if regions.width <= 0 or regions.height <= 0:
        raise BadRecord(f"{where}: image size {regions.width} x {regions.height}")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or features.ndim != 2 or len(features) != len(boxes):
        raise BadRecord(f"{where}: features {list(features.shape)} and boxes {list(boxes.shape)} do not fit together")
    if not len(boxes):
        raise BadRecord(f"{where}: no boxes")
    for name, array in (("features", features), ("boxes", boxes), *optional_arrays(regions)):
        if len(array) != len(boxes):
            raise BadRecord(f"{where}: {len(array)} rows of {name} for {len(boxes)} boxes")
        if not np.isfinite(array).all():
            raise BadRecord(f"{where}: NaN or infinite values in {name}")
    x1, y1, x2, y2 = boxes.T
    _refuse_boxes((x2 < x1) | (y2 < y1), "has its corners in the wrong order", regions, where)
    outside = (np.minimum(x1, y1) < -_BOX_TOLERANCE) | (x2 > regions.width + _BOX_TOLERANCE)
    outside |= y2 > regions.height + _BOX_TOLERANCE
    _refuse_boxes(outside, f"lies outside the {regions.width} x {regions.height} image", regions, where)


def box_locations(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """[n, 5] float64: x1/w, y1/h, x2/w, y2/h and the share of the image's area (section 3.1 of the paper; VCR form)."""
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).T
    area = (x2 - x1) * (y2 - y1) / (width * height)
    return np.stack([x1 / width, y1 / height, x2 / width, y2 / height, area], axis=1)


def with_whole_image(features: np.ndarray, locations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put the whole-image region first: the mean feature, and the box that covers everything.

    Args:
        features: [n, F] float32. locations: [n, 5].

    Returns:
        features [n + 1, F] and locations [n + 1, 5].
    """
    mean = np.sum(features, axis=0, keepdims=True) / np.float32(len(features))
    whole = np.array([[0, 0, 1, 1, 1]], locations.dtype)
    return np.concatenate([mean, features]), np.concatenate([whole, locations])


def merge_with_ground_truth(
    detected: Regions, ground_truth: Optional[Regions], max_regions: int
) -> tuple[np.ndarray, np.ndarray]:
    """The region rows of one VCR image: whole image, detected boxes, boxes of the annotation.

    Annotated boxes have the first claim on the ``max_regions`` rows, except one that is left to the whole image;
    detected boxes fill what remains, in their order. The whole-image feature is the mean of the two sets' means
    weighted by the number of boxes **plus one**, as in the original. Without ground truth: the whole image and the
    first ``max_regions - 1`` detected boxes.

    Returns:
        features [n, F] float32 and locations [n, 5] float64, n <= max_regions.
    """
    if max_regions < 1:
        raise UserError(f"max_regions is {max_regions}; at least one row is needed, for the whole image.")
    features, locations = with_whole_image(
        detected.features, box_locations(detected.boxes, detected.width, detected.height)
    )
    if ground_truth is None:
        return features[:max_regions], locations[:max_regions]
    true_features, true_locations = with_whole_image(
        ground_truth.features, box_locations(ground_truth.boxes, ground_truth.width, ground_truth.height)
    )
    count, true_count = len(features), len(true_features)
    features[0] = (features[0] * count + true_features[0] * true_count) / (count + true_count)
    kept, kept_true = kept_boxes(count - 1, true_count - 1, max_regions)
    return (
        np.concatenate([features[: kept + 1], true_features[1 : kept_true + 1]]),
        np.concatenate([locations[: kept + 1], true_locations[1 : kept_true + 1]]),
    )


def kept_boxes(detected: int, ground_truth: int, max_regions: int) -> tuple[int, int]:
    """How many of the first detected and of the first annotated boxes :func:`merge_with_ground_truth` keeps."""
    kept_true = min(max_regions - 1, ground_truth)
    return min(max_regions - 1 - kept_true, detected), kept_true


def pad_regions(regions: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Pad the features ``[n, F]`` and locations ``[n, 5]`` of several pictures with zeros, to the largest N.

    Returns:
        ``region_features`` ``[pictures, N, F]``, ``region_locations`` ``[pictures, N, 5]`` and ``region_mask``
        ``[pictures, N]``, 1 where there is a region; all float32.
    """
    most = max(len(features) for features, _ in regions)
    # Not zeros(): a batch of 16 is 13 MB, and nearly all of it would be written twice.
    features = np.empty((len(regions), most, regions[0][0].shape[1]), dtype=np.float32)
    locations = np.zeros((len(regions), most, 5), dtype=np.float32)
    mask = np.zeros((len(regions), most), dtype=np.float32)
    for row, (own_features, own_locations) in enumerate(regions):
        count = len(own_features)
        features[row, :count] = own_features
        features[row, count:] = 0
        locations[row, :count] = own_locations
        mask[row, :count] = 1
    return {"region_features": features, "region_locations": locations, "region_mask": mask}


def _refuse_boxes(wrong: np.ndarray, fault: str, regions: Regions, where: str) -> None:
    if wrong.any():
        index = int(np.argmax(wrong))
        raise BadRecord(f"{where}: box {index} {fault}: {regions.boxes[index].tolist()}")
