"""Caption files: what is written is read, in any order and from any process; damage is named."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any, Callable

import pytest

from ernie_vil.data.unique_ids import SeenIds
from ernie_vil.errors import BadRecord, UserError
from ernie_vil.scene_graph import AttributeNode, ObjectNode, RelationNode, SceneGraph
from ernie_vil.scene_graph import files as files_module
from ernie_vil.scene_graph.files import CaptionFile, CaptionRecord, write_parquet


def record(number: int) -> CaptionRecord:
    caption = f"a red dog {number} on \U0001f415 mat"
    dog, mat = caption.index("dog"), caption.index("mat")
    graph = SceneGraph(
        caption,
        (ObjectNode("dog", "dog", ((dog, dog + 3),)), ObjectNode("mat", "mat", ((mat, mat + 3),))),
        (AttributeNode("red", "red", ((2, 5),), 0),),
        (RelationNode("on", "on", ((caption.index("on"), caption.index("on") + 2),), 0, 1),) * (number % 3),
    )
    return CaptionRecord(f"c{number}", f"image-{number // 5}-é", graph)


def line(number: int, **changes: Any) -> str:
    item = record(number)
    return json.dumps({"id": item.id, "image_id": item.image_id, **item.graph.to_dict(), **changes}) + "\n"


@pytest.fixture(params=["jsonl", "parquet"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[list[str]], Path]:
    def write(lines: list[str]) -> Path:
        path = tmp_path / "captions.jsonl"
        path.write_text("".join(lines))
        if request.param == "parquet":
            write_parquet(path, path.with_suffix(".parquet"))
            path = path.with_suffix(".parquet")
        return path

    return write


def test_records_come_back(written: Callable[[list[str]], Path]) -> None:
    count = files_module.PARQUET_GROUP + 40
    file = CaptionFile(written([line(number) for number in range(count)]))
    assert len(file) == count and file.skipped == []
    for index in (0, count - 1, 7, files_module.PARQUET_GROUP, 3):
        assert file[index] == record(index)
        assert file.image_id(index) == record(index).image_id
        assert file.where(index) == f"{file.path}:{index + 1}"
    assert [item.id for item in file] == [f"c{number}" for number in range(count)]
    for index in (count, 10**9):
        with pytest.raises(IndexError):
            file[index]
        with pytest.raises(IndexError):
            file.image_id(index)


def _look_up(file: CaptionFile, index: int) -> CaptionRecord:
    return file[index]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_look_up_records(written: Callable[[list[str]], Path], method: str) -> None:
    file = CaptionFile(written([line(number) for number in range(20)]))
    file[3]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(_look_up, [(file, index) for index in range(20)]) == [record(index) for index in range(20)]
    assert pickle.loads(pickle.dumps(file))[5] == record(5)


def test_damaged_lines_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    bad = {
        2: '{"id": "x", "image_id"\n',
        3: "[1]\n",
        4: line(4, image_id=None),
        5: line(5, id=5),
        6: line(6, caption=""),
        7: line(0),
        9: "\udcff\n",
        10: line(10)[:-20],
    }
    lines = [bad.get(number, line(number)) for number in range(1, 11)]
    lines[0] = line(0)
    lines[7] = "  \n"
    path.write_bytes("".join(lines).encode("utf-8", "surrogateescape"))
    file = CaptionFile(path)
    assert [item.id for item in file] == ["c0"]
    assert [int(message.split(":")[1]) for message in file.skipped] == sorted(bad)
    words = ["not a line of JSON", "found list", "`image_id` is None", "`id` is 5", "`caption`", "second time"]
    for word, message in zip([*words, "not a line", "not a line"], file.skipped):
        assert word in message


@pytest.mark.parametrize(
    "changes",
    [
        {"objects": None},
        {"objects": [{"words": "cat", "lemma": "cat", "spans": [[6, 9]]}]},
        {"attributes": [{"words": "red", "lemma": "red", "spans": [[2, 5]], "object": 2}]},
        {"caption": "another caption"},
    ],
)
def test_nodes_are_checked_on_a_look_up(written: Callable[[list[str]], Path], changes: dict) -> None:
    file = CaptionFile(written([line(0), line(1, **changes)]))
    assert file[0] == record(0)
    with pytest.raises(BadRecord, match=f"{file.path.name}:2: "):
        file[1]


def test_parquet_rows_without_ids_are_named(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    names = files_module.COLUMNS
    rows = [
        dict.fromkeys(names, "[]") | {"id": "a"},
        dict.fromkeys(names, None),
        dict.fromkeys(names, "[]") | {"id": "b"},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    file = CaptionFile(tmp_path / "x.parquet")
    assert [file[0].id, file[1].id] == ["a", "b"] and file.where(1).endswith(":3")
    assert len(file.skipped) == 1 and ":2: `id` is None" in file.skipped[0]


def test_mistakes_about_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such caption file"):
        CaptionFile(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="the file is empty"):
        CaptionFile(tmp_path / "empty.jsonl")
    (tmp_path / "bad.jsonl").write_text("x\ny\n")
    with pytest.raises(UserError, match="all 2 lines are bad:\n.*bad.jsonl:1"):
        CaptionFile(tmp_path / "bad.jsonl")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="not a parquet file"):
        CaptionFile(tmp_path / "text.parquet")
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([{"id": "a"}]), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="lacks the columns attributes, caption, image_id"):
        CaptionFile(tmp_path / "other.parquet")


def test_seen_ids_over_merges() -> None:
    seen = SeenIds()
    count = 200_000
    assert all(seen.add(str(number)) for number in range(count))
    assert not any(seen.add(str(number)) for number in range(0, count, 997))
    assert seen.add("another")
