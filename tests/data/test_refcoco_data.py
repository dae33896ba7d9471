"""References of the refer package with their regions: what is read, what is refused, and what a sample holds."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_vil.data.refcoco import RefcocoDataset, ReferExpressions, box_ious, box_share, collate_refcoco
from ernie_vil.data.refer import Detections, ReferAnnotations
from ernie_vil.data.regions import Regions, open_store, write_lmdb_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.errors import BadRecord, UserError

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "dog", "car", "left")
WIDTH, HEIGHT = 100, 80
SIZE = 6


def sentence(sent_id: int, text: str) -> dict[str, Any]:
    return {"sent_id": sent_id, "sent": text, "raw": text, "tokens": text.split()}


def reference(ref_id: int, ann_id: int, image_id: int, split: str, *sentences: dict) -> dict[str, Any]:
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "split": split,
        "category_id": 1,
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "sent_ids": [item["sent_id"] for item in sentences],
        "sentences": list(sentences),
    }


REFS = [
    reference(7, 70, 1, "train", sentence(20, "the red dog"), sentence(21, "dog")),
    reference(8, 71, 1, "train", sentence(22, "car")),
    reference(3, 72, 2, "val", sentence(23, "left car")),
    reference(4, 72, 2, "testA", sentence(24, "the car")),
    reference(5, 72, 2, "testB", sentence(25, "red car")),
    reference(6, 72, 2, "testAB", sentence(26, "car car")),
]
INSTANCES: dict[str, Any] = {
    "images": [{"id": number, "width": WIDTH, "height": HEIGHT, "file_name": "x.jpg"} for number in (1, 2)],
    "annotations": [
        {"id": 70, "image_id": 1, "bbox": [10.0, 10.0, 29.0, 19.0], "segmentation": [[1, 2, 3, 4]]},
        {"id": 71, "image_id": 1, "bbox": [0, 0, 90, 75]},
        {"id": 72, "image_id": 2, "bbox": [50.5, 40.25, 20.0, 20.0]},
    ],
    "categories": [{"id": 1, "name": "dog"}],
}
# Of image 1: half of the dog (20 of 40 columns and rows 10 to 29, an overlap of exactly 0.5), the dog, nothing of it.
DETECTED = {"1": [[10, 10, 24, 29], [11, 10, 39, 29], [60, 60, 90, 70]], "2": [[50, 40, 70, 60]]}
ANNOTATED = {"1": [[10, 10, 39, 29], [0, 0, 90, 75]], "2": [[50.5, 40.25, 70.5, 60.25]]}


def annotations(folder: Path, refs: Any = REFS, instances: Any = INSTANCES, protocol: int = 2) -> ReferAnnotations:
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=protocol))
    (folder / "instances.json").write_text(json.dumps(instances))
    return ReferAnnotations(folder / "refs(unc).p", folder / "instances.json")


def store(folder: Path, name: str, boxes: dict[str, list], width: int = WIDTH):
    items = []
    for number, (image_id, own) in enumerate(boxes.items()):
        features = np.random.default_rng(number).normal(size=(len(own), SIZE)).astype(np.float32)
        items.append((image_id, Regions(features, np.array(own, np.float32), width, HEIGHT)))
    write_lmdb_store(folder / name, items)
    return open_store(folder / name, SIZE)


@pytest.fixture
def stores(tmp_path):
    return store(tmp_path, "features", DETECTED), store(tmp_path, "gt", ANNOTATED)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> WordPieceTokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return WordPieceTokenizer.from_file(path)


def detections(folder: Path, items: Any) -> Detections:
    (folder / "dets.json").write_text(json.dumps(items))
    return Detections(folder / "dets.json")


def detection(image_id: int, x1: float, y1: float, x2: float, y2: float) -> dict[str, Any]:
    box = [x1, y1, x2 - x1 + 1, y2 - y1 + 1]
    return {"det_id": 0, "image_id": image_id, "box": box, "category_name": "dog", "score": 0.9}


# ------------------------------------------------------------------------------------------------------- annotations
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_splits_and_targets(tmp_path, protocol):
    read = annotations(tmp_path, protocol=protocol)
    train, skipped = read.split("train")
    assert [(item.ref_id, item.sent_id, item.image_id, item.text) for item in train] == [
        (7, 20, 1, "the red dog"),
        (7, 21, 1, "dog"),
        (8, 22, 1, "car"),
    ]
    assert train[0].target == (10.0, 10.0, 39.0, 29.0)  # x, y, width, height in the file
    assert train[0].size == (WIDTH, HEIGHT)
    assert skipped == []
    found = {split: [item.ref_id for item in read.split(split)[0]] for split in ("val", "testA", "testB", "test")}
    assert found == {"val": [3], "testA": [4, 6], "testB": [5, 6], "test": [4, 5, 6]}


def test_pickles_of_python_2(tmp_path):
    # What Python 2 writes for byte strings, with UTF-8 inside: [{'split': 'val', ..., 'raw': 'caf\xc3\xa9'}].
    lines = [
        b"(lp1\n(dp2\nS'split'\np3\nS'val'\np4\nsS'ref_id'\np5\nI3\nsS'ann_id'\np6\nL72L\nsS'image_id'\np7\nI2\n",
        b"sS'sentences'\np8\n(lp9\n(dp10\nS'sent_id'\np11\nI23\nsS'raw'\np12\nS'caf\\xc3\\xa9'\np13\nsasa.",
    ]
    annotations(tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(b"".join(lines))
    (expression,), _ = ReferAnnotations(tmp_path / "refs(unc).p", tmp_path / "instances.json").split("val")
    assert expression.text == "café"
    assert expression.ref_id == 3


@pytest.mark.parametrize(
    ("raw", "sent", "text"),
    [
        ("The red DOG. ", "the red dog", "The red DOG."),
        (None, "the red dog", "the red dog"),
        ("  ", "dog", "dog"),
        ("日本の犬", "dog", "日本の犬"),
        ("na\xefve dog", "dog", "na\xefve dog"),
    ],
)
def test_what_was_typed_is_preferred(tmp_path, raw, sent, text):
    ref = reference(7, 70, 1, "val", {"sent_id": 1, "raw": raw, "sent": sent})
    assert annotations(tmp_path, [ref]).split("val")[0][0].text == text


def changed(**fields: Any) -> dict[str, Any]:
    ref = copy.deepcopy(REFS[0])
    ref.update(ref_id=9, sentences=[sentence(30, "dog")])
    ref.update(fields)
    return {name: value for name, value in ref.items() if value is not ...}


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (changed(ref_id=7), "ref 7: the ref_id 7 stood before"),
        (changed(sentences=[sentence(20, "dog")]), "ref 9, its sentence 0: the sent_id 20 stood before"),
        (changed(ann_id=99), "ref 9: .*instances.json has no annotation 99"),
        (changed(ann_id=...), "ref 9: `ann_id` is None"),
        (changed(image_id=99), "ref 9: .*instances.json has no image 99"),
        (changed(ref_id=...), "entry 6: `ref_id` is None"),
        (changed(split=None), "ref 9: `split` is None"),
        (changed(sentences="dog"), "ref 9: `sentences` is 'dog'"),
        (changed(sentences=["dog"]), "ref 9, its sentence 0"),
        (changed(sentences=[sentence(30, "  ")]), "ref 9, its sentence 0: the sentence has no text"),
        (changed(sentences=[{"sent_id": True, "sent": "dog"}]), "`sent_id` is True"),
        (changed(ann_id=80), r"ref 9: the target \[90.0, 10.0, 101.5, 20.0\] lies outside the 100 x 80 image"),
        (changed(ann_id=81), "ref 9: the target .* lies outside"),
        (changed(ann_id=82), r"ref 9: the target \[10.0, 10.0, 10.0, 20.0\] is no box"),
        (changed(ann_id=83), "ref 9: the target .*nan.* is no box"),
        (changed(ann_id=84), r"ref 9: the box is \[1, 2, 3\], not four numbers"),
        (changed(ann_id=85), "ref 9: the box is 'x', not four numbers"),
        (changed(image_id=3), "ref 9: image 3 has the size None x 80"),
        ("not a dict", "entry 6: `split` is None"),
    ],
)
def test_unusable_references_are_named_and_left_out(tmp_path, ref, message):
    instances = copy.deepcopy(INSTANCES)
    boxes = {
        80: [90, 10, 11.5, 10],
        81: [-1.5, 10, 10, 10],
        82: [10, 10, 0, 10],
        83: [10, 10, float("nan"), 10],
        84: [1, 2, 3],
        85: "x",
    }
    instances["annotations"] += [{"id": number, "bbox": box} for number, box in boxes.items()]
    instances["images"].append({"id": 3, "width": None, "height": 80})
    usable, skipped = annotations(tmp_path, [*REFS, ref], instances).split("train")
    assert len(usable) == 3
    assert len(skipped) == 1
    assert str(tmp_path / "refs(unc).p") in skipped[0]
    assert re.search(message, skipped[0]), skipped[0]


def test_ids_are_unique_over_all_splits(tmp_path):
    again = reference(7, 72, 2, "val", sentence(40, "dog"))
    other = reference(11, 72, 2, "val", sentence(20, "dog"), sentence(41, "dog"))
    usable, skipped = annotations(tmp_path, [*REFS, again, other]).split("val")
    assert [item.sent_id for item in usable] == [23, 41]
    assert len(skipped) == 2
    assert annotations(tmp_path, [*REFS, again, other]).split("train")[1] == []


def test_a_target_may_leave_the_image_by_a_pixel(tmp_path):
    instances = copy.deepcopy(INSTANCES)
    instances["annotations"][0]["bbox"] = [-1, -1, 102, 82]
    assert annotations(tmp_path, instances=instances).split("train")[0][0].target == (-1.0, -1.0, 101.0, 81.0)


def test_files_that_are_something_else(tmp_path):
    read = annotations(tmp_path)
    with pytest.raises(UserError, match="no usable expression in split test; .*1 references of val"):
        annotations(tmp_path, REFS[:3]).split("test")
    with pytest.raises(UserError, match="all 1 of its entries are bad:\n .*no annotation 99"):
        annotations(tmp_path, [changed(ann_id=99)]).split("train")
    for refs in ({"refs": REFS}, []):
        with pytest.raises(UserError, match="not a list of references"):
            annotations(tmp_path, refs)
    with pytest.raises(UserError, match=r"instances.json: an entry of `annotations` lacks one of id, bbox"):
        annotations(tmp_path, instances={**INSTANCES, "annotations": [{"id": 1}]})
    with pytest.raises(UserError, match="has no `images`"):
        annotations(tmp_path, instances={"annotations": []})
    read.path.write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    with pytest.raises(UserError, match=r"asks for os.system"):
        ReferAnnotations(read.path, read.instances)
    read.path.write_bytes(pickle.dumps(REFS, protocol=2)[:-20])
    with pytest.raises(UserError, match="damaged"):
        ReferAnnotations(read.path, read.instances)
    read.path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        ReferAnnotations(read.path, read.instances)
    annotations(tmp_path)
    read.instances.unlink()
    with pytest.raises(UserError, match="instances.json: no such file"):
        ReferAnnotations(read.path, read.instances)


# ----------------------------------------------------------------------------------------------------------- overlaps
boxes_of_whole_pixels = st.tuples(*[st.integers(0, 12)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@settings(max_examples=200, deadline=None)
@given(st.lists(boxes_of_whole_pixels, min_size=1, max_size=4), boxes_of_whole_pixels)
def test_overlaps_are_shares_of_pixels(boxes, target):
    def pixels(box):
        return {(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)}

    want = [len(pixels(box) & pixels(target)) / len(pixels(box) | pixels(target)) for box in boxes]
    np.testing.assert_allclose(box_ious(np.array(boxes, np.float32), np.array(target)), want, rtol=1e-12)
    assert box_share(target, 13, 13) == pytest.approx(len(pixels(target)) / 169, rel=1e-12)


# --------------------------------------------------------------------------------------------------- regions and rows
def test_training_takes_all_boxes_and_evaluation_those_of_the_track(tmp_path, stores):
    read = annotations(tmp_path)
    for training, track, want in (
        (True, "detected", DETECTED["1"] + ANNOTATED["1"]),
        (True, "ground_truth", DETECTED["1"] + ANNOTATED["1"]),
        (False, "detected", DETECTED["1"]),
        (False, "ground_truth", ANNOTATED["1"]),
        (False, "all", DETECTED["1"] + ANNOTATED["1"]),
    ):
        found = ReferExpressions(read, "train", *stores, training, track).referred(0)
        assert found.regions.boxes.tolist() == want
        assert found.candidates.all()
        assert len(found.regions.features) == len(want)
        np.testing.assert_allclose(found.ious[:1], [0.5 if want[0] == DETECTED["1"][0] else 1.0])
        features = [opened["1"].features for opened in stores]
        expected = np.concatenate(features)[-len(want) :] if track == "ground_truth" else np.concatenate(features)
        np.testing.assert_array_equal(found.regions.features, expected[: len(want)])
    assert ReferExpressions(read, "train", stores[0], None, True).referred(0).regions.boxes.tolist() == DETECTED["1"]
    with pytest.raises(UserError, match="no store of regions for the track 'ground_truth'"):
        ReferExpressions(read, "val", stores[0], None, track="ground_truth")


def test_only_detections_may_be_the_answer(tmp_path, stores):
    # Moved by a pixel, as boxes are that do not count the last one.
    dets = detections(tmp_path, [detection(1, 11, 10, 40, 30), detection(1, 10, 10, 24, 29)])
    read = annotations(tmp_path)
    found = ReferExpressions(read, "train", *stores, detections=dets).referred(0)
    assert found.candidates.tolist() == [True, True, False]
    assert len(found.regions.boxes) == 3
    found = ReferExpressions(read, "train", *stores, track="all", detections=dets).referred(0)
    assert found.candidates.tolist() == [True, True, False, True, True]
    # In image 2 nothing was detected.
    assert ReferExpressions(read, "val", *stores, detections=dets).referred(0).candidates.tolist() == [False]
    assert ReferExpressions(read, "val", *stores, True, detections=dets).referred(0).candidates.all()
    dets = detections(tmp_path, {"dets": [detection(2, 50, 40, 70, 60), detection(2, 52.1, 40, 70, 60)]})
    with pytest.raises(BadRecord, match=r"image 2: has no region at the detection \[52.1, 40.0, 70.0, 60.0\]"):
        ReferExpressions(read, "val", *stores, detections=dets).referred(0)


@pytest.mark.parametrize(
    "items", [[{"image_id": 1}], [{"box": [1, 2, 3, 4]}], [{"image_id": 1, "box": [1, 2, 3]}], ["x"]]
)
def test_detections_of_another_form(tmp_path, items):
    with pytest.raises(UserError, match="detection 0 has no `image_id`, or no `box` of four numbers"):
        detections(tmp_path, items)


def dataset(
    folder: Path,
    stores: Any,
    tokenizer: WordPieceTokenizer,
    training: bool,
    split: str = "train",
    track: str = "detected",
    dets: Optional[Detections] = None,
    **options: Any,
) -> RefcocoDataset:
    expressions = ReferExpressions(annotations(folder), split, *stores, training, track, dets)
    return RefcocoDataset(expressions, tokenizer, training, feature_size=SIZE, **options)


def test_a_sample_in_training_and_at_evaluation(tmp_path, stores, tokenizer):
    sample = dataset(tmp_path, stores, tokenizer, True)[0, 5, 0]
    assert sample["input_ids"] == [2, 5, 6, 7, 3]
    assert sample["index"] == 0
    # Half the dog is kept, the far box and the large annotated one are not; nor is the whole image.
    np.testing.assert_allclose(sample["labels"], [0, 0.5, 29 / 30, 0, 1, 0])
    assert sample["candidates"].tolist() == [False, True, True, True, True, True]
    assert sample["boxes"].tolist() == [[0, 0, WIDTH, HEIGHT], *DETECTED["1"], *ANNOTATED["1"]]
    np.testing.assert_allclose(sample["region_locations"][2], [0.11, 0.125, 0.39, 29 / 80, 28 * 19 / 8000])
    np.testing.assert_allclose(sample["region_features"][0], sample["region_features"][1:].mean(0), atol=1e-6)
    sample = dataset(tmp_path, stores, tokenizer, False, track="all")[0, 0, 0]
    assert 0.08 < sample["labels"][5] < 0.1
    assert sample["labels"][0] == 0
    sample = dataset(tmp_path, stores, tokenizer, True)[0, 0, 2]
    np.testing.assert_allclose(sample["labels"][[0, 5]], [91 * 76 / 8000, 1])
    assert sample["target"].tolist() == [0, 0, 90, 75]


def test_an_expression_whose_target_no_box_covers(tmp_path, stores, tokenizer):
    # As in the original it is trained on, with nothing but zero labels.
    sample = dataset(tmp_path, (stores[0], None), tokenizer, True)[0, 0, 2]
    assert sample["labels"].tolist() == [91 * 76 / 8000, 0, 0, 0]
    store_of_corners = store(tmp_path, "corners", {"1": [[60, 60, 90, 70]]})
    sample = dataset(tmp_path, (store_of_corners, None), tokenizer, True)[0, 0, 0]
    assert sample["labels"].tolist() == [0, 0]
    assert dataset(tmp_path, (store_of_corners, None), tokenizer, False)[0, 0, 0]["labels"].tolist() == [0, 0]


def test_limits(tmp_path, stores, tokenizer):
    short = dataset(tmp_path, stores, tokenizer, True, max_length=4, max_regions=3)[0, 0, 0]
    assert short["input_ids"] == [2, 5, 6, 3]
    assert [len(short[name]) for name in ("region_features", "region_locations", "boxes", "labels", "candidates")] == [
        3
    ] * 5
    np.testing.assert_allclose(short["region_features"][0], short["region_features"][1:].mean(0), atol=1e-6)


def test_images_that_a_store_lacks_or_has_in_another_size(tmp_path, stores, tokenizer):
    first = store(tmp_path, "first", {"1": DETECTED["1"]})
    with pytest.raises(BadRecord, match=r"refs\(unc\).p, ref 3, sentence 23: .*first, image 2: not in the store"):
        dataset(tmp_path, (first, None), tokenizer, False, "val")[0, 0, 0]
    wide = store(tmp_path, "wide", DETECTED, width=2 * WIDTH)
    with pytest.raises(BadRecord, match="image 2: the boxes are of an image of 200 x 80 pixels, .* of 100 x 80"):
        dataset(tmp_path, (wide, None), tokenizer, False, "val")[0, 0, 0]


def test_batches(tmp_path, stores, tokenizer):
    samples = [
        dataset(tmp_path, stores, tokenizer, True)[0, 0, 0],
        dataset(tmp_path, stores, tokenizer, True, "val")[0, 0, 0],
    ]
    batch = collate_refcoco(samples)
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 3], [2, 9, 8, 3, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0]]
    assert not batch["token_type_ids"].any()
    assert batch["region_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert batch["candidates"].tolist() == [[0] + [1] * 5, [0, 1, 1, 0, 0, 0]]
    assert batch["size"].tolist() == [[WIDTH, HEIGHT]] * 2
    assert batch["target"][1].tolist() == [50.5, 40.25, 70.5, 60.25]
    assert batch["index"].tolist() == [0, 0]
    for row, sample in enumerate(samples):
        count = len(sample["labels"])
        for name in ("region_features", "region_locations", "boxes", "labels"):
            np.testing.assert_array_equal(batch[name][row, :count], np.asarray(sample[name], np.float32))
            assert not batch[name][row, count:].any()
    whole = {name for name, array in batch.items() if array.dtype == np.int64}
    assert whole == {"input_ids", "token_type_ids", "position_ids", "index"}
    assert {array.dtype for name, array in batch.items() if name not in whole} == {np.dtype(np.float32)}
