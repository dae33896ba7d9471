"""Reading NLVR: annotations, images, samples."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import run_tool

from ernie_vil.data.mini_nlvr import build_mini_nlvr
from ernie_vil.data.nlvr import (
    IMAGES,
    NlvrDataset,
    NlvrExample,
    NlvrImages,
    collate_nlvr,
    divide,
    read_examples,
)
from ernie_vil.data.nlvr_changes import CHANGES, ORDERS
from ernie_vil.data.nlvr_prepare import find_images, write_store, write_texts
from ernie_vil.data.nlvr_regions import nlvr_regions
from ernie_vil.data.nlvr_statements import WORDS
from ernie_vil.data.nlvr_text import Speller, edit_distance, vocabulary, words_of
from ernie_vil.data.regions import open_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.errors import BadRecord, UserError

GOOD = {"sentence": "There is a box.", "label": "True", "identifier": "12-0", "directory": "3"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("nlvr") / "mini"
    build_mini_nlvr(made, train_examples=90, dev_examples=6)
    return made


def dataset(folder: Path, part: str = "train", training: bool = True, **options) -> NlvrDataset:
    tokenizer = WordPieceTokenizer.from_file(folder / "vocab.txt")
    examples, _ = read_examples(folder / f"{part}.json")
    return NlvrDataset(examples, part, open_store(folder / f"{part}.lmdb"), tokenizer, training, **options)


def test_bad_lines_are_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    bad = {
        "not a line of JSON": "{",
        "found list": "[]",
        "`sentence` is None": json.dumps({**GOOD, "sentence": None}),
        "`identifier` is '12'": json.dumps({**GOOD, "identifier": "12"}),
        "neither true nor false": json.dumps({**GOOD, "label": "maybe"}),
        "12-0 occurred before": json.dumps(GOOD),
    }
    path.write_text("\n".join([json.dumps(GOOD), "", *bad.values()]), encoding="utf-8")
    examples, skipped = read_examples(path)
    assert examples == [NlvrExample("12-0", "There is a box.", True, "3", f"{path}:1")]
    assert len(skipped) == len(bad)
    for line, (words, message) in enumerate(zip(bad, skipped), start=3):
        assert words in message and f"{path}:{line}:" in message


def test_files_that_cannot_be_used_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("\n")
    for name in ("empty.json", "none.json"):
        with pytest.raises(UserError, match=name):
            read_examples(tmp_path / name)
    with pytest.raises(UserError, match="neither a folder nor a zip"):
        NlvrImages(tmp_path / "empty.json")
    with pytest.raises(UserError, match="train_images.zip"):
        find_images(tmp_path, "train")


def test_the_split_is_by_directory() -> None:
    examples = [NlvrExample(f"{i}-0", "x", True, str(i % 5), "") for i in range(20)]
    train, val = divide(examples, [0, 3])
    assert {e.directory for e in val} == {"0", "3"} and {e.directory for e in train} == {"1", "2", "4"}
    assert len(train) + len(val) == 20
    with pytest.raises(UserError, match="validation_directories"):
        divide(examples, [77])


def test_zip_and_folder_hold_the_same_images(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "dev_images.zip", "w") as archive:
        for file in (folder / "dev_images").iterdir():
            archive.write(file, f"images/7/{file.name}")
        archive.writestr("images/7/dev-99-0-0.png", b"no picture")
    packed, plain = NlvrImages(find_images(tmp_path, "dev")), NlvrImages(find_images(folder, "dev"))
    for number in range(6):
        name = f"dev-{number}-0-0"
        assert name in packed and np.array_equal(packed.pixels(name), plain.pixels(name))
    for name, words in (("dev-99-0-0", "cannot be read"), ("dev-5-1-0", "no image dev-5-1-0.png")):
        with pytest.raises(BadRecord, match=words):
            packed.pixels(name)


def test_images_that_are_missing_or_unlike_the_corpus_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "dev_images", tmp_path / "dev_images")
    (tmp_path / "dev_images" / "dev-2-0-0.png").unlink()
    (tmp_path / "dev_images" / "dev-3-0-0.png").write_bytes(b"")
    examples, written, skipped = write_store(folder / "dev.json", tmp_path / "dev_images", "dev", tmp_path / "s.lmdb")
    assert (len(examples), written) == (6, 4)
    assert len(skipped) == 2 and "dev-2-0-0" in skipped[0] and "dev-3-0-0" in skipped[1]
    assert open_store(tmp_path / "s.lmdb").fingerprint["extractor"] == "ernie_vil.data.nlvr_regions"
    with pytest.raises(UserError, match="holds none of the images"):
        write_store(folder / "train.json", tmp_path / "dev_images", "train", tmp_path / "t.lmdb")


def test_the_six_images_are_the_orders_of_the_boxes(folder: Path) -> None:
    data = dataset(folder, "dev", training=False)
    assert len(data) == 6 * IMAGES
    pixels = NlvrImages(folder / "dev_images").pixels("dev-4-0-0")
    for number, order in enumerate(ORDERS):
        image = pixels.copy()
        for new, old in enumerate(order):
            image[:, 150 * new : 150 * new + 100] = pixels[:, 150 * old : 150 * old + 100]
        expected = nlvr_regions(image, "x")
        sample = data[0, 0, 4 * IMAGES + number]
        found = np.concatenate([sample["region_features"], sample["region_locations"][:, :4]], axis=1)
        wanted = np.concatenate([expected.features, expected.boxes / [400, 100, 400, 100]], axis=1)
        assert sorted(map(tuple, found.round(5).tolist())) == sorted(map(tuple, wanted.round(5).tolist()))


def test_training_samples_follow_from_seed_epoch_and_index(folder: Path) -> None:
    options = {"changes": CHANGES, "statement_share": 0.5, "simple_share": 0.5, "seed": 3}
    first, second = dataset(folder, **options), dataset(folder, **options)
    keys = [(0, epoch, index) for epoch in (0, 1) for index in range(12)]
    for key in keys:
        assert str(first[key]) == str(second[key])
    for key in reversed(keys):  # whatever was looked up before
        np.testing.assert_array_equal(first[key]["region_features"], second[key]["region_features"])
    assert any(str(first[0, 0, i]) != str(first[0, 1, i]) for i in range(12))


def test_unchanged_samples_are_the_example_and_its_first_image(folder: Path) -> None:
    data = dataset(folder)
    sample, example = data[0, 4, 7], data.examples[7]
    regions = data.store[example.image("train", 0)]
    np.testing.assert_array_equal(sample["region_features"], regions.features)
    tokens = list(data.tokenizer.vocabulary)
    assert " ".join(tokens[i] for i in sample["input_ids"]) == f"[CLS] {example.sentence} [SEP]"
    assert (sample["label"], sample["sentence"]) == (float(example.label), 7)
    assert not any(sample["region_weights"])


def test_statements_come_as_often_as_asked_with_labels_of_regions(folder: Path) -> None:
    assert not any(sum(dataset(folder)[0, 0, i]["region_weights"]) for i in range(90))
    data = dataset(folder, statement_share=1.0)
    for index in range(30):
        sample = data[0, 0, index]
        kinds = sample["region_features"][:, :3].argmax(axis=1)
        weights = np.array(sample["region_weights"])
        assert len(weights) == len(kinds) and weights[0] == 0 and weights.any()
        assert np.all(np.array(sample["region_labels"]) <= weights)


def test_batches_are_padded(folder: Path) -> None:
    data = dataset(folder, statement_share=0.5)
    samples = [data[0, 0, index] for index in range(5)]
    batch = collate_nlvr(samples)
    regions = max(len(sample["region_features"]) for sample in samples)
    assert batch["region_weights"].shape == batch["region_mask"].shape == (5, regions)
    for row, sample in enumerate(samples):
        count = len(sample["region_features"])
        assert batch["region_mask"][row].sum() == count
        np.testing.assert_array_equal(batch["region_weights"][row, :count], sample["region_weights"])
        assert not batch["region_weights"][row, count:].any()
    assert batch["index"].tolist() == [0, 1, 2, 3, 4] and batch["labels"].dtype == np.float32


def test_spelling() -> None:
    assert " ".join(words_of("There are 2 yelow  Blocks, at the edge.")) == "there are two yelow blocks , at the edge"
    speller = Speller(["there", "yellow", "block", "blocks", "a", "least", "at"])
    assert speller.normalise("Ther atleast a yelow blokc zzzzz a") == "there at least a yellow block zzzzz a"
    for first, second, steps in (
        ("yelow", "yellow", 1),
        ("blcok", "block", 1),
        ("kitten", "sitting", 3),
        ("", "ab", 2),
    ):
        assert edit_distance(first, second) == steps == edit_distance(second, first)


def test_vocabulary_leaves_slips_out() -> None:
    sentences = ["there is a yellow box"] * 300 + ["there is a yelow box"] * 5 + ["an odd box"] * 5 + ["once"]
    tokens = vocabulary(sentences, ["further"])
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"odd", "further", "yellow"} <= set(tokens) and not {"yelow", "once"} & set(tokens)


def test_texts_for_pretraining_are_the_true_sentences(folder: Path, tmp_path: Path) -> None:
    examples, _ = read_examples(folder / "train.json")
    write_texts(examples, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "train_captions.jsonl").read_text().splitlines()]
    true = [example for example in examples if example.label and int(example.directory) > 7]
    assert [line["id"] for line in lines] == [example.identifier for example in true]
    assert lines[0]["image_id"] == f"train-{lines[0]['id']}-0"
    assert set(WORDS) <= set((tmp_path / "vocab.txt").read_text().split())


def test_the_tool_prepares_a_folder_and_names_what_is_missing(folder: Path, tmp_path: Path) -> None:
    done = run_tool("prepare_nlvr", "--data", str(folder), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "train: 90 examples, 90 images, 0 left out" in done.stdout and "dev: 6 examples" in done.stdout
    for part in ("train", "dev"):
        own, known = open_store(tmp_path / "out" / f"{part}.lmdb"), open_store(folder / f"{part}.lmdb")
        assert own.keys() == known.keys() and own.fingerprint == known.fingerprint
        np.testing.assert_array_equal(own[own.keys()[0]].features, known[own.keys()[0]].features)
    wrong = run_tool("prepare_nlvr", "--data", str(tmp_path), "--out", str(tmp_path / "other"))
    assert wrong.returncode == 2 and "train_images" in wrong.stderr and "Traceback" not in wrong.stderr
