"""Miniature retrieval: the scenes of :mod:`ernie_vil.data.mini` with captions, in Karpathy's format.

:func:`build_mini_retrieval` writes ``dataset_mini.json``, the region store, pictures and a vocabulary;
:func:`mini_retrieval` keeps such a folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ernie_vil.data.mini import SPLITS, Scene, detected_regions, draw, relations, scenes
from ernie_vil.data.mini_cache import mini_folder, write_whole
from ernie_vil.data.mini_questions import vocabulary
from ernie_vil.data.regions import Regions, write_lmdb_store

FORMAT_VERSION = 1
RELATION_SHARE = 0.5
LOOKS = ((), ("size",), ("pattern",))  # what is said of a thing besides its colour

README = """Miniature retrieval data, made by ernie_vil.data.mini_retrieval; not a real data set.

{counts}
The pictures (images; those of train are left out) are drawn from random scenes of 3 to 6 coloured things. Each caption
names two or three things of its picture, some with their size or pattern, and may say how the first stands to the
second: "left of" compares the x, "above" the y of two centres. A caption can be true of another picture by chance; that
counts as wrong. dataset_mini.json has the format of Karpathy's dataset_flickr30k.json. features.lmdb: the true boxes
jittered and a random one, in random order, with {feature_size} floats computed from the pixels of a box (see
ernie_vil.data.mini.describe_regions). vocab.txt is the vocabulary of the miniature questions.

Parameters: {parameters}
"""


def make_captions(scene: Scene, rng: np.random.Generator, count: int) -> list[str]:
    """``count`` captions that are true of a scene, different ones as far as luck has it."""
    facts = {(subject, other): relation for subject, relation, other in relations(scene)}
    made: dict[str, None] = {}
    for _ in range(4 * count):
        if len(made) == count:
            break
        chosen = rng.permutation(len(scene.objects))[: int(rng.integers(2, 4))].tolist()
        things = []
        for index in chosen:
            thing = scene.objects[index]
            look = LOOKS[int(rng.integers(len(LOOKS)))]
            things.append(" ".join(["a", *(getattr(thing, name) for name in look), thing.color, thing.kind]))
        relation = facts.get((chosen[0], chosen[1]))
        if relation is not None and rng.random() < RELATION_SHARE:
            things[:2] = [f"{things[0]} {relation} {things[1]}"]
        made[("there is " if rng.random() < 0.5 else "") + " and ".join(things)] = None
    return list(made)


@dataclass(frozen=True)
class MiniRetrievalParameters:
    """Everything that decides the contents of the folder; the defaults are the standard set of :func:`mini_retrieval`.

    Attributes:
        seed: another seed gives other scenes and captions.
        feature_size: width of a region feature; the descriptor is padded with zeros.
        train_images, val_images, test_images: pictures of each split.
        captions_per_image: captions of each picture.
    """

    seed: int = 2
    feature_size: int = 80
    train_images: int = 1500
    val_images: int = 100
    test_images: int = 100
    captions_per_image: int = 5

    def as_dict(self) -> dict:
        """The parameters with the version of the format and a digest of the vocabulary, as files record them."""
        words = hashlib.sha256("\n".join(vocabulary()).encode()).hexdigest()[:10]
        return {**vars(self), "format_version": FORMAT_VERSION, "vocabulary": words}


def build_mini_retrieval(folder: str | Path, **parameters: int) -> None:
    """Writes the miniature data into ``folder``, all or nothing; the same arguments give the same contents.

    A folder that holds them already is left alone.

    Args:
        folder: where to; must not exist, be empty, or be such a folder.
        **parameters: see :class:`MiniRetrievalParameters`.

    Raises:
        UserError: the feature size is too small for the descriptor, or the folder is taken or cannot be written to.
    """
    chosen = MiniRetrievalParameters(**parameters)
    write_whole(Path(folder), chosen.as_dict(), lambda target: _write(target, chosen))


def mini_retrieval(home: Path | None = None, parameters: MiniRetrievalParameters = MiniRetrievalParameters()) -> Path:
    """The folder of the miniature retrieval data, made on first use (about ten seconds for the standard set).

    It lies at ``mini/retrieval-v1-<hash of the parameters>``; see :func:`ernie_vil.data.mini_vcr.mini_vcr`. Raises
    :class:`UserError` as :func:`build_mini_retrieval` does.
    """
    digest = hashlib.sha256(json.dumps(parameters.as_dict(), sort_keys=True).encode()).hexdigest()[:10]
    folder = mini_folder(f"retrieval-v{FORMAT_VERSION}-{digest}", home)
    write_whole(folder, parameters.as_dict(), lambda target: _write(target, parameters))
    return folder


def _write(folder: Path, parameters: MiniRetrievalParameters) -> None:
    regions: list[tuple[str, Regions]] = []
    entries: list[dict] = []
    counts, sentence_id = [], 0
    (folder / "images").mkdir()
    for split, images in zip(SPLITS, (parameters.train_images, parameters.val_images, parameters.test_images)):
        first = sentence_id
        for number, (scene, rng) in enumerate(scenes(parameters.seed, split, images)):
            name = f"{split}-{number:05d}"
            picture = draw(scene)
            if split != "train":  # for reports; of all pictures they would be a quarter of the time and of the size
                picture.save(folder / "images" / f"{name}.png", optimize=True)
            regions.append((name, detected_regions(scene, picture, parameters.feature_size, rng)))
            captions = make_captions(scene, rng, parameters.captions_per_image)
            ids = list(range(sentence_id, sentence_id + len(captions)))
            sentence_id += len(captions)
            image_id = len(entries)
            sentences = [
                {"tokens": text.split(), "raw": text, "imgid": image_id, "sentid": identity}
                for identity, text in zip(ids, captions)
            ]
            entry = {"filename": f"{name}.png", "imgid": image_id, "split": split, "sentids": ids}
            entries.append({**entry, "sentences": sentences})
        counts.append(f"{split}: {sentence_id - first} captions of {images} pictures")
    content = {"dataset": "mini", "images": entries}
    (folder / "dataset_mini.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    fingerprint = {"extractor": "ernie_vil.data.mini", **parameters.as_dict()}
    write_lmdb_store(folder / "features.lmdb", regions, fingerprint)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    readme = README.format(
        counts="\n".join(counts), feature_size=parameters.feature_size, parameters=json.dumps(parameters.as_dict())
    )
    (folder / "README.txt").write_text(readme, encoding="utf-8")
