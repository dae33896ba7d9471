"""Samples and batches of VQA from the official files and a region store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ernie_vil.data.mini_vqa import build_mini_vqa
from ernie_vil.data.regions import box_locations, open_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.data.vqa import VqaDataset, collate_vqa, collate_vqa_evaluation
from ernie_vil.data.vqa_answers import AnswerList
from ernie_vil.data.vqa_questions import read_official
from ernie_vil.engine.data import GuardedDataset, guarded_collate, make_loader
from ernie_vil.errors import BadRecord


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mini") / "vqa"
    build_mini_vqa(path, seed=2, train_images=25, val_images=8, test_images=4)
    return path


def opened(folder: Path, split: str, **options: int) -> VqaDataset:
    answers = AnswerList.read(folder / "answers.json")
    annotations = None if split == "test2015" else folder / f"v2_mscoco_{split}_annotations.json"
    questions = folder / f"v2_OpenEnded_mscoco_{split}_questions.json"
    table = read_official(questions, annotations, answers, open_store(folder / "features.lmdb", 80))
    tokenizer = WordPieceTokenizer.from_file(folder / "vocab.txt")
    return VqaDataset([table], tokenizer, len(answers), **options)


def test_a_sample(folder):
    dataset = opened(folder, "val2014")
    items = json.loads((folder / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    words = (folder / "vocab.txt").read_text().split("\n")
    store = open_store(folder / "features.lmdb")
    for index in (0, 7, len(items) - 1):
        sample = dataset[0, 3, index]
        text = " ".join(words[i] for i in sample["input_ids"])
        assert text == f"[CLS] {items[index]['question'].lower().replace('?', ' ?')} [SEP]"
        regions = store[str(items[index]["image_id"])]
        assert np.array_equal(sample["region_features"][1:], regions.features)
        np.testing.assert_allclose(sample["region_features"][0], regions.features.mean(0), atol=1e-6)
        locations = box_locations(regions.boxes, regions.width, regions.height)
        assert np.array_equal(sample["region_locations"], [[0, 0, 1, 1, 1], *locations])
        assert sample["question_id"] == items[index]["question_id"]


def test_limits(folder):
    dataset = opened(folder, "val2014", max_length=4, max_regions=3)
    sample, whole = dataset[0, 0, 0], opened(folder, "val2014")[0, 0, 0]
    assert sample["input_ids"] == [*whole["input_ids"][:3], whole["input_ids"][-1]]
    # The first row stays the mean of all regions.
    assert np.array_equal(sample["region_features"], whole["region_features"][:3])


def test_batches_without_known_answers(folder):
    dataset = opened(folder, "test2015")
    batch = collate_vqa_evaluation([dataset[0, 0, index] for index in range(3)])
    assert "accuracies" not in batch
    assert batch["targets"].sum() == 0
    training = collate_vqa([dataset[0, 0, index] for index in range(3)])
    assert set(batch) - set(training) == {"question_types", "answer_types"}


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_through_the_loader(folder, workers):
    dataset = opened(folder, "val2014")
    keys = [[(0, 0, 0), (0, 0, 5)], [(0, 0, 2)]]
    loader = make_loader(GuardedDataset(dataset), guarded_collate(collate_vqa_evaluation), keys, workers)
    for own, batch in zip(keys, loader):
        wanted = collate_vqa_evaluation([dataset[key] for key in own])
        assert batch["question_types"] == wanted["question_types"]
        assert batch["answer_types"] == wanted["answer_types"]
        for name in ("targets", "accuracies", "region_features", "input_ids"):
            assert np.array_equal(batch[name].numpy(), wanted[name])


def test_a_question_whose_image_has_no_features(folder, tmp_path):
    questions = json.loads((folder / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())
    annotations = json.loads((folder / "v2_mscoco_val2014_annotations.json").read_text())
    questions["questions"][1]["image_id"] = annotations["annotations"][1]["image_id"] = 5_000_000
    paths = (tmp_path / "questions.json", tmp_path / "annotations.json")
    for path, value in zip(paths, (questions, annotations)):
        path.write_text(json.dumps(value))
    answers = AnswerList.read(folder / "answers.json")
    table = read_official(*paths, answers, open_store(folder / "features.lmdb"))
    dataset = VqaDataset([table], WordPieceTokenizer.from_file(folder / "vocab.txt"), len(answers))
    assert dataset[0, 0, 0]
    with pytest.raises(BadRecord, match="image 5000000: not in the store") as caught:
        dataset[0, 0, 1]
    number = questions["questions"][1]["question_id"]
    assert str(caught.value).startswith(f"{tmp_path / 'questions.json'}, question {number}: ")
    assert str(folder / "features.lmdb") in str(caught.value)


def test_several_sources_are_numbered_through(folder):
    parts = [opened(folder, split) for split in ("val2014", "train2014", "val2014")]
    sources = [source for part in parts for source in part.sources]
    both = VqaDataset(sources, parts[0].tokenizer, parts[0].classes)
    assert len(both) == sum(map(len, parts)) == both.records
    ids = [both[0, 0, index]["question_id"] for index in range(len(both))]
    assert ids == both.question_ids == [number for part in parts for number in part.question_ids]
