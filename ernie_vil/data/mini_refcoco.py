"""Miniature RefCOCO: phrases on the scenes of :mod:`ernie_vil.data.mini`, each true of one object of its picture.

:func:`build_mini_refcoco` writes the files of the ``refer`` package, MAttNet's list of detections, both region stores,
the pictures and a vocabulary; :func:`mini_refcoco` keeps such a folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from ernie_vil.data.mini import KINDS, Scene, SceneObject, detected_regions, draw, ground_truth_regions, outline, scenes
from ernie_vil.data.mini import relations as relation_facts
from ernie_vil.data.mini_cache import mini_folder, write_whole
from ernie_vil.data.mini_questions import vocabulary as question_vocabulary
from ernie_vil.data.regions import Regions, write_lmdb_store

FORMAT_VERSION = 1
FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001, "test": 2_000_001}
EXTRA_WORDS = ("thing",)
# Shares of the forms, as far as one of them singles out an object: "the red dog", "the dog", "the red thing", "the
# large striped dog", "the star left of the car".
FORMS = {"color and kind": 0.3, "kind": 0.15, "color": 0.2, "look": 0.15, "relation": 0.2}
EXPRESSIONS_PER_OBJECT = 2


def vocabulary() -> list[str]:
    """Tokens of ``vocab.txt``: those of the miniature questions, then the words that only the phrases have."""
    words = question_vocabulary()
    return [*words, *(word for word in EXTRA_WORDS if word not in words)]


# ---------------------------------------------------------------------------------------------------------- phrases
def _phrase(kind: str, before: tuple[str, ...] = (), color: Optional[str] = None) -> list[str]:
    """ "small striped red dog", but "small striped person in red"."""
    if kind == "person" and color:
        return [*before, kind, "in", color]
    return [*before, *([color] if color else []), kind]


def _same(scene: Scene, thing: SceneObject, names: tuple[str, ...]) -> list[int]:
    """The objects that agree with ``thing`` in the attributes ``names``."""
    return [i for i, other in enumerate(scene.objects) if all(getattr(other, n) == getattr(thing, n) for n in names)]


def _related(scene: Scene, topic: int) -> list[list[str]]:
    """Phrases "star left of the red car" of which object ``topic`` is the only one of its kind."""
    facts = relation_facts(scene)
    kind = scene.objects[topic].kind
    found = []
    for subject, relation, other in facts:
        anchor = scene.objects[other]
        if subject != topic or anchor.kind == kind:
            continue
        rivals = [i for i, name, j in facts if name == relation and j == other and scene.objects[i].kind == kind]
        if rivals == [topic]:
            unique = _same(scene, anchor, ("kind",)) == [other]
            reference = _phrase(anchor.kind, color=None if unique else anchor.color)
            found.append([kind, *relation.split(), "the", *reference])
    return found


def phrases(scene: Scene, topic: int) -> dict[str, list[list[str]]]:
    """All phrases by form that are true of object ``topic`` and of no other object of the scene, without an article."""
    thing = scene.objects[topic]
    found: dict[str, list[list[str]]] = {form: [] for form in FORMS}

    def add(form: str, names: tuple[str, ...], words: list[str]) -> None:
        if _same(scene, thing, names) == [topic]:
            found[form].append(words)

    add("color and kind", ("color", "kind"), _phrase(thing.kind, color=thing.color))
    add("kind", ("kind",), _phrase(thing.kind))
    add("color", ("color",), _phrase("thing", color=thing.color))
    for names in (("size", "kind"), ("pattern", "kind"), ("size", "pattern", "kind")):
        add("look", names, _phrase(thing.kind, tuple(getattr(thing, name) for name in names[:-1])))
    found["relation"] = _related(scene, topic)
    return found


def make_expressions(scene: Scene, topic: int, rng: np.random.Generator, count: int) -> list[str]:
    """Up to ``count`` different phrases for object ``topic``, with or without "the"."""
    found = phrases(scene, topic)
    drawn: list[str] = []
    while len(drawn) < count:
        forms = [form for form in FORMS if found[form]]
        if not forms:
            break
        shares = np.array([FORMS[form] for form in forms])
        choices = found[forms[int(rng.choice(len(forms), p=shares / shares.sum()))]]
        words = choices.pop(int(rng.integers(len(choices))))
        drawn.append(" ".join(["the", *words] if rng.random() < 0.5 else words))
    return drawn


# ------------------------------------------------------------------------------------------------------------ files
README = """Miniature RefCOCO data, made by ernie_vil.data.mini_refcoco; not a real data set.

{counts}
The pictures (images) are drawn from random scenes of 3 to 6 coloured things. Each phrase is true of one thing of its
picture and of no other, and nothing but the picture tells which. As in the real data testA refers to persons and testB
to everything else, in other pictures. refs(unc).p (pickle, protocol 2) and instances.json have the format of the refer
package, detections.json that of MAttNet's detections, and the two region stores the format in which region features
circulate: features.lmdb (true boxes jittered and a random one, in random order) and gt_features.lmdb (the true boxes).
Region features are {feature_size} floats computed from the pixels of a box (see ernie_vil.data.mini.describe_regions).
vocab.txt is a WordPiece vocabulary for these texts.

Parameters: {parameters}
"""


@dataclass(frozen=True)
class MiniRefcocoParameters:
    """Everything that decides the contents of the folder; the defaults are the standard set of :func:`mini_refcoco`.

    Attributes:
        seed: another seed gives other scenes and phrases.
        feature_size: width of a region feature; the descriptor is padded with zeros.
        train_images, val_images, test_images: pictures of each split; test A and B share the last.
    """

    seed: int = 0
    feature_size: int = 80
    train_images: int = 1200
    val_images: int = 100
    test_images: int = 120

    def as_dict(self) -> dict:
        """The parameters with the version of the format and a digest of the vocabulary, as files record them."""
        words = hashlib.sha256("\n".join(vocabulary()).encode()).hexdigest()[:10]
        return {**vars(self), "format_version": FORMAT_VERSION, "vocabulary": words}


def build_mini_refcoco(folder: str | Path, seed: int = 0, feature_size: int = 80, **sizes: int) -> None:
    """Writes the miniature data into ``folder``, all or nothing; the same arguments give the same contents.

    A folder that holds them already is left alone.

    Args:
        folder: where to; must not exist, be empty, or be such a folder.
        seed, feature_size, **sizes: see :class:`MiniRefcocoParameters`.

    Raises:
        UserError: the feature size is too small for the descriptor, or the folder is taken or cannot be written to.
    """
    parameters = MiniRefcocoParameters(seed, feature_size, **sizes)
    write_whole(Path(folder), parameters.as_dict(), lambda target: _write(target, parameters))


def mini_refcoco(home: Path | None = None, parameters: MiniRefcocoParameters = MiniRefcocoParameters()) -> Path:
    """The folder of the miniature data, made on first use (about ten seconds for the standard set).

    It lies at ``mini/refcoco-v1-<hash of the parameters>`` under ``home``, ``$ERNIE_VIL_HOME`` or
    ``~/.cache/ernie_vil``. Several processes may call this at once. Raises :class:`UserError` as
    :func:`build_mini_refcoco` does.
    """
    digest = hashlib.sha256(json.dumps(parameters.as_dict(), sort_keys=True).encode()).hexdigest()[:10]
    folder = mini_folder(f"refcoco-v{FORMAT_VERSION}-{digest}", home)
    write_whole(folder, parameters.as_dict(), lambda target: _write(target, parameters))
    return folder


class _Files:
    """What grows while the scenes go by."""

    def __init__(self) -> None:
        self.refs: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.detections: list[dict[str, Any]] = []
        self.stores: dict[str, list[tuple[str, Regions]]] = {"features.lmdb": [], "gt_features.lmdb": []}
        self._sentences = 0

    def add(self, image_id: int, name: str, split: str, scene: Scene, rng: np.random.Generator) -> None:
        self.images.append({"id": image_id, "file_name": name, "width": scene.width, "height": scene.height})
        if split == "test":
            split = "testA" if any(thing.kind == "person" for thing in scene.objects) else "testB"
        for topic, thing in enumerate(scene.objects):
            annotation = len(self.annotations) + 1
            x1, y1, x2, y2 = thing.box
            self.annotations.append(
                {
                    "id": annotation,
                    "image_id": image_id,
                    "category_id": KINDS.index(thing.kind) + 1,
                    "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                    "area": float((x2 - x1) * (y2 - y1)),
                    "iscrowd": 0,
                    "segmentation": [[float(value) for point in outline(thing) for value in point]],
                }
            )
            if split != "testA" or thing.kind == "person":
                self._refer(
                    annotation,
                    thing,
                    name,
                    image_id,
                    split,
                    make_expressions(scene, topic, rng, EXPRESSIONS_PER_OBJECT),
                )

    def _refer(
        self, annotation: int, thing: SceneObject, name: str, image_id: int, split: str, texts: list[str]
    ) -> None:
        first = self._sentences
        self._sentences += len(texts)
        sentences = [
            {"raw": text, "sent": text, "sent_id": first + position, "tokens": text.split()}
            for position, text in enumerate(texts)
        ]
        self.refs.append(
            {
                "ref_id": len(self.refs),
                "ann_id": annotation,
                "category_id": KINDS.index(thing.kind) + 1,
                "image_id": image_id,
                "file_name": name,
                "split": split,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )

    def detect(self, image_id: int, regions: Regions) -> None:
        self.stores["features.lmdb"].append((str(image_id), regions))
        for x1, y1, x2, y2 in regions.boxes.tolist():
            box = [x1, y1, x2 - x1 + 1, y2 - y1 + 1]  # both edge pixels, as in MAttNet's files
            number = len(self.detections)
            self.detections.append({"det_id": number, "h5_id": number, "box": box, "image_id": image_id, "score": 1.0})


def _write(folder: Path, parameters: MiniRefcocoParameters) -> None:
    counts = {"train": parameters.train_images, "val": parameters.val_images, "test": parameters.test_images}
    width = parameters.feature_size
    files = _Files()
    (folder / "images").mkdir()
    for split, count in counts.items():
        for number, (scene, rng) in enumerate(scenes(parameters.seed, split, count)):
            image_id = FIRST_IMAGE_ID[split] + number
            name = f"mini_{split}_{image_id:012d}.png"
            picture = draw(scene)
            picture.save(folder / "images" / name, optimize=True)
            files.add(image_id, name, split, scene, rng)
            files.detect(image_id, detected_regions(scene, picture, width, rng))
            files.stores["gt_features.lmdb"].append((str(image_id), ground_truth_regions(scene, picture, width)))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(files.refs, protocol=2))
    categories = [{"id": number, "name": kind, "supercategory": "mini"} for number, kind in enumerate(KINDS, start=1)]
    instances = {"images": files.images, "annotations": files.annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    (folder / "detections.json").write_text(json.dumps(files.detections), encoding="utf-8")
    fingerprint = {"extractor": "ernie_vil.data.mini", **parameters.as_dict()}
    for name, items in files.stores.items():
        write_lmdb_store(folder / name, items, fingerprint)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    splits = {
        split: [ref for ref in files.refs if ref["split"] == split] for split in ("train", "val", "testA", "testB")
    }
    lines = [
        f"{split}: {sum(len(ref['sentences']) for ref in refs)} phrases for {len(refs)} things"
        for split, refs in splits.items()
    ]
    text = README.format(counts="\n".join(lines), feature_size=width, parameters=json.dumps(parameters.as_dict()))
    (folder / "README.txt").write_text(text, encoding="utf-8")
