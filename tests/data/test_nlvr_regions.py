"""Regions of NLVR images, against scenes of which everything is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ernie_vil.data import mini_nlvr
from ernie_vil.data.nlvr_changes import CHANGES, ORDERS, Changes, change_regions, change_sentence, possible_changes
from ernie_vil.data.nlvr_regions import (
    BACKGROUND,
    COLOURS,
    COLUMNS,
    SHAPES,
    Thing,
    connected_runs,
    find_things,
    nlvr_regions,
    renamed,
)
from ernie_vil.data.regions import Regions, check_regions
from ernie_vil.errors import BadRecord


def names_of(row: np.ndarray) -> set[str]:
    return {COLUMNS[column] for column in np.flatnonzero(row)}


def as_set(regions: Regions) -> set[tuple]:
    return set(map(tuple, np.concatenate([regions.features, regions.boxes], axis=1).tolist()))


def patches(mask: np.ndarray) -> set[frozenset]:
    """Flood fill, the slow and obvious way."""
    left, found = set(map(tuple, np.argwhere(mask).tolist())), set()
    while left:
        patch, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            patch.add((y, x))
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.remove(near)
                    edge.append(near)
        found.add(frozenset(patch))
    return found


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 0.9))
def test_connected_runs_are_the_patches_of_a_flood_fill(seed: int, height: int, width: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    found = {
        frozenset((row, x) for row, start, end in runs.tolist() for x in range(start, end))
        for runs in connected_runs(mask)
    }
    assert found == patches(mask)


def test_every_drawn_thing_is_found_as_what_it_is() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        drawn = mini_nlvr._scatter(rng) if seed % 2 else mini_nlvr._tower(rng)
        box = Image.new("RGB", (400, 400), BACKGROUND)
        pen = mini_nlvr.ImageDraw.Draw(box)
        for colour, shape, left, top, size in drawn:
            mini_nlvr._draw_thing(pen, COLOURS[colour], shape, 4 * left, 4 * top, 4 * size)
        found = list(find_things(np.array(box.resize((100, 100), Image.BOX)), "box"))
        sizes = {"small": 10, "medium": 20, "large": 30}
        # The tip of a triangle covers less than half a pixel: its outline may begin one pixel lower.
        assert sorted((t.colour, t.shape, t.left, t.bottom, sizes[t.size]) for t in found) == sorted(
            (colour, shape, left, top + size, size) for colour, shape, left, top, size in drawn
        )


def image_of(*things: tuple[str, int, int, int, int]) -> np.ndarray:
    pixels = np.full((100, 400, 3), 128, dtype=np.uint8)
    for start in (0, 150, 300):
        pixels[:, start : start + 100] = BACKGROUND
    for colour, left, top, width, height in things:
        pixels[top : top + height, left : left + width] = COLOURS[colour]
    return pixels


def test_touching_things_of_two_colours_come_apart_and_know_of_each_other() -> None:
    regions = nlvr_regions(
        image_of(("black", 40, 80, 20, 20), ("blue", 40, 59, 20, 20), ("yellow", 150, 0, 10, 10)), "x"
    )
    check_regions(regions, "x")
    assert regions.boxes[4:].tolist() == [[40, 59, 60, 79], [40, 80, 60, 100], [150, 0, 160, 10]]
    image, first, second, third, upper, lower, corner = map(names_of, regions.features)
    assert "3 of thing" in image and "4 of thing" not in image and "3 different colours" in image
    assert {"kind box", "box 0", "stack", "2 of square", "from top 1 blue", "from bottom 1 black"} <= first
    assert "1 of black at wall" in first and "1 of blue at wall" not in first
    assert "stack" not in second and "1 of yellow square at wall" in second
    assert third == {"kind box", "box 2"}
    assert {"blue", "square", "medium", "touches bottom black", "from top 1", "from bottom 2", "stack"} <= upper
    assert "wall" not in upper and {"wall", "wall bottom", "touches top blue"} <= lower and "corner" not in lower
    assert {"box 1", "small", "wall left", "wall top", "corner", "wall"} <= corner and "touches" not in corner


def test_contact_is_by_side_and_ends_two_pixels_apart() -> None:
    thing = Thing("black", "square", "small", 50, 50, 60, 60)
    for left, top, side in ((60, 50, "right"), (40, 55, "left"), (50, 61, "bottom"), (45, 39, "top"), (62, 50, "")):
        assert thing.contact(Thing("blue", "square", "small", left, top, left + 10, top + 10)) == side


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((100, 300, 3), np.uint8), "100 x 400"),
        (image_of(("black", 10, 10, 40, 20)), "40 x 20 pixels"),
        # Three sides of a frame, 4 pixels wide: the size is right, the outline is none of the three.
        (image_of(("blue", 0, 0, 30, 4), ("blue", 0, 0, 4, 30), ("blue", 26, 0, 4, 30)), "30 x 30 pixels, 36 %"),
    ],
)
def test_what_is_no_image_of_the_corpus_is_refused(pixels: np.ndarray, words: str) -> None:
    with pytest.raises(BadRecord, match=f"picture.*{words}"):
        nlvr_regions(pixels, "picture")


def test_renaming_twice_with_an_exchange_changes_nothing() -> None:
    features = nlvr_regions(np.array(mini_nlvr.draw_image(np.random.default_rng(3))), "x").features
    for names in ({"blue": "black", "black": "blue"}, {"left": "right", "right": "left"}, {"0": "2", "2": "0"}):
        once = features[:, renamed(names)]
        assert not np.array_equal(once, features) or names.keys() == {"left", "right"}
        np.testing.assert_array_equal(once[:, renamed(names)], features)


def changed_picture(picture: Image.Image, change: Changes) -> np.ndarray:
    """What the change means for the pixels themselves."""
    pixels = np.array(picture)
    boxes = [pixels[:, 150 * i : 150 * i + 100].copy() for i in range(3)]
    if change.mirror:
        boxes = [box[:, ::-1] for box in boxes]
    if change.boxes is not None:
        boxes = [boxes[old] for old in change.boxes]
    if change.colours is not None:
        # Outlines are mixtures with the ground: the share of the colour stays.
        values = [np.array(value, float) for value in COLOURS.values()]
        ground = np.array(BACKGROUND, float)
        result = []
        for box in boxes:
            new = box.astype(float).copy()
            for number, value in enumerate(values):
                direction = value - ground
                share = ((box - ground) @ direction) / (direction @ direction)
                on = np.abs(box - ground - share[..., None] * direction).max(axis=2) < 3
                on &= share > 0.05
                new[on] = ground + share[on][:, None] * (values[change.colours[number]] - ground)
            result.append(new.round().astype(np.uint8))
        boxes = result
    for i, box in enumerate(boxes):
        pixels[:, 150 * i : 150 * i + 100] = box
    return pixels


@pytest.mark.parametrize(
    "change",
    [
        *(Changes(boxes=order) for order in ORDERS),
        Changes(mirror=True),
        *(Changes(colours=order) for order in ORDERS),
        Changes(boxes=(2, 0, 1), mirror=True, colours=(1, 2, 0)),
    ],
)
def test_changed_regions_are_the_regions_of_the_changed_picture(change: Changes) -> None:
    for seed in range(6):
        picture = mini_nlvr.draw_image(np.random.default_rng(seed))
        own = change_regions(nlvr_regions(np.array(picture), "x"), change)
        assert as_set(own) == as_set(nlvr_regions(changed_picture(picture, change), "x"))


def test_exchanged_shapes_follow_the_words() -> None:
    change = Changes(shapes=(1, 2, 0), colours=(2, 1, 0))
    assert list(SHAPES) == ["square", "circle", "triangle"] and list(COLOURS) == ["yellow", "blue", "black"]
    assert change_sentence("two yellow squares on a triangle", change) == "two black circles on a square"
    picture = image_of(("yellow", 10, 10, 20, 20))
    names = names_of(change_regions(nlvr_regions(picture, "x"), change).features[4])
    assert {"black", "circle"} <= names and not {"yellow", "square"} & names


def test_changes_that_could_touch_the_truth_are_left_out() -> None:
    scattered = nlvr_regions(image_of(("yellow", 10, 10, 20, 20)), "x").features
    tower = nlvr_regions(image_of(("yellow", 40, 80, 20, 20)), "x").features
    assert possible_changes("there is a circle", scattered) == list(CHANGES)
    assert possible_changes("there is a circle", tower) == ["boxes", "mirror", "colours"]
    assert possible_changes("it touches the right wall", scattered) == ["boxes", "colours", "shapes"]
    assert possible_changes("one of the grey squares", scattered, ("shapes", "boxes")) == ["boxes"]
