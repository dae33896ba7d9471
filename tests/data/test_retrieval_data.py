"""Retrieval data against what the original's reader made of its files, and against files with faults."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest

from ernie_vil.data.region_arrays import pad_regions
from ernie_vil.data.regions import Regions, write_lmdb_store
from ernie_vil.data.retrieval import (
    CaptionDataset,
    RetrievalDataset,
    collate_captions,
    collate_retrieval,
    encode,
    fold_images,
    fold_of,
    hard_places,
    image_regions,
)
from ernie_vil.data.retrieval_files import RetrievalSplit, read_split
from ernie_vil.data.retrieval_tsv import RegionStores, TableRegionStore, read_hard_images
from ernie_vil.data.text_pair import pad_sequences
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.errors import BadRecord, UserError

ORIGINAL = Path(__file__).parent / "ernie_vil"
FLICKR = ORIGINAL / "samples" / "flickr"
GOLDEN = json.loads((ORIGINAL / "readers" / "readers.json").read_text(encoding="utf-8"))["flickr"]


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer.from_file(ORIGINAL / "samples" / "vocab.txt")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(ORIGINAL / "readers" / "readers.npz") as arrays:
        return {name: arrays[name] for name in arrays.files if name.startswith("flickr/")}


class RecordedDraws:
    """Stands for a random generator and gives the draws that the original made."""

    def __init__(self, draws: list) -> None:
        self.draws = iter(draws)

    def integers(self, high: int) -> int:
        kind, options, drawn = next(self.draws)
        if kind == "choice":
            assert len(options) == high
            return options.index(drawn)
        first, last = options
        assert (first, last - first + 1) == (1, high)
        return drawn - first


def original_training(tokenizer: WordPieceTokenizer, **options: Any) -> RetrievalDataset:
    return RetrievalDataset(
        read_split(FLICKR / "train_captions.tsv", "train"),
        RegionStores([FLICKR / "train_images.tsv"], 2048),
        tokenizer,
        GOLDEN["negative_schema"],
        read_hard_images(FLICKR / "hard_negative.pkl"),
        **options,
    )


# ------------------------------------------------------------------------------------------------ the original's files
def test_original_groups(tokenizer, golden, monkeypatch):
    dataset = original_training(tokenizer)
    assert len(dataset) == len(GOLDEN["train"])
    samples = []
    for index, entry in enumerate(GOLDEN["train"]):
        draws = RecordedDraws(entry["draws"])
        monkeypatch.setattr("ernie_vil.data.retrieval.np.random.default_rng", lambda seed, draws=draws: draws)
        sample = dataset[0, 0, index]
        assert next(draws.draws, None) is None
        caption = dataset.split.captions[index]
        assert (caption.id, dataset.split.images[caption.image]) == (str(entry["sent_id"]), str(entry["image_id"]))
        assert [sample["input_ids"][text] for text, _ in sample["pairs"]] == entry["token_ids"]
        assert [len(sample["regions"][image][0]) for _, image in sample["pairs"]] == entry["n_boxes_plus_1"]
        samples.append(sample)
    batch = collate_retrieval(samples[:2])
    rows = batch["region_rows"]
    arrays = {name.split("/")[-1]: array for name, array in golden.items() if "train_first2" in name}
    for ours, theirs in (
        (batch["input_ids"], "src_ids"),
        (batch["position_ids"], "pos_ids"),
        (batch["token_type_ids"], "sent_ids"),
        (batch["attention_mask"], "input_mask"),
        (batch["region_mask"][rows], "image_mask"),
    ):
        np.testing.assert_array_equal(ours, arrays[theirs][..., 0], err_msg=theirs)
        assert ours.dtype == arrays[theirs].dtype
    np.testing.assert_allclose(batch["region_locations"][rows], arrays["image_loc"], rtol=1e-6)
    features = batch["region_features"][rows]
    assert features.dtype == batch["region_locations"].dtype == np.float32
    np.testing.assert_allclose(features[..., :16], arrays["image_embeddings_first16"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(features[:, 0], arrays["image_embeddings_row0"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(features.sum(-1), arrays["image_embeddings_rowsum"], rtol=1e-5, atol=1e-4)
    # Of ten members, each image is there once a group.
    assert len(batch["region_features"]) == sum(len({image for _, image in sample["pairs"]}) for sample in samples[:2])


def test_original_pairs_of_evaluation(tokenizer, golden):
    split = read_split(FLICKR / "dev_captions.tsv", "val")
    captions = CaptionDataset(split, tokenizer)
    store = RegionStores([FLICKR / "dev_images.tsv"], 2048)
    pairs = [(image, index) for index in range(len(captions)) for image in range(len(split.images))]
    ids = [[int(split.images[image]), int(split.captions[index].id)] for image, index in pairs]
    assert [ids[first : first + 4] for first in range(0, len(ids), 4)] == GOLDEN["dev_batches_ids"]
    arrays = {name.split("/")[-1]: array for name, array in golden.items() if "dev_batch0" in name}
    texts = [captions.input_ids[index] for _, index in pairs[:4]]
    batch = pad_sequences(texts, [[0] * len(text) for text in texts])
    batch.update(pad_regions([image_regions(store, split.images[image], 101) for image, _ in pairs[:4]]))
    for ours, theirs in (("input_ids", "src_ids"), ("attention_mask", "input_mask"), ("region_mask", "image_mask")):
        np.testing.assert_array_equal(batch[ours], arrays[theirs][..., 0], err_msg=theirs)
    np.testing.assert_allclose(batch["region_locations"], arrays["image_loc"], rtol=1e-6)
    np.testing.assert_allclose(
        batch["region_features"].sum(-1), arrays["image_embeddings_rowsum"], rtol=1e-5, atol=1e-4
    )


def test_mined_negatives_of_the_original():
    pools = read_hard_images(FLICKR / "hard_negative.pkl")
    assert pools["501"] == ["502", "503", "504"] and pools["504"] == ["503", "502", "501"]
    assert hard_places(["503", "504", "900"], {**pools, "900": ["900", "504"]}) == [[1], [0], [1]]
    with pytest.raises(UserError, match="1 of 2 images have no hard negative there: 900"):
        hard_places(["503", "900"], {"503": ["900"], "900": ["501"]})


# --------------------------------------------------------------------------------------------------------------- draws
def karpathy(path: Path, images: list[dict]) -> Path:
    path.write_text(json.dumps({"dataset": "x", "images": images}), encoding="utf-8")
    return path


def image(number: int, split: str = "train", captions: int = 2, **fields: Any) -> dict:
    sentences = [
        {"raw": f"man {number} window {place}", "tokens": [], "imgid": number, "sentid": 10 * number + place}
        for place in range(captions)
    ]
    return {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences, **fields}


class Store(dict):
    """Region features in memory; an image whose value is None cannot be read."""

    def __init__(self, names: list[str], damaged: tuple[str, ...] = ()) -> None:
        box = np.array([[0, 0, 4, 4]], np.float32)
        for place, name in enumerate(names):
            self[name] = None if name in damaged else Regions(np.full([1, 3], place, np.float32), box, 8, 8)

    def __getitem__(self, name: str) -> Regions:
        if self.get(name) is None:
            raise BadRecord(f"image {name} is damaged")
        return self.get(name)


def small(tmp_path: Path, tokenizer: WordPieceTokenizer, damaged: tuple = (), images: int = 8, **options: Any) -> Any:
    split = read_split(karpathy(tmp_path / "x.json", [image(number) for number in range(images)]), "train")
    return RetrievalDataset(split, Store(split.images, damaged), tokenizer, ["ei"] * 5 + ["ec"] * 5, **options)


def test_draws_depend_on_seed_epoch_and_caption_alone(tmp_path, tokenizer):
    def drawn(dataset: RetrievalDataset, epoch: int, index: int) -> list:
        sample = dataset[0, epoch, index]
        return [(sample["input_ids"][t], float(sample["regions"][i][0][0, 0])) for t, i in sample["pairs"]]

    dataset, again = (small(tmp_path, tokenizer, seed=4) for _ in range(2))
    first = drawn(dataset, 3, 5)
    drawn(dataset, 0, 1)
    assert drawn(dataset, 3, 5) == drawn(again, 3, 5) == first
    assert drawn(dataset, 2, 5) != first != drawn(small(tmp_path, tokenizer, seed=5), 3, 5)


def test_a_group_is_positive_then_other_images_then_other_captions(tmp_path, tokenizer):
    dataset = small(tmp_path, tokenizer)
    images, captions = set(), set()
    for epoch in range(40):
        for index in (0, 5, 15):
            own = dataset.split.captions[index].image
            texts = {tuple(encode(tokenizer, c.text, 99)): c for c in dataset.split.captions}
            sample = dataset[0, epoch, index]
            assert sample["pairs"][0] == (0, 0) and len(sample["pairs"]) == 11
            found = [
                (texts[tuple(sample["input_ids"][t])], int(sample["regions"][i][0][0, 0])) for t, i in sample["pairs"]
            ]
            assert found[0][0] is dataset.split.captions[index] and found[0][1] == own
            for caption, picture in found[1:6]:
                assert caption is dataset.split.captions[index] and picture != own
                images.add(picture)
            for caption, picture in found[6:]:
                assert picture == own and caption.image != own
                captions.add(caption.id)
    assert images == set(range(8)) and len(captions) == 16  # everything is drawn at some time


def test_unreadable_images(tmp_path, tokenizer):
    dataset = small(tmp_path, tokenizer, damaged=("3",))
    for epoch in range(20):
        sample = dataset[0, epoch, 0]
        assert 3.0 not in [float(features[0, 0]) for features, _ in sample["regions"]]
    with pytest.raises(BadRecord, match=r"images\[3\] \(3\), sentence 1: image 3 is damaged"):
        dataset[0, 0, 7]
    alone = small(tmp_path, tokenizer, damaged=("1",), images=2)
    with pytest.raises(BadRecord, match="no readable negative; the last: image 1 is damaged"):
        alone[0, 0, 0]
    with pytest.raises(UserError, match="at least two images"):
        small(tmp_path, tokenizer, images=1)


def test_long_captions_and_many_regions_are_cut(tokenizer):
    ids = encode(tokenizer, "man window man window man", 99)
    assert len(ids) == 7
    assert encode(tokenizer, "man window man window man", 7) == ids
    assert encode(tokenizer, "man window man window man", 6) == [*ids[:5], tokenizer.sep_id]
    boxes = np.tile(np.array([[0, 0, 4, 2]], np.float32), (5, 1))
    store = {"a": Regions(np.arange(15, dtype=np.float32).reshape(5, 3), boxes, 8, 8)}
    features, locations = image_regions(store, "a", 3)
    np.testing.assert_array_equal(features, [[6, 7, 8], [0, 1, 2], [3, 4, 5]])  # the mean is over all boxes
    np.testing.assert_allclose(locations[1], [0, 0, 0.5, 0.25, 0.125])


def test_order_and_padding_of_evaluation(tmp_path, tokenizer):
    entries = [image(number, "test") for number in range(4)]
    entries[0]["sentences"][0]["raw"] = "man " * 9
    captions = CaptionDataset(read_split(karpathy(tmp_path / "x.json", entries), "test"), tokenizer)
    assert [index for _, _, index in captions.keys(2)] == [1, 2, 3, 4, 5, 6, 7, 0]
    assert captions.keys(2, folds=2)[:4] == [(2, 0, 1), (2, 0, 2), (2, 0, 3), (2, 0, 0)]
    batch = collate_captions([captions[key] for key in [(2, 0, 1), (2, 0, 0)]])
    assert batch["length"].tolist() == [6, 11] and batch["input_ids"].shape == (2, 11)
    assert batch["part"].tolist() == [2, 2] and batch["index"].tolist() == [1, 0]
    assert batch["input_ids"][0, :6].tolist() == captions.input_ids[1]


@pytest.mark.parametrize(("images", "folds"), [(5000, 5), (7, 3), (10, 4), (3, 3), (6, 1)])
def test_folds_share_out_the_images(images, folds):
    parts = [list(fold_images(fold, images, folds)) for fold in range(folds)]
    assert [one for part in parts for one in part] == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(fold_of(image, images, folds) == fold for fold, part in enumerate(parts) for image in part)


# --------------------------------------------------------------------------------------------------------------- files
def test_karpathy_splits_and_keys(tmp_path):
    entries = [
        image(1, "train"),
        image(2, "restval", cocoid=77, filename="COCO_val2014_000000000077.jpg"),
        image(3, "val", captions=1, cocoid=78),
    ]
    path = karpathy(tmp_path / "dataset.json", entries)
    assert read_split(path, "train").images == ["1", "COCO_val2014_000000000077"]
    assert read_split(path, "val", "cocoid").images == ["78"]
    assert read_split(path, "val", "filename").images == ["3.jpg"]
    assert read_split(path, "train", "imgid").images == ["1", "2"]
    train = read_split(path, "train", "cocoid")
    assert train.images == ["77"] and train.captions_of() == [[0, 1]]
    assert [caption.id for caption in train.captions] == ["20", "21"] and train.captions[1].text == "man 2 window 1"
    assert train.skipped == [f"{path}: images[0]: no `cocoid`, which data.image_key cocoid asks for"]
    with pytest.raises(UserError, match="no usable caption of the split test"):
        read_split(path, "test")


def test_captions_may_have_tokens_alone(tmp_path):
    entry = image(1, captions=1)
    entry["sentences"][0] = {"tokens": ["a", "man"], "sentid": 4}
    assert read_split(karpathy(tmp_path / "x.json", [entry]), "train").captions[0].text == "a man"


def test_faulty_entries_are_left_out_and_named(tmp_path):
    twice, empty, silent = image(4), image(5, captions=0), image(6, captions=1)
    twice["sentences"][1]["sentid"] = 40
    silent["sentences"][0]["raw"] = " "
    entries = [
        image(1),
        image(1),
        "what",
        {"split": "train"},
        twice,
        empty,
        silent,
        image(7),
        image(8, "val", captions=0),
    ]
    path = karpathy(tmp_path / "x.json", entries)
    split = read_split(path, "train")
    assert split.images == ["1", "4", "7"]
    assert [caption.id for caption in split.captions] == ["10", "11", "40", "70", "71"]
    assert [caption.image for caption in split.captions] == [0, 0, 1, 2, 2]
    assert [message.removeprefix(f"{path}: ") for message in split.skipped] == [
        "images[1]: image 1 stands for the second time",
        "images[2]: no object with a `split`",
        "images[3]: no `filename`, which data.image_key stem asks for",
        "images[4] (4), sentence 1: caption id 40 stands for the second time",
        "images[5]: image 5 has no captions",
        "images[6] (6), sentence 0: caption 60 has no text in `raw`",
        "images[6]: image 6 has no usable caption",
    ]
    assert split.records == len(split.captions) + len(split.skipped)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "must be an object with a list `images`"),
        ('{"images": {}}', "must be an object with a list `images`"),
        ('{"images": []}', "no usable caption of the split val"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_split(path, "val")


def test_missing_files_say_what_is_there(tmp_path):
    (tmp_path / "captions.json").touch()
    with pytest.raises(UserError, match=r"dataset.json: no such caption file; .* holds captions.json. Give Karpathy"):
        read_split(tmp_path / "dataset.json", "val")
    with pytest.raises(UserError, match="there is no folder"):
        read_split(tmp_path / "no" / "dataset.json", "val")


def test_damaged_lines_of_a_caption_table(tmp_path):
    path = tmp_path / "captions.tsv"
    path.write_bytes(b"7\t1\ta man\n7\t2\n\n7\t1\tagain\n8\t3\t \n9\t4\ta \xff dog\r\n7\t5\tlast\n")
    split = read_split(path, "test")
    assert split.images == ["7", "9"]
    assert [(c.id, c.text, c.image, c.where) for c in split.captions] == [
        ("1", "a man", 0, f"{path}:1"),
        ("4", "a  dog", 1, f"{path}:6"),
        ("5", "last", 0, f"{path}:7"),
    ]
    assert split.skipped == [
        f"{path}:2: 2 columns instead of 3 (image id, caption id, caption)",
        f"{path}:4: caption id 1 stands for the second time",
        f"{path}:5: image id, caption id or caption is empty",
    ]
    assert split.records == 6


def test_captions_of_images_without_regions_are_left_out_and_named(tmp_path):
    path = karpathy(tmp_path / "x.json", [image(number) for number in range(3)])
    split = read_split(path, "train")
    assert split.with_regions({}) is split
    left = split.with_regions({"1": "image 1 has no features"})
    assert left.images == ["0", "2"] and [c.image for c in left.captions] == [0, 0, 1, 1]
    assert left.skipped == [f"{path}: images[1] (1), sentence {k}: image 1 has no features" for k in range(2)]
    assert left.records == 6
    first = split.first_images(2)
    assert (first.images, len(first.captions), first.records, first.skipped) == (["0", "1"], 4, 4, [])


# ------------------------------------------------------------------------------------------------------------- regions
def test_a_table_and_an_lmdb_store_hold_the_same(tmp_path):
    table = TableRegionStore(FLICKR / "dev_images.tsv", 2048)
    assert len(table) == 3 and "68" in table and "69" not in table
    write_lmdb_store(tmp_path / "store", [(name, table[name]) for name in ("67", "68")])
    both = RegionStores([tmp_path / "store", FLICKR / "dev_images.tsv"], 2048)
    for name in ("67", "68", "70"):
        for field in ("features", "boxes", "width", "height"):
            np.testing.assert_array_equal(getattr(both[name], field), getattr(table[name], field))
    assert (table["70"].width, table["70"].height) == (441, 423)
    again = pickle.loads(pickle.dumps(both))
    np.testing.assert_array_equal(again["70"].features, table["70"].features)
    with pytest.raises(BadRecord, match="image 69 has no features in .*store, .*dev_images.tsv"):
        both["69"]
    with pytest.raises(BadRecord, match="image 69: not in the table"):
        table["69"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (1, b"wide", "b'wide' is not a number above 0"),
        (3, b"2", "boxes are not base64 of 2 rows"),
        (3, b"0", "b'0' is not a number above 0"),
        (4, b"a", "boxes are not base64"),
        (5, b"AAAA", "features are not base64"),
        (2, b"20", "lies outside"),
    ],
)
def test_damaged_lines_of_a_region_table(tmp_path, column, value, message):
    lines = (FLICKR / "dev_images.tsv").read_bytes().splitlines()
    columns = lines[1].split(b"\t")
    columns[column] = value
    path = tmp_path / "images.tsv"
    path.write_bytes(b"\n".join([lines[0], b"\t".join(columns), b"", lines[2]]))
    table = TableRegionStore(path, 2048)
    with pytest.raises(BadRecord, match=message) as caught:
        table["68"]
    assert str(caught.value).startswith(f"{path}, image 68")
    assert len(table["70"].boxes) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"67\t1\t1\t1\tx\ty", r"images.tsv:4: image 67 stands for the second time"),
        (b"71\t1\t1\t1\tx", r"images.tsv:4: 5 columns instead of 6"),
        (b"\t1\t1\t1\tx\ty", r"images.tsv:4: 6 columns"),
    ],
)
def test_region_tables_that_are_refused(tmp_path, line, message):
    path = tmp_path / "images.tsv"
    path.write_bytes((FLICKR / "dev_images.tsv").read_bytes() + line)
    with pytest.raises(UserError, match=message):
        TableRegionStore(path)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"train_image_list": [1, 2]},
        {"train_image_list": [1, 2], "train_hard_pool": [[0, 1]]},
        {"train_image_list": [1, 2], "train_hard_pool": [[0, 1], [1, 2]]},
        {"train_image_list": [1, 2], "train_hard_pool": [[0, 1], [1, -1]]},
        {"train_image_list": [1, 2], "train_hard_pool": [[0, 1], []]},
        None,
    ],
)
def test_hard_negatives_of_another_form(tmp_path, content: Optional[Any]):
    path = tmp_path / "hard.pkl"
    path.write_bytes(b"" if content is None else pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match="hard"):
        read_hard_images(path)


def test_a_split_of_nothing_has_no_captions():
    assert RetrievalSplit().captions_of() == []
