"""The original's table of referring expressions: against what its reader made of the same files, and with faults."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_vil.data.refcoco import RefcocoDataset, collate_refcoco
from ernie_vil.data.refcoco_tsv import TsvExpressions
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.errors import BadRecord, UserError

ORIGINAL = Path(__file__).parent / "ernie_vil"
TABLES = ORIGINAL / "samples" / "refcoco_plus"
GOLDEN = json.loads((ORIGINAL / "readers" / "readers.json").read_text(encoding="utf-8"))["refcoco_plus"]
SIZE = 5


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer.from_file(ORIGINAL / "samples" / "vocab.txt")


def golden_dataset(split: str, tokenizer: WordPieceTokenizer, path: Path) -> RefcocoDataset:
    return RefcocoDataset(TsvExpressions([path], split == "train", "all"), tokenizer, split == "train")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_original_reader(tokenizer, tmp_path, split, packed):
    path = TABLES / f"{split}_part"
    if packed:
        packed_path = tmp_path / f"{split}_part.gz"
        packed_path.write_bytes(gzip.compress(path.read_bytes()))
        path = packed_path
    dataset = golden_dataset(split, tokenizer, path)
    assert len(dataset) == len(GOLDEN[split]) > 1
    samples = [dataset[0, 0, index] for index in range(len(dataset))]
    for sample, golden in zip(samples, GOLDEN[split]):
        assert sample["input_ids"] == golden["token_ids"]
        assert sample["labels"].astype(np.float32).tolist() == [value for (value,) in golden["label"]]
        extra = [len(sample["labels"]), *sample["size"], *sample["target"]]
        assert extra == golden["add_item"]
    batch = collate_refcoco(samples)
    with np.load(ORIGINAL / "readers" / "readers.npz") as arrays:
        golden = {name.split("/")[-1]: arrays[name] for name in arrays.files if f"refcoco_plus/{split}/" in name}
    for ours, theirs in (
        ("input_ids", "src_ids"),
        ("position_ids", "pos_ids"),
        ("token_type_ids", "sent_ids"),
        ("attention_mask", "input_mask"),
        ("region_mask", "image_mask"),
        ("labels", "labels"),
    ):
        np.testing.assert_array_equal(batch[ours], golden[theirs][..., 0], err_msg=ours)
        assert batch[ours].dtype == golden[theirs].dtype
    np.testing.assert_array_equal(batch["region_locations"], golden["image_loc"])
    np.testing.assert_array_equal(batch["attention_mask"].sum(1), golden["seq_lens"][:, 0])
    extra = np.concatenate([batch["region_mask"].sum(1, keepdims=True), batch["size"], batch["target"]], axis=1)
    np.testing.assert_array_equal(extra, golden["add_item"])
    features = batch["region_features"]
    np.testing.assert_allclose(features[..., :16], golden["image_embeddings_first16"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(features[:, 0], golden["image_embeddings_row0"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(features.sum(-1), golden["image_embeddings_rowsum"], rtol=1e-5, atol=1e-4)


# --------------------------------------------------------------------------------------------------- tables with faults
def encoded(values: Any) -> str:
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


def row(boxes: int = 2, annotated: int = 1, **columns: str) -> str:
    count = boxes + annotated
    fields = {
        "expression": "red dog",
        "width": "100",
        "height": "80",
        "boxes": str(boxes),
        "annotated": str(annotated),
        "corners": encoded([[10 * i, 10, 10 * i + 20, 40] for i in range(count)]),
        "features": encoded(np.arange(count * SIZE)),
        "target": "10 10 30 40",
        "ious": " ".join(["0.25", "1.0", "0.75", "0.0"][:count]),
    }
    return "\t".join({**fields, **columns}.values())


def table(folder: Path, *rows: str, training: bool = False, track: str = "all") -> TsvExpressions:
    path = folder / "part"
    path.write_text("\n".join(rows) + "\n")
    return TsvExpressions([path], training, track, SIZE)


def test_tracks(tmp_path):
    for training, track, want in (
        (False, "all", [0, 10, 20]),
        (False, "detected", [0, 10]),
        (False, "ground_truth", [20]),
        (True, "detected", [0, 10, 20]),
        (True, "ground_truth", [0, 10, 20]),
    ):
        found = table(tmp_path, row(), training=training, track=track).referred(0)
        assert found.regions.boxes[:, 0].tolist() == want
        assert len(found.regions.features) == len(found.ious) == found.candidates.sum() == len(want)
        assert found.ious.tolist() == [{0: 0.25, 10: 1.0, 20: 0.75}[left] for left in want]


def test_several_tables_are_one_split(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text(row(expression="first") + "\n\n" + row(expression="second") + "\n")
    second.write_text("bad\n" + row(expression="third"))
    expressions = TsvExpressions([first, second], feature_size=SIZE)
    assert expressions.texts == ["first", "second", "third"]
    assert [expressions.where(index) for index in range(3)] == [f"{first}:1", f"{first}:3", f"{second}:2"]
    assert expressions.identity(2) == {"line": f"{second}:2"}
    assert expressions.skipped == [f"{second}:1: 1 columns instead of 9"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("a\tb", "2 columns instead of 9"),
        (row() + "\tx", "10 columns instead of 9"),
        (row(expression=" "), "the expression is empty"),
        (row(width="0"), "the width is '0'"),
        (row(height="80.5"), "the height is '80.5'"),
        (row(corners=encoded([1, 2, 3, 4])), "16 bytes of boxes; 3 boxes of 4 float32 need 48"),
        (row(features=encoded([1, 2])), "8 bytes of features; 3 boxes of 5 float32 need 60"),
        (row(target="1 2 3"), "the target has 3 numbers instead of 4"),
        (row(target="1 2 x 4"), "the target: '1 2 x 4' are not numbers"),
        (row(target="30 10 10 40"), r"the target \[30.0, 10.0, 10.0, 40.0\] is no box"),
        (row(target="30 10 102 40"), "lies outside the 100 x 80 image"),
        (row(target="nan 10 30 40"), "is no box"),
        (row(ious="0.5 0.5"), "2 overlaps for 3 boxes"),
        (row(ious="0.5 0.5 1.5"), "an overlap is not from 0 to 1"),
        (row(ious="0.5 0.5 nan"), "an overlap is not from 0 to 1"),
        (row(ious="0.5 0.5 -0.1"), "an overlap is not from 0 to 1"),
        (row(boxes=2).replace("\t2\t", "\t-2\t"), "the number of boxes is '-2'"),
        (row(boxes=2).replace("\t2\t", "\t" + "9" * 5000 + "\t"), "the number of boxes is"),
    ],
)
def test_unusable_lines_are_named_and_left_out(tmp_path, bad, message):
    expressions = table(tmp_path, row(), bad)
    assert expressions.texts == ["red dog"]
    (skipped,) = expressions.skipped
    assert skipped.startswith(f"{tmp_path / 'part'}:2: ")
    assert re.search(message, skipped), skipped
    with pytest.raises(UserError, match=f"no usable line:\n .*:1: .*{message}"):
        table(tmp_path, bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(corners=encoded([[0, 0, 20, 40], [0, 0, 20, 40], [90, 0, 110, 40]])), "box 2 lies outside the 100 x 80"),
        (row(features=encoded([np.nan] * 15)), "NaN or infinite values in features"),
        (row(features="?" * 80), "the features are not base64 of 3 x 5 float32"),
    ],
)
def test_contents_are_checked_on_a_look_up(tmp_path, tokenizer, bad, message):
    dataset = RefcocoDataset(table(tmp_path, row(), bad), tokenizer, False, feature_size=SIZE)
    assert len(dataset[0, 0, 0]["labels"]) == 4
    with pytest.raises(BadRecord, match=f"part:2: .*{message}"):
        dataset[0, 0, 1]


def test_an_image_without_any_box(tmp_path, tokenizer):
    empty = row(0, 0)
    sample = RefcocoDataset(table(tmp_path, empty), tokenizer, False, feature_size=SIZE)[0, 0, 0]
    assert sample["region_features"].tolist() == [[0] * SIZE]
    assert sample["region_locations"].tolist() == [[0, 0, 1, 1, 1]]
    assert sample["candidates"].tolist() == [False]
    assert sample["labels"].tolist() == [0]
    batch = collate_refcoco([sample])
    assert batch["region_features"].shape == (1, 1, SIZE)
    training = RefcocoDataset(table(tmp_path, empty, training=True), tokenizer, True, feature_size=SIZE)
    with pytest.raises(BadRecord, match="part:1: no regions to train on"):
        training[0, 0, 0]


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(UserError, match="part: no such table"):
        TsvExpressions([tmp_path / "part"])
    packed = gzip.compress(row().encode())
    (tmp_path / "part.gz").write_bytes(packed[:-10])
    with pytest.raises(UserError, match=r"part.gz: cannot be unpacked"):
        TsvExpressions([tmp_path / "part.gz"])
    (tmp_path / "part.gz").write_bytes(row().encode())
    with pytest.raises(UserError, match=r"part.gz: cannot be unpacked"):
        TsvExpressions([tmp_path / "part.gz"])


def test_unpacked_files_go_with_their_reader(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (tmp_path / "part.gz").write_bytes(gzip.compress((row() + "\nbad\n").encode()))
    expressions = TsvExpressions([tmp_path / "part.gz"], feature_size=SIZE)
    assert expressions.skipped == [f"{tmp_path / 'part.gz'}:2: 1 columns instead of 9"]
    assert len(list(temporary.iterdir())) == 1
    assert len(expressions.referred(0).ious) == 2
    child = os.fork()
    if child == 0:
        del expressions
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(temporary.iterdir())) == 1
    del expressions
    assert list(temporary.iterdir()) == []
