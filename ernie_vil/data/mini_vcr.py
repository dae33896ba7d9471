"""Miniature VCR: the scenes of :mod:`ernie_vil.data.mini` in the files of the public VCR data set.

:func:`build_mini_vcr` writes the jsonl files, the pictures with their metadata, both region stores and a vocabulary;
:func:`mini_vcr` keeps such a folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ernie_vil.data.mini import Scene, detected_regions, draw, ground_truth_regions, outline, scenes
from ernie_vil.data.mini_cache import mini_folder, write_whole
from ernie_vil.data.mini_questions import Question, Tokens, make_questions, vocabulary
from ernie_vil.data.regions import Regions, write_lmdb_store

FORMAT_VERSION = 1
IMAGE_ID_OFFSET = {"train": 0, "val": 1_000_000, "test": 2_000_000}


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


README = """Miniature VCR data, made by ernie_vil.data.mini_vcr; not the real VCR data set.

{counts}
The pictures (vcr1images) are drawn from random scenes of 3 to 6 coloured things. The questions, answers and rationales
are made from the facts of the scenes; three of four choices are false of the picture, and nothing but the picture tells
which. "left of" compares the x, "above" the y of two centres. The files have the format of the public VCR data:
train.jsonl, val.jsonl, test.jsonl (without labels), picture metadata (boxes with a score, outlines, names), and the two
region stores in the format in which VCR features circulate: features.lmdb (the true boxes jittered and a random one, in
random order) and gt_features.lmdb (the true boxes in the order of "objects"). Region features are {feature_size} floats
computed from the pixels of a box (see ernie_vil.data.mini.describe_regions). vocab.txt is a WordPiece vocabulary for
these texts.

Parameters: {parameters}
"""


@dataclass(frozen=True)
class MiniVcrParameters:
    """Everything that decides the contents of the folder; the defaults are the standard set of :func:`mini_vcr`.

    Attributes:
        seed: another seed gives other scenes and questions.
        feature_size: width of a region feature; the descriptor is padded with zeros.
        train_images, val_images, test_images: pictures of each split.
        questions_per_image: questions asked of each picture.
    """

    seed: int = 0
    feature_size: int = 80
    train_images: int = 1200
    val_images: int = 100
    test_images: int = 20
    questions_per_image: int = 5

    def as_dict(self) -> dict:
        """The parameters with the version of the format and a digest of the vocabulary, as files record them."""
        words = hashlib.sha256("\n".join(vocabulary()).encode()).hexdigest()[:10]
        return {**vars(self), "format_version": FORMAT_VERSION, "vocabulary": words}


def build_mini_vcr(folder: str | Path, seed: int = 0, feature_size: int = 80, **sizes: int) -> None:
    """Writes the miniature VCR data into ``folder``, all or nothing; the same arguments give the same contents.

    A folder that holds them already is left alone.

    Args:
        folder: where to; must not exist, be empty, or be such a folder.
        seed, feature_size, **sizes: see :class:`MiniVcrParameters`.

    Raises:
        UserError: the feature size is too small for the descriptor, or the folder is taken or cannot be written to.
    """
    parameters = MiniVcrParameters(seed, feature_size, **sizes)
    write_whole(Path(folder), parameters.as_dict(), lambda target: _write(target, parameters))


def mini_vcr(home: Path | None = None, parameters: MiniVcrParameters = MiniVcrParameters()) -> Path:
    """The folder of the miniature VCR data, made on first use (about ten seconds for the standard set).

    It lies at ``mini/vcr-v1-<hash of the parameters>`` under ``home``, ``$ERNIE_VIL_HOME`` or ``~/.cache/ernie_vil``.
    Several processes may call this at once. Raises :class:`UserError` as :func:`build_mini_vcr` does.
    """
    digest = hashlib.sha256(json.dumps(parameters.as_dict(), sort_keys=True).encode()).hexdigest()[:10]
    folder = mini_folder(f"vcr-v{FORMAT_VERSION}-{digest}", home)
    write_whole(folder, parameters.as_dict(), lambda target: _write(target, parameters))
    return folder


def _write(folder: Path, parameters: MiniVcrParameters) -> None:
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
    fingerprint = {"extractor": "ernie_vil.data.mini", **parameters.as_dict()}
    write_lmdb_store(folder / "features.lmdb", detected, fingerprint)
    write_lmdb_store(folder / "gt_features.lmdb", ground_truth, fingerprint)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    readme = README.format(
        counts="\n".join(lines), feature_size=parameters.feature_size, parameters=json.dumps(parameters.as_dict())
    )
    (folder / "README.txt").write_text(readme, encoding="utf-8")


def _write_picture(stem: Path, picture: Image.Image, scene: Scene) -> None:
    picture.save(f"{stem}.png", optimize=True)
    Path(f"{stem}.json").write_text(json.dumps(_metadata(scene)), encoding="utf-8")
