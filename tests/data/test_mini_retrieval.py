"""The miniature retrieval data: captions that are true of their picture, in a file that the reader takes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from ernie_vil.data import mini
from ernie_vil.data.mini_retrieval import MiniRetrievalParameters, build_mini_retrieval, make_captions, mini_retrieval
from ernie_vil.data.regions import open_store
from ernie_vil.data.retrieval_files import read_split
from ernie_vil.data.tokenizer import WordPieceTokenizer

SIZES = {"train_images": 12, "val_images": 5, "test_images": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mini") / "retrieval"
    build_mini_retrieval(path, seed=3, **SIZES)
    return path


def is_true(scene: mini.Scene, caption: str) -> bool:
    """Reads the caption alone; its things are known by colour and kind, of which a scene has no two."""

    def thing(words: str) -> mini.SceneObject:
        *looks, color, kind = words.removeprefix("a ").split()
        (found,) = [one for one in scene.objects if (one.color, one.kind) == (color, kind)]
        assert set(looks) <= {found.size, found.pattern}
        return found

    try:
        for part in caption.removeprefix("there is ").split(" and "):
            match = re.fullmatch("(.*) (left of|right of|above|below) (.*)", part)
            if not match:
                thing(part)
                continue
            first, second = thing(match[1]).centre, thing(match[3]).centre
            dx, dy = second[0] - first[0], second[1] - first[1]
            far = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[match[2]]
            if far < mini.RELATION_MARGIN:
                return False
    except (ValueError, AssertionError):
        return False
    return True


def test_captions_are_true_of_their_picture_and_rarely_of_another():
    drawn = [(scene, make_captions(scene, rng, 5)) for scene, rng in mini.scenes(7, "train", 60)]
    relations, elsewhere, total = 0, 0, 0
    for scene, captions in drawn:
        assert len(set(captions)) == len(captions) == 5
        for caption in captions:
            assert is_true(scene, caption), caption
            relations += " of " in caption or "above" in caption or "below" in caption
            elsewhere += sum(is_true(other, caption) for other, _ in drawn if other is not scene)
            total += 1
    assert 0.25 < relations / total < 0.6
    assert elsewhere / total < 0.3  # of 59 other pictures, so that most captions have one right answer


def test_files(folder):
    vocabulary = WordPieceTokenizer.from_file(folder / "vocab.txt")
    store = open_store(folder / "features.lmdb", 80)
    content = json.loads((folder / "dataset_mini.json").read_text())
    assert [entry["imgid"] for entry in content["images"]] == list(range(21))
    ids = [sentence["sentid"] for entry in content["images"] for sentence in entry["sentences"]]
    assert ids == list(range(105)) == [one for entry in content["images"] for one in entry["sentids"]]
    for split in mini.SPLITS:
        found = read_split(folder / "dataset_mini.json", split)
        assert len(found.images) == SIZES[f"{split}_images"] and not found.skipped
        for index, ((scene, _), name, own) in enumerate(
            zip(mini.scenes(3, split, len(found.images)), found.images, found.captions_of())
        ):
            assert name == f"{split}-{index:05d}" and len(own) == 5
            assert all(is_true(scene, found.captions[caption].text) for caption in own)
            assert len(store[name].boxes) == len(scene.objects) + 1
            picture = folder / "images" / f"{name}.png"
            assert picture.is_file() == (split != "train")
            if split != "train":
                np.testing.assert_array_equal(np.asarray(Image.open(picture)), np.asarray(mini.draw(scene)))
        for caption in found.captions:
            assert vocabulary.unk_id not in vocabulary.encode(caption.text)


def test_the_same_arguments_give_the_same_contents(folder, tmp_path):
    again = tmp_path / "again"
    build_mini_retrieval(again, seed=3, **SIZES)
    assert (again / "dataset_mini.json").read_bytes() == (folder / "dataset_mini.json").read_bytes()
    other = tmp_path / "other"
    build_mini_retrieval(other, seed=4, **SIZES)
    assert (other / "dataset_mini.json").read_bytes() != (folder / "dataset_mini.json").read_bytes()


def test_the_cache_is_made_once(tmp_path):
    parameters = MiniRetrievalParameters(**SIZES)
    first = mini_retrieval(tmp_path, parameters)
    stamp = (first / "dataset_mini.json").stat().st_mtime_ns
    assert mini_retrieval(tmp_path, parameters) == first
    assert (first / "dataset_mini.json").stat().st_mtime_ns == stamp
