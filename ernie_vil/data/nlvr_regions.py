"""Regions of the NLVR images, found in their pixels: things, the three boxes they lie in, and the image.

A thing is a connected patch of one colour, so touching things of different colours come apart. What a region's feature
says is measured from pixels alone: colour, outline, size, contact with walls and with other things, order by height;
for a box and for the image, histograms of the things inside. Every feature column has a name (:data:`COLUMNS`), from
which :func:`renamed` finds where a column goes when colours, shapes, sides or boxes are exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Mapping, Sequence

import numpy as np

from ernie_vil.data.region_arrays import Regions
from ernie_vil.errors import BadRecord

WIDTH, HEIGHT, BOXES, BOX_WIDTH, BOX_STEP = 400, 100, 3, 100, 150
BACKGROUND, COLOURS = (211, 211, 211), {"yellow": (255, 255, 0), "blue": (0, 153, 255), "black": (0, 0, 0)}
# Share of its bounding box that an outline fills.
SHAPES = {"square": 1.0, "circle": np.pi / 4, "triangle": 0.5}
SIZES = {"small": 10, "medium": 20, "large": 30}
SIDES = ("left", "right", "top", "bottom")
# Blocks of a tower stand one pixel apart.
CONTACT = 2
MOST_COUNTED, MOST_RANKED = 8, 4


@dataclass(frozen=True)
class Thing:
    """A patch of one colour. Pixels within its box from the left and the top; right and bottom edge exclusive."""

    colour: str
    shape: str
    size: str
    left: int
    top: int
    right: int
    bottom: int

    def walls(self) -> set[str]:
        """The sides of the box that it reaches."""
        reached = (self.left <= 0, self.right >= BOX_WIDTH, self.top <= 0, self.bottom >= HEIGHT)
        return {side for side, touches in zip(SIDES, reached) if touches}

    def contact(self, other: Thing) -> str:
        """On which side it touches another thing (going by bounding boxes), or ``""``."""
        across = max(self.left, other.left) - min(self.right, other.right)
        down = max(self.top, other.top) - min(self.bottom, other.bottom)
        if max(across, down) >= CONTACT:
            return ""
        if down >= across:
            return "top" if other.top < self.top else "bottom"
        return "left" if other.left < self.left else "right"


def _histogram_keys() -> list[str]:
    kinds = ["thing", *COLOURS, *SHAPES, *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)]
    return [*kinds, *(f"{kind} at wall" for kind in kinds), *SIZES]


def _columns() -> list[str]:
    ranks, counts = range(1, MOST_RANKED + 1), range(1, MOST_COUNTED + 1)
    names = ["kind thing", "kind box", "kind image", *(f"box {number}" for number in range(BOXES))]
    names += [*COLOURS, *SHAPES, *SIZES, *(f"wall {side}" for side in SIDES), "wall", "corner"]
    names += [f"touches {side} {colour}" for side in SIDES for colour in COLOURS] + ["touches"]
    names += [f"from {side} {rank}" for side in ("top", "bottom") for rank in ranks] + ["stack"]
    names += [f"from {side} {rank} {what}" for side in ("top", "bottom") for rank in ranks for what in COLOURS]
    names += [f"{count} of {key}" for key in _histogram_keys() for count in counts]
    names += [f"{count} different {what}" for what in ("colours", "shapes", "sizes") for count in (2, 3)]
    return names


COLUMNS = _columns()
"""Name of every feature column. Counts are thermometers: column ``3 of blue`` is 1 from three blue things on."""
_COLUMN_OF = {name: number for number, name in enumerate(COLUMNS)}
FEATURE_SIZE = len(COLUMNS)
_HISTOGRAM = [(key, set(key.split(" "))) for key in _histogram_keys()]


def renamed(names: Mapping[str, str]) -> np.ndarray:
    """Where columns come from when words in their names are exchanged; ``features[:, renamed(names)]`` is the result.

    ``names`` must be a permutation of colours, shapes, sides or box numbers, such as ``{"left": "right", "right":
    "left"}``: what was called ``left`` is then found under ``right``.
    """
    back = {new: old for old, new in names.items()}
    return np.array([_COLUMN_OF[_exchange(name, back)] for name in COLUMNS])


def _exchange(name: str, names: Mapping[str, str]) -> str:
    # Only "box 1" holds the number of a box; the other numbers are counts and ranks.
    if name.startswith("box "):
        return "box " + names.get(name[4:], name[4:])
    exchanged = [names.get(word, word) if word.isalpha() else word for word in name.split(" ")]
    return " ".join(exchanged)


def nlvr_regions(pixels: np.ndarray, where: str) -> Regions:
    """The regions of an image ``[100, 400, 3]`` of bytes: the image, its three boxes, then the things box by box.

    Raises :class:`BadRecord` naming ``where`` for an image of another size, and for a patch that is no square, circle
    or triangle of a known size.
    """
    if pixels.shape != (HEIGHT, WIDTH, 3):
        raise BadRecord(f"{where}: {list(pixels.shape)} pixels; NLVR images have {HEIGHT} x {WIDTH} in three colours")
    starts = [number * BOX_STEP for number in range(BOXES)]
    boxes = [list(find_things(pixels[:, start : start + BOX_WIDTH], where)) for start in starts]
    corners = [(0, 0, WIDTH, HEIGHT)]
    rows = [{"kind image", *_histogram([thing for things in boxes for thing in things])}]
    for number, (start, things) in enumerate(zip(starts, boxes)):
        corners.append((start, 0, start + BOX_WIDTH, HEIGHT))
        rows.append({"kind box", f"box {number}", *_histogram(things), *_heights(things)})
    for number, (start, things) in enumerate(zip(starts, boxes)):
        for thing in things:
            corners.append((start + thing.left, thing.top, start + thing.right, thing.bottom))
            rows.append({"kind thing", f"box {number}", *_describe(thing, things)})
    features = np.zeros((len(rows), FEATURE_SIZE), dtype=np.float32)
    for row, names in enumerate(rows):
        features[row, [_COLUMN_OF[name] for name in names]] = 1
    return Regions(features, np.array(corners, dtype=np.float32), WIDTH, HEIGHT)


def find_things(pixels: np.ndarray, where: str) -> Iterator[Thing]:
    """The things in the pixels ``[100, 100, 3]`` of a box, from top to bottom. Raises :class:`BadRecord`."""
    palette = np.array([BACKGROUND, *COLOURS.values()])
    nearest = np.zeros(pixels.shape[:2], dtype=np.int64)
    rows, columns = np.nonzero((pixels != BACKGROUND).any(axis=2))
    # Outlines are smoothed: a pixel that is half covered belongs to the nearer colour.
    distances = ((pixels[rows, columns, None].astype(np.int64) - palette) ** 2).sum(axis=2)
    nearest[rows, columns] = distances.argmin(axis=1)
    found = []
    for number, colour in enumerate(COLOURS, start=1):
        for runs in connected_runs(nearest == number):
            found.append(_thing(colour, runs, where))
    yield from sorted(found, key=lambda thing: (thing.top, thing.left))


def connected_runs(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected patches of ``mask [h, w]``, each as its horizontal runs ``[n, 3]``: row, start and end."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    runs = np.stack([rows, starts, ends], axis=1)
    patch = list(range(len(runs)))

    def root(number: int) -> int:
        while patch[number] != number:
            number = patch[number]
        return number

    above = 0
    for number, (row, start, end) in enumerate(runs.tolist()):
        while runs[above, 0] < row - 1:
            above += 1
        other = above
        while other < number and runs[other, 0] == row - 1:
            if runs[other, 1] < end and runs[other, 2] > start:
                patch[root(other)] = root(number)
            other += 1
    roots = np.array([root(number) for number in range(len(runs))], dtype=np.int64)
    return [runs[roots == first] for first in np.unique(roots)]


def _thing(colour: str, runs: np.ndarray, where: str) -> Thing:
    top, bottom = int(runs[0, 0]), int(runs[-1, 0]) + 1
    left, right = int(runs[:, 1].min()), int(runs[:, 2].max())
    width, height = right - left, bottom - top
    size = min(SIZES, key=lambda name: abs(SIZES[name] - width))
    filled = float((runs[:, 2] - runs[:, 1]).sum()) / (width * height)
    shape = min(SHAPES, key=lambda name: abs(SHAPES[name] - filled))
    if max(abs(width - SIZES[size]), abs(height - SIZES[size])) > 1 or abs(SHAPES[shape] - filled) > 0.1:
        raise BadRecord(
            f"{where}: a {colour} patch of {width} x {height} pixels, {100 * filled:.0f} % of them filled, is no "
            "square, circle or triangle of this corpus"
        )
    return Thing(colour, shape, size, left, top, right, bottom)


def _describe(thing: Thing, things: Sequence[Thing]) -> set[str]:
    walls = thing.walls()
    names = {thing.colour, thing.shape, thing.size, *(f"wall {side}" for side in walls)}
    names |= ({"wall"} if walls else set()) | ({"corner"} if len(walls) > 1 else set())
    for other in things:
        side = thing.contact(other) if other is not thing else ""
        if side:
            names |= {"touches", f"touches {side} {other.colour}"}
    higher = 1 + sum(other.top < thing.top for other in things)
    lower = 1 + sum(other.bottom > thing.bottom for other in things)
    names |= {f"from {side} {rank}" for side, rank in (("top", higher), ("bottom", lower)) if rank <= MOST_RANKED}
    return names | ({"stack"} if is_stack(things) else set())


def is_stack(things: Sequence[Thing]) -> bool:
    """Whether the things stand exactly one above the other from the floor up, as in a tower."""
    return bool(things) and len({(thing.left, thing.right) for thing in things}) == 1 and things[-1].bottom >= HEIGHT


def _heights(things: Sequence[Thing]) -> set[str]:
    """Colours of the highest and of the lowest things of a box."""
    orders = (("top", sorted(things, key=lambda t: t.top)), ("bottom", sorted(things, key=lambda t: -t.bottom)))
    names = {
        f"from {side} {rank} {thing.colour}"
        for side, order in orders
        for rank, thing in enumerate(order[:MOST_RANKED], start=1)
    }
    return names | ({"stack"} if is_stack(things) else set())


def _histogram(things: Sequence[Thing]) -> set[str]:
    names = set()
    held = [
        {"thing", thing.colour, thing.shape, thing.size, *(["at", "wall"] if thing.walls() else [])} for thing in things
    ]
    for key, wanted in _HISTOGRAM:
        count = sum(map(wanted.issubset, held))
        names |= {f"{number} of {key}" for number in range(1, min(count, MOST_COUNTED) + 1)}
    for what, values in (
        ("colours", {thing.colour for thing in things}),
        ("shapes", {thing.shape for thing in things}),
        ("sizes", {thing.size for thing in things}),
    ):
        names |= {f"{number} different {what}" for number in range(2, len(values) + 1)}
    return names
