"""The original's table of questions: against what its reader made of the same files, and with faults."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.data.vqa import VqaDataset, collate_vqa, collate_vqa_evaluation
from ernie_vil.data.vqa_tsv import TsvQuestions
from ernie_vil.data.vqa_visual_genome import Mix
from ernie_vil.engine.data import JointBatches
from ernie_vil.errors import BadRecord, UserError

ORIGINAL = Path(__file__).parent / "ernie_vil"
TABLES = ORIGINAL / "samples" / "vqa"
GOLDEN = json.loads((ORIGINAL / "readers" / "readers.json").read_text(encoding="utf-8"))["vqa"]
CLASSES = 3129
SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer.from_file(ORIGINAL / "samples" / "vocab.txt")


def dataset(tokenizer: WordPieceTokenizer, *names: str, **options: object) -> VqaDataset:
    return VqaDataset([TsvQuestions(TABLES / f"{name}_part", CLASSES) for name in names], tokenizer, CLASSES, **options)


@pytest.mark.parametrize(("split", "case"), [("train", "train"), ("val", "val"), ("val", "val_short")])
def test_samples_of_the_original_reader(tokenizer, split, case):
    found = dataset(tokenizer, split, max_length=7 if case == "val_short" else 512)
    assert len(found) == len(GOLDEN[case]) > 1
    for index, golden in enumerate(GOLDEN[case]):
        sample = found[0, 0, index]
        assert sample["question_id"] == golden["question_id"]
        assert sample["input_ids"] == golden["token_ids"]
        labels = np.flatnonzero(sample["targets"])
        expected = {label: np.float32(score) for label, score in golden["nonzero_labels"]}
        assert dict(zip(labels.tolist(), sample["targets"][labels])) == expected
        assert sample["targets"].shape == (CLASSES,)
        assert np.array_equal(sample["accuracies"].astype(np.float32), sample["targets"])


@pytest.mark.parametrize("split", SPLITS)
def test_batches_of_the_original_reader(tokenizer, split):
    found = dataset(tokenizer, split)
    batch = collate_vqa([found[0, 0, index] for index in range(len(found))])
    with np.load(ORIGINAL / "readers" / "readers.npz") as arrays:
        golden = {name.split("/")[-1]: arrays[name] for name in arrays.files if f"vqa/{split}/" in name}
    for ours, theirs in (
        ("input_ids", "src_ids"),
        ("position_ids", "pos_ids"),
        ("token_type_ids", "sent_ids"),
        ("attention_mask", "input_mask"),
        ("region_mask", "image_mask"),
    ):
        assert np.array_equal(batch[ours], golden[theirs].squeeze(-1)), ours
        assert batch[ours].dtype == golden[theirs].dtype
    assert batch["question_id"].tolist() == golden["qids"].tolist()
    assert batch["targets"].dtype == np.float32
    assert list(batch["targets"].shape) == GOLDEN[f"{split}_soft_labels_shape"]
    np.testing.assert_allclose(batch["region_locations"], golden["image_loc"], rtol=0, atol=6e-8)
    features = batch["region_features"]
    assert features.shape[2] == 2048
    np.testing.assert_allclose(features[:, 0], golden["image_embeddings_row0"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(features[..., :16], golden["image_embeddings_first16"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(features.sum(2), golden["image_embeddings_rowsum"], rtol=1e-5, atol=2e-3)


def question_ids(found: VqaDataset, epochs: int) -> list[int]:
    batches = JointBatches((len(found),), 2, seed=0, epochs=epochs)
    return [found[key]["question_id"] for step in range(len(batches)) for key in batches[step]]


def test_visual_genome_in_all_epochs_as_the_original_has_it(tokenizer):
    ids = question_ids(dataset(tokenizer, "train", "vg"), 4)
    golden = [number for batch in GOLDEN["train_generator_4_epochs_vg_init_2_batches_of_2"] for number in batch]
    assert sorted(ids) == sorted(golden)
    assert {str(number): ids.count(number) for number in ids} == GOLDEN["qid_counts"]


def test_visual_genome_in_the_first_epochs_alone(tokenizer):
    found = dataset(tokenizer, "train", "vg", mix=Mix(2, 1, 2, seed=0))
    # Two passes over three questions and one over two fill four epochs of two.
    ids = question_ids(found, 4)
    assert {number: ids.count(number) for number in ids} == {9101: 3, 9102: 3, 9201: 2}
    assert 9201 not in ids[6:]
    # Batches count as those of the training questions: with and without Visual Genome an epoch is one batch.
    assert len(JointBatches((len(found),), 2, seed=0, epochs=4)) == 4


LINES = (TABLES / "val_part").read_bytes().splitlines(keepends=True)


def with_column(column: int, value: bytes) -> bytes:
    columns = LINES[1].split(b"\t")
    columns[column] = value
    return b"\t".join(columns)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"9002\tquestion\n", "2 columns instead of 9"),
        (with_column(0, b"abc"), "the question id is 'abc', not a whole number"),
        (with_column(0, "²".encode()), "the question id is '²'"),
        (with_column(0, b"9001"), "the question id 9001 stands for the second time"),
        (with_column(1, b"  "), "the question is empty"),
        (with_column(2, b"3129"), "an answer is not a class from 0 to 3128: 3129"),
        (with_column(2, b"-1"), "an answer is not a class"),
        (with_column(2, b"yes"), "are not numbers"),
        (with_column(2, b"1|2"), "2 answers with 1 scores"),
        (with_column(3, b"1.5"), "a score is not from 0 to 1: 1.5"),
        (with_column(3, b"nan"), "a score is not from 0 to 1: nan"),
    ],
)
def test_unusable_lines_are_left_out_and_named(tmp_path, line, message):
    path = tmp_path / "table"
    path.write_bytes(LINES[0] + line.rstrip(b"\n") + b"\n\n" + LINES[2])
    found = TsvQuestions(path, CLASSES)
    assert found.question_ids.tolist() == [9001, 9003]
    assert len(found.skipped) == 1
    assert message in found.skipped[0]
    assert found.skipped[0].startswith(f"{path}:2: ")
    assert found.where(1) == f"{path}:4"
    assert found[1].question_id == 9003


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (with_column(4, b"0"), "image_w is '0'"),
        (with_column(6, b"9"), "boxes of 2048 float32 need|features has"),
        (with_column(7, b"AAAA"), "boxes has 3 bytes"),
        (with_column(8, b"A"), "features is not base64|features has"),
        (with_column(8, LINES[1].split(b"\t")[8][:-9]), "features"),
        (with_column(5, b"20"), "lies outside"),
    ],
)
def test_regions_that_cannot_be_read_are_named(tmp_path, tokenizer, line, message):
    path = tmp_path / "table"
    path.write_bytes(line)
    found = VqaDataset([TsvQuestions(path, CLASSES)], tokenizer, CLASSES)
    with pytest.raises(BadRecord, match=message) as caught:
        found[0, 0, 0]
    assert str(caught.value).startswith(f"{path}:1: ")


def test_the_width_of_the_features_must_be_the_models(tmp_path, tokenizer):
    found = VqaDataset([TsvQuestions(TABLES / "val_part", CLASSES, 1024)], tokenizer, CLASSES)
    with pytest.raises(BadRecord, match="1024 float32 need"):
        found[0, 0, 0]


def test_a_question_without_a_right_answer_in_the_list(tmp_path, tokenizer):
    path = tmp_path / "table"
    columns = LINES[1].split(b"\t")
    path.write_bytes(b"\t".join([*columns[:2], b"", b"", *columns[4:]]) + LINES[0])
    found = VqaDataset([TsvQuestions(path, CLASSES)], tokenizer, CLASSES)
    batch = collate_vqa_evaluation([found[0, 0, 0], found[0, 0, 1]])
    assert (batch["targets"][0].sum(), batch["accuracies"][0].sum()) == (0, 0)
    assert batch["accuracies"][1].max() == 1.0
    assert batch["question_types"] == batch["answer_types"] == ["", ""]


def test_ids_may_repeat_in_additional_tables(tmp_path):
    path = tmp_path / "table"
    path.write_bytes(LINES[0] + LINES[0])
    assert len(TsvQuestions(path, CLASSES, unique=False)) == 2
    assert len(TsvQuestions(path, CLASSES)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such table of questions"),
        (b"", "no usable question; the file is empty"),
        (b"a\tb\n", "no usable question; all 1 lines are bad"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "table"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        TsvQuestions(path, CLASSES)
    assert str(path) in str(caught.value)
