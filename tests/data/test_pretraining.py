"""The pre-training data set: 10,000 captions counted, determinism, pairs that do not belong together, bad records."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest

from ernie_vil.data.pretraining import (
    CaptionSource,
    MaskRates,
    PretrainingDataset,
    collate_pretraining,
    masked_shares,
)
from ernie_vil.data.region_arrays import merge_with_ground_truth
from ernie_vil.data.regions import Regions, open_store, write_lmdb_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.engine.data import GuardedDataset, JointBatches, StepSampler, guarded_collate, make_loader
from ernie_vil.errors import BadRecord, UserError
from ernie_vil.scene_graph.files import CaptionFile
from ernie_vil.scene_graph.graph import AttributeNode, ObjectNode, RelationNode, SceneGraph
from ernie_vil.scene_graph.masking import ATTRIBUTE, KIND_NAMES, OBJECT, RELATION, TOKEN

NOUNS = ["cat", "dog", "woman", "motorcycle", "tennis racket", "mat", "☃"]
ADJECTIVES = ["blue", "unlit", "little", "white-haired"]
RELATIONS = ["on", "putting", "next to", "in front of"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "and", "cat", "dog", "woman", "motor", "tennis", "racket", "mat", "blue", "un", "little", "white", "on"]
WORDS += ["put", "next", "to", "in", "front", "of", "the", "##cycle", "##lit", "##ting", "-", "haired", "."]
TOKENS = [*SPECIAL, *WORDS]
TOKENIZER = WordPieceTokenizer({token: i for i, token in enumerate(TOKENS)})
MASK = TOKENS.index("[MASK]")
IMAGES = 12
CLASSES = 4
SIZE = 6


def random_graph(rng: np.random.Generator) -> SceneGraph:
    """A made-up caption of 1 to 5 objects, some with attributes, joined by relations or by "and"."""
    text = ""
    objects: list[ObjectNode] = []
    attributes, relations = [], []

    def add(words: str) -> tuple[tuple[int, int], ...]:
        nonlocal text
        text += " " if text else ""
        text += words
        return ((len(text) - len(words), len(text)),)

    joined: Optional[tuple[str, tuple]] = None
    for number in range(int(rng.integers(1, 6))):
        if number and rng.random() < 0.7:
            words = str(rng.choice(RELATIONS))
            joined = (words, add(words))
        elif number:
            add("and")
        add("a")
        for _ in range(int(rng.integers(0, 3))):
            words = str(rng.choice(ADJECTIVES))
            attributes.append(AttributeNode(words, words, add(words), number))
        words = str(rng.choice(NOUNS))
        objects.append(ObjectNode(words, words, add(words)))
        if joined is not None:
            relations.append(RelationNode(joined[0], joined[0], joined[1], number - 1, number))
            joined = None
    return SceneGraph(text, tuple(objects), tuple(attributes), tuple(relations))


def write_captions(path: Path, graphs: list[Any], images: int = IMAGES, first: int = 0) -> Path:
    lines = [
        {"id": f"c{i}", "image_id": f"image-{first + i % images}", **graph.to_dict()} for i, graph in enumerate(graphs)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def image_regions(number: int, with_classes: bool = True) -> Regions:
    rng = np.random.default_rng(number)
    count = 3 + number % 5
    boxes = np.sort(rng.uniform(0, 50, (count, 2, 2)), axis=1).reshape(count, 4).astype("f4")
    probabilities = rng.uniform(0.1, 1, (count, CLASSES)).astype("f4") if with_classes else None
    return Regions(rng.normal(size=(count, SIZE)).astype("f4"), boxes, 50, 50, probabilities)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10,000 captions of 12 images, their store, one of annotated boxes, and one without classes."""
    folder = tmp_path_factory.mktemp("pretraining")
    rng = np.random.default_rng(0)
    graphs = [random_graph(rng) for _ in range(10_000)]
    write_captions(folder / "many.jsonl", graphs)
    write_captions(folder / "some.jsonl", graphs[:60])
    write_captions(folder / "other.jsonl", graphs[60:75], images=3, first=2)
    write_lmdb_store(folder / "features.lmdb", [(f"image-{i}", image_regions(i)) for i in range(IMAGES)])
    write_lmdb_store(folder / "gt.lmdb", [(f"image-{i}", image_regions(50 + i)) for i in range(IMAGES)])
    write_lmdb_store(folder / "plain.lmdb", [(f"image-{i}", image_regions(i, False)) for i in range(IMAGES)])
    return folder


def dataset(folder: Path, *names: str, rates: MaskRates = MaskRates(), **options: Any) -> PretrainingDataset:
    store = open_store(folder / options.pop("store", "features.lmdb"))
    truth = open_store(folder / "gt.lmdb") if options.pop("truth", False) else None
    sources = [CaptionSource(CaptionFile(folder / f"{name}.jsonl"), store, truth) for name in names or ("some",)]
    return PretrainingDataset(sources, TOKENIZER, rates, **{"seed": 5, **options})


def assert_equal(some: Any, other: Any) -> None:
    if isinstance(some, dict):
        assert some.keys() == other.keys()
        for name in some:
            assert_equal(some[name], other[name])
    else:
        np.testing.assert_array_equal(np.asarray(some), np.asarray(other))


# --- masks ------------------------------------------------------------------------------------------------------------


def test_statistics_of_ten_thousand_captions(folder: Path) -> None:
    data = dataset(folder, "many", max_length=99)
    shares = masked_shares(data, ((0, 0, index) for index in range(len(data))))
    for name, nominal in zip(KIND_NAMES, MaskRates().of_kinds):
        assert shares[name] == pytest.approx(nominal, abs=0.01), name


def test_masked_spans_read_as_their_nodes(folder: Path) -> None:
    data = dataset(folder, "many", max_length=20)
    seen = 0
    for index in range(2000):
        record, _, masked = data.masked_caption((0, 3, index))
        graph = record.graph
        spans = TOKENIZER.encode_with_spans(graph.caption)[1]
        nodes = {OBJECT: graph.objects, ATTRIBUTE: graph.attributes, RELATION: graph.relations}
        for unit in masked.units:
            text = graph.caption[spans[unit.pieces[0]][0] : spans[unit.pieces[-1]][1]]
            assert unit.pieces == tuple(range(unit.pieces[0], unit.pieces[-1] + 1))
            same = [node for node in nodes[unit.kind] if node.words == text]
            assert any(node.spans[0][0] == spans[unit.pieces[0]][0] for node in same)
            seen += 1
    assert seen > 2000


def test_samples_are_functions_of_seed_and_key(folder: Path) -> None:
    first, again, other = (dataset(folder, seed=seed) for seed in (5, 5, 6))
    changes = dict.fromkeys(("input_ids", "matched", "rows", "epoch"), 0)
    for index in range(len(first)):
        sample = first[0, 2, index]
        assert_equal(again[0, 2, index], sample)
        for name in ("input_ids", "matched", "rows"):
            changes[name] += not np.array_equal(sample[name], other[0, 2, index][name])
        changes["epoch"] += sample["input_ids"] != first[0, 3, index]["input_ids"]
    assert min(changes.values()) > 10, changes


def test_without_scene_graph_prediction_images_and_regions_stay_the_same(folder: Path) -> None:
    with_nodes, without = dataset(folder), dataset(folder, rates=MaskRates(object=0, attribute=0, relation=0))
    kinds: set[int] = set()
    for index in range(len(with_nodes)):
        some, other = with_nodes[0, 1, index], without[0, 1, index]
        for name in ("matched", "region_features", "region_locations", "rows", "targets"):
            assert_equal(other[name], some[name])
        kinds.update(other["kinds"].tolist())
    assert kinds == {TOKEN}


def test_input_and_targets_belong_together(folder: Path) -> None:
    data = dataset(folder, truth=True, region_target="features", max_regions=9, max_length=12)
    regions = [image_regions(i) for i in range(IMAGES)]
    truths = [image_regions(50 + i) for i in range(IMAGES)]
    rows = [merge_with_ground_truth(*pair, 9) for pair in zip(regions, truths)]
    for index in range(len(data)):
        sample = data[0, 0, index]
        record = data.sources[0].captions[index]
        ids = [TOKENS.index("[CLS]"), *TOKENIZER.encode(record.graph.caption)[:10], TOKENS.index("[SEP]")]
        restored = list(sample["input_ids"])
        assert len(restored) == len(ids) <= 12
        for column, label in zip(sample["columns"], sample["labels"]):
            restored[column] = label
        places = [i for i, (_, locations) in enumerate(rows) if np.array_equal(locations, sample["region_locations"])]
        own = int(record.image_id.split("-")[1])
        assert (places == [own]) == sample["matched"] and len(places) == 1
        if sample["matched"]:
            assert restored == ids
            np.testing.assert_array_equal(sample["targets"], rows[own][0][sample["rows"]])
        else:
            assert len(sample["columns"]) == len(sample["rows"]) == len(sample["targets"]) == 0
            assert restored[0] == ids[0] and restored[-1] == ids[-1]


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_that_do_not_belong_together(folder: Path) -> None:
    data = dataset(folder)
    samples = [data[0, epoch, index] for epoch in range(10) for index in range(len(data))]
    share = np.mean([sample["matched"] for sample in samples])
    assert share == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(samples)))
    # They are masked like the others, which only the input can tell.
    masked = [np.mean([MASK in s["input_ids"] for s in samples if s["matched"] == own]) for own in (True, False)]
    assert masked[0] == pytest.approx(masked[1], abs=0.1) and masked[0] > 0.5
    assert any((sample["region_features"][1:] == 0).all(axis=1).any() for sample in samples if not sample["matched"])


def test_share_of_such_pairs(folder: Path) -> None:
    data = dataset(folder, negative_share=0.0)
    assert all(data[0, 0, index]["matched"] for index in range(len(data)))


def test_the_one_other_image_is_found(folder: Path, tmp_path: Path) -> None:
    """Among 400 captions only the last is of another image."""
    graph = SceneGraph("a cat")
    lines = [{"id": str(i), "image_id": "image-1" if i == 399 else "image-0", **graph.to_dict()} for i in range(400)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = CaptionSource(CaptionFile(tmp_path / "c.jsonl"), open_store(folder / "features.lmdb"))
    data = PretrainingDataset([source], TOKENIZER, negative_share=0.99)
    locations = merge_with_ground_truth(image_regions(1), None, 37)[1]
    for index in range(20):
        sample = data[0, 0, index]
        assert sample["matched"] or np.array_equal(sample["region_locations"], locations)


def test_a_source_of_one_image(folder: Path, tmp_path: Path) -> None:
    write_captions(tmp_path / "c.jsonl", [SceneGraph("a cat")] * 3, images=1)
    source = CaptionSource(CaptionFile(tmp_path / "c.jsonl"), open_store(folder / "features.lmdb"))
    with pytest.raises(UserError, match=r"c\.jsonl: all captions are of the image 'image-0'.*negative_share=0"):
        PretrainingDataset([source], TOKENIZER)
    assert PretrainingDataset([source], TOKENIZER, negative_share=0.0)[0, 0, 2]["matched"]


def test_several_sources_follow_each_other(folder: Path) -> None:
    data = dataset(folder, "some", "other", negative_share=0.5)
    assert len(data) == data.records == 75
    captions = [record.graph.caption for source in data.sources for record in source.captions]
    assert [data.masked_caption((0, 0, index))[0].graph.caption for index in range(75)] == captions
    assert data[0, 0, 74]["index"] == 74
    # Another image comes from the same source: the second has image-2 to image-4 only.
    allowed = [merge_with_ground_truth(image_regions(i), None, 37)[1] for i in (2, 3, 4)]
    for index in range(60, 75):
        locations = data[0, 0, index]["region_locations"]
        assert any(np.array_equal(locations, other) for other in allowed)
    for index in (75, -1):
        with pytest.raises(IndexError):
            data[0, 0, index]


# --- bad records and mistakes -----------------------------------------------------------------------------------------


def test_bad_records_name_their_line(folder: Path, tmp_path: Path) -> None:
    graphs = [SceneGraph("a cat"), SceneGraph("\u200b"), SceneGraph("a dog"), SceneGraph("a woman")]
    values = [{"id": str(i), "image_id": f"image-{i}", **graph.to_dict()} for i, graph in enumerate(graphs)]
    values[2]["image_id"] = "no-such-image"
    values[3]["objects"] = [{"words": "dog", "lemma": "dog", "spans": [[2, 5]]}]
    lines = [json.dumps(value) for value in values]
    lines.insert(1, "{not JSON")
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = CaptionSource(CaptionFile(path), open_store(folder / "features.lmdb"))
    data = PretrainingDataset([source], TOKENIZER, negative_share=0.0)
    assert data[0, 0, 0]["matched"]
    assert data.records == 5 and len(data.unreadable) == 1 and f"{path}:2" in data.unreadable[0]
    for index, line, reason in ((1, 3, "has no words"), (2, 4, "no-such-image: not in the store"), (3, 5, "dog")):
        with pytest.raises(BadRecord, match=reason) as error:
            data[0, 0, index]
        assert str(error.value).startswith(f"{path}:{line}: ")

    # Drawn as another caption's image, the missing one is passed over: it is not that caption's fault.
    data = PretrainingDataset([source], TOKENIZER, negative_share=0.99)
    assert not any(data[0, epoch, 0]["matched"] for epoch in range(15))


def test_no_readable_other_image(folder: Path, tmp_path: Path) -> None:
    graphs = [SceneGraph("a cat"), SceneGraph("a dog")]
    values = [{"id": str(i), "image_id": name, **graphs[i].to_dict()} for i, name in enumerate(("image-0", "none"))]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    source = CaptionSource(CaptionFile(tmp_path / "c.jsonl"), open_store(folder / "features.lmdb"))
    data = PretrainingDataset([source], TOKENIZER, negative_share=0.999)
    with pytest.raises(BadRecord, match=r"c\.jsonl:1: .*image none: not in the store"):
        data[0, 0, 0]


def test_odd_captions(folder: Path, tmp_path: Path) -> None:
    texts = ["cat", "a cat " * 500, "😀", "中文", "<b>a cat</b> &amp; [MASK]", "a\u0301\u0301 . . ."]
    write_captions(tmp_path / "c.jsonl", [SceneGraph(text) for text in texts])
    source = CaptionSource(CaptionFile(tmp_path / "c.jsonl"), open_store(folder / "features.lmdb"))
    data = PretrainingDataset([source], TOKENIZER, max_length=36)
    batch = collate_pretraining([data[0, epoch, index] for epoch in range(4) for index in range(len(texts))])
    assert batch["input_ids"].shape == (24, 36)
    assert set(batch["attention_mask"].sum(axis=1).astype(int)[:3].tolist()) == {3, 36}


def test_mistakes(folder: Path) -> None:
    with pytest.raises(UserError, match=r"plain\.lmdb: has no class_probs.*model\.region_target=features"):
        dataset(folder, store="plain.lmdb")
    with pytest.raises(UserError, match=r"features\.lmdb: class_probs has 4 classes.*model\.region_classes is 1601"):
        dataset(folder, region_classes=1601)
    for target in ("features", "none"):
        assert dataset(folder, store="plain.lmdb", region_target=target)[0, 0, 0]
    with pytest.raises(UserError, match="region_target"):
        dataset(folder, region_target="classs")
    with pytest.raises(UserError, match="max_length is 2"):
        dataset(folder, max_length=2)
    with pytest.raises(UserError, match="source of captions"):
        PretrainingDataset([], TOKENIZER)
    source = CaptionSource(CaptionFile(folder / "some.jsonl"), open_store(folder / "features.lmdb"))
    with pytest.raises(UserError, match=r"no \[MASK\]"):
        PretrainingDataset([source], WordPieceTokenizer({token: i for i, token in enumerate(SPECIAL[:4])}))
    with pytest.raises(UserError, match="nothing but special tokens"):
        PretrainingDataset([source], WordPieceTokenizer({token: i for i, token in enumerate(SPECIAL)}))


def test_a_later_image_without_classes(folder: Path, tmp_path: Path) -> None:
    items = [(f"image-{i}", image_regions(i, with_classes=i == 0)) for i in range(IMAGES)]
    write_lmdb_store(tmp_path / "mixed.lmdb", items)
    source = CaptionSource(CaptionFile(folder / "some.jsonl"), open_store(tmp_path / "mixed.lmdb"))
    data = PretrainingDataset([source], TOKENIZER, negative_share=0.0)
    with pytest.raises(UserError, match=r"mixed\.lmdb: has no class_probs"):
        data[0, 0, 1]


def test_bad_classes_name_store_and_line(folder: Path, tmp_path: Path) -> None:
    bad = [replace(image_regions(i), class_probs=-np.ones([3 + i % 5, CLASSES], "f4")) for i in range(IMAGES)]
    write_lmdb_store(tmp_path / "bad.lmdb", [(f"image-{i}", regions) for i, regions in enumerate(bad)])
    source = CaptionSource(CaptionFile(folder / "some.jsonl"), open_store(tmp_path / "bad.lmdb"))
    data = PretrainingDataset([source], TOKENIZER, MaskRates(region=0.9), negative_share=0.0)
    with pytest.raises(BadRecord, match=r"some\.jsonl:5: .*bad\.lmdb, image image-4: class_probs"):
        data[0, 0, 4]


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["classes", "features", "none"])
def test_collate(folder: Path, target: str) -> None:
    data = dataset(folder, region_target=target, rates=MaskRates(region=0.4))
    samples = [data[0, 0, index] for index in range(12)]
    batch = collate_pretraining(samples)
    length, regions = batch["input_ids"].shape[1], batch["region_features"].shape[1]
    assert batch["match_labels"].tolist() == [float(sample["matched"]) for sample in samples]
    assert batch["index"].tolist() == list(range(12))
    assert batch["region_locations"].shape == (12, regions, 5)
    for row, sample in enumerate(samples):
        count, boxes = len(sample["input_ids"]), len(sample["region_features"])
        assert batch["input_ids"][row].tolist() == sample["input_ids"] + [0] * (length - count)
        assert batch["position_ids"][row, :count].tolist() == list(range(count))
        assert batch["attention_mask"][row].sum() == count and batch["region_mask"][row].sum() == boxes
        np.testing.assert_array_equal(batch["region_features"][row, :boxes], sample["region_features"])
        mine = batch["token_positions"] // length == row
        np.testing.assert_array_equal(batch["token_positions"][mine] % length, sample["columns"])
        np.testing.assert_array_equal(batch["token_labels"][mine], sample["labels"])
        np.testing.assert_array_equal(batch["token_kinds"][mine], sample["kinds"])
        if target != "none":
            mine = batch["region_positions"] // regions == row
            np.testing.assert_array_equal(batch["region_positions"][mine] % regions, sample["rows"])
            np.testing.assert_array_equal(batch["region_targets"][mine], sample["targets"])
    if target == "none":
        assert not any(name in batch for name in ("region_positions", "region_targets", "region_weights"))
        for index, sample in enumerate(samples):
            assert not sample["matched"] or np.array_equal(
                sample["region_features"], merge_with_ground_truth(image_regions(index), None, 37)[0]
            )
    else:
        assert batch["region_targets"].shape[1] == (CLASSES if target == "classes" else SIZE)
        assert batch["region_weights"].tolist() == [1.0] * len(batch["region_positions"])
    floats = ("attention_mask", "region_features", "region_locations", "region_mask", "match_labels")
    floats += ("region_targets", "region_weights")
    for name, array in batch.items():
        assert array.dtype == (np.float32 if name in floats else np.int64) and array.size, name


@pytest.mark.parametrize("target", ["classes", "features"])
def test_a_batch_without_targets_has_one_that_does_not_count(folder: Path, target: str) -> None:
    data = dataset(folder, negative_share=0.999, region_target=target)
    batch = collate_pretraining([data[0, 0, index] for index in range(4)])
    assert batch["match_labels"].tolist() == [0.0] * 4
    for name, value in (("positions", 0), ("labels", 0), ("kinds", -1)):
        assert batch[f"token_{name}"].tolist() == [value] and batch[f"token_{name}"].dtype == np.int64
    assert batch["region_positions"].tolist() == [0] and batch["region_weights"].tolist() == [0.0]
    assert batch["region_targets"].shape == (1, CLASSES if target == "classes" else SIZE)
    assert batch["region_targets"].dtype == np.float32 and not batch["region_targets"].any()


def loaded(data: PretrainingDataset, batch_size: int, workers: int) -> dict[tuple, tuple]:
    """By (epoch, index): the sample as it arrives in a batch, without padding."""
    batches = JointBatches((len(data),), batch_size, seed=1, epochs=2)
    loader = make_loader(
        GuardedDataset(data), guarded_collate(collate_pretraining), StepSampler(batches, 0, len(batches)), workers
    )
    found = {}
    for keys, batch in zip(batches, loader):
        assert batch["size"] == len(keys)
        arrays = {name: np.asarray(value) for name, value in batch.items() if name not in ("size", "skipped")}
        length, regions = arrays["input_ids"].shape[1], arrays["region_features"].shape[1]
        for row, (_, epoch, index) in enumerate(keys):
            assert arrays["index"][row] == index
            tokens = (arrays["token_positions"] // length == row) & (arrays["token_kinds"] >= 0)
            boxes = (arrays["region_positions"] // regions == row) & (arrays["region_weights"] > 0)
            values = [
                arrays["input_ids"][row][arrays["attention_mask"][row] > 0],
                arrays["region_features"][row][arrays["region_mask"][row] > 0],
                arrays["match_labels"][row],
                arrays["token_positions"][tokens] % length,
                *(arrays[name][tokens] for name in ("token_labels", "token_kinds")),
                arrays["region_positions"][boxes] % regions,
                arrays["region_targets"][boxes],
            ]
            found[epoch, index] = tuple(value.tobytes() for value in values)
    return found


def test_workers_and_batch_size_do_not_matter(folder: Path) -> None:
    data = dataset(folder)
    expected = loaded(data, 7, 0)
    assert len(expected) == 120
    assert any(expected[0, index] != expected[1, index] for index in range(60))
    for batch_size, workers in ((7, 1), (7, 2), (16, 0), (1, 1)):
        assert loaded(data, batch_size, workers) == expected


def test_it_can_be_pickled_and_is_small(folder: Path) -> None:
    data = dataset(folder, "many")
    before = data[0, 0, 17]
    stored = pickle.dumps(data)
    assert len(stored) < 50 * len(data)  # places and keys of images, no captions
    assert_equal(pickle.loads(stored)[0, 0, 17], before)
