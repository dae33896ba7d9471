"""Questions with four answers and four rationales on the scenes of :mod:`ernie_vil.data.mini`.

Every choice list comes from one of a few rules that draw four statements, one true and three false, in a way that
treats all kinds and all colours alike. Since the distribution of scenes is symmetric in them too, each of the four is
equally likely to be the true one for a reader who sees no picture: given the question for the answers, and given the
question and the right answer for the rationales.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Optional, Union

import numpy as np

from ernie_vil.data.mini import COLORS, KINDS, PATTERNS, RELATIONS, SIZES, Scene, relations, unique_kinds
from ernie_vil.data.names import NEUTRAL_NAMES, read_names

Token = Union[str, list[int]]
Tokens = list[Token]

# Shares of the types, from easy to hard: a kind that is here, a kind and its colour, the colour of a thing, its size
# and pattern, a thing that stands in a relation with another, the colours of two things.
QUESTION_TYPES = {"kind": 0.25, "thing": 0.3, "color": 0.2, "attribute": 0.1, "relation": 0.1, "pair": 0.05}
RATIONALE_TYPES = {"kind": 0.25, "thing": 0.3, "color": 0.2, "attribute": 0.15, "relation": 0.1}
QUESTION_ATTEMPTS = 20


@dataclass(frozen=True)
class Question:
    """A VCR item without its bookkeeping; the choices are in the order in which they are shown."""

    question: Tokens
    answers: list[Tokens]
    answer_label: int
    rationales: list[Tokens]
    rationale_label: int


@dataclass(frozen=True)
class _Draft:
    """A question whose first answer is the right one. Rationales speak of object ``topic``, called ``reference``;
    they must not bring up ``kinds``, which the question or the right answer has already told something about."""

    question: Tokens
    answers: list[Tokens]
    topic: int
    reference: Tokens
    kinds: set[str]


# ------------------------------------------------------------------------------------------- one true, three false
def _pick(rng: np.random.Generator, items: list, count: int) -> list:
    return [items[i] for i in rng.permutation(len(items))[:count].tolist()]


def _kind_choices(scene: Scene, rng: np.random.Generator, avoid: set[str]) -> Optional[list[str]]:
    """Four kinds, the first one in the picture, the others not."""
    present = {thing.kind for thing in scene.objects}
    right = _pick(rng, [kind for kind in KINDS if kind in present and kind not in avoid], 1)
    wrong = _pick(rng, [kind for kind in KINDS if kind not in present and kind not in avoid], 3)
    return right + wrong if right else None


def _thing_choices(scene: Scene, rng: np.random.Generator, avoid: set[str]) -> Optional[list[tuple[str, str]]]:
    """Four (kind, colour) pairs of different kinds, the first one in the picture, the others not."""
    present = {(thing.kind, thing.color) for thing in scene.objects}
    right = [thing for thing in scene.objects if thing.kind not in avoid]
    if not right:
        return None
    thing = right[int(rng.integers(len(right)))]
    choices = [(thing.kind, thing.color)]
    for kind in _pick(rng, [kind for kind in KINDS if kind != thing.kind and kind not in avoid], 3):
        absent = [color for color in COLORS if (kind, color) not in present]
        choices.append((kind, absent[int(rng.integers(len(absent)))]))
    return choices


def _color_choices(scene: Scene, rng: np.random.Generator, topic: int) -> list[str]:
    """The colour of object ``topic`` and three others."""
    color = scene.objects[topic].color
    return [color, *_pick(rng, [other for other in COLORS if other != color], 3)]


def _attribute_choices(scene: Scene, topic: int) -> list[tuple[str, str]]:
    """All four pairs of size and pattern, the one of object ``topic`` first."""
    right = (scene.objects[topic].size, scene.objects[topic].pattern)
    return [right] + [(s, p) for s in SIZES for p in PATTERNS if (s, p) != right]


def _relation_choices(
    scene: Scene, rng: np.random.Generator, topic: int, relation: str, topic_is_subject: bool, avoid: set[str]
) -> Optional[list[str]]:
    """Four kinds; things of the first stand in the relation with object ``topic``, things of the others do not.

    At least two of the false ones are in the picture if it has so many, so that seeing what is there is not enough.
    """
    partners = {
        scene.objects[j if topic_is_subject else i].kind
        for i, name, j in relations(scene)
        if name == relation and (i if topic_is_subject else j) == topic
    }
    usable = [kind for kind in KINDS if kind not in avoid and kind != scene.objects[topic].kind]
    true = [kind for kind in usable if kind in partners]
    if not true:
        return None
    here = {thing.kind for thing in scene.objects}
    false_here = _pick(rng, [kind for kind in usable if kind in here and kind not in partners], int(rng.integers(2, 4)))
    false_absent = _pick(rng, [kind for kind in usable if kind not in here], 3 - len(false_here))
    return [true[int(rng.integers(len(true)))], *false_here, *false_absent]


def _pair_choices(scene: Scene, rng: np.random.Generator, first: int, second: int) -> list[tuple[str, str]]:
    """Ordered colours of two objects: each is its true colour or one wrong colour, in all four combinations."""
    own = (scene.objects[first].color, scene.objects[second].color)
    wrong = [_pick(rng, [color for color in COLORS if color != mine], 1)[0] for mine in own]
    return [own, (own[0], wrong[1]), (wrong[0], own[1]), (wrong[0], wrong[1])]


# -------------------------------------------------------------------------------------------------------- the texts
def _noun_phrase(kind: str, color: str) -> Tokens:
    return ["person", "in", color] if kind == "person" else [color, kind]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _with_article(words: Tokens) -> Tokens:
    return [_article(str(words[0])), *words]


def _color_text(scene: Scene, topic: int, reference: Tokens, color: str) -> Tokens:
    return [*reference, "is", *(["in"] if scene.objects[topic].kind == "person" else []), color, "."]


def _reference(scene: Scene, rng: np.random.Generator, topic: int) -> Tokens:
    """The only object of its kind: by its index (as VCR does) or by its class word."""
    return [[topic]] if rng.random() < 0.5 else ["the", scene.objects[topic].kind]


_WHAT_IS_HERE: Tokens = ["what", "is", "here", "?"]


def _draft(scene: Scene, rng: np.random.Generator, kind_of_question: str) -> Optional[_Draft]:
    if kind_of_question == "thing":
        pairs = _thing_choices(scene, rng, avoid=set())
        answers = [[*_with_article(_noun_phrase(*pair)), "."] for pair in pairs]
        topic = [(thing.kind, thing.color) for thing in scene.objects].index(pairs[0])
        return _Draft(_WHAT_IS_HERE, answers, topic, ["the", *_noun_phrase(*pairs[0])], {pairs[0][0]})

    unique = unique_kinds(scene)
    if kind_of_question == "kind":
        choices = _kind_choices(scene, rng, {thing.kind for i, thing in enumerate(scene.objects) if i not in unique})
        if choices is None:
            return None
        topic = [thing.kind for thing in scene.objects].index(choices[0])
        answers = [[*_with_article([kind]), "."] for kind in choices]
        return _Draft(_WHAT_IS_HERE, answers, topic, ["the", choices[0]], {choices[0]})
    if not unique:
        return None
    topic = unique[int(rng.integers(len(unique)))]
    named = _reference(scene, rng, topic)
    kinds = {scene.objects[topic].kind}
    if kind_of_question == "color":
        answers = [_color_text(scene, topic, named, color) for color in _color_choices(scene, rng, topic)]
        return _Draft(["what", "color", "is", *named, "?"], answers, topic, named, kinds)
    if kind_of_question == "attribute":
        answers = [[*named, "is", size, "and", pattern, "."] for size, pattern in _attribute_choices(scene, topic)]
        return _Draft(["how", "does", *named, "look", "?"], answers, topic, named, kinds)
    if kind_of_question == "relation":
        relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
        choices = _relation_choices(scene, rng, topic, relation, topic_is_subject=False, avoid=set())
        if choices is None:
            return None
        index_of = {scene.objects[i].kind: i for i in unique}
        if all(kind in index_of for kind in choices):
            answers = [[[index_of[kind]], "."] for kind in choices]
        else:
            answers = [[*_with_article([kind]), "."] for kind in choices]
        question = ["what", "is", *relation.split(), *named, "?"]
        return _Draft(question, answers, topic, named, kinds | {choices[0]})
    if len(unique) < 2:
        return None
    first, second = _pick(rng, unique, 2)
    answers = [[one, "and", two, "."] for one, two in _pair_choices(scene, rng, first, second)]
    kinds = {scene.objects[i].kind for i in (first, second)}
    return _Draft(["what", "colors", "are", [first, second], "?"], answers, first, [[first]], kinds)


def _rationales(
    scene: Scene, rng: np.random.Generator, draft: _Draft, kind_of_rationale: str
) -> Optional[list[Tokens]]:
    if kind_of_rationale == "kind":
        kinds = _kind_choices(scene, rng, draft.kinds)
        return kinds and [["there", "is", *_with_article([kind]), "."] for kind in kinds]
    if kind_of_rationale == "thing":
        pairs = _thing_choices(scene, rng, draft.kinds)
        return pairs and [["there", "is", *_with_article(_noun_phrase(*pair)), "."] for pair in pairs]
    if kind_of_rationale == "color":
        colors = _color_choices(scene, rng, draft.topic)
        return [_color_text(scene, draft.topic, draft.reference, color) for color in colors]
    if kind_of_rationale == "attribute":
        choices = _attribute_choices(scene, draft.topic)
        return [[*draft.reference, "is", size, "and", pattern, "."] for size, pattern in choices]
    relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
    kinds = _relation_choices(scene, rng, draft.topic, relation, topic_is_subject=True, avoid=draft.kinds)
    return kinds and [[*draft.reference, "is", *relation.split(), *_with_article([kind]), "."] for kind in kinds]


# Rationales that would repeat the answer, or whose topic's colour it has told, are left out.
_UNFIT_RATIONALES = {
    "kind": set(),
    "thing": {"color"},
    "color": {"color"},
    "attribute": {"attribute"},
    "relation": {"relation"},
    "pair": {"color"},
}


def _draw_type(rng: np.random.Generator, shares: dict[str, float], without: set[str] = frozenset()) -> str:
    names = [name for name in shares if name not in without]
    weights = np.array([shares[name] for name in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _shuffled(rng: np.random.Generator, choices: list[Tokens]) -> tuple[list[Tokens], int]:
    order = rng.permutation(len(choices)).tolist()
    return [choices[i] for i in order], order.index(0)


def make_questions(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to ``count`` different questions on a scene (fewer only if the scene has no more to ask for)."""
    questions: list[Question] = []
    seen: set[str] = set()
    for _ in range(count * QUESTION_ATTEMPTS):
        if len(questions) == count:
            break
        kind_of_question = _draw_type(rng, QUESTION_TYPES)
        draft = _draft(scene, rng, kind_of_question)
        if draft is None or (key := json.dumps([draft.question, draft.answers[0]])) in seen:
            continue
        kind_of_rationale = _draw_type(rng, RATIONALE_TYPES, _UNFIT_RATIONALES[kind_of_question])
        rationales = _rationales(scene, rng, draft, kind_of_rationale)
        if rationales is None:
            continue
        seen.add(key)
        questions.append(Question(draft.question, *_shuffled(rng, draft.answers), *_shuffled(rng, rationales)))
    return questions


WORDS = (
    *("what", "how", "is", "are", "does", "look", "here", "there", "the", "in", "color", "colors"),
    *("a", "an", "and", "of", "left", "right", "above", "below"),
    *(*KINDS, *COLORS, *SIZES, *PATTERNS),
)


def vocabulary() -> list[str]:
    """Tokens of ``vocab.txt`` in order: special ones, punctuation, the words of the mini world, the
    names that persons get by default, and letters that spell the rest."""
    letters = [chr(code) for code in (*range(ord("a"), ord("z") + 1), *range(ord("0"), ord("9") + 1))]
    pieces = [f"##{letter}" for letter in letters]
    names = sorted({name.lower() for name in read_names(NEUTRAL_NAMES)})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return list(dict.fromkeys([*special, ".", ",", "?", "!", "'", "-", *WORDS, *names, *letters, *pieces]))
