"""Examples of the cloze test: one node masked, whole, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ernie_vil.data.cloze import KINDS, ClozeDataset, collate_cloze
from ernie_vil.data.regions import Regions, box_locations, with_whole_image
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.errors import BadRecord
from ernie_vil.scene_graph.files import CaptionFile

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a black and white dog cat on in front of top mat the . play ##ing ##s frisbee"
TOKENIZER = WordPieceTokenizer({word: number for number, word in enumerate(WORDS.split())})


def caption(number, text, objects=(), attributes=(), relations=(), image="one"):
    """A line of a caption file; nodes are given by their words, which stand in the caption once, or by spans."""

    def node(words, **ties):
        spans = [[text.index(words), text.index(words) + len(words)]] if isinstance(words, str) else words
        words = " ".join(text[start:end] for start, end in spans)
        return {"words": words, "lemma": words, "spans": spans, **ties}

    return {
        "id": f"caption-{number}",
        "image_id": image,
        "caption": text,
        "objects": [node(words) for words in objects],
        "attributes": [node(words, object=tie) for words, tie in attributes],
        "relations": [node(words, subject=subject, object=tie) for words, subject, tie in relations],
    }


CAPTIONS = [
    caption(0, "A black dogs on a mat.", ["dogs", "mat"], [("black", 0)], [("on", 0, 1)]),
    caption(1, "the"),
    caption(
        2,
        "a dog and a cat in front of the mat",
        ["dog", "cat", "mat"],
        [],
        [("in front of", 0, 2), ("in front of", 1, 2)],
    ),
    caption(3, "A dog playing with a frisbee", ["dog", "frisbee"], [], [([[6, 13], [14, 18]], 0, 1)], image="two"),
]


def regions(number, boxes=3):
    rng = np.random.default_rng(number)
    corners = np.sort(rng.uniform(0, 90, (boxes, 2, 2)), axis=1).reshape(boxes, 4)
    return Regions(rng.random((boxes, 4), dtype=np.float32), corners.astype(np.float32), 100, 90)


class Store(dict):
    def __missing__(self, image_id):
        raise BadRecord(f"store, image {image_id}: not in the store")


STORE = Store(one=regions(1), two=regions(2, 5))


def open_dataset(folder: Path, lines=CAPTIONS, **options) -> ClozeDataset:
    path = folder / "captions.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return ClozeDataset(CaptionFile(path), TOKENIZER, STORE, **options)


def masked_text(dataset, key):
    tokens = WORDS.split()
    return " ".join(tokens[number] for number in dataset[key]["input_ids"])


def test_every_node_is_an_example_with_all_its_pieces_masked(tmp_path):
    dataset = open_dataset(tmp_path)
    texts = [masked_text(dataset, key) for key in dataset.keys]
    assert texts == [
        "[CLS] a black [MASK] [MASK] on a mat . [SEP]",
        "[CLS] a black dog ##s on a [MASK] . [SEP]",
        "[CLS] a [MASK] and a cat in front of the mat [SEP]",
        "[CLS] a dog and a [MASK] in front of the mat [SEP]",
        "[CLS] a dog and a cat in front of the [MASK] [SEP]",
        "[CLS] a [MASK] play ##ing [UNK] a frisbee [SEP]",
        "[CLS] a dog play ##ing [UNK] a [MASK] [SEP]",
        "[CLS] a [MASK] dog ##s on a mat . [SEP]",
        "[CLS] a black dog ##s [MASK] a mat . [SEP]",
        "[CLS] a dog and a cat [MASK] [MASK] [MASK] the mat [SEP]",  # both triplets have these words: one node
        "[CLS] a dog [MASK] [MASK] [MASK] a frisbee [SEP]",
    ]
    assert KINDS == ("object", "attribute", "relation")
    assert dataset.sizes == (7, 1, 3) and len(dataset) == 11 and not dataset.unreadable
    assert dataset.keys == [(0, 0, i) for i in range(7)] + [(1, 0, 0)] + [(2, 0, i) for i in range(3)]


def test_labels_give_the_caption_back_and_spans_are_the_nodes(tmp_path):
    dataset = open_dataset(tmp_path)
    words = []
    for key in dataset.keys:
        sample = dataset[key]
        assert (sample["part"], sample["index"]) == key[::2]
        ids = list(sample["input_ids"])
        assert [column for column, number in enumerate(ids) if number == TOKENIZER.mask_id] == sample["columns"]
        for column, label in zip(sample["columns"], sample["labels"]):
            ids[column] = label
        record, spans = dataset.node(key)
        assert ids == [TOKENIZER.cls_id, *TOKENIZER.encode(record.graph.caption), TOKENIZER.sep_id]
        words.append(" ".join(record.graph.caption[start:end] for start, end in spans))
    assert words[:7] == ["dogs", "mat", "dog", "cat", "mat", "dog", "frisbee"]
    assert words[7:] == ["black", "on", "in front of", "playing with"]


def test_no_region_is_masked_and_the_whole_image_comes_first(tmp_path):
    dataset = open_dataset(tmp_path)
    for key, image in (((0, 0, 0), "one"), ((2, 0, 2), "two")):
        sample, there = dataset[key], STORE[image]
        features, locations = with_whole_image(there.features, box_locations(there.boxes, 100, 90))
        np.testing.assert_array_equal(sample["region_features"], features)
        np.testing.assert_array_equal(sample["region_locations"], locations)
    assert len(open_dataset(tmp_path, max_regions=4)[2, 0, 2]["region_features"]) == 4


def test_nodes_behind_the_cut_are_left_out(tmp_path):
    dataset = open_dataset(tmp_path, max_length=8)  # six pieces of the caption
    texts = [masked_text(dataset, key) for key in dataset.keys]
    assert "[CLS] a black [MASK] [MASK] on a [SEP]" in texts
    assert not any("mat" in text for text in texts)
    # "in front of" is cut, and "on" and the dog's relation have lost an object.
    assert dataset.sizes[2] == 0 and dataset.sizes[1] == 1


def test_a_batch_knows_where_its_masks_are(tmp_path):
    dataset = open_dataset(tmp_path)
    keys = [(0, 0, 0), (2, 0, 2), (2, 0, 1), (1, 0, 0)]
    batch = collate_cloze([dataset[key] for key in keys])
    assert batch["part"].tolist() == [0, 2, 2, 1] and batch["index"].tolist() == [0, 2, 1, 0]
    assert batch["input_ids"].shape == (4, 12) and batch["region_features"].shape == (4, 6, 4)
    assert batch["region_mask"].sum(1).tolist() == [4, 6, 4, 4]
    flat = batch["input_ids"].reshape(-1)
    assert np.flatnonzero(flat == TOKENIZER.mask_id).tolist() == sorted(batch["token_positions"].tolist())
    assert (batch["token_positions"] // 12 == batch["token_rows"]).all()
    assert batch["token_rows"].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    words = [WORDS.split()[number] for number in batch["token_labels"]]
    assert words == ["dog", "##s", "play", "##ing", "[UNK]", "in", "front", "of", "black"]
    assert all(array.size and array.dtype in (np.int64, np.float32) for array in batch.values())


@pytest.mark.parametrize(("most", "sizes", "left_out"), [(1, (1, 1, 1), (6, 0, 2)), (3, (3, 1, 3), (4, 0, 0))])
def test_a_subset_is_evenly_spaced_and_says_what_it_leaves_out(tmp_path, most, sizes, left_out):
    whole, dataset = open_dataset(tmp_path), open_dataset(tmp_path, max_examples=most)
    assert dataset.sizes == sizes and tuple(dataset.left_out.values()) == left_out
    for key in dataset.keys:
        total = whole.sizes[key[0]]
        other = key[2] if total <= most else key[2] * total // most
        assert masked_text(dataset, key) == masked_text(whole, (key[0], 0, other))
    assert not any(whole.left_out.values())


def test_bad_captions_are_named_and_bad_pictures_on_look_up(tmp_path):
    lost = caption(9, "a dog", ["dog"], image="nowhere")
    elsewhere = {**CAPTIONS[0], "id": "x", "caption": "Another text altogether."}
    dataset = open_dataset(tmp_path, [*CAPTIONS, elsewhere, "{", lost])
    assert len(dataset.unreadable) == 2
    assert all("captions.jsonl:" in message for message in dataset.unreadable)
    assert any("jsonl:5" in message and "another caption" in message for message in dataset.unreadable)
    with pytest.raises(BadRecord, match="jsonl:7: store, image nowhere"):
        dataset[0, 0, 7]


def test_captions_without_nodes_alone_give_no_examples(tmp_path):
    dataset = open_dataset(tmp_path, [caption(0, "the"), caption(1, "A dog.")])
    assert dataset.sizes == (0, 0, 0) and dataset.keys == [] and not dataset.unreadable
