"""Changes of an NLVR image and its sentence together that keep the sentence as true as it was.

* ``boxes``: the boxes in another order, as in the corpus' own six images of an example;
* ``mirror``: every box mirrored left to right, unless the sentence says left or right;
* ``colours``: yellow, blue and black exchanged in image and sentence;
* ``shapes``: squares, circles and triangles exchanged likewise, in images of scattered things. Left alone where the
  sentence speaks of blocks, sides or bases, or calls the boxes grey squares.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Optional, Sequence

import numpy as np

from ernie_vil.data.nlvr_regions import BOX_STEP, BOX_WIDTH, BOXES, COLOURS, COLUMNS, SHAPES, renamed
from ernie_vil.data.regions import Regions

ORDERS = tuple(itertools.permutations(range(BOXES)))
"""Box ``j`` of the corpus' image ``k`` is box ``ORDERS[k][j]`` of its image 0."""
CHANGES = ("boxes", "mirror", "colours", "shapes")
_DIRECTIONS = {"left", "right"}
_BOUND_TO_SHAPE = {"block", "blocks", "side", "sides", "base", "rectangle", "grey", "gray"}
_THING, _STACK = COLUMNS.index("kind thing"), COLUMNS.index("stack")
_Order = Optional[tuple]


@dataclass(frozen=True)
class Changes:
    """What is done to one sample; ``None`` and ``False`` leave things as they are.

    Attributes:
        boxes: box ``j`` becomes the old box ``boxes[j]``.
        mirror: whether the boxes are mirrored.
        colours, shapes: the ``i``-th colour (shape) becomes the ``colours[i]``-th.
    """

    boxes: _Order = None
    mirror: bool = False
    colours: _Order = None
    shapes: _Order = None

    @classmethod
    def draw(cls, possible: Sequence[str], rng: np.random.Generator) -> Changes:
        """One at random, with the changes named in ``possible``; draws the same numbers whatever these are."""
        boxes, colours, shapes = (tuple(rng.permutation(3).tolist()) for _ in range(3))
        mirror = bool(rng.integers(2))
        return cls(
            boxes if "boxes" in possible else None,
            mirror and "mirror" in possible,
            colours if "colours" in possible else None,
            shapes if "shapes" in possible else None,
        )


def possible_changes(sentence: str, features: np.ndarray, allowed: Sequence[str] = CHANGES) -> list[str]:
    """Those of ``allowed`` that keep the truth of a normalised ``sentence`` about an image with these features."""
    words = set(sentence.split())
    forbidden = {"mirror"} if words & _DIRECTIONS else set()
    things = features[features[:, _THING] > 0]
    if words & _BOUND_TO_SHAPE or (things[:, _STACK] > 0).all():
        forbidden.add("shapes")
    return [name for name in allowed if name not in forbidden]


def change_sentence(sentence: str, change: Changes) -> str:
    """The normalised sentence with its colours and shapes exchanged."""
    names = {}
    for order, words in ((change.colours, list(COLOURS)), (change.shapes, list(SHAPES))):
        if order is not None:
            names.update({words[i] + end: words[j] + end for i, j in enumerate(order) for end in ("", "s")})
    return " ".join(names.get(word, word) for word in sentence.split(" ")) if names else sentence


def change_regions(regions: Regions, change: Changes) -> Regions:
    """The regions of the changed image, in the old order of rows."""
    boxes = regions.boxes.copy()
    inside = boxes[:, 2] - boxes[:, 0] <= BOX_WIDTH
    own = boxes[inside]
    number = (own[:, 0] // BOX_STEP).astype(np.int64)
    left, right = own[:, 0] - BOX_STEP * number, own[:, 2] - BOX_STEP * number
    if change.mirror:
        left, right = BOX_WIDTH - right, BOX_WIDTH - left
    if change.boxes is not None:
        number = np.argsort(change.boxes)[number]
    own[:, 0], own[:, 2] = left + BOX_STEP * number, right + BOX_STEP * number
    boxes[inside] = own
    features = regions.features[:, _columns(change)]
    return Regions(np.ascontiguousarray(features), boxes, regions.width, regions.height)


@cache
def _columns(change: Changes) -> np.ndarray:
    """Where every feature column comes from."""
    columns = np.arange(len(COLUMNS))
    if change.boxes is not None:
        # Box j shows what was box boxes[j]: the old number becomes the new one.
        columns = columns[renamed({str(old): str(new) for new, old in enumerate(change.boxes)})]
    if change.mirror:
        columns = columns[renamed({"left": "right", "right": "left"})]
    for order, words in ((change.colours, list(COLOURS)), (change.shapes, list(SHAPES))):
        if order is not None:
            columns = columns[renamed({words[i]: words[j] for i, j in enumerate(order)})]
    return columns
