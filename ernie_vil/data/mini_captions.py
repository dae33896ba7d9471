"""Miniature captions for pre-training: the scenes of :mod:`ernie_vil.data.mini`, sentences on them, their scene graphs.

:func:`build_mini_captions` writes caption files, the region store with the classes that a detector might give,
pictures and a vocabulary; :func:`mini_captions` keeps such a folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from ernie_vil.data import mini_questions, mini_sentences
from ernie_vil.data.mini import KINDS, Scene, detected_regions, draw, scenes
from ernie_vil.data.mini_cache import mini_folder, write_whole
from ernie_vil.data.regions import Regions, write_lmdb_store
from ernie_vil.scene_graph.parser import load_pipeline, parse_all
from ernie_vil.scene_graph.pipelines import SHIPPED

FORMAT_VERSION = 1
SPLITS = ("train", "val")
CLASSES = ("background", *KINDS)
"""Columns of ``class_probs``."""

README = """Miniature captions, made by ernie_vil.data.mini_captions; not a real data set.

{counts}
The pictures (images; of val alone) are drawn from random scenes of 1 to 6 coloured things, the captions are made from
the facts of the scenes, and their scene graphs come from the parser (ernie_vil.scene_graph), not from the facts. Each
word for a thing, an attribute or a relation can be told from the picture and the other words. "above" compares the y,
"left" the x of two centres; "following" and "leading" are said of things in one row, as if all were on their way to the
right; "next to" and "away from" tell whether their cells in the picture's grid touch.
train.jsonl, val.jsonl: caption files as tools/parse_scene_graphs.py writes them. features.lmdb: jittered true boxes and
a random one, with {feature_size} floats computed from the pixels of a box and class_probs over background and the ten
kinds. vocab.txt: the vocabulary of the miniature VCR data, with the captions' words at its end.

Parameters: {parameters}
"""


@dataclass(frozen=True)
class MiniCaptionsParameters:
    """Everything that decides the contents of the folder; the defaults are the standard set of :func:`mini_captions`.

    Attributes:
        seed: another seed gives other scenes and captions; that of the miniature VCR data is 0.
        feature_size: width of a region feature; the descriptor is padded with zeros.
        train_images, val_images: pictures of each split.
        captions_per_image: captions of each picture.
    """

    seed: int = 1
    feature_size: int = 80
    train_images: int = 2800
    val_images: int = 400
    captions_per_image: int = 2

    def as_dict(self) -> dict:
        """The parameters with the version of the format and digests of vocabulary and parser, as files record them."""
        words = hashlib.sha256("\n".join(vocabulary()).encode()).hexdigest()[:10]
        parser = hashlib.sha256((SHIPPED / "meta.json").read_bytes()).hexdigest()[:10]
        return {**vars(self), "format_version": FORMAT_VERSION, "vocabulary": words, "parser": parser}


def vocabulary() -> list[str]:
    """Tokens of ``vocab.txt``: those of the miniature VCR data first, so that their ids agree, then the captions'.

    Weights that were pre-trained with it can be fine-tuned on the miniature VCR data (with this vocabulary).
    """
    return list(dict.fromkeys([*mini_questions.vocabulary(), *mini_sentences.WORDS]))


def build_mini_captions(folder: str | Path, **parameters: int) -> None:
    """Writes the miniature captions into ``folder``, all or nothing; the same arguments give the same contents.

    A folder that holds them already is left alone.

    Args:
        folder: where to; must not exist, be empty, or be such a folder.
        **parameters: see :class:`MiniCaptionsParameters`.

    Raises:
        UserError: spaCy or SceneGraphParser is not installed, the feature size is too small for the descriptor, or the
            folder is taken or cannot be written to.
    """
    chosen = MiniCaptionsParameters(**parameters)
    write_whole(Path(folder), chosen.as_dict(), lambda target: _write(target, chosen))


def mini_captions(home: Path | None = None, parameters: MiniCaptionsParameters = MiniCaptionsParameters()) -> Path:
    """The folder of the miniature captions, made on first use (about 20 seconds for the standard set).

    It lies at ``mini/captions-v1-<hash of the parameters>``; see :func:`ernie_vil.data.mini_vcr.mini_vcr`. Raises
    :class:`UserError` as :func:`build_mini_captions` does.
    """
    digest = hashlib.sha256(json.dumps(parameters.as_dict(), sort_keys=True).encode()).hexdigest()[:10]
    folder = mini_folder(f"captions-v{FORMAT_VERSION}-{digest}", home)
    write_whole(folder, parameters.as_dict(), lambda target: _write(target, parameters))
    return folder


def _write(folder: Path, parameters: MiniCaptionsParameters) -> None:
    pipeline = load_pipeline(SHIPPED)  # not the default one, which depends on what is installed
    regions: list[tuple[str, Regions]] = []
    lines = []
    (folder / "images").mkdir()
    for split, images in zip(SPLITS, (parameters.train_images, parameters.val_images)):
        captions: list[tuple[str, str, str]] = []
        for number, (scene, rng) in enumerate(caption_scenes(parameters.seed, split, images)):
            image_id = f"captions-{split}-{number:05d}"
            picture = draw(scene)
            if split == "val":  # for reports; of all pictures they would be a quarter of the time and of the size
                picture.save(folder / "images" / f"{image_id}.png", optimize=True)
            found = detected_regions(scene, picture, parameters.feature_size, rng)
            regions.append((image_id, replace(found, class_probs=detected_classes(scene, found.boxes, rng))))
            made = mini_sentences.make_sentences(scene, rng, parameters.captions_per_image)
            captions += [(f"{image_id}-{index}", image_id, one.text) for index, one in enumerate(made)]
        _write_captions(folder / f"{split}.jsonl", captions, pipeline)
        lines.append(f"{split}: {len(captions)} captions of {images} pictures")
    fingerprint = {"extractor": "ernie_vil.data.mini", **parameters.as_dict()}
    write_lmdb_store(folder / "features.lmdb", regions, fingerprint)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    readme = README.format(
        counts="\n".join(lines), feature_size=parameters.feature_size, parameters=json.dumps(parameters.as_dict())
    )
    (folder / "README.txt").write_text(readme, encoding="utf-8")


def _write_captions(path: Path, captions: list[tuple[str, str, str]], pipeline: Any) -> None:
    graphs = parse_all((text for _, _, text in captions), pipeline)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for (caption_id, image_id, _), graph in zip(captions, graphs):
            file.write(json.dumps({"id": caption_id, "image_id": image_id, **graph.to_dict()}) + "\n")


def caption_scenes(seed: int, split: str, count: int) -> Iterator[tuple[Scene, np.random.Generator]]:
    """The scenes of :func:`ernie_vil.data.mini.scenes`, of which only some things are kept, at least one.

    A model learns what words mean from pictures of one or two things before it can tell which of six is meant.
    """
    for scene, rng in scenes(seed, split, count):
        kept = 1 + int(rng.integers(len(scene.objects)))
        yield replace(scene, objects=scene.objects[:kept]), rng


def detected_classes(scene: Scene, boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a detector might think of boxes: probabilities of :data:`CLASSES`, ``[n, 11]`` float32.

    The more a box overlaps a thing, the surer its kind, the less it overlaps any, the surer the background; noise on
    the scores makes some of them wrong.
    """
    overlaps = np.zeros((len(boxes), len(CLASSES)))
    for thing in scene.objects:
        column = CLASSES.index(thing.kind)
        overlaps[:, column] = np.maximum(overlaps[:, column], _overlap(boxes, np.array(thing.box)))
    overlaps[:, 0] = 0.6 - overlaps.max(1)
    scores = np.exp(6 * overlaps + 1.2 * rng.standard_normal(overlaps.shape))
    return (scores / scores.sum(1, keepdims=True)).astype(np.float32)


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes ``[n, 4]`` with one box ``[4]``: ``[n]``."""
    sides = np.clip(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0, None)
    shared = sides.prod(1)
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared)
