"""Sentences on the scenes of :mod:`ernie_vil.data.mini` in which no word is a matter of taste.

A statement mentions one to three things and how they stand to each other. It is only made of a scene if each of its
words that names an object, an attribute or a relation can be told from the picture and the other words: put any other
word of its group there, and the sentence is false. Whoever masks such a word asks a question with one answer.

The wording is for parsers: a relation is a preposition or a verb with an object, since parsers make nodes of these ("a
dog left of a car" is to them one that somebody left), and an attribute stands before its noun. It also tells the group
of a missing word: an attribute alone is a pattern, two are pattern and colour, three are size, pattern and colour.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Iterator, Optional

import numpy as np

from ernie_vil.data.mini import COLORS, KINDS, PATTERNS, RELATIONS, SIZES, Scene, relations

Pairs = set[tuple[int, int]]

# Two things are "next to" each other if both distances of their centres are below this: their cells touch.
NEAR = 46
# Relations with as many words exclude each other, so that the number of missing words and the picture tell which it is.
# "following" and "leading": in one row; everything is on its way to the right.
WORDINGS = {
    "above": 0.26,
    "below": 0.26,
    "following": 0.13,
    "leading": 0.13,
    "next to": 0.08,
    "away from": 0.08,
    "to the left of": 0.03,
    "to the right of": 0.03,
}
VERBS = ("following", "leading")
FORMS = {(): 0.3, ("pattern",): 0.2, ("pattern", "color"): 0.4, ("size", "pattern", "color"): 0.1}
# Parsers take "orange dog" for one noun, as "ice cream" is.
COLOR_WORDS = {color: "golden" if color == "orange" else color for color in COLORS}
# What a sentence is about: one thing; two things and a relation; one thing that stands in a relation with two; two or
# three things that are there; two things of a kind and another.
SUBJECTS = {
    "one thing": 0.2,
    "relation": 0.55,
    "relation to two": 0.08,
    "two things": 0.07,
    "three things": 0.05,
    "a pair": 0.05,
}
FRAMES = ("{first} {relation} {rest}", "there is {first} {relation} {rest}", "{first} standing {relation} {rest}")
PLAIN_FRAMES = ("{first} {rest}", "there is {first} {rest}")
VERB_FRAMES = ("{first} {relation} {rest}", "there is {first} {relation} {rest}", "{first} is {relation} {rest}")
ATTEMPTS = 60

WORDS = ("two", "standing", "following", "leading", "next", "to", "away", "from", "golden")
"""Words of these sentences that :func:`ernie_vil.data.mini_questions.vocabulary` lacks; plurals are two pieces."""


@dataclass(frozen=True)
class Mention:
    """A noun phrase: ``number`` things of a kind. The attributes are a colour, a size or a pattern of one thing."""

    kind: str
    attributes: tuple[str, ...] = ()
    number: int = 1


@dataclass(frozen=True)
class Statement:
    """The first mention stands in ``relation`` to all others; without relation, all are just there."""

    mentions: tuple[Mention, ...]
    relation: Optional[str] = None


@dataclass(frozen=True)
class Node:
    """What a scene graph should have: ``part`` is "object", "attribute" or "relation", at characters start to end."""

    part: str
    start: int
    end: int


@dataclass(frozen=True)
class Sentence:
    text: str
    nodes: tuple[Node, ...]


def wordings(scene: Scene) -> dict[str, Pairs]:
    """The pairs of objects (subject, object) that each relation of :data:`WORDINGS` holds between."""
    facts: dict[str, Pairs] = {name: set() for name in (*RELATIONS, *WORDINGS)}
    for subject, name, other in relations(scene):
        facts[name].add((subject, other))
    vertical = facts["above"] | facts["below"]
    for i, j in itertools.permutations(range(len(scene.objects)), 2):
        offsets = np.subtract(scene.objects[i].centre, scene.objects[j].centre)
        facts["next to" if np.abs(offsets).max() < NEAR else "away from"].add((i, j))
    facts["following"], facts["leading"] = facts["left of"] - vertical, facts["right of"] - vertical
    facts["to the left of"], facts["to the right of"] = facts["left of"], facts["right of"]
    return {name: facts[name] for name in WORDINGS}


def is_true(scene: Scene, facts: dict[str, Pairs], statement: Statement) -> bool:
    """Whether different things of the scene can be found for all mentions so that the relation holds."""
    pairs = facts[statement.relation] if statement.relation is not None else None
    for chosen in itertools.product(*(_meant(scene, mention) for mention in statement.mentions)):
        things = [index for group in chosen for index in group]
        apart = len(set(things)) == len(things)
        if apart and (pairs is None or all((chosen[0][0], group[0]) in pairs for group in chosen[1:])):
            return True
    return False


def _meant(scene: Scene, mention: Mention) -> list[tuple[int, ...]]:
    """What a mention can mean, as groups of things: "a dog" any one dog, "two dogs" both if there are no more."""
    found = [
        index
        for index, thing in enumerate(scene.objects)
        if thing.kind == mention.kind
        and all(word in (thing.color, thing.size, thing.pattern) for word in mention.attributes)
    ]
    if mention.number > 1:
        return [tuple(found)] if len(found) == mention.number else []
    return [(index,) for index in found]


_GROUPS = {word: tuple(group) for group in (COLORS, SIZES, PATTERNS) for word in group}


def _variants(statement: Statement) -> Iterator[Statement]:
    """The statement with one word for an object, an attribute or the relation exchanged for each other of its group."""
    for number, mention in enumerate(statement.mentions):
        others = [replace(mention, kind=kind) for kind in KINDS if kind != mention.kind]
        for place, word in enumerate(mention.attributes):
            before, after = mention.attributes[:place], mention.attributes[place + 1 :]
            group = (other for other in _GROUPS[word] if other != word)
            others += [replace(mention, attributes=(*before, other, *after)) for other in group]
        for other in others:
            mentions = (*statement.mentions[:number], other, *statement.mentions[number + 1 :])
            yield replace(statement, mentions=mentions)
    if statement.relation is not None:
        length = len(statement.relation.split())
        for name in WORDINGS:
            if len(name.split()) == length and name != statement.relation:
                yield replace(statement, relation=name)


def leaves_open(scene: Scene, facts: dict[str, Pairs], statement: Statement) -> bool:
    """Whether another word of the same group would do in some place of a true statement."""
    return any(is_true(scene, facts, other) for other in _variants(statement))


# -------------------------------------------------------------------------------------------------------- the texts
class _Text:
    def __init__(self) -> None:
        self.text = ""
        self.nodes: list[Node] = []

    def add(self, words: str, part: Optional[str] = None) -> None:
        if self.text and words != ",":
            self.text += " "
        if part:
            self.nodes.append(Node(part, len(self.text), len(self.text) + len(words)))
        self.text += words

    def add_mention(self, mention: Mention) -> None:
        self.add("two" if mention.number == 2 else "a")  # no phrase begins with a vowel
        for attribute in mention.attributes:
            self.add(COLOR_WORDS.get(attribute, attribute), "attribute")
        plural = "" if mention.number == 1 else "es" if mention.kind.endswith("s") else "s"
        self.add(mention.kind + plural, "object")


def sentence(statement: Statement, frame: str) -> Sentence:
    """The words of a statement and its nodes."""
    text = _Text()
    first, rest = statement.mentions[0], statement.mentions[1:]
    for slot in frame.split():
        if slot == "{first}":
            text.add_mention(first)
        elif slot == "{relation}":
            text.add(str(statement.relation), "relation")
        elif slot == "{rest}":
            for place, mention in enumerate(rest):
                if place == len(rest) - 1 and (place or statement.relation is None):
                    text.add("and")
                elif statement.relation is None:
                    text.add(",")
                text.add_mention(mention)
        else:
            text.add(slot)
    return Sentence(text.text, tuple(text.nodes))


def _draw(rng: np.random.Generator, shares: dict) -> object:
    names = list(shares)
    return names[int(rng.choice(len(names), p=np.array(list(shares.values())) / sum(shares.values())))]


def _mention(scene: Scene, rng: np.random.Generator, index: int) -> Mention:
    thing = scene.objects[index]
    return Mention(thing.kind, tuple(getattr(thing, name) for name in _draw(rng, FORMS)))


def _statement(scene: Scene, facts: dict[str, Pairs], rng: np.random.Generator, subject: str) -> Optional[Statement]:
    relation = _draw(rng, WORDINGS) if subject.startswith("relation") else None
    order = rng.permutation(len(scene.objects)).tolist()
    if subject == "a pair":
        kinds = [thing.kind for thing in scene.objects]
        twins = [kind for kind in KINDS if kinds.count(kind) == 2]
        others = [index for index in order if kinds[index] not in twins]
        if not twins or not others:
            return None
        kind = twins[int(rng.integers(len(twins)))]
        return Statement((Mention(kind, number=2), _mention(scene, rng, others[0])))
    size = {"one thing": 1, "relation to two": 3, "three things": 3}.get(subject, 2)
    for chosen in itertools.permutations(order, size):
        if relation is None or all((chosen[0], other) in facts[relation] for other in chosen[1:]):
            return Statement(tuple(_mention(scene, rng, index) for index in chosen), relation)
    return None


def make_sentences(scene: Scene, rng: np.random.Generator, count: int) -> list[Sentence]:
    """Up to ``count`` different sentences on a scene (fewer if so many are not found) that leave no word open."""
    facts = wordings(scene)
    made: dict[str, Sentence] = {}
    for _ in range(count):
        subject = _draw(rng, SUBJECTS)
        for _ in range(ATTEMPTS):
            statement = _statement(scene, facts, rng, subject)
            if statement is None:  # the scene has no such things
                subject = _draw(rng, SUBJECTS)
            elif not leaves_open(scene, facts, statement):
                frames = _frames(subject, statement)
                found = sentence(statement, frames[int(rng.integers(len(frames)))])
                if found.text not in made:
                    made[found.text] = found
                    break
    return list(made.values())


def _frames(subject: str, statement: Statement) -> tuple[str, ...]:
    if statement.relation is not None:
        return VERB_FRAMES if statement.relation in VERBS else FRAMES
    return PLAIN_FRAMES[:1] if subject == "a pair" else PLAIN_FRAMES  # "there is two dogs" is no English
