"""Generated statements on NLVR images, against a reader of their words that knows the drawn scenes."""

from __future__ import annotations

import re
from collections import Counter
from typing import Optional

import numpy as np
import pytest

from ernie_vil.data.mini_nlvr import draw_image
from ernie_vil.data.nlvr_regions import COLOURS, SHAPES, Thing, find_things, nlvr_regions
from ernie_vil.data.nlvr_statements import WORDS, Scene, draw_statement

IMAGES = 60
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
QUANTITY = "(a|at least|at most|exactly|only|more than|less than|)"
COUNT = re.compile(
    rf"there (?:is|are) {QUANTITY} ?({'|'.join(NUMBERS)}|) ?({'|'.join(COLOURS)}|) ?"
    rf"(item|object|block|{'|'.join(SHAPES)})s?(?: (touching the edge|not touching the edge|touching the corner))?"
)
BOX = re.compile(
    rf"there is a (?:box|grey box|tower) (?:with|which has|that has) {QUANTITY} ?({'|'.join(NUMBERS)}|) ?"
    rf"({'|'.join(COLOURS)}|) ?(item|object|block|{'|'.join(SHAPES)})s?"
)


@pytest.fixture(scope="module")
def boxes() -> list[list[list[Thing]]]:
    """The things of every image, box by box."""
    pictures = [np.array(draw_image(np.random.default_rng(seed))) for seed in range(IMAGES)]
    return [[list(find_things(picture[:, x : x + 100], "x")) for x in (0, 150, 300)] for picture in pictures]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    pictures = [np.array(draw_image(np.random.default_rng(seed))) for seed in range(IMAGES)]
    return [Scene.from_features(nlvr_regions(picture, "x").features) for picture in pictures]


def fits(thing: Thing, colour: str, noun: str, place: Optional[str]) -> bool:
    walls = (thing.left == 0) + (thing.right == 100) + (thing.top == 0) + (thing.bottom == 100)
    placed = {None: True, "touching the edge": walls > 0, "not touching the edge": walls == 0}.get(place, walls > 1)
    return placed and colour in ("", thing.colour) and noun in ("item", "object", "block", thing.shape)


def holds(count: int, quantity: str, number: str) -> Optional[bool]:
    wanted = NUMBERS.index(number) if number else 1
    if quantity == "a":
        return count >= 1
    if quantity == "":
        return None if count > wanted else count == wanted
    return {
        "at least": count >= wanted,
        "at most": count <= wanted,
        "exactly": count == wanted,
        "only": count == wanted,
        "more than": count > wanted,
        "less than": count < wanted,
    }[quantity]


@pytest.mark.parametrize("simple", [False, True])
def test_truth_is_what_the_words_say(boxes: list, scenes: list[Scene], simple: bool) -> None:
    read: Counter[str] = Counter()
    for seed in range(1200):
        rng = np.random.default_rng([seed, simple])
        drawn = draw_statement(seed % IMAGES, scenes.__getitem__, IMAGES, rng, simple)
        assert set(drawn.text.split()) <= set(WORDS)
        shown = boxes[drawn.image]
        counted, in_box = COUNT.fullmatch(drawn.text), BOX.fullmatch(drawn.text)
        if counted:
            quantity, number, colour, noun, place = counted.groups()
            meant = [[fits(thing, colour, noun, place) for thing in box] for box in shown]
            assert holds(sum(map(sum, meant)), quantity, number) is drawn.truth, drawn.text
            assert drawn.things == meant and drawn.boxes == [None] * 3
            read["things"] += 1
        elif in_box and (in_box.group(1) == "a" or in_box.group(2)):  # "with only black items" is another form
            quantity, number, colour, noun = in_box.groups()
            meant = [[fits(thing, colour, noun, None) for thing in box] for box in shown]
            found = [holds(sum(box), quantity, number) for box in meant]
            assert (True in found) is drawn.truth and (drawn.truth or None not in found), drawn.text
            assert drawn.things == meant and drawn.boxes == found
            read["boxes"] += 1
    assert read["things"] > 50 and read["boxes"] > 100, read


def test_words_alone_tell_nothing(scenes: list[Scene]) -> None:
    """Each sentence is as often true as false, since an image of either kind is drawn with equal chance."""
    truths: dict[str, list[bool]] = {}
    for seed in range(2000):
        drawn = draw_statement(seed % IMAGES, scenes.__getitem__, IMAGES, np.random.default_rng(seed), True)
        truths.setdefault(drawn.text, []).append(drawn.truth)
    # Guessing the more frequent truth of a sentence from one half of the data gains nothing on the other.
    right = total = 0
    for values in truths.values():
        seen, unseen = values[::2], values[1::2]
        if sum(seen) * 2 != len(seen):
            guess = sum(seen) * 2 > len(seen)
            right, total = right + sum(value == guess for value in unseen), total + len(unseen)
    assert total > 500 and abs(right / total - 0.5) < 4 * 0.5 / total**0.5


def test_the_same_draws_give_the_same_statement_and_an_order_for_the_rows(scenes: list[Scene]) -> None:
    first, second = (draw_statement(3, scenes.__getitem__, IMAGES, np.random.default_rng(5)) for _ in range(2))
    assert first == second
    assert first.of_rows() == [None, *first.boxes, *first.things[0], *first.things[1], *first.things[2]]


def test_no_statement_is_found_of_a_single_image(scenes: list[Scene]) -> None:
    drawn = draw_statement(0, scenes.__getitem__, 1, np.random.default_rng(0))
    assert (drawn.text, drawn.image, drawn.truth) == ("there is no box", 0, False)
