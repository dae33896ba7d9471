"""Miniature scenes: small pictures of coloured things, their facts, and region features computed from their pixels.

Every miniature data set of the package is written from these scenes, so that a recipe can be tried on a laptop without
a download. A scene is a list of objects with everything that can be said of it; :func:`draw` makes its picture;
:func:`detected_regions` and :func:`ground_truth_regions` describe boxes of that picture with a fixed descriptor.
A data set format is one more file beside this one (:mod:`ernie_vil.data.mini_vcr` is one) that turns the facts
(:func:`object_facts`, :func:`attribute_facts`, :func:`relations`) into its texts.

The distribution of scenes is the same under any renaming of the kinds, and under any renaming of the colours of one
kind. Whoever writes questions by rules that treat kinds and colours alike therefore gets wrong answers that look
exactly like the right ones, and only the picture tells them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterator

import numpy as np
from PIL import Image, ImageDraw

from ernie_vil.data.regions import Regions
from ernie_vil.errors import UserError

KINDS = ("circle", "square", "triangle", "star", "cross", "person", "dog", "car", "tree", "house")
COLORS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (240, 225, 30),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "purple": (150, 50, 190),
}
SIZES = {"small": (15, 17), "large": (25, 27)}  # lowest and highest side in pixels
PATTERNS = ("plain", "striped")
RELATIONS = ("left of", "right of", "above", "below")

SPLITS = ("train", "val", "test")
CELL = 32  # pixels; one object at most per cell, which keeps objects apart
COLUMNS, ROWS = 4, 3
OBJECTS_PER_SCENE = (3, 6)
# An object's centre lies at most this far from the centre of its cell: two objects of one column differ by at most
# 8 pixels, two of different columns by at least 24, so a relation with the margin below is never a matter of taste.
CENTRE_JITTER = 4
RELATION_MARGIN = 16


@dataclass(frozen=True)
class SceneObject:
    """One thing of a scene. ``box`` is (x1, y1, x2, y2) in pixels, x2 and y2 exclusive; ``paint`` its exact RGB."""

    kind: str
    color: str
    size: str
    pattern: str
    box: tuple[int, int, int, int]
    paint: tuple[int, int, int]

    @property
    def centre(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True)
class Scene:
    """A picture to be: 3 to 6 objects, no two of the same kind and colour, none touching another.

    ``background`` is the RGB colour at the centre, ``slope`` its change (grey levels) from the centre to the right and
    lower edge, ``seed`` decides the background noise.
    """

    objects: tuple[SceneObject, ...]
    width: int
    height: int
    background: tuple[int, int, int]
    slope: tuple[int, int]
    seed: int


# ----------------------------------------------------------------------------------------------------------- scenes
def make_scene(rng: np.random.Generator) -> Scene:
    """Draws a scene: number of objects, cells, kinds, colours, sizes and patterns are uniform and independent."""
    count = int(rng.integers(OBJECTS_PER_SCENE[0], OBJECTS_PER_SCENE[1] + 1))
    colors = tuple(COLORS)
    # Sampling without replacement keeps "the red dog" a name of one object.
    looks = rng.choice(len(KINDS) * len(colors), size=count, replace=False)
    cells = rng.choice(COLUMNS * ROWS, size=count, replace=False)
    objects = []
    for look, cell in zip(looks.tolist(), cells.tolist()):
        color = colors[look % len(colors)]
        size = tuple(SIZES)[int(rng.integers(len(SIZES)))]
        side = int(rng.integers(SIZES[size][0], SIZES[size][1] + 1))
        room = min(CENTRE_JITTER, (CELL - side) // 2)
        shift_x, shift_y = rng.integers(-room, room + 1, size=2).tolist()
        x1 = (cell % COLUMNS) * CELL + (CELL - side) // 2 + shift_x
        y1 = (cell // COLUMNS) * CELL + (CELL - side) // 2 + shift_y
        paint = np.clip(np.array(COLORS[color]) + rng.integers(-12, 13, size=3), 0, 255).tolist()
        pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
        box = (x1, y1, x1 + side, y1 + side)
        objects.append(SceneObject(KINDS[look // len(colors)], color, size, pattern, box, tuple(paint)))
    background = tuple((int(rng.integers(165, 215)) + rng.integers(-8, 9, size=3)).tolist())
    slope = tuple(rng.integers(-14, 15, size=2).tolist())
    return Scene(tuple(objects), COLUMNS * CELL, ROWS * CELL, background, slope, int(rng.integers(2**31)))


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The random stream of one picture; independent of every other picture, so splits can grow without changing."""
    return np.random.default_rng([seed, SPLITS.index(split), index])


def scenes(seed: int, split: str, count: int) -> Iterator[tuple[Scene, np.random.Generator]]:
    """The ``count`` scenes of a split, each with its stream for whatever else is drawn about it (texts, boxes)."""
    for index in range(count):
        rng = scene_rng(seed, split, index)
        yield make_scene(rng), rng


# ------------------------------------------------------------------------------------------------------------ facts
def object_facts(scene: Scene) -> list[tuple[int, str]]:
    """(object index, kind) of every object."""
    return [(index, thing.kind) for index, thing in enumerate(scene.objects)]


def attribute_facts(scene: Scene) -> list[tuple[int, str]]:
    """(object index, attribute) where the attribute is a colour, a size or a pattern; three for each object."""
    return [(i, word) for i, thing in enumerate(scene.objects) for word in (thing.color, thing.size, thing.pattern)]


def relations(scene: Scene) -> list[tuple[int, str, int]]:
    """(subject index, relation, object index) for every true relation of :data:`RELATIONS`.

    "left of" compares the centres' x alone and "above" their y alone, each with a margin of 16 pixels; a pair on a
    diagonal stands in two relations.
    """
    facts = []
    for i, subject in enumerate(scene.objects):
        for j, other in enumerate(scene.objects):
            if i == j:
                continue
            dx, dy = other.centre[0] - subject.centre[0], other.centre[1] - subject.centre[1]
            true = (dx >= RELATION_MARGIN, dx <= -RELATION_MARGIN, dy >= RELATION_MARGIN, dy <= -RELATION_MARGIN)
            facts += [(i, relation, j) for relation, holds in zip(RELATIONS, true) if holds]
    return facts


def unique_kinds(scene: Scene) -> list[int]:
    """Indices of the objects that are the only one of their kind, so that the class word alone names them."""
    kinds = [thing.kind for thing in scene.objects]
    return [index for index, kind in enumerate(kinds) if kinds.count(kind) == 1]


# ---------------------------------------------------------------------------------------------------------- drawing
_SKIN, _DARK, _PALE, _WOOD = (235, 195, 165), (45, 45, 50), (235, 245, 250), (110, 75, 45)


def _star() -> tuple[tuple[float, float], ...]:
    angles = [math.pi * (k / 5 - 0.5) for k in range(10)]
    return tuple((0.5 + r * math.cos(a), 0.53 + r * math.sin(a)) for a, r in zip(angles, [0.53, 0.22] * 5))


# What each kind is drawn from, back to front: (shape, points in the unit square, RGB or None for the object's paint).
_PARTS = {
    "circle": [("ellipse", ((0, 0), (1, 1)), None)],
    "square": [("polygon", ((0, 0), (1, 0), (1, 1), (0, 1)), None)],
    "triangle": [("polygon", ((0.5, 0), (1, 1), (0, 1)), None)],
    "star": [("polygon", _star(), None)],
    "cross": [
        ("polygon", ((0.33, 0), (0.67, 0), (0.67, 1), (0.33, 1)), None),
        ("polygon", ((0, 0.33), (1, 0.33), (1, 0.67), (0, 0.67)), None),
    ],
    "person": [
        ("ellipse", ((0.33, 0), (0.67, 0.32)), _SKIN),
        ("polygon", ((0.3, 0.66), (0.46, 0.66), (0.46, 1), (0.3, 1)), _DARK),
        ("polygon", ((0.54, 0.66), (0.7, 0.66), (0.7, 1), (0.54, 1)), _DARK),
        ("polygon", ((0.22, 0.32), (0.78, 0.32), (1, 0.62), (0.7, 0.72), (0.3, 0.72), (0, 0.62)), None),
    ],
    "dog": [
        ("polygon", ((0.12, 0.42), (0.72, 0.42), (0.72, 0.72), (0.12, 0.72)), None),
        ("polygon", ((0.6, 0.12), (0.8, 0.12), (1, 0.35), (1, 0.5), (0.6, 0.5)), None),
        ("polygon", ((0.15, 0.7), (0.3, 0.7), (0.3, 1), (0.15, 1)), None),
        ("polygon", ((0.55, 0.7), (0.7, 0.7), (0.7, 1), (0.55, 1)), None),
        ("polygon", ((0, 0.15), (0.1, 0.15), (0.22, 0.42), (0.12, 0.5)), None),
    ],
    "car": [
        ("polygon", ((0.22, 0.18), (0.72, 0.18), (0.86, 0.48), (0.12, 0.48)), None),
        ("polygon", ((0, 0.46), (1, 0.46), (1, 0.78), (0, 0.78)), None),
        ("polygon", ((0.32, 0.26), (0.64, 0.26), (0.7, 0.44), (0.28, 0.44)), _PALE),
        ("ellipse", ((0.1, 0.66), (0.38, 0.95)), _DARK),
        ("ellipse", ((0.62, 0.66), (0.9, 0.95)), _DARK),
    ],
    "tree": [
        ("polygon", ((0.42, 0.6), (0.58, 0.6), (0.58, 1), (0.42, 1)), _WOOD),
        ("ellipse", ((0, 0), (1, 0.7)), None),
    ],
    "house": [
        ("polygon", ((0.12, 0.42), (0.88, 0.42), (0.88, 1), (0.12, 1)), None),
        ("polygon", ((0.5, 0), (1, 0.44), (0, 0.44)), _DARK),
        ("polygon", ((0.4, 0.66), (0.6, 0.66), (0.6, 1), (0.4, 1)), _PALE),
    ],
}


def _part_masks(thing: SceneObject) -> list[tuple[np.ndarray, tuple[int, int, int] | None]]:
    side = thing.box[2] - thing.box[0]
    masks = []
    for shape, points, color in _PARTS[thing.kind]:
        canvas = Image.new("1", (side, side))
        pixels = [(round(u * (side - 1)), round(v * (side - 1))) for u, v in points]
        getattr(ImageDraw.Draw(canvas), shape)(pixels, fill=1)  # mode "1" has no antialiasing
        masks.append((np.asarray(canvas, dtype=bool), color))
    return masks


def draw(scene: Scene) -> Image.Image:
    """The RGB picture of a scene, ``scene.width`` x ``scene.height``; the same scene gives the same pixels."""
    rng = np.random.default_rng(scene.seed)
    ramp_x = scene.slope[0] * np.linspace(-1, 1, scene.width)[None, :]
    ramp_y = scene.slope[1] * np.linspace(-1, 1, scene.height)[:, None]
    # Steps of four grey levels and noise in blocks of 8 x 8 keep the PNG files near 1 kB.
    noise = np.kron(rng.integers(-1, 2, size=(scene.height // 8, scene.width // 8)), np.ones((8, 8)))
    levels = np.round((ramp_x + ramp_y) / 4 + noise) * 4
    canvas = np.clip(np.array(scene.background) + levels[:, :, None], 0, 255).astype(np.uint8)
    for thing in scene.objects:
        x1, y1, x2, y2 = thing.box
        patch = canvas[y1:y2, x1:x2]
        paint = np.broadcast_to(np.array(thing.paint, np.uint8), patch.shape).copy()
        if thing.pattern == "striped":
            dark_rows = (np.arange(y2 - y1) // 2) % 2 == 1
            paint[dark_rows] = (np.array(thing.paint) * 0.35).astype(np.uint8)
        for mask, color in _part_masks(thing):
            patch[mask] = paint[mask] if color is None else np.array(color, np.uint8)
    return Image.fromarray(canvas)


def outline(thing: SceneObject) -> list[list[int]]:
    """The object's outline as one polygon of [x, y] pixels: its leftmost pixels downwards, its rightmost upwards."""
    mask = np.logical_or.reduce([mask for mask, _ in _part_masks(thing)])
    x1, y1 = thing.box[:2]
    rows = [(y, np.flatnonzero(row)) for y, row in enumerate(mask) if row.any()]
    left = [[x1 + int(xs[0]), y1 + y] for y, xs in rows]
    right = [[x1 + int(xs[-1]), y1 + y] for y, xs in rows]
    return left + right[::-1]


# --------------------------------------------------------------------------------------------------------- features
_GRID = 16  # pixels; boxes are resized to this before anything is measured
_HUES = 12
_ORIENTATIONS = 8
DESCRIPTOR_SIZE = 16 + _HUES + 3 + 4 * _ORIENTATIONS + 4


def describe_regions(image: Image.Image, boxes: np.ndarray, feature_size: int = DESCRIPTOR_SIZE) -> np.ndarray:
    """Features of boxes, computed from the pixels and nothing else.

    Each box is resized to 16 x 16 RGB. The picture's median colour stands for the background; a pixel's contrast is
    its largest channel difference from it, and pixels of high contrast count as foreground. The descriptor holds, in
    this order: the contrast averaged to 4 x 4 (16 values, -1 to 1); the hue histogram of the foreground in 12 soft
    bins (0 to 2); its mean RGB (3, -1 to 1); the histogram of gradient orientations in 8 soft bins for each quarter
    of the box (32, about 0 to 2); the foreground's share (-1 to 1), the spread of its brightness, and the mean
    absolute brightness steps to the right and downwards (about 0 to 2).

    Args:
        image: RGB picture.
        boxes: [n, 4] x1, y1, x2, y2 in pixels.
        feature_size: width of the result; columns after the descriptor are zero.

    Returns:
        [n, feature_size] float32.

    Raises:
        UserError: ``feature_size`` is smaller than :data:`DESCRIPTOR_SIZE`.
    """
    if feature_size < DESCRIPTOR_SIZE:
        raise UserError(
            f"feature_size {feature_size} is too small for the miniature descriptor: give {DESCRIPTOR_SIZE} or more"
        )
    features = np.zeros((len(boxes), feature_size), np.float32)
    if len(boxes) == 0:
        return features
    crops = [
        np.asarray(image.resize((_GRID, _GRID), Image.BILINEAR, box=tuple(float(v) for v in box))) for box in boxes
    ]
    pixels = np.stack(crops).astype(np.float64) / 255
    background = np.median(np.asarray(image).reshape(-1, 3), axis=0) / 255
    contrast = np.clip(np.abs(pixels - background).max(-1) / 0.4, 0, 1)  # [n, 16, 16]
    foreground = (contrast > 0.5).astype(np.float64)
    area = foreground.sum((1, 2)) + 1e-6
    brightness = pixels.mean(-1)
    mean_brightness = (brightness * foreground).sum((1, 2)) / area
    spread = np.sqrt((((brightness - mean_brightness[:, None, None]) ** 2) * foreground).sum((1, 2)) / area)
    step_x, step_y = np.diff(brightness, axis=2)[:, :-1, :], np.diff(brightness, axis=1)[:, :, :-1]
    parts = [
        contrast.reshape(-1, 4, 4, 4, 4).mean((2, 4)).reshape(-1, 16) * 2 - 1,
        _hue_histogram(pixels, foreground) / area[:, None] * 2,
        (pixels * foreground[..., None]).sum((1, 2)) / area[:, None] * 2 - 1,
        _orientation_histogram(step_x, step_y) * 10,
        np.stack([area / _GRID**2 * 2 - 1, spread * 5], axis=1),
        np.stack([np.abs(step_x).mean((1, 2)), np.abs(step_y).mean((1, 2))], axis=1) * 10,
    ]
    features[:, :DESCRIPTOR_SIZE] = np.concatenate(parts, axis=1)
    return features


def _hue_histogram(pixels: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """[n, 12] sums of saturation over foreground pixels, each shared between the two nearest hue bins."""
    highest, lowest = pixels.max(-1), pixels.min(-1)
    spread = highest - lowest
    safe = np.where(spread > 0, spread, 1)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    sector = np.where(
        highest == red,
        ((green - blue) / safe) % 6,
        np.where(highest == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    weight = foreground * spread / np.maximum(highest, 1e-6)
    position = sector * (_HUES / 6)
    histogram = np.zeros((len(pixels), _HUES))
    for k in range(_HUES):
        distance = np.abs(position - k)
        distance = np.minimum(distance, _HUES - distance)
        histogram[:, k] = (np.clip(1 - distance, 0, 1) * weight).sum((1, 2))
    return histogram


def _orientation_histogram(step_x: np.ndarray, step_y: np.ndarray) -> np.ndarray:
    """[n, 32] mean gradient strength by orientation (direction modulo a half turn) in the four quarters of a box."""
    strength = np.sqrt(step_x**2 + step_y**2)
    safe = np.where(strength > 0, strength, 1)
    along, across = (step_x**2 - step_y**2) / safe, 2 * step_x * step_y / safe  # doubled angle, times the strength
    half = _GRID // 2
    columns = []
    for k in range(_ORIENTATIONS):
        angle = 2 * math.pi * k / _ORIENTATIONS
        energy = np.clip(along * math.cos(angle) + across * math.sin(angle), 0, None)
        quarters = (energy[:, :half, :half], energy[:, :half, half:], energy[:, half:, :half], energy[:, half:, half:])
        columns.append(np.stack([quarter.mean((1, 2)) for quarter in quarters], axis=1))
    return np.concatenate(columns, axis=1)


def ground_truth_regions(scene: Scene, image: Image.Image, feature_size: int) -> Regions:
    """The objects' true boxes, in the order of ``scene.objects``."""
    boxes = np.array([thing.box for thing in scene.objects], np.float32)
    return Regions(describe_regions(image, boxes, feature_size), boxes, scene.width, scene.height)


def detected_regions(scene: Scene, image: Image.Image, feature_size: int, rng: np.random.Generator) -> Regions:
    """What a detector might find: every true box with each edge moved by up to 2 pixels, and a box at a random
    place that shows background or parts of things, all in random order."""
    corners = np.array([thing.box for thing in scene.objects], np.float32)
    corners = corners + rng.integers(-2, 3, size=corners.shape)
    sides = rng.integers(14, 30, size=2)
    place = rng.integers(0, np.array([scene.width, scene.height]) - sides)
    boxes = np.concatenate([corners, [[*place, *(place + sides)]]]).astype(np.float32)
    boxes[:, 0::2] = np.clip(boxes[:, 0::2], 0, scene.width)
    boxes[:, 1::2] = np.clip(boxes[:, 1::2], 0, scene.height)
    boxes = boxes[rng.permutation(len(boxes))]
    return Regions(describe_regions(image, boxes, feature_size), boxes, scene.width, scene.height)
