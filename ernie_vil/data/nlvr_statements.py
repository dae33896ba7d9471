"""Statements about NLVR images whose truth follows from the measured regions, for pre-training.

A small grammar makes sentences of the kind that people wrote about these images: how many things of a colour, shape
and place there are, and how many boxes or towers hold so and so many of them. It sees the regions that the model sees
and no label. A count that may be read as "exactly" or as "at least" is only used where both readings agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, Optional, Sequence

import numpy as np

from ernie_vil.data.nlvr_regions import BOXES, COLOURS, COLUMNS, SHAPES

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Thing = frozenset  # of the names of its columns
Box = Sequence[Thing]
MOST_TRIES = 12
# fmt: off
WORDS = (
    "a", "above", "all", "and", "any", "are", "as", "at", "base", "below", "big", "black", "block", "blocks", "blue",
    "bottom", "box", "boxes", "circle", "circles", "closely", "color", "colors", "contains", "corner", "different",
    "each", "edge", "eight", "every", "exactly", "five", "four", "grey", "has", "having", "is", "item", "items",
    "large", "least", "less", "medium", "more", "most", "nine", "no", "none", "not", "object", "objects", "of", "on",
    "one", "only", "over", "right", "roof", "same", "seven", "side", "six", "small", "square", "squares", "than",
    "that", "the", "there", "three", "top", "touching", "tower", "towers", "triangle", "triangles", "two", "under",
    "wall", "which", "with", "yellow", "zero",
)
# fmt: on
"""Every word that a statement may hold."""
WALL_WORDS = {
    "wall": ("touching the edge", "touching the wall", "touching any edge", "touching the side"),
    "no wall": ("not touching the edge", "not touching any edge", "not touching the wall"),
    "wall bottom": ("closely touching the bottom of a box", "touching the base", "touching the bottom"),
    "wall right": ("closely touching right wall of a box",),
    "wall top": ("closely touching the roof of a box", "touching the top"),
    "corner": ("closely touching a corner of a box", "touching the corner", "closely touching the corner"),
}


@dataclass(frozen=True)
class Scene:
    """What the generator needs of an image: the column names of every thing, box by box."""

    boxes: tuple[tuple[Thing, ...], ...]

    @property
    def towers(self) -> bool:
        """Whether the image shows towers rather than scattered things."""
        return all("stack" in thing for box in self.boxes for thing in box)

    @classmethod
    def from_features(cls, features: np.ndarray) -> Scene:
        """From the rows of :func:`ernie_vil.data.nlvr_regions.nlvr_regions`."""
        boxes: list[list[Thing]] = [[] for _ in range(BOXES)]
        for row in features:
            names = frozenset(COLUMNS[column] for column in np.flatnonzero(row))
            if "kind thing" in names:
                boxes[next(number for number in range(BOXES) if f"box {number}" in names)].append(names)
        return cls(tuple(map(tuple, boxes)))


@dataclass(frozen=True)
class Statement:
    """A sentence with its meaning.

    Attributes:
        text: the sentence.
        truth: whether it is true of a scene; None where it may be read either way.
        things: whether a thing (in its box) is one of those spoken of; None if that makes no sense.
        boxes: whether a box is as described, None likewise and where it may be read either way.
    """

    text: str
    truth: Callable[[Scene], Optional[bool]]
    things: Optional[Callable[[Thing, Box], bool]] = None
    boxes: Optional[Callable[[Box], Optional[bool]]] = None


@dataclass(frozen=True)
class Amount:
    """How many: ``holds(count)`` is None where the words may be read in two ways."""

    words: str
    plural: bool
    holds: Callable[[int], Optional[bool]]


@dataclass(frozen=True)
class Kind:
    """What is spoken of: its words and a test."""

    singular: str
    plural: str
    fits: Callable[[Thing], bool]

    def count(self, box: Box) -> int:
        return sum(map(self.fits, box))

    def is_meant(self, thing: Thing, box: Box) -> bool:
        return self.fits(thing)

    def noun(self, amount: Amount) -> str:
        return self.plural if amount.plural else self.singular


class Writer:
    """Draws statements about one scene; every choice comes from ``rng``.

    ``simple`` ones speak of one property at most, and half of them do not count. A model that starts from nothing needs
    them: where truth depends on three things at once (how many, of what, where), no single one helps to guess it.
    """

    def __init__(self, scene: Scene, rng: np.random.Generator, simple: bool = False) -> None:
        self.scene, self.rng, self.simple = scene, rng, simple
        self.things = [thing for box in scene.boxes for thing in box]

    def statement(self) -> Statement:
        """A sentence about an image like this one, and what tells its truth; see :data:`Statement`."""
        if self.simple:
            forms = [self.count_things, self.count_things, self.boxes_with_things]
            forms += [self.towers_with_block_at] if self.scene.towers else []
            return forms[int(self.rng.integers(len(forms)))]()
        forms = [
            (self.count_things, 5),
            (self.boxes_with_things, 5),
            (self.boxes_with_two, 3),
            (self.one_of_boxes, 1),
            (self.each_box, 1),
            (self.boxes_of_colours, 2),
        ]
        if self.scene.towers:
            forms += [(self.towers_with_block_at, 5), (self.tower_by_height, 3), (self.one_coloured, 1)]
        else:
            forms += [(self.none_of, 1)]
        weights = np.array([weight for _, weight in forms], dtype=float)
        return forms[self.rng.choice(len(forms), p=weights / weights.sum())][0]()

    # --- parts -------------------------------------------------------------------------------------------------

    def pick(self, *choices: str) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def amount(self, near: int, most: int = 7, bare: bool = True) -> Amount:
        """A quantity, usually about ``near`` (the true count), so that what is false is not far from true."""
        number = int(np.clip(near + self.rng.choice((0, 0, 0, 1, -1, 2)), 1, most))
        word, plural = NUMBERS[number], number != 1
        if self.simple and self.chance(0.5):
            return Amount("a", False, lambda count: count >= 1)
        kinds = ["exactly", "exactly", "least", "only"] + (["a", "a", "bare", "bare"] if bare else [])
        kinds += ["most", "more", "less"] if self.chance(0.15) else []
        kind = self.pick(*kinds)
        if kind == "a":
            return Amount(self.pick("a", "a", "a", "at least one"), False, lambda count: count >= 1)
        if kind == "bare":
            return Amount(word, plural, lambda count: None if count > number else count == number)
        if kind == "least":
            return Amount(f"at least {word}", plural, lambda count: count >= number)
        if kind == "most":
            return Amount(f"at most {word}", plural, lambda count: count <= number)
        if kind == "more":
            return Amount(f"more than {word}", plural, lambda count: count > number)
        if kind == "less":
            return Amount(f"less than {word}", plural, lambda count: count < number)
        return Amount(f"{self.pick('exactly', 'exactly', kind)} {word}", plural, lambda count: count == number)

    def kind(self, things: Sequence[Thing], colour: float = 0.75, shape: float = 0.5) -> Kind:
        """A kind of thing, with a colour and a shape as often as said; usually one that occurs among ``things``."""
        if self.simple:
            colour, shape = ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0))[int(self.rng.integers(3))]
        example = things[int(self.rng.integers(len(things)))] if things and self.chance(0.8) else None
        wanted, words = set(), ""
        if self.chance(0.06) and not self.scene.towers and not self.simple:
            size = self.pick("small", "medium", "large")
            wanted.add(size)
            words += {"large": self.pick("big", "large")}.get(size, size) + " "
        if self.chance(colour):
            name = self.pick(*(example & set(COLOURS) if example else COLOURS))
            wanted.add(name)
            words += f"{name} "
        noun = self.pick("item", "object", "item")
        if self.scene.towers:
            noun = self.pick("block", "block", "block", "item", "object")
        elif self.chance(shape):
            noun = self.pick(*(example & set(SHAPES) if example else SHAPES))
            wanted.add(noun)
        return Kind(f"{words}{noun}", f"{words}{noun}s", lambda thing: wanted <= thing)

    def place(self) -> tuple[str, Callable[[Thing, Box], bool]]:
        """Words after a thing that say where it is, and their test."""
        if not self.scene.towers:
            wall = self.pick("wall", "wall", "no wall", "wall bottom", "wall right", "corner", "wall top")
            words = self.pick(*WALL_WORDS[wall])
            if wall == "no wall":
                return words, lambda thing, box: "wall" not in thing
            return words, lambda thing, box: wall in thing
        end = self.pick("top", "bottom", "on", "under")
        if end in ("top", "bottom"):
            name = f"from {end} 1"
            words = f"{self.pick('as', 'at')} the {'top' if end == 'top' else self.pick('base', 'base', 'bottom')}"
            height = self.amount(int(self.rng.integers(1, 5)), 4, bare=False)
            if self.chance(0.6):
                return f"{words} of a tower", lambda thing, box: name in thing
            words += f" of a tower with {height.words} block{'s' if height.plural else ''}"
            return words, lambda thing, box: name in thing and bool(height.holds(len(box)))
        colour = self.pick(*COLOURS)
        words = self.pick("on", "above", "over") if end == "on" else self.pick("below", "under")
        name = f"touches {'bottom' if end == 'on' else 'top'} {colour}"
        return f"{words} a {colour} block", lambda thing, box: name in thing

    def container(self) -> tuple[str, str]:
        if self.scene.towers and self.chance(0.9):
            return "tower", "towers"
        return self.pick(("box", "boxes"), ("grey box", "grey boxes"), ("box", "boxes"))  # type: ignore[arg-type]

    # --- forms -------------------------------------------------------------------------------------------------

    def count_things(self) -> Statement:
        kind = self.kind(self.things)
        words, there = self.place() if self.chance(0.2 if self.simple else 0.65) else ("", lambda thing, box: True)

        def count(scene: Scene) -> int:
            return sum(spoken_of(thing, box) for box in scene.boxes for thing in box)

        def spoken_of(thing: Thing, box: Box) -> bool:
            return kind.fits(thing) and there(thing, box)

        if self.chance(0.12):
            text = f"there is no {kind.singular} {words}".rstrip()
            return Statement(text, lambda scene: count(scene) == 0, spoken_of)
        amount = self.amount(count(self.scene))
        text = f"{_there(amount)} {amount.words} {kind.noun(amount)} {words}".rstrip()
        return Statement(text, lambda scene: amount.holds(count(scene)), spoken_of)

    def _boxes(self, words: str, holds: Callable[[Box], Optional[bool]], *kinds: Kind) -> Statement:
        """``there is a box`` and ``words``, with the number of boxes for which ``holds``; ``kinds`` are spoken of."""
        things = (lambda thing, box: any(kind.fits(thing) for kind in kinds)) if kinds else None
        singular, plural = self.container()
        if self.simple or not self.chance(0.45):
            text = f"there is a {singular} {words}"
            return Statement(text, lambda scene: _any(map(holds, scene.boxes)), things, holds)
        amount = self.amount(sum(bool(holds(box)) for box in self.scene.boxes), 3)

        def truth(scene: Scene) -> Optional[bool]:
            found = [holds(box) for box in scene.boxes]
            return None if None in found else amount.holds(sum(map(bool, found)))

        text = f"{_there(amount)} {amount.words} {plural if amount.plural else singular} {words}"
        return Statement(text, truth, things, holds)

    def _own(self) -> list[Thing]:
        """The things of one box, on which a statement is modelled."""
        return list(self.scene.boxes[int(self.rng.integers(BOXES))])

    def boxes_with_things(self) -> Statement:
        own = self._own()
        kind = self.kind(own, 0.6, 0.3)
        amount = self.amount(kind.count(own))
        words = f"{self.pick('with', 'with', 'with', 'which has', 'that has')} {amount.words} {kind.noun(amount)}"
        return self._boxes(words, lambda box: amount.holds(kind.count(box)), kind)

    def boxes_with_two(self) -> Statement:
        own = self._own()
        kinds = [self.kind(own, 0.9, 0.6) for _ in range(2)]
        amounts = [self.amount(kind.count(own)) for kind in kinds]
        words = " and ".join(f"{amount.words} {kind.noun(amount)}" for amount, kind in zip(amounts, kinds))

        def holds(box: Box) -> Optional[bool]:
            return _all(amount.holds(kind.count(box)) for amount, kind in zip(amounts, kinds))

        return self._boxes(f"with {words}", holds, *kinds)

    def one_of_boxes(self) -> Statement:
        own = self._own()
        kind = self.kind(own, 0.4, 0.3)
        amount = self.amount(kind.count(own), bare=False)
        boxes = self.pick("towers", "towers", "boxes") if self.scene.towers else self.pick("grey squares", "boxes")

        def truth(scene: Scene) -> Optional[bool]:
            found = sum(bool(amount.holds(kind.count(box))) for box in scene.boxes)
            return None if found > 1 else found == 1

        text = f"one of the {boxes} {self.pick('contains', 'has')} {amount.words} {kind.noun(amount)}"
        return Statement(text, truth, kind.is_meant, lambda box: amount.holds(kind.count(box)))

    def each_box(self) -> Statement:
        kind = self.kind(self._own(), 0.8, 0.4)
        box = self.pick("tower", "box") if self.scene.towers else self.pick("box", "grey box", "grey square")
        amount = self.amount(min(map(kind.count, self.scene.boxes)))
        words = f"{self.pick('each', 'every')} {box} {self.pick('has', 'contains')} {amount.words}"

        def holds(box: Box) -> Optional[bool]:
            return amount.holds(kind.count(box))

        text = f"{words} {kind.noun(amount)}"
        return Statement(text, lambda scene: _all(map(holds, scene.boxes)), kind.is_meant, holds)

    def boxes_of_colours(self) -> Statement:
        noun = "blocks" if self.scene.towers else self.pick("items", "items", "objects")
        own = _colours(self._own())
        form = self.pick("only", "only", "two", "different", "same")
        if form == "different":
            number = int(np.clip(len(own) + self.rng.choice((0, 0, 1, -1)), 1, 3))
            words = f"with {noun} of {NUMBERS[number]} different colors" if number > 1 else f"with {noun} of one color"
            return self._boxes(words, lambda box: len(_colours(box)) == number if len(box) > 1 else None)
        if form == "same":
            words = f"with all {noun} of the same color"
            return self._boxes(words, lambda box: len(_colours(box)) == 1 if len(box) > 1 else None)
        first, second = self.rng.permutation(list(COLOURS))[:2].tolist()
        if form == "only":
            return self._boxes(f"with only {first} {noun}", lambda box: _colours(box) == {first})
        if self.chance(0.67):
            words = f"with only {first} and {second} {noun}"
            return self._boxes(words, lambda box: _colours(box) == {first, second})
        return self._boxes(f"with {first} and {second} {noun}", lambda box: {first, second} <= _colours(box))

    def towers_with_block_at(self) -> Statement:
        colour, other = self.pick(*COLOURS), self.pick(*COLOURS)
        end = self.pick("top", "bottom")
        name = "top" if end == "top" else self.pick("base", "base", "bottom")
        words = self.pick(f"with a {colour} block at the {name}", f"which has a {colour} block at the {name}")
        wanted = {colour, f"from {end} 1"}
        if self.chance(0.25) and not self.simple:
            words = f"with a {colour} block {self.pick('over', 'above', 'on')} a {other} block"
            wanted = {colour, f"touches bottom {other}"}
        kind = Kind("", "", wanted.issubset)
        return self._boxes(words, lambda box: kind.count(box) > 0, kind)

    def tower_by_height(self) -> Statement:
        own = self._own()
        height = self.amount(len(own), 4)
        tall = f"with {height.words} block{'s' if height.plural else ''}"
        if self.chance(0.35):
            kind = self.kind(own, 1.0, 0.0)
            amount = self.amount(kind.count(own), 4)
            text = f"there is a tower {tall} and {amount.words} {kind.noun(amount)}"

            def enough(box: Box) -> Optional[bool]:
                return _all((height.holds(len(box)), amount.holds(kind.count(box))))

            return Statement(text, lambda scene: _any(map(enough, scene.boxes)), kind.is_meant, enough)
        colour, end = self.pick(*COLOURS), self.pick("top", "bottom")
        block = Kind("", "", {colour, f"from {end} 1"}.issubset)
        text = self.pick(f"the tower {tall} has a", f"there is a tower {tall} having a")

        def holds(box: Box) -> Optional[bool]:
            return _all((height.holds(len(box)), block.count(box) > 0))

        text = f"{text} {colour} block at the {'top' if end == 'top' else 'base'}"
        return Statement(text, lambda scene: _any(map(holds, scene.boxes)), block.is_meant, holds)

    def one_coloured(self) -> Statement:
        colour, text = self.pick(*COLOURS), ""
        height = Amount("", False, lambda count: True)
        if self.chance(0.5):
            height = self.amount(len(self._own()), 4, bare=False)
            text = f" with {height.words} block{'s' if height.plural else ''}"

        def holds(box: Box) -> Optional[bool]:
            return _colours(box) == {colour} and height.holds(len(box))

        kind = Kind("", "", {colour}.issubset)
        return Statement(
            f"there is a {colour} tower{text}", lambda scene: _any(map(holds, scene.boxes)), kind.is_meant, holds
        )

    def none_of(self) -> Statement:
        kind = self.kind(self.things, 0.9, 0.6)

        def truth(scene: Scene) -> Optional[bool]:
            chosen = [thing for box in scene.boxes for thing in box if kind.fits(thing)]
            return not any("wall" in thing for thing in chosen) if chosen else None

        text = f"none of the {kind.plural} are touching {self.pick('the', 'any')} edge"
        return Statement(text, truth, kind.is_meant)


def _there(amount: Amount) -> str:
    return "there are" if amount.plural else "there is"


def _colours(box: Box) -> set[str]:
    return {name for thing in box for name in thing & set(COLOURS)}


def _all(values: Iterable[Optional[bool]]) -> Optional[bool]:
    """True if all are, False if one is not, otherwise None (three-valued logic)."""
    values = list(values)
    return False if any(value is False for value in values) else None if None in values else True


def _any(values: Iterable[Optional[bool]]) -> Optional[bool]:
    """True if one is, False if none is, otherwise None."""
    values = list(values)
    return True if any(value is True for value in values) else None if None in values else False


@dataclass(frozen=True)
class Drawn:
    """A statement, the number of an image, and what is true of the two.

    ``things`` holds for every box a list with one entry per thing, ``boxes`` one entry per box; None is unknown.
    """

    text: str
    image: int
    truth: bool
    things: list[list[Optional[bool]]]
    boxes: list[Optional[bool]]

    def of_rows(self) -> list[Optional[bool]]:
        """What is known of the rows of :func:`ernie_vil.data.nlvr_regions.nlvr_regions`: image, boxes, things."""
        return [None, *self.boxes, *(known for things in self.things for known in things)]


def draw_statement(
    number: int, scenes: Callable[[int], Scene], images: int, rng: np.random.Generator, simple: bool = False
) -> Drawn:
    """A statement modelled on image ``number``, with this image or with another, of which the contrary holds.

    Either is taken with equal chance, so that nothing can be told from the words alone.

    Args:
        scenes: an image's scene by its number, below ``images``.
        simple: see :class:`Writer`.
    """
    scene = scenes(number)
    for _ in range(MOST_TRIES):
        statement = Writer(scene, rng, simple).statement()
        found = statement.truth(scene)
        if found is None:
            continue
        for other in rng.integers(images, size=MOST_TRIES).tolist():
            if scenes(other).towers == scene.towers and statement.truth(scenes(other)) is (not found):
                own = bool(rng.integers(2))
                return _drawn(statement, number if own else other, found is own, scenes(number if own else other))
    return _drawn(Statement("there is no box", lambda scene: False), number, False, scene)


def _drawn(statement: Statement, image: int, truth: bool, scene: Scene) -> Drawn:
    things: list[list[Optional[bool]]] = [
        [None if statement.things is None else statement.things(thing, box) for thing in box] for box in scene.boxes
    ]
    boxes = [None if statement.boxes is None else statement.boxes(box) for box in scene.boxes]
    return Drawn(statement.text, image, truth, things, boxes)
