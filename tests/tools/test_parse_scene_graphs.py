"""``tools/parse_scene_graphs.py`` as a process: kills, resumptions, mistakes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_tool

from ernie_vil.data.captions import read_captions
from ernie_vil.errors import UserError
from ernie_vil.scene_graph import parser
from ernie_vil.scene_graph.caption_run import Source, parse_file
from ernie_vil.scene_graph.files import CaptionFile
from ernie_vil.scene_graph.pipelines import SHIPPED

COCO = ROOT / "tests" / "data" / "captions" / "captions_val2017_first60.json"
MODEL = ("--spacy-model", str(SHIPPED))


def parse(*arguments: Any) -> subprocess.CompletedProcess:
    return run_tool("parse_scene_graphs", *MODEL, *map(str, arguments))


def test_graphs_of_coco_captions(tmp_path: Path) -> None:
    result = parse("--captions", COCO, "--out", tmp_path / "coco.jsonl")
    assert result.returncode == 0, result.stderr
    file = CaptionFile(tmp_path / "coco.jsonl")
    nlp = parser.load_pipeline(SHIPPED)
    captions = list(read_captions(COCO))
    assert [(record.id, record.image_id, record.graph) for record in file] == [
        (caption.id, caption.image_id, parser.parse(caption.text, nlp)) for caption in captions
    ]
    objects = sum(len(record.graph.objects) for record in file)
    assert f"60 captions: {objects} objects" in result.stdout
    assert "records skipped: 0" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco.jsonl", "coco.jsonl.meta.json"]

    refused = parse("--captions", COCO, "--out", tmp_path / "coco.jsonl")
    assert refused.returncode == 2 and "left by an earlier run; go on with --resume" in refused.stderr
    again = parse("--captions", COCO, "--out", tmp_path / "coco.jsonl", "--resume")
    assert again.returncode == 0 and "complete already" in again.stdout
    assert f"60 captions: {objects} objects" in again.stdout

    parquet = parse("--captions", COCO, "--out", tmp_path / "coco.parquet", "--processes", 2)
    assert parquet.returncode == 0, parquet.stderr
    assert list(CaptionFile(tmp_path / "coco.parquet")) == list(file)
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real captions in several batches, each with a word of its own."""
    path = tmp_path_factory.mktemp("many") / "captions.jsonl"
    captions = list(read_captions(COCO))
    with path.open("w") as file:
        for number in range(parser.BATCH_SIZE * 5 + 30):
            item = captions[number % len(captions)]
            file.write(json.dumps({"id": number, "image_id": item.image_id, "caption": f"{item.text} {number}"}) + "\n")
    return path


def kill_when_written(many: Path, out: Path, size: int, processes: int) -> None:
    """Start the tool and kill -9 it when its file has more than ``size`` bytes."""
    partial = out.with_name(out.name + ".partial")
    tool = str(ROOT / "tools" / "parse_scene_graphs.py")
    command = [sys.executable, tool, *MODEL, "--captions", str(many), "--out", str(out), "--resume"]
    with subprocess.Popen([*command, "--processes", str(processes)], start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not (partial.exists() and partial.stat().st_size > size):
            assert process.poll() is None, "the run was over before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        group = process.pid
    deadline = time.monotonic() + 30
    while _lives(group):  # the workers leave by themselves
        assert time.monotonic() < deadline, "workers outlive a killed run"
        time.sleep(0.02)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_kills_and_resumptions_leave_the_same_bytes(many: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert parse("--captions", many, "--out", whole).returncode == 0
    partial = tmp_path / "out.jsonl.partial"

    kill_when_written(many, out, 0, processes=2)
    with partial.open("ab") as file:
        file.write(b'{"id": "half a line')
    kill_when_written(many, out, partial.stat().st_size + 1, processes=1)
    assert not out.exists()
    os.truncate(partial, partial.stat().st_size - 7)
    result = parse("--captions", many, "--out", out, "--processes", 2, "--resume")
    assert result.returncode == 0, result.stderr
    assert "resumed after" in result.stdout
    assert out.read_bytes() == whole.read_bytes()
    summary = parse("--captions", many, "--out", whole, "--resume").stdout.splitlines()[2:5]
    assert result.stdout.splitlines()[2:5] == summary and "captions:" in summary[0]
    assert (tmp_path / "out.jsonl.meta.json").read_bytes() == (tmp_path / "whole.jsonl.meta.json").read_bytes()


def test_less_than_a_batch_left_over(many: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text("".join(many.read_text().splitlines(keepends=True)[: parser.BATCH_SIZE + 40]))
    source = Source(short, spacy_model=str(SHIPPED))
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    parse_file(source, out)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    for left in (lines[:100], lines[: parser.BATCH_SIZE + 3], [*lines[: parser.BATCH_SIZE], b"\0" * 50], lines):
        out.unlink(missing_ok=True)
        partial.write_bytes(b"".join(left))
        assert parse_file(source, out, resume=True).captions == len(lines)
        assert out.read_bytes() == whole


def test_other_captions_or_pipelines_are_not_mixed_in(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    source = Source(COCO, spacy_model=str(SHIPPED))
    parse_file(source, out)
    for changes, key in (
        ({"captions": many}, "captions"),
        ({"complete": False}, "complete"),
        ({"spacy_model": str(_changed_pipeline(tmp_path))}, "pipeline"),
    ):
        with pytest.raises(UserError, match=rf"made from another source or pipeline \(`{key}`"):
            parse_file(dataclasses.replace(source, **changes), out, resume=True)
    lines = out.read_text().splitlines(keepends=True)
    out.unlink()
    Path(f"{out}.partial").write_text("".join([lines[1], lines[0]]))
    with pytest.raises(UserError, match=r"out.jsonl.partial:1: is not caption 38 of the source"):
        parse_file(source, out, resume=True)
    Path(f"{out}.meta.json").unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        parse_file(source, out, resume=True)


def _changed_pipeline(folder: Path) -> Path:
    import spacy

    nlp = spacy.load(SHIPPED)
    nlp.meta["version"] = "9.9.9"
    nlp.to_disk(folder / "changed")
    return folder / "changed"


def test_odd_and_damaged_captions(tmp_path: Path) -> None:
    captions = ["A dog.", "", "word " * 500, "\U0001f415", "一只猫", "<b>a cat</b>", "Quickly!", "a dog " * 3000]
    path = tmp_path / "captions.jsonl"
    rows = [{"id": number, "image_id": 1, "caption": caption} for number, caption in enumerate(captions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": 99, "caption": "no image"}]))
    out = tmp_path / "out.jsonl"
    refused = parse("--captions", path, "--out", out)
    assert refused.returncode == 2
    assert "2 of 9 records are damaged" in refused.stderr and f"{path}:2: image without caption" in refused.stderr
    result = parse("--captions", path, "--out", out, "--max-skip-ratio", 0.5)
    assert result.returncode == 0, result.stderr
    assert "records skipped: 2" in result.stdout and "1 could not be parsed" in result.stdout
    assert [record.id for record in CaptionFile(out)] == ["0", "2", "3", "4", "5", "6", "7"]
    assert json.loads(out.read_text().splitlines()[-1])["fault"].startswith("the caption has 18000 characters")
    skipped = [json.loads(line)["record"] for line in Path(f"{out}.skipped.jsonl").read_text().splitlines()]
    assert [message.split(": ")[0] for message in skipped] == [f"{path}:2", f"{path}:9", "caption 7"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--captions", "none.json", "--out", "{folder}/x.jsonl"], "none.json: no such caption file"),
        (["--captions", COCO, "--out", "{folder}/none/x.jsonl"], "there is no folder"),
        (["--captions", COCO, "--out", "{folder}/x.jsonl", "--spacy-model", "no_model"], "cannot be loaded"),
        (["--captions", COCO, "--out", "{folder}/x.jsonl", "--processes", "0"], "--processes must be at least 1"),
    ],
)
def test_mistakes_leave_by_one_message(arguments: list, message: str, tmp_path: Path) -> None:
    result = parse(*(str(argument).format(folder=tmp_path) for argument in arguments))
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
