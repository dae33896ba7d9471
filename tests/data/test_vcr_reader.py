"""The VCR reader against everything the original's reader made of the same files, and against files with faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import pytest

from ernie_vil.data.names import NEUTRAL_NAMES, NameDraws, read_names
from ernie_vil.data.regions import open_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.data.vcr import VcrDataset, VcrFile, collate_vcr, parse_record, plain_text
from ernie_vil.engine.data import GuardedDataset, JointBatches, StepSampler, guarded_collate, make_loader
from ernie_vil.errors import BadRecord, UserError

ORIGINAL = Path(__file__).parent / "ernie_vil"
SAMPLES = ORIGINAL / "samples"
VCR = SAMPLES / "vcr"
GOLDEN = json.loads((ORIGINAL / "readers" / "readers.json").read_text(encoding="utf-8"))["vcr"]
CASES = [name for name in GOLDEN if isinstance(GOLDEN[name], dict)]
PARTS = {"task_vcr.json": [0, 1], "task_vcr_qa.json": [0], "task_vcr_qar.json": [1]}


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer.from_file(SAMPLES / "vocab.txt")


def make_dataset(tokenizer: WordPieceTokenizer, split: str, names: NameDraws, **options: Any) -> VcrDataset:
    stores = [open_store(VCR / folder) for folder in ("feat.lmdb", "gt_feat.lmdb")]
    return VcrDataset(VcrFile(VCR / f"{split}.jsonl", split), tokenizer, *stores, names, **options)


def golden_dataset(tokenizer: WordPieceTokenizer, case: dict, recorded: bool = True) -> VcrDataset:
    parts = PARTS[case["task_file"]]
    used = iter(case["names_used_per_entry"])
    draws: list[list] = [[], []]
    lengths = [60, 80]
    for part, entries, length in zip(parts, case["entries_per_task"], case["max_seq_len"]):
        draws[part] = [next(used) for _ in entries]
        lengths[part] = length
    names = NameDraws([], recorded=draws) if recorded else NameDraws.from_table(SAMPLES / case["names_table"])
    return make_dataset(tokenizer, case["split"], names, max_lengths=tuple(lengths))


@pytest.mark.parametrize(
    ("name", "recorded"),
    [(name, True) for name in CASES]
    # from a table of several names, the original's draws (Python 2) can only be replayed from the record
    + [(name, False) for name in CASES if "one_name" in GOLDEN[name]["names_table"]],
)
def test_original_entries(tokenizer: WordPieceTokenizer, name: str, recorded: bool) -> None:
    case = GOLDEN[name]
    dataset = golden_dataset(tokenizer, case, recorded)
    for part, entries in zip(PARTS[case["task_file"]], case["entries_per_task"]):
        assert dataset.sizes[part] == len(entries) > 0
        for index, entry in enumerate(entries):
            sample = dataset[part, 0, index]
            assert sample["input_ids"] == entry["input_ids"]
            assert sample["token_type_ids"] == entry["segment_ids"]
            assert [len(ids) for ids in sample["input_ids"]] == entry["input_lens"]
            assert sample["label"] == entry["target"]
            assert sample["question_id"] == entry["anno_id"]
            assert dataset.file.image_ids[sample["question_index"]] == str(entry["img_id"])


def test_original_batches(tokenizer: WordPieceTokenizer) -> None:
    case = GOLDEN["joint_train"]
    arrays = np.load(ORIGINAL / "readers" / "readers.npz")
    dataset = golden_dataset(tokenizer, case)
    batches = JointBatches(dataset.sizes, case["batch_size"], shuffle=False, epochs=1, turn=1)
    assert len(batches) == len(case["batches_qids"]) == 4
    for step, question_ids in enumerate(case["batches_qids"]):
        batch = collate_vcr([dataset[key] for key in batches[step]])

        def golden(field: str, step: int = step) -> np.ndarray:
            return arrays[f"vcr/joint_train/batch{step}/{field}"]

        for ours, theirs in (
            ("input_ids", "src_ids"),
            ("position_ids", "pos_ids"),
            ("token_type_ids", "sent_ids"),
            ("attention_mask", "input_mask"),
            ("region_mask", "image_mask"),
            ("labels", "labels"),
            ("question_id", "qids"),
        ):
            np.testing.assert_array_equal(batch[ours], golden(theirs)[..., 0], err_msg=ours)
            assert batch[ours].dtype == golden(theirs).dtype
        np.testing.assert_array_equal(batch["region_locations"], golden("image_loc"))
        features = batch["region_features"]
        assert features.dtype == batch["region_locations"].dtype == np.float32
        np.testing.assert_allclose(features[..., :16], golden("image_embeddings_first16"), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(features[:, 0], golden("image_embeddings_row0"), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(features.sum(-1), golden("image_embeddings_rowsum"), rtol=1e-5, atol=1e-4)
        assert batch["part"].tolist() == golden("task_index").tolist() * len(question_ids)
        assert batch["index"].tolist() == [index for _, _, index in batches[step]]
        assert batch["question_id"].tolist() == question_ids
        one_hot = np.eye(4, dtype=np.float32)[batch["labels"]]
        np.testing.assert_array_equal(one_hot.reshape(-1, 1), golden("binary_labels"))


def test_largest_number_of_regions(tokenizer: WordPieceTokenizer) -> None:
    names = NameDraws(["Casey"])
    full = make_dataset(tokenizer, "val", names)[0, 0, 0]
    capped = make_dataset(tokenizer, "val", names, max_regions=4)[0, 0, 0]
    assert len(full["region_features"]) == 1 + 2 + 2
    assert capped["region_features"].shape == (4, 2048)
    # annotated boxes come first when room is short: the last detected one has to go
    np.testing.assert_array_equal(capped["region_locations"], full["region_locations"][[0, 1, 3, 4]])
    np.testing.assert_array_equal(capped["region_features"], full["region_features"][[0, 1, 3, 4]])


def test_detected_regions_alone(tokenizer: WordPieceTokenizer) -> None:
    file = VcrFile(VCR / "val.jsonl", "val")
    store = open_store(VCR / "feat.lmdb")
    sample = VcrDataset(file, tokenizer, store, None, NameDraws(["Casey"]))[0, 0, 0]
    features = store[file.image_ids[0]].features
    assert len(sample["region_features"]) == len(features) + 1
    np.testing.assert_array_equal(sample["region_features"][1:], features)
    np.testing.assert_allclose(sample["region_features"][0], features.mean(0), rtol=1e-5, atol=1e-6)


def test_indices_of_questions_and_answers(tokenizer: WordPieceTokenizer) -> None:
    names = NameDraws(["Casey"])
    test = make_dataset(tokenizer, "test", names)
    assert test.sizes == (1, 4)
    found = [(test[key]["question_index"], test[key]["answer_index"]) for part in (0, 1) for key in test.keys(part)]
    assert found == [(0, -1), (0, 0), (0, 1), (0, 2), (0, 3)]
    assert test.file.annot_ids == ["test-10"]
    val = make_dataset(tokenizer, "val", names)
    assert val.sizes == (2, 2) and len(val) == 4
    assert [val[1, 0, i]["answer_index"] for i in range(2)] == [0, 0] == [r.answer_label for r in val.file]
    every = make_dataset(tokenizer, "val", names, every_answer=True)
    assert every.sizes == (2, 8)
    assert every[1, 0, 4]["input_ids"] == val[1, 0, 1]["input_ids"] != every[1, 0, 5]["input_ids"]
    assert (every[1, 0, 5]["question_index"], every[1, 0, 5]["answer_index"], every[1, 0, 5]["label"]) == (1, 1, 3)


def test_batch_of_unequal_pictures(tokenizer: WordPieceTokenizer) -> None:
    dataset = make_dataset(tokenizer, "val", NameDraws(["Casey"]))
    samples = [dataset[1, 0, 0], dataset[1, 0, 1]]
    samples[1]["region_features"] = samples[1]["region_features"][:2]
    samples[1]["region_locations"] = samples[1]["region_locations"][:2]
    batch = collate_vcr(samples)
    assert batch["region_features"].shape == (2, 5, 2048)
    assert batch["region_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert not batch["region_features"][1, 2:].any() and not batch["region_locations"][1, 2:].any()
    assert batch["attention_mask"].sum(1).tolist() == [len(ids) for s in samples for ids in s["input_ids"]]
    assert batch["part"].tolist() == [1, 1] and batch["question_index"].tolist() == [0, 1]


# ---------------------------------------------------------------------------------------------------------- names


def test_draws_depend_on_nothing_but_their_place() -> None:
    objects = ["person", "dog", "person"] * 4
    draws = NameDraws.from_table(VCR / "unisex_names_table.csv", seed=3)

    def draw(**other: Any) -> list[str]:
        place = {"part": 0, "split": "train", "line": 7, "entry": 6, "objects": objects, **other}
        return draws.draw(**place)

    first = draw()
    assert first[1::3] == ["dog"] * 4
    assert {name for i, name in enumerate(first) if i % 3 != 1} <= {"Casey", "Riley", "Jessie", "Jackie", "Avery"}
    assert draw() == first == draw(entry=99)
    for other in ({"part": 1}, {"split": "val"}, {"line": 8}):
        assert draw(**other) != first
    assert NameDraws(draws.names, seed=4).draw(0, "train", 7, 6, objects) != first
    # written down once: a run resumed under another version of Python must find the same names
    assert NameDraws(["a", "b", "c"], seed=1).draw(0, "val", 2, 0, ["person"] * 10) == list("abbccbcbab")


def test_draws_are_even_and_with_replacement() -> None:
    names = ["a", "b", "c", "d"]
    draws = NameDraws(names)
    drawn = [draws.draw(0, "train", line, line, ["person", "person"]) for line in range(4000)]
    counts = {pair: drawn.count(list(pair)) for pair in ((x, y) for x in names for y in names)}
    assert all(abs(count - 250) < 100 for count in counts.values()), counts


def test_names_differ_between_the_parts(tokenizer: WordPieceTokenizer) -> None:
    dataset = make_dataset(tokenizer, "train", NameDraws.from_table(VCR / "unisex_names_table.csv"))
    question = [dataset[part, 0, 0]["input_ids"][0][:13] for part in (0, 1)]
    assert question[0] != question[1]


def test_recorded_names(tokenizer: WordPieceTokenizer, tmp_path: Path) -> None:
    recorded = [[["Riley", "Avery", "dog", "Riley", "bottle"]] * 2, []]
    path = tmp_path / "names.json"
    path.write_text(json.dumps(recorded))
    names = NameDraws.from_recorded(path)
    dataset = make_dataset(tokenizer, "val", names)
    assert (
        dataset[0, 0, 0]["input_ids"]
        == make_dataset(tokenizer, "val", NameDraws([], recorded=recorded))[0, 0, 0]["input_ids"]
    )
    with pytest.raises(UserError, match="no names were recorded for part 1, entry 0"):
        dataset[1, 0, 0]
    with pytest.raises(UserError, match="part 0 are for 2 entries, but the data has 3"):
        make_dataset(tokenizer, "train", names)
    with pytest.raises(UserError, match="part 0, entry 1, are 2, but line 2 of split val has 5 objects"):
        make_dataset(tokenizer, "val", NameDraws([], recorded=[[["a"] * 5, ["a"] * 2]]))[0, 0, 1]
    for text, message in (("{", "not a JSON file"), ('[["a"]]', "expected a list per part")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            NameDraws.from_recorded(path)
    with pytest.raises(UserError, match="no such file of recorded names"):
        NameDraws.from_recorded(tmp_path / "absent.json")


def test_tables_of_names(tmp_path: Path) -> None:
    assert read_names(VCR / "unisex_names_table.csv") == ["Casey", "Riley", "Jessie", "Jackie", "Avery"]
    own = read_names(NEUTRAL_NAMES)
    assert len(own) == len(set(own)) >= 100
    assert all(name.isascii() and name.isalpha() for name in own)
    assert NameDraws.from_table().names == own
    path = tmp_path / "names.csv"
    for text, message in ((",name\n1\n", r"names.csv:2: no name"), (",name\n", "holds no name"), ("", "holds no name")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_names(path)
    path.write_bytes(b"1,\xff\n")
    with pytest.raises(UserError, match="not a CSV table"):
        read_names(path)
    with pytest.raises(UserError, match="cannot read the table"):
        read_names(tmp_path / "absent.csv")


# ------------------------------------------------------------------------------------------------------- bad input


def good_fields() -> dict[str, Any]:
    return json.loads((VCR / "val.jsonl").read_text(encoding="utf-8").splitlines()[0])


def changed(**fields: Any) -> Callable[[dict], Any]:
    return lambda record: {**record, **fields}


def without(name: str) -> Callable[[dict], Any]:
    return lambda record: {key: value for key, value in record.items() if key != name}


NEEDED = ["objects", "question", "answer_choices", "rationale_choices"]
NEEDED += ["answer_label", "rationale_label", "img_id", "annot_id"]
FAULTS: list[tuple[Callable[[dict], Any], str]] = [
    *((without(name), f"no field `{name}`") for name in NEEDED),
    (lambda record: [record], "expected a JSON object, found list"),
    (changed(answer_label=4), "`answer_label` is 4, not a number from 0 to 3"),
    (changed(rationale_label=-1), "`rationale_label` is -1, not a number"),
    (changed(answer_label="1"), "`answer_label` is '1', not a number"),
    (changed(answer_label=True), "`answer_label` is True, not a number"),
    (changed(answer_label=None), "`answer_label` is None, not a number"),
    (changed(objects="person"), "`objects` is not a list"),
    (changed(objects=["person", 3]), "`objects` is not a list of class names"),
    (changed(question="Why?"), "`question` is not a list of tokens"),
    (changed(question=["Why", 3]), "`question` has the token 3, neither"),
    (changed(question=["Why", [0, "1"]]), "neither a word nor a list of object numbers"),
    (changed(question=["Why", [True]]), "neither a word nor a list of object numbers"),
    (changed(question=["Why", [5]]), "`question` points at object 5, but there are 5 objects"),
    (changed(question=["Why", [0, -1]]), "`question` points at object -1"),
    (changed(answer_choices=[["a"], ["b"], [[9]], ["d"]]), r"`answer_choices[2]` points at object 9"),
    (changed(rationale_choices=[["a"], "b", ["c"], ["d"]]), r"`rationale_choices[1]` is not a list"),
    (changed(answer_choices=[["a"]] * 3), "`answer_choices` must be a list of 4 choices, found 3 of them"),
    (changed(answer_choices=[["a"]] * 5), "found 5 of them"),
    (changed(rationale_choices={"a": 1}), "must be a list of 4 choices, found dict"),
    (changed(img_id="val7"), "`img_id` is 'val7'; expected something like 'val-7'"),
    (changed(img_id="dev-7"), "`img_id` is 'dev-7'"),
    (changed(img_id="val-7x"), "`img_id` is 'val-7x'"),
    (changed(img_id="val-²"), "`img_id` is 'val-²'"),
    (changed(img_id=7), "`img_id` is 7"),
    (changed(annot_id="val-"), "`annot_id` is 'val-'"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[message[:40] for _, message in FAULTS])
def test_bad_record_is_named_and_left_out(tmp_path: Path, change: Callable[[dict], Any], message: str) -> None:
    path = tmp_path / "val.jsonl"
    lines = [json.dumps(good_fields()), json.dumps(change(good_fields())), json.dumps(good_fields())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    file = VcrFile(path, "val")
    assert len(file) == 2 and [file.line(i) for i in range(2)] == [1, 3]
    assert file[0] == file[1]
    (skipped,) = file.skipped
    assert skipped.startswith(f"{path}:2: ") and message in skipped


def test_lines_that_are_not_json(tmp_path: Path) -> None:
    good = (VCR / "val.jsonl").read_bytes().splitlines()
    path = tmp_path / "val.jsonl"
    path.write_bytes(b"\n".join([b"{", b"", good[1][:500], b'{"question": "\xff"}', good[0], b"  ", good[1]]))
    file = VcrFile(path, "val")
    assert [message.split(": ")[0] for message in file.skipped] == [f"{path}:{line}" for line in (1, 3, 4)]
    assert all("not a line of JSON" in message for message in file.skipped)
    # the byte positions must be right behind lines that were left out, and without a line feed at the end
    whole = VcrFile(VCR / "val.jsonl", "val")
    assert list(file) == list(whole) and file.where(1) == f"{path}:7"


def test_test_split_needs_no_labels_and_ignores_them() -> None:
    fields = good_fields()
    unlabelled = json.dumps({name: value for name, value in fields.items() if not name.endswith("_label")}).encode()
    record = parse_record(unlabelled, "x:1", labelled=False)
    assert (record.answer_label, record.rationale_label) == (0, 0)
    assert parse_record(json.dumps({**fields, "answer_label": 3}).encode(), "x:1", labelled=False) == record
    with pytest.raises(BadRecord, match=r"^x:1: no field `answer_label`"):
        parse_record(unlabelled, "x:1", labelled=True)


def test_empty_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    for content, message in (
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"{\n", "all 1 lines are bad"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"no usable entry for split val; {message}") as error:
            VcrFile(path, "val")
        assert str(path) in str(error.value)
    with pytest.raises(UserError, match="VCR has no split 'dev'"):
        VcrFile(path, "dev")
    for missing, found in (
        (tmp_path / "train.jsonl", f"{tmp_path} holds val.jsonl"),
        (tmp_path / "no" / "train.jsonl", f"there is no folder {tmp_path / 'no'} either"),
        (tmp_path, "that is a folder"),
    ):
        with pytest.raises(UserError) as error:
            VcrFile(missing, "train")
        for part in (str(missing), found, "vcr1annots.zip", "visualcommonsense.com", "--mini"):
            assert part in str(error.value)


def test_picture_missing_from_a_store(tokenizer: WordPieceTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    fields = {**good_fields(), "img_id": "val-999"}
    path.write_text(json.dumps(good_fields()) + "\n" + json.dumps(fields) + "\n")
    stores = [open_store(VCR / folder) for folder in ("feat.lmdb", "gt_feat.lmdb")]
    dataset = VcrDataset(VcrFile(path, "val"), tokenizer, *stores, NameDraws(["Casey"]))
    assert dataset[0, 0, 0]["label"] == 0
    with pytest.raises(BadRecord) as error:
        dataset[0, 0, 1]
    assert str(error.value).startswith(f"{path}:2: ")
    assert "feat.lmdb" in str(error.value) and "1000999" in str(error.value)


def test_words_and_names() -> None:
    names = ["Casey", "Riley", "dog"]
    assert (
        plain_text(["Why", "do", [0, 1], "pat", [2], "'s", "head", "?"], names)
        == "Why do Casey Riley pat dog 's head ?"
    )


# --------------------------------------------------------------------------------------------------------- workers


def load(dataset: VcrDataset, workers: int, order: Optional[list[int]] = None) -> dict[tuple[int, int], list]:
    batches = JointBatches(dataset.sizes, 2, seed=5, epochs=2, turn=1)
    chosen = [batches[step] for step in order or range(len(batches))]
    loader = make_loader(
        GuardedDataset(dataset), guarded_collate(collate_vcr), StepSampler(chosen, 0, len(chosen)), workers
    )
    rows = {}
    for batch in loader:
        assert batch["skipped"] == [] and batch["size"] == len(batch["labels"])
        words = batch["input_ids"].numpy().reshape([batch["size"], -1])
        mask = batch["attention_mask"].numpy().reshape([batch["size"], -1]) > 0
        for row, question in enumerate(batch["question_index"].tolist()):
            entry = (words[row][mask[row]].tolist(), batch["region_features"][row].numpy().tobytes())
            assert rows.setdefault((batch["part"][row].item(), question), entry) == entry  # the same in every epoch
    return rows


def test_samples_do_not_depend_on_workers_or_order(tokenizer: WordPieceTokenizer) -> None:
    dataset = make_dataset(tokenizer, "train", NameDraws.from_table(seed=1))
    alone = load(dataset, workers=0)
    assert len(alone) == 6
    assert load(dataset, workers=2) == alone
    assert load(dataset, workers=2, order=[7, 2, 5, 0, 4, 1, 3, 6]) == alone


def test_recorded_names_can_be_kept_for_several_splits(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"train": [[["Bo"]]], "val": [[["Al"], ["Cy"]]]}))
    assert NameDraws.from_recorded(path, "val").draw(0, "val", 2, 1, ["person"]) == ["Cy"]
    with pytest.raises(UserError, match="no names for the split test; it has train, val"):
        NameDraws.from_recorded(path, "test")
