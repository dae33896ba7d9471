"""Miniature VCR: questions on the scenes of :mod:`ernie_vil.data.mini`, in the files of the public VCR data set.

:func:`build_mini_vcr` writes the jsonl files, the pictures with their metadata, both region stores and a vocabulary;
:func:`mini_vcr` keeps one such folder in the user's cache.

Every choice list comes from one of a few rules that draw four statements, one true and three false, in a way that
treats all kinds and all colours alike. Since the distribution of scenes is symmetric in them too, each of the four is
equally likely to be the true one for a reader who sees no picture: given the question for Q->A, and given the question
and the right answer for QA->R.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np
from PIL import Image

from ernie_vil.data.mini import (
    COLORS,
    KINDS,
    PATTERNS,
    RELATIONS,
    SIZES,
    Scene,
    detected_regions,
    draw,
    ground_truth_regions,
    mini_folder,
    outline,
    relations,
    scenes,
    unique_kinds,
    write_whole,
)
from ernie_vil.data.names import NEUTRAL_NAMES, read_names
from ernie_vil.data.regions import Regions, write_lmdb_store

Token = Union[str, list[int]]
Tokens = list[Token]

FORMAT_VERSION = 1
IMAGE_ID_OFFSET = {"train": 0, "val": 1_000_000, "test": 2_000_000}
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
        answers = [[*named, "is", color, "."] for color in _color_choices(scene, rng, topic)]
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
        return [[*draft.reference, "is", color, "."] for color in _color_choices(scene, rng, draft.topic)]
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


# -------------------------------------------------------------------------------------------------------- the files
def _plain_text(tokens: Tokens) -> str:
    """The text with objects as numbers from 1, as in the ``*_orig`` fields of VCR."""
    words = [token if isinstance(token, str) else " and ".join(str(i + 1) for i in token) for token in tokens]
    return " ".join(words)


def _record(split: str, image: int, number: int, index: int, scene: Scene, question: Question, name: str) -> dict:
    """One line of the jsonl: ``number`` counts the split's questions, ``index`` those of the picture."""
    record = {
        "movie": f"mini_{split}",
        "objects": [thing.kind for thing in scene.objects],
        "interesting_scores": [0],
        "answer_likelihood": "likely",
        "img_fn": f"{name}.png",
        "metadata_fn": f"{name}.json",
        "question": question.question,
        "answer_choices": question.answers,
        "rationale_choices": question.rationales,
        "img_id": f"{split}-{image}",
        "question_number": index,
        "annot_id": f"{split}-{number}",
        "match_fold": f"{split}-0",
        "match_index": number,
    }
    if split == "test":
        return record
    match = [(i - question.answer_label) % 4 for i in range(4)]
    rationale_match = [(i - question.rationale_label) % 4 for i in range(4)]
    return {
        **record,
        "question_orig": _plain_text(question.question),
        "answer_orig": _plain_text(question.answers[question.answer_label]),
        "rationale_orig": _plain_text(question.rationales[question.rationale_label]),
        "answer_match_iter": match,
        "answer_sources": [number] * 4,
        "answer_label": question.answer_label,
        "rationale_match_iter": rationale_match,
        "rationale_sources": [number] * 4,
        "rationale_label": question.rationale_label,
    }


def _metadata(scene: Scene) -> dict:
    return {
        "boxes": [[*map(float, thing.box), 1.0] for thing in scene.objects],
        "segms": [[outline(thing)] for thing in scene.objects],
        "names": [thing.kind for thing in scene.objects],
        "width": scene.width,
        "height": scene.height,
    }


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


README = """Miniature VCR data, made by ernie_vil.data.mini_vcr; not the real VCR data set.

{counts}
The pictures (vcr1images) are drawn from random scenes of 3 to 6 coloured things. The questions, answers and rationales
are made from the facts of the scenes; three of four choices are false of the picture, and nothing but the picture tells
which. "left of" compares the x, "above" the y of two centres. The files have the format of the public VCR data:
train.jsonl, val.jsonl, test.jsonl (without labels), picture metadata (boxes with a score, outlines, names), and the two
region stores in the format in which VCR features circulate: features.lmdb (jittered boxes and random ones, shuffled)
and gt_features.lmdb (the true boxes in the order of "objects"). Region features are {feature_size} floats computed from
the pixels of a box (see ernie_vil.data.mini.describe_regions). vocab.txt is a WordPiece vocabulary for these texts.

Parameters: {parameters}
"""


@dataclass(frozen=True)
class _Parameters:
    seed: int
    feature_size: int
    train_images: int
    val_images: int
    test_images: int
    questions_per_image: int
    format_version: int = FORMAT_VERSION


def build_mini_vcr(
    folder: str | Path,
    seed: int = 0,
    feature_size: int = 80,
    train_images: int = 1200,
    val_images: int = 100,
    test_images: int = 20,
    questions_per_image: int = 5,
) -> None:
    """Writes the miniature VCR data into ``folder``, all or nothing; the same arguments give the same files.

    A folder that holds them already is left alone.

    Args:
        folder: where to; must not exist, be empty, or be such a folder.
        seed: another seed gives other scenes and questions.
        feature_size: width of a region feature; the descriptor is padded with zeros.
        train_images, val_images, test_images: pictures of each split.
        questions_per_image: questions asked of each picture.

    Raises:
        UserError: the feature size is too small for the descriptor, or the folder is taken or cannot be written to.
    """
    parameters = _Parameters(seed, feature_size, train_images, val_images, test_images, questions_per_image)
    write_whole(Path(folder), vars(parameters).copy(), lambda target: _write(target, parameters))


def mini_vcr(home: Path | None = None) -> Path:
    """The folder of the standard miniature VCR data, made on first use (some seconds).

    It lies at ``mini/vcr-v1-<hash of the parameters>`` under ``home``, ``$ERNIE_VIL_HOME`` or ``~/.cache/ernie_vil``.
    Several processes may call this at once.
    """
    parameters = _Parameters(0, 80, 1200, 100, 20, 5)
    digest = hashlib.sha256(json.dumps(vars(parameters), sort_keys=True).encode()).hexdigest()[:10]
    folder = mini_folder(f"vcr-v{FORMAT_VERSION}-{digest}", home)
    write_whole(folder, vars(parameters).copy(), lambda target: _write(target, parameters))
    return folder


def _write(folder: Path, parameters: _Parameters) -> None:
    counts = {"train": parameters.train_images, "val": parameters.val_images, "test": parameters.test_images}
    detected: list[tuple[str, Regions]] = []
    ground_truth: list[tuple[str, Regions]] = []
    lines = []
    for split, images in counts.items():
        number = 0
        (folder / "vcr1images" / f"mini_{split}").mkdir(parents=True)
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as jsonl:
            for image_number, (scene, rng) in enumerate(scenes(parameters.seed, split, images)):
                name = f"mini_{split}/{image_number:05d}"
                picture = draw(scene)
                _write_picture(folder / "vcr1images" / name, picture, scene)
                key = str(IMAGE_ID_OFFSET[split] + image_number)
                ground_truth.append((key, ground_truth_regions(scene, picture, parameters.feature_size)))
                detected.append((key, detected_regions(scene, picture, parameters.feature_size, rng)))
                for index, question in enumerate(make_questions(scene, rng, parameters.questions_per_image)):
                    record = _record(split, image_number, number, index, scene, question, name)
                    jsonl.write(json.dumps(record) + "\n")
                    number += 1
        lines.append(f"{split}: {number} questions on {images} pictures")
    fingerprint = {"extractor": "ernie_vil.data.mini", **vars(parameters)}
    write_lmdb_store(folder / "features.lmdb", detected, fingerprint)
    write_lmdb_store(folder / "gt_features.lmdb", ground_truth, fingerprint)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    readme = README.format(
        counts="\n".join(lines), feature_size=parameters.feature_size, parameters=json.dumps(vars(parameters))
    )
    (folder / "README.txt").write_text(readme, encoding="utf-8")


def _write_picture(stem: Path, picture: Image.Image, scene: Scene) -> None:
    picture.save(f"{stem}.png", optimize=True)
    Path(f"{stem}.json").write_text(json.dumps(_metadata(scene)), encoding="utf-8")
