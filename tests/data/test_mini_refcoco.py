"""The miniature RefCOCO data: phrases that are true of one thing alone, in files that the reader takes."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ernie_vil.data import mini
from ernie_vil.data.mini import COLORS, KINDS, PATTERNS, SIZES, describe_regions
from ernie_vil.data.mini_refcoco import (
    FORMS,
    MiniRefcocoParameters,
    build_mini_refcoco,
    make_expressions,
    mini_refcoco,
    phrases,
    vocabulary,
)
from ernie_vil.data.refcoco import ReferExpressions, box_ious
from ernie_vil.data.refer import Detections, ReferAnnotations
from ernie_vil.data.regions import open_store
from ernie_vil.data.tokenizer import WordPieceTokenizer

SIZES_OF_TEST = {"train_images": 20, "val_images": 6, "test_images": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mini") / "refcoco"
    build_mini_refcoco(path, seed=3, **SIZES_OF_TEST)
    return path


def things_meant(scene: mini.Scene, text: str) -> list[int]:
    """What a reader of the text alone, without the code that wrote it, takes it for: indices of the objects."""
    words = re.sub("^the ", "", text)
    match = re.fullmatch(r"(\w+) (left of|right of|above|below) the (.*)", words)
    if match:
        kind, relation, anchor = match.groups()
        (other,) = things_meant(scene, anchor)
        x, y = scene.objects[other].centre
        found = []
        for index, thing in enumerate(scene.objects):
            dx, dy = thing.centre[0] - x, thing.centre[1] - y
            far = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
            if thing.kind == kind and far >= mini.RELATION_MARGIN:
                found.append(index)
        return found
    words = re.sub(r"^(.*)person in (\w+)$", r"\1\2 person", words)
    *adjectives, noun = words.split()
    return [
        index
        for index, thing in enumerate(scene.objects)
        if noun in ("thing", thing.kind) and set(adjectives) <= {thing.color, thing.size, thing.pattern}
    ]


def test_every_phrase_is_true_of_its_thing_alone():
    forms: Counter[str] = Counter()
    for scene, rng in mini.scenes(5, "train", 200):
        for topic in range(len(scene.objects)):
            for form, found in phrases(scene, topic).items():
                forms[form] += len(found)
                for words in found:
                    assert things_meant(scene, " ".join(words)) == [topic], words
            drawn = make_expressions(scene, topic, rng, 3)
            assert len(set(drawn)) == len(drawn)
            assert drawn
            assert all(things_meant(scene, text) == [topic] for text in drawn)
    assert set(forms) == set(FORMS)
    assert min(forms.values()) > 100


def test_words_are_in_the_vocabulary(folder):
    tokenizer = WordPieceTokenizer.from_file(folder / "vocab.txt")
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    texts = [sentence["raw"] for ref in refs for sentence in ref["sentences"]]
    assert {word for text in texts for word in text.split()} <= set(vocabulary())
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_id not in ids
        assert len(ids) == len(text.split())
    assert {*KINDS, *COLORS, *SIZES, *PATTERNS, "thing"} <= {word for text in texts for word in text.split()}


def test_the_files_are_those_of_the_public_formats(folder):
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    assert (folder / "refs(unc).p").read_bytes()[:2] == b"\x80\x02"  # protocol 2, the newest that Python 2 reads
    assert [ref["ref_id"] for ref in refs] == list(range(len(refs)))
    sent_ids = [sent_id for ref in refs for sent_id in ref["sent_ids"]]
    assert sent_ids == [sentence["sent_id"] for ref in refs for sentence in ref["sentences"]]
    assert len(set(sent_ids)) == len(sent_ids)
    instances = json.loads((folder / "instances.json").read_text())
    images = {image["id"]: image for image in instances["images"]}
    boxes = {item["id"]: item for item in instances["annotations"]}
    names = {item["id"]: item["name"] for item in instances["categories"]}
    assert len(images) == sum(SIZES_OF_TEST.values())
    splits: dict[int, set] = {}
    for ref in refs:
        box = boxes[ref["ann_id"]]
        assert box["image_id"] == ref["image_id"]
        assert box["category_id"] == ref["category_id"]
        splits.setdefault(ref["image_id"], set()).add(ref["split"])
        if ref["split"] in ("testA", "testB"):
            assert (names[ref["category_id"]] == "person") == (ref["split"] == "testA")
    assert {split for (split,) in splits.values()} == {"train", "val", "testA", "testB"}


def test_regions_are_measured_on_the_pictures(folder):
    annotations = ReferAnnotations(folder / "refs(unc).p", folder / "instances.json")
    instances = json.loads((folder / "instances.json").read_text())
    names = {image["id"]: image["file_name"] for image in instances["images"]}
    stores = [open_store(folder / name, 80) for name in ("features.lmdb", "gt_features.lmdb")]
    detections = Detections(folder / "detections.json")
    for split in ("train", "val", "testA", "testB"):
        expressions = ReferExpressions(annotations, split, *stores, detections=detections)
        assert expressions.skipped == []
        for index, expression in enumerate(expressions.expressions):
            found = expressions.referred(index)
            # One detection stands for the thing and every other box is something else.
            assert sorted(found.ious)[-1] > 0.5 > sorted(found.ious)[-2]
            assert found.candidates.all()
            true = stores[1][str(expression.image_id)]
            assert box_ious(true.boxes, np.array(expression.target)).max() == 1.0
        picture = Image.open(folder / "images" / names[expression.image_id])
        assert picture.size == expression.size
        for store in stores:
            regions = store[str(expression.image_id)]
            np.testing.assert_array_equal(regions.features, describe_regions(picture, regions.boxes, 80))


def test_the_same_parameters_give_the_same_files(folder, tmp_path):
    again = mini_refcoco(tmp_path, MiniRefcocoParameters(seed=3, **SIZES_OF_TEST))
    assert again.parent == tmp_path / "mini"
    for name in ("refs(unc).p", "instances.json", "detections.json", "vocab.txt", "README.txt"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    (again / "vocab.txt").touch()
    stamp = (again / "vocab.txt").stat().st_mtime_ns
    assert mini_refcoco(tmp_path, MiniRefcocoParameters(seed=3, **SIZES_OF_TEST)) == again
    assert (again / "vocab.txt").stat().st_mtime_ns == stamp
    other = mini_refcoco(tmp_path, MiniRefcocoParameters(seed=4, **SIZES_OF_TEST))
    assert (other / "refs(unc).p").read_bytes() != (folder / "refs(unc).p").read_bytes()
