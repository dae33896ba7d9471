"""Region stores and the arrays made of them, against the original's readers and on every fault of a record."""

from __future__ import annotations

import base64
import contextlib
import json
import multiprocessing
import pickle
import tempfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ernie_vil.data.regions import (
    LmdbRegionStore,
    Regions,
    box_locations,
    check_fingerprints,
    merge_with_ground_truth,
    open_store,
    with_whole_image,
    write_lmdb_store,
)
from ernie_vil.errors import BadRecord, UserError

DATA = Path(__file__).parent / "ernie_vil"
VCR = DATA / "samples" / "vcr"
GOLDEN = np.load(DATA / "readers" / "readers.npz")
FACTS = json.loads((DATA / "readers" / "readers.json").read_text())


def regions(count: int = 3, width: int = 4, seed: int = 0, **changes) -> Regions:
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(0, 50, (count, 2, 2)), axis=1).reshape(count, 4).astype("f4")
    values = {"features": rng.normal(size=(count, width)).astype("f4"), "boxes": boxes, "width": 60, "height": 50}
    return Regions(**{**values, **changes})


def record(source: Regions, **changes) -> dict:
    """A record of the circulating layout, written independently of the store."""
    values = {"image_id": b"7", "image_h": source.height, "image_w": source.width, "num_boxes": len(source.boxes)}
    values["features"] = base64.b64encode(source.features.tobytes())
    values["boxes"] = base64.b64encode(source.boxes.tobytes())
    values.update(changes)
    return {key: value for key, value in values.items() if value is not None}


def raw_store(folder: Path, **entries) -> Path:
    """An LMDB folder with these entries: bytes as they are, anything else pickled."""
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key.encode(), value if isinstance(value, bytes) else pickle.dumps(value, 2))
    return folder


# --- the original's readers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_id", ["7", "1000000"])
@pytest.mark.parametrize("name", ["feat", "gt_feat"])
def test_store_equals_the_original_reader(name: str, image_id: str) -> None:
    store = open_store(VCR / f"{name}.lmdb", feature_size=2048)
    assert store.keys() == FACTS["lmdb"][name]["keys"] and len(store) == FACTS["lmdb"][name]["length"]
    assert store.fingerprint is None
    found = store[image_id]
    features, locations = with_whole_image(found.features, box_locations(found.boxes, found.width, found.height))
    assert len(features) == FACTS["lmdb"]["num_boxes"][f"{name}/{image_id}"]
    assert features.dtype == np.float32 and locations.dtype == np.float64
    prefix = f"lmdb/{name}/{image_id}"
    np.testing.assert_array_equal(features[:, :16], GOLDEN[f"{prefix}/features_first16"])
    np.testing.assert_array_equal(locations.astype("f4"), GOLDEN[f"{prefix}/image_location"])
    original = GOLDEN[f"{prefix}/image_location_ori"]
    np.testing.assert_array_equal(found.boxes, original[1:, :4])
    assert (found.width, found.height) == tuple(original[0, 2:4])


@pytest.mark.parametrize("batch", range(4))
def test_merged_regions_equal_the_original_batches(batch: int) -> None:
    detected, true = open_store(VCR / "feat.lmdb"), open_store(VCR / "gt_feat.lmdb")
    case = FACTS["vcr"]["joint_train"]
    task = case["batches_task_index"][batch]
    images = {entry["anno_id"]: str(entry["img_id"]) for entry in case["entries_per_task"][task]}
    golden = {
        name: GOLDEN[f"vcr/joint_train/batch{batch}/image_{name}"]
        for name in ("embeddings_first16", "embeddings_row0", "embeddings_rowsum", "loc", "mask")
    }
    questions = case["batches_qids"][batch]
    assert len(questions) == len(golden["mask"]) > 0
    for index, question in enumerate(questions):
        features, locations = merge_with_ground_truth(detected[images[question]], true[images[question]], 100)
        count = int(golden["mask"][index].sum())
        assert features.shape == (count, 2048) and locations.shape == (count, 5)
        np.testing.assert_array_equal(features[:, :16], golden["embeddings_first16"][index][:count])
        np.testing.assert_array_equal(features[0], golden["embeddings_row0"][index])
        np.testing.assert_array_equal(locations.astype("f4"), golden["loc"][index][:count])
        np.testing.assert_allclose(features.sum(axis=1), golden["embeddings_rowsum"][index][:count], rtol=1e-5)


# --- locations and merging --------------------------------------------------------------------------------------------


def test_box_locations_by_hand() -> None:
    found = box_locations(np.array([[10, 20, 40, 30], [0, 0, 100, 50]], "f4"), 100, 50)
    np.testing.assert_allclose(found, [[0.1, 0.4, 0.4, 0.6, 0.06], [0, 0, 1, 1, 1]], rtol=1e-15)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 14))
def test_merge_follows_the_rule_row_by_row(count: int, true_count: int, cap: int) -> None:
    detected, true = regions(count, seed=1), regions(true_count, seed=2)
    mean, true_mean = detected.features.mean(axis=0), true.features.mean(axis=0)
    whole = (mean * (count + 1) + true_mean * (true_count + 1)) / (count + true_count + 2)
    rows = [whole, *detected.features]
    true_rows = list(true.features)[: cap - 1]
    expected = [*rows[: cap - len(true_rows)], *true_rows]
    features, locations = merge_with_ground_truth(detected, true, cap)
    assert features.shape == (len(expected), 4) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-6)
    corners = [[0, 0, 60, 50], *detected.boxes.tolist()][: cap - len(true_rows)] + true.boxes[: len(true_rows)].tolist()
    np.testing.assert_allclose(locations, box_locations(np.array(corners, "f4"), 60, 50))


@pytest.mark.parametrize(("cap", "rows"), [(1, 1), (3, 3), (6, 6), (9, 6)])
def test_detected_boxes_alone(cap: int, rows: int) -> None:
    found = regions(5)
    features, locations = merge_with_ground_truth(found, None, cap)
    assert features.shape == (rows, 4) and locations.shape == (rows, 5)
    np.testing.assert_allclose(features[0], found.features.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(features[1:], found.features[: rows - 1])


def test_merging_leaves_its_inputs_alone_and_needs_a_row() -> None:
    found = regions(2)
    before = found.features.copy()
    merge_with_ground_truth(found, regions(2, seed=5), 5)
    np.testing.assert_array_equal(found.features, before)
    with pytest.raises(UserError, match="max_regions is 0"):
        merge_with_ground_truth(found, None, 0)


# --- writing and reading ----------------------------------------------------------------------------------------------

ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda t: t not in ("keys", "fingerprint"))
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def some_regions(draw: st.DrawFn) -> Regions:
    count = draw(st.integers(1, 4))
    width, height = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    unit = hnp.arrays(np.float32, (count, 2, 2), elements=st.floats(0, 1, width=32))
    boxes = (np.sort(draw(unit), axis=1) * np.array([width, height], "f4")).reshape(count, 4)
    probs = draw(st.none() | hnp.arrays(np.float32, (count, 3), elements=floats))
    return Regions(draw(hnp.arrays(np.float32, (count, 5), elements=floats)), boxes, width, height, probs)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(ids, some_regions(), max_size=4), st.none() | st.dictionaries(st.text(), st.integers() | st.text())
)
def test_round_trip_bit_for_bit(items: dict, fingerprint: dict | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_lmdb_store(Path(folder) / "store", items.items(), fingerprint)
        assert [path.name for path in Path(folder).iterdir()] == ["store"]
        store = open_store(Path(folder) / "store", 5)
        assert store.keys() == list(items) and len(store) == len(items) and store.fingerprint == fingerprint
        assert "keys" not in store and "fingerprint" not in store and "absent!" * 200 not in store and 7 not in store
        for image_id, expected in items.items():
            assert image_id in store
            found = store[image_id]
            assert (found.width, found.height) == (expected.width, expected.height)
            for name in ("features", "boxes", "class_probs", "attribute_probs"):
                left, right = getattr(found, name), getattr(expected, name)
                assert (left is None) == (right is None)
                assert left is None or (left.dtype == np.float32 and left.tobytes() == right.tobytes())


def test_store_larger_than_the_first_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ernie_vil.data.regions._INITIAL_MAP_SIZE", 1 << 16)
    items = {str(index): regions(20, 64, seed=index) for index in range(30)}
    write_lmdb_store(tmp_path / "store", items.items())
    store = open_store(tmp_path / "store")
    assert all((store[name].features == items[name].features).all() for name in items)
    assert store.feature_size == 64


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("protocol", range(6))
def test_ids_and_base64_as_bytes_or_text(tmp_path: Path, protocol: int, text: bool) -> None:
    source = regions()
    values, keys = record(source), [b"7"]
    if text:
        values = {key: value.decode() if isinstance(value, bytes) else value for key, value in values.items()}
        keys = ["7"]
    path = raw_store(tmp_path / "s", **{"7": pickle.dumps(values, protocol), "keys": pickle.dumps(keys, protocol)})
    store = open_store(path, 4)
    assert store.keys() == ["7"]
    np.testing.assert_array_equal(store["7"].features, source.features)


def test_arrays_and_class_probabilities_as_in_vilberts_stores(tmp_path: Path) -> None:
    source = regions(class_probs=np.full((3, 5), 0.2, np.float32))
    values = record(source)
    values.pop("class_probs", None)
    values.update(features=source.features, boxes=source.boxes.astype(np.float64), cls_prob=source.class_probs)
    found = open_store(raw_store(tmp_path / "s", **{"7": values, "keys": [b"7"]}), 4)["7"]
    np.testing.assert_array_equal(found.features, source.features)
    np.testing.assert_array_equal(found.boxes, source.boxes)
    np.testing.assert_array_equal(found.class_probs, source.class_probs)
    values["features"] = np.array(["a", "b", "c"])
    store = open_store(raw_store(tmp_path / "t", **{"7": values, "keys": [b"7"]}))
    with pytest.raises(BadRecord, match="image 7: features is not base64 nor an array of numbers"):
        store["7"]


def test_base64_in_lines_and_store_without_key_list(tmp_path: Path) -> None:
    source = regions()
    lines = base64.encodebytes(source.features.tobytes())
    assert lines.count(b"\n") > 0
    store = open_store(raw_store(tmp_path / "s", **{"7": record(source, features=lines), "8": record(source)}))
    assert store.keys() == ["7", "8"]
    np.testing.assert_array_equal(store["7"].features, source.features)


def test_forked_process_and_pickled_copy_read_the_same() -> None:
    store = open_store(VCR / "feat.lmdb", 2048)
    expected = store["7"].features
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy["7"].features, expected)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put((store["7"].features.sum(), copy["1000000"].boxes.shape)))
    child.start()
    assert queue.get(timeout=30) == (expected.sum(), (2, 4))
    child.join()
    assert child.exitcode == 0
    np.testing.assert_array_equal(store["7"].features, expected)  # the parent's map outlives the child


def test_two_stores_over_one_path_and_a_new_file_at_an_old_path(tmp_path: Path) -> None:
    for width in (4, 6):
        write_lmdb_store(tmp_path / str(width), [("a", regions(width=width))])
    first, second = open_store(tmp_path / "4"), open_store(tmp_path / "4")
    assert first["a"].features.shape == second["a"].features.shape == (3, 4)
    (tmp_path / "4").rename(tmp_path / "old")
    (tmp_path / "6").rename(tmp_path / "4")
    assert open_store(tmp_path / "4")["a"].features.shape == (3, 6)


# --- faults of a store ------------------------------------------------------------------------------------------------


def test_paths_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "feat_v2.lmdb").mkdir()
    (tmp_path / "feat_v2.lmdb" / "lock.mdb").touch()
    with pytest.raises(UserError, match=r"feat.lmdb does not exist. .* holds: feat_v2.lmdb"):
        open_store(tmp_path / "feat.lmdb")
    with pytest.raises(UserError, match=r"no data.mdb. It holds: lock.mdb"):
        open_store(tmp_path / "feat_v2.lmdb")
    with pytest.raises(UserError, match=r"does not exist, nor does .*absent"):
        open_store(tmp_path / "absent" / "feat.lmdb")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; a region store is a folder"):
        open_store(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"not LMDB" * 2000, b"short"])
def test_file_that_is_not_lmdb(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises(UserError, match=r"data.mdb is not a readable LMDB file"):
        open_store(tmp_path)["7"]


def test_truncated_store_is_refused_rather_than_touched(tmp_path: Path) -> None:
    data = (VCR / "feat.lmdb" / "data.mdb").read_bytes()
    for size in (len(data) - 4096, len(data) - 1, 3 * 4096):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "data.mdb").write_bytes(data[:size])
        with pytest.raises(UserError, match=rf"data.mdb is cut short \({size} of {len(data)} bytes\)"):
            open_store(folder)["7"]


def test_read_only_store_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes((VCR / "feat.lmdb" / "data.mdb").read_bytes())
    before = (tmp_path / "data.mdb").read_bytes()
    assert open_store(tmp_path)["7"].width == 506
    assert [path.name for path in tmp_path.iterdir()] == ["data.mdb"]
    assert (tmp_path / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("entry", [b"garbage", pickle.dumps(5), pickle.dumps([5])])
def test_damaged_list_of_images(tmp_path: Path, entry: bytes) -> None:
    with pytest.raises(UserError, match="list of image"):
        open_store(raw_store(tmp_path / "s", keys=entry)).keys()


def test_feature_width_of_another_extractor(tmp_path: Path) -> None:
    write_lmdb_store(tmp_path / "s", [("a", regions(width=6))])
    with pytest.raises(
        UserError, match=r"features are 6 wide, the model expects 2048.* model\.overrides\.feature_size to 6"
    ):
        open_store(tmp_path / "s", 2048)["a"]


@pytest.mark.parametrize("width", [None, 4])
def test_one_record_of_another_width_is_a_bad_record(tmp_path: Path, width: int | None) -> None:
    good = record(regions())
    store = open_store(raw_store(tmp_path / "s", a=record(regions(width=3)), b=good, c=good), width)
    with pytest.raises(BadRecord, match=r"s, image a: features has 36 bytes; 3 boxes of 4 float32 need 48"):
        store["a"]
    assert store["b"].features.shape == (3, 4)


# --- faults of a record -----------------------------------------------------------------------------------------------

BOXES = regions().boxes


def boxes_with(row: list) -> str:
    return base64.b64encode(np.array([BOXES[0], row, BOXES[2]], "f4").tobytes()).decode()


def features_with(value: float) -> bytes:
    features = regions().features.copy()
    features[2, 1] = value
    return base64.b64encode(features.tobytes())


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"num_boxes": 2}, r"features has 48 bytes; 2 boxes of 4 float32 need 32"),
        ({"num_boxes": 4}, r"features has 48 bytes; 4 boxes of 4 float32 need 64"),
        ({"num_boxes": 0}, "num_boxes is 0"),
        ({"num_boxes": -3}, "num_boxes is -3"),
        ({"num_boxes": "many"}, "num_boxes is 'many'"),
        ({"num_boxes": 2.5}, "num_boxes is 2.5"),
        ({"num_boxes": None}, "num_boxes is None"),
        ({"image_w": 0}, "image_w is 0"),
        ({"image_h": -50}, "image_h is -50"),
        ({"image_h": float("inf")}, "image_h is inf"),
        ({"features": None}, "no entry features"),
        ({"boxes": None}, "no entry boxes"),
        ({"boxes": 5}, "boxes is not base64"),
        ({"features": "é"}, "features is not base64"),
        ({"features": record(regions())["features"][:-1]}, "features is not base64"),
        ({"features": record(regions())["features"][:-4]}, "features has 45 bytes"),
        ({"boxes": record(regions())["boxes"] + b"AAAA"}, "boxes has 51 bytes; 3 boxes of 4 float32 need 48"),
        ({"features": features_with(np.nan)}, "NaN or infinite values in features"),
        ({"features": features_with(-np.inf)}, "NaN or infinite values in features"),
        ({"boxes": boxes_with([1, np.nan, 5, 5])}, "NaN or infinite values in boxes"),
        ({"boxes": boxes_with([9, 1, 5, 5])}, r"box 1 has its corners in the wrong order: \[9.0, 1.0, 5.0, 5.0\]"),
        ({"boxes": boxes_with([1, 9, 5, 5])}, "box 1 has its corners in the wrong order"),
        ({"boxes": boxes_with([-1.5, 1, 5, 5])}, "box 1 lies outside the 60 x 50 image"),
        ({"boxes": boxes_with([1, -1.5, 5, 5])}, "box 1 lies outside"),
        ({"boxes": boxes_with([1, 1, 61.5, 5])}, "box 1 lies outside"),
        ({"boxes": boxes_with([1, 1, 5, 51.5])}, "box 1 lies outside"),
        ({"class_probs": base64.b64encode(b"\0" * 16)}, "class_probs has 16 bytes"),
    ],
)
def test_fault_of_a_record_names_store_image_and_fault(tmp_path: Path, changes: dict, fault: str) -> None:
    good = record(regions())
    store = open_store(
        raw_store(tmp_path / "the_store", **{"7": record(regions(), **changes), "8": good, "9": good}), 4
    )
    with pytest.raises(BadRecord, match=rf"the_store, image 7: .*{fault}"):
        store["7"]
    assert store["8"].features.shape == (3, 4)


def test_boxes_may_leave_the_image_by_a_pixel(tmp_path: Path) -> None:
    values = record(regions(), boxes=boxes_with([-1, -1, 61, 51]))
    np.testing.assert_array_equal(open_store(raw_store(tmp_path / "s", a=values))["a"].boxes[1], [-1, -1, 61, 51])


def test_absent_truncated_and_hostile_records(tmp_path: Path) -> None:
    whole = pickle.dumps(record(regions()), 2)
    entries = {f"cut{end}": whole[:end] for end in range(1, len(whole), 7)}
    store = open_store(
        raw_store(tmp_path / "s", whole=whole, odd=[1, 2], zzz=b"cposix\nsystem\n(S'exit 3'\ntR.", **entries)
    )
    for name in entries:
        with pytest.raises(BadRecord, match=f"s, image {name}: truncated pickle"):
            store[name]
    for name, fault in {"absent": "not in the store", "keys": "not in the store", "odd": "a list instead of"}.items():
        with pytest.raises(BadRecord, match=f"s, image {name}: {fault}"):
            store[name]
    for impossible in ("x" * 600, ""):  # longer or shorter than any LMDB key
        with pytest.raises(BadRecord, match=f"s, (image|key) {impossible}: (not in the store|cannot be read)"):
            store[impossible]
    with pytest.raises(UserError, match=r"s, image zzz: the pickle asks for posix\.system"):
        store["zzz"]
    assert store["whole"].height == 50


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_changed_bytes_give_a_bad_record_or_regions(data: st.DataObject) -> None:
    values = bytearray(pickle.dumps(record(regions()), data.draw(st.sampled_from([2, 4]))))
    for _ in range(data.draw(st.integers(1, 3))):
        values[data.draw(st.integers(0, len(values) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        good = record(regions())
        store = open_store(raw_store(Path(folder) / "s", a=good, b=good, c=bytes(values)), 4)
        with contextlib.suppress(BadRecord, UserError):
            found = store["c"]
            assert np.isfinite(found.features).all() and found.features.shape == (len(found.boxes), 4)


# --- writing refuses, fingerprints ------------------------------------------------------------------------------------


def test_writer_refuses_what_the_reader_would(tmp_path: Path) -> None:
    bad = regions(boxes=np.array([[5, 5, 1, 1]] * 3, "f4"))
    with pytest.raises(BadRecord, match="image b: box 0 has its corners"):
        write_lmdb_store(tmp_path / "s", [("a", regions()), ("b", bad)])
    for names in (["a", "a"], ["keys"], ["fingerprint"], [""], ["x" * 600]):
        with pytest.raises(UserError, match="an image id must be unique"):
            write_lmdb_store(tmp_path / "s", [(name, regions()) for name in names])
    with pytest.raises(BadRecord, match=r"features \[3, 4\] and boxes \[2, 4\] do not fit"):
        write_lmdb_store(tmp_path / "s", [("a", regions(boxes=BOXES[:2]))])
    assert list(tmp_path.iterdir()) == []
    write_lmdb_store(tmp_path / "s", [("a", regions())])
    with pytest.raises(UserError, match="exists already"):
        write_lmdb_store(tmp_path / "s", [("a", regions())])


def test_stores_of_different_extractors_are_refused(tmp_path: Path) -> None:
    def store(name: str, fingerprint: dict | None) -> LmdbRegionStore:
        write_lmdb_store(tmp_path / name, [("a", regions())], fingerprint)
        return open_store(tmp_path / name)

    first, same = (
        store("first", {"weights": "ab12", "threshold": 0.2}),
        store("same", {"threshold": 0.2, "weights": "ab12"}),
    )
    other = store("other", {"weights": "ab12", "threshold": 0.3, "resize": 600})
    silent, silent_too = store("silent", None), store("silent_too", None)
    check_fingerprints([])
    check_fingerprints([first])
    check_fingerprints([first, same])
    check_fingerprints([silent, silent_too])
    with pytest.raises(UserError, match=r"first and .*other .*\(resize: None and 600; threshold: 0.2 and 0.3\)"):
        check_fingerprints([first, same, other])
    for pair in ([first, silent], [silent, first]):
        with pytest.raises(UserError, match=r"silent has no fingerprint, .*first has .*ab12"):
            check_fingerprints(pair)


@pytest.mark.parametrize("entry", [b"{", b"[1]"])
def test_damaged_fingerprint(tmp_path: Path, entry: bytes) -> None:
    with pytest.raises(UserError, match="fingerprint is not"):
        _ = open_store(raw_store(tmp_path / "s", a=record(regions()), fingerprint=entry)).fingerprint
