"""Miniature VQA: questions on the scenes of :mod:`ernie_vil.data.mini` in the official files of VQA v2.

:func:`build_mini_vqa` writes question and annotation files, the list of answers, questions in the form of Visual
Genome, the region store, the pictures and a vocabulary; :func:`mini_vqa` keeps such a folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np

from ernie_vil.data.mini import COLORS, KINDS, RELATIONS, Scene, detected_regions, draw, relations, scenes, unique_kinds
from ernie_vil.data.mini_cache import mini_folder, write_whole
from ernie_vil.data.mini_questions import vocabulary as question_vocabulary
from ernie_vil.data.regions import Regions, write_lmdb_store
from ernie_vil.data.vqa_answers import write_answer_list

FORMAT_VERSION = 1
FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001, "test": 2_000_001}
SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015"}
EXTRA_WORDS = ("many", "things")
ANNOTATORS = 10
QUESTION_ATTEMPTS = 20
# Question type as annotated -> share and answer type.
QUESTION_TYPES = {
    "what color is the": (0.35, "other"),
    "is there a": (0.3, "yes/no"),
    "how many": (0.25, "number"),
    "what is": (0.1, "other"),
}
_DISAGREEMENT = 0.3  # share of questions to which one or two annotators give another answer
_NUMBER_WORDS = ("none", "one", "two", "three", "four", "five", "six")
_SLOPPY = 0.05  # share of answers that are written in another way


@dataclass(frozen=True)
class MiniQuestion:
    """A question, the answers that are right, and answers that someone who looks badly might give."""

    text: str
    question_type: str
    right: list[str]
    wrong: list[str]


def vocabulary() -> list[str]:
    """Tokens of ``vocab.txt``: those of the miniature VCR data first, then the words that only these questions have."""
    words = question_vocabulary()
    return [*words, *(word for word in EXTRA_WORDS if word not in words)]


def make_question(scene: Scene, rng: np.random.Generator, question_type: str) -> Optional[MiniQuestion]:
    """A question of a type on a scene, ``None`` if the scene has nothing to ask for."""
    things = scene.objects
    if question_type == "how many":
        words = [("things", lambda thing: True)]
        words += [(f"{color} things", lambda thing, color=color: thing.color == color) for color in COLORS]
        words += [(f"{kind} things", lambda thing, kind=kind: thing.kind == kind) for kind in KINDS]
        present = [(word, holds) for word, holds in words if any(map(holds, things))]
        word, holds = present[int(rng.integers(len(present)))] if rng.random() < 0.5 else words[0]
        count = sum(map(holds, things))
        return MiniQuestion(
            f"How many {word} are there?", question_type, [str(count)], [str(count - 1), str(count + 1)]
        )
    if question_type == "is there a":
        here = rng.random() < 0.5
        kinds = {thing.kind for thing in things}
        chosen = [kind for kind in KINDS if (kind in kinds) == here]
        name = chosen[int(rng.integers(len(chosen)))]
        if rng.random() < 0.3:
            thing = things[int(rng.integers(len(things)))]
            absent = [color for color in COLORS if not any((o.kind, o.color) == (thing.kind, color) for o in things)]
            name = f"{thing.color if here else absent[int(rng.integers(len(absent)))]} {thing.kind}"
        article = "an" if name[0] in "aeiou" else "a"
        right = ["yes", "no"] if here else ["no", "yes"]
        return MiniQuestion(f"Is there {article} {name}?", question_type, right[:1], right[1:])
    unique = unique_kinds(scene)
    if not unique:
        return None
    topic = unique[int(rng.integers(len(unique)))]
    kind = things[topic].kind
    if question_type == "what color is the":
        color = things[topic].color
        wrong = [other for other in COLORS if other != color]
        return MiniQuestion(f"What color is the {kind}?", question_type, [color], wrong)
    relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
    right = sorted({things[i].kind for i, name, j in relations(scene) if name == relation and j == topic} - {kind})
    if not right:
        return None
    wrong = [other for other in KINDS if other not in right and other != kind]
    return MiniQuestion(f"What is {relation} the {kind}?", question_type, right, wrong)


def make_questions(scene: Scene, rng: np.random.Generator, count: int) -> list[MiniQuestion]:
    """Up to ``count`` different questions on a scene."""
    types = list(QUESTION_TYPES)
    shares = [share for share, _ in QUESTION_TYPES.values()]
    questions: dict[str, MiniQuestion] = {}
    for _ in range(count * QUESTION_ATTEMPTS):
        made = make_question(scene, rng, types[int(rng.choice(len(types), p=shares))])
        if made is not None and len(questions) < count:
            questions.setdefault(made.text, made)
    return list(questions.values())


def annotate(question: MiniQuestion, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Ten answers: right ones, now and then one or two wrong ones, now and then in another spelling."""
    mistakes = int(rng.integers(1, 3)) if rng.random() < _DISAGREEMENT else 0
    answers = []
    for number in range(ANNOTATORS):
        choices = question.wrong if number < mistakes else question.right
        text = choices[int(rng.integers(len(choices)))]
        if rng.random() < _SLOPPY:
            spellings = [text.capitalize(), f"{text}."]
            spellings += [_NUMBER_WORDS[int(text)]] if text.isdigit() and int(text) < len(_NUMBER_WORDS) else []
            spellings += [f"the {text}"] if text in KINDS else []
            text = spellings[int(rng.integers(len(spellings)))]
        answers.append(text)
    order = rng.permutation(ANNOTATORS).tolist()
    return [
        {"answer": answers[i], "answer_confidence": "maybe" if i < mistakes else "yes", "answer_id": place}
        for place, i in enumerate(order, start=1)
    ]


README = """Miniature VQA data, made by ernie_vil.data.mini_vqa; not the real VQA data set.

{counts}
The pictures (images) are drawn from random scenes of 3 to 6 coloured things, the questions are made from the facts of
the scenes. Ten imagined annotators answer each: they share out the right answers among themselves, in three of ten
questions one or two of them are mistaken, and one answer in twenty is written in another way. The questions and
annotations have the official format of VQA v2 and its file names; of the test pictures the first half is test-dev.
answers.json: the answers that are the most common one of nine questions of train or val. question_answers.json and
image_data.json: more questions on half of the training pictures in the format of Visual Genome. features.lmdb: the
true boxes jittered and a random one, in random order, with {feature_size} floats computed from the pixels of a box
(see ernie_vil.data.mini.describe_regions). vocab.txt: the vocabulary of the miniature VCR data, with the words of
these questions at its end.

Parameters: {parameters}
"""


@dataclass(frozen=True)
class MiniVqaParameters:
    """Everything that decides the contents of the folder; the defaults are the standard set of :func:`mini_vqa`.

    Attributes:
        seed: another seed gives other scenes and questions.
        feature_size: width of a region feature; the descriptor is padded with zeros.
        train_images, val_images, test_images: pictures of each split.
        questions_per_image: questions asked of each picture.
    """

    seed: int = 0
    feature_size: int = 80
    train_images: int = 1500
    val_images: int = 150
    test_images: int = 40
    questions_per_image: int = 5

    def as_dict(self) -> dict:
        """The parameters with the version of the format and a digest of the vocabulary, as files record them."""
        words = hashlib.sha256("\n".join(vocabulary()).encode()).hexdigest()[:10]
        return {**vars(self), "format_version": FORMAT_VERSION, "vocabulary": words}


def build_mini_vqa(folder: str | Path, **parameters: int) -> None:
    """Writes the miniature data into ``folder``, all or nothing; the same arguments give the same contents.

    A folder that holds them already is left alone.

    Args:
        folder: where to; must not exist, be empty, or be such a folder.
        **parameters: see :class:`MiniVqaParameters`.

    Raises:
        UserError: the feature size is too small for the descriptor, the folder is taken or cannot be written to, or
            there are too few pictures for a list of answers.
    """
    chosen = MiniVqaParameters(**parameters)
    write_whole(Path(folder), chosen.as_dict(), lambda target: _write(target, chosen))


def mini_vqa(home: Path | None = None, parameters: MiniVqaParameters = MiniVqaParameters()) -> Path:
    """The folder of the miniature data, made on first use (about ten seconds for the standard set).

    It lies at ``mini/vqa-v1-<hash of the parameters>``; see :func:`ernie_vil.data.mini_vcr.mini_vcr`. Raises
    :class:`UserError` as :func:`build_mini_vqa` does.
    """
    digest = hashlib.sha256(json.dumps(parameters.as_dict(), sort_keys=True).encode()).hexdigest()[:10]
    folder = mini_folder(f"vqa-v{FORMAT_VERSION}-{digest}", home)
    write_whole(folder, parameters.as_dict(), lambda target: _write(target, parameters))
    return folder


def _write(folder: Path, parameters: MiniVqaParameters) -> None:
    regions: list[tuple[str, Regions]] = []
    counts = {"train": parameters.train_images, "val": parameters.val_images, "test": parameters.test_images}
    lines = []
    (folder / "images").mkdir()
    genome: list[dict[str, Any]] = []
    for split, images in counts.items():
        questions: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (scene, rng) in enumerate(scenes(parameters.seed, split, images)):
            image_id = FIRST_IMAGE_ID[split] + number
            picture = draw(scene)
            picture.save(folder / "images" / f"COCO_{SUBSETS[split]}_{image_id:012d}.png", optimize=True)
            regions.append((str(image_id), detected_regions(scene, picture, parameters.feature_size, rng)))
            for place, question in enumerate(make_questions(scene, rng, parameters.questions_per_image)):
                question_id = image_id * 1000 + place
                questions.append({"image_id": image_id, "question": question.text, "question_id": question_id})
                annotations.append(_annotation(question, question_id, image_id, annotate(question, rng)))
            if split == "train":
                extra = make_questions(scene, rng, parameters.questions_per_image) if number % 2 else []
                genome.append(_genome_entry(number + 1, extra))
        _write_split(folder, split, questions, annotations)
        lines.append(f"{split}: {len(questions)} questions on {images} pictures")
    write_answer_list([folder / _annotation_file(split) for split in ("train", "val")], folder / "answers.json")
    _write_json(folder / "question_answers.json", genome)
    image_data = [
        {"image_id": entry["id"], "coco_id": FIRST_IMAGE_ID["train"] + entry["id"] - 1 if entry["qas"] else None}
        for entry in genome
    ]
    _write_json(folder / "image_data.json", image_data)
    fingerprint = {"extractor": "ernie_vil.data.mini", **parameters.as_dict()}
    write_lmdb_store(folder / "features.lmdb", regions, fingerprint)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    text = README.format(
        counts="\n".join(lines), feature_size=parameters.feature_size, parameters=json.dumps(parameters.as_dict())
    )
    (folder / "README.txt").write_text(text, encoding="utf-8")


def _annotation(
    question: MiniQuestion, question_id: int, image_id: int, answers: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "question_type": question.question_type,
        "multiple_choice_answer": Counter(answer["answer"] for answer in answers).most_common(1)[0][0],
        "answers": answers,
        "image_id": image_id,
        "answer_type": QUESTION_TYPES[question.question_type][1],
        "question_id": question_id,
    }


def _genome_entry(image: int, questions: list[MiniQuestion]) -> dict[str, Any]:
    qas = [
        {
            "qa_id": image * 100 + place,
            "image_id": image,
            "question": question.text,
            "answer": f"{answer.capitalize()}.",
        }
        for place, (question, answer) in enumerate((question, question.right[0]) for question in questions)
    ]
    return {"id": image, "qas": qas}


def _write_split(folder: Path, split: str, questions: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    subset = SUBSETS[split]
    header = {"info": {"description": "Miniature VQA, not the real data.", "version": "2.0"}, "license": {}}
    header.update(data_type="mscoco", data_subtype=subset)
    for name, part in _question_files(subset, questions):
        _write_json(folder / name, {**header, "task_type": "Open-Ended", "questions": part})
    if split != "test":
        _write_json(folder / _annotation_file(split), {**header, "annotations": annotations})


def _question_files(subset: str, questions: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    yield f"v2_OpenEnded_mscoco_{subset}_questions.json", questions
    if subset == SUBSETS["test"]:
        yield "v2_OpenEnded_mscoco_test-dev2015_questions.json", questions[: len(questions) // 2]


def _annotation_file(split: str) -> str:
    return f"v2_mscoco_{SUBSETS[split]}_annotations.json"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
