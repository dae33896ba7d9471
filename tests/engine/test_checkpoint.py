"""Folders, pointers and pruning of checkpoints, with the leftovers of runs that were killed in the middle."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ernie_vil.engine import checkpoint
from ernie_vil.errors import UserError


def write(folder: Path) -> None:
    (folder / checkpoint.TRAINER_FILE).write_text('{"step": 1}')


def save(output: Path, step: int, *pointers: str) -> Path:
    folder = checkpoint.save(output, step, write)
    for pointer in pointers:
        checkpoint.point(output, pointer, folder)
    return folder


def names(output: Path) -> list[str]:
    return sorted(path.name for path in checkpoint.folder_of(output).iterdir())


def test_leftovers_of_a_kill_at_any_moment_do_not_matter(tmp_path):
    save(tmp_path, 1, "best", "latest")
    folder = checkpoint.folder_of(tmp_path)
    (folder / ".unfinished-latest").write_text("step-0000")
    (folder / ".unfinished-step-00000002").mkdir()
    (folder / ".unfinished-step-00000002" / "model_state.pdparams").write_bytes(b"half")
    save(tmp_path, 2, "latest")
    assert names(tmp_path) == ["best", "latest", "step-00000001", "step-00000002"]
    assert checkpoint.follow(tmp_path, "latest").name == "step-00000002"


def test_a_write_that_fails_leaves_the_pointers_alone(tmp_path):
    save(tmp_path, 1, "latest")

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, 2, fail)
    assert checkpoint.follow(tmp_path, "latest").name == "step-00000001"
    assert not (checkpoint.folder_of(tmp_path) / "step-00000002").exists()


def test_saving_a_step_again_never_replaces_what_a_pointer_names(tmp_path):
    first = save(tmp_path, 1, "best")
    second = save(tmp_path, 1, "latest")
    assert first != second and first.is_dir()
    checkpoint.point(tmp_path, "best", second)
    checkpoint.prune(tmp_path, 1)
    assert not first.exists()
    third = save(tmp_path, 1, "latest")
    assert third.is_dir() and second.is_dir() and third != second


def test_pruning_keeps_what_was_written_last_not_what_is_furthest(tmp_path):
    for age, step in enumerate((100, 200, 300, 210, 220, 230)):
        folder = save(tmp_path, step, "latest")
        os.utime(folder, (age, age))
    checkpoint.point(tmp_path, "best", checkpoint.folder_of(tmp_path) / "step-00000100")
    checkpoint.prune(tmp_path, 2)
    assert names(tmp_path) == ["best", "latest", "step-00000100", "step-00000220", "step-00000230"]


def test_a_pointer_to_nothing_is_named_when_it_is_followed_and_not_before(tmp_path):
    save(tmp_path, 1, "latest")
    (checkpoint.folder_of(tmp_path) / "best").write_bytes(b"step-\xff")
    checkpoint.prune(tmp_path, 1)
    assert checkpoint.follow(tmp_path, "latest").name == "step-00000001"
    with pytest.raises(UserError, match="best: names .* which is not a checkpoint; there are: .*step-00000001"):
        checkpoint.find_model(tmp_path)


def test_what_a_path_means(tmp_path):
    folder = save(tmp_path / "out", 3, "latest")
    assert checkpoint.find_model(tmp_path / "out") == folder
    assert checkpoint.find_model(tmp_path / "weights") == tmp_path / "weights"
    assert checkpoint.find(tmp_path / "out", None) is None
    assert checkpoint.find(tmp_path / "out", "auto") == checkpoint.find(tmp_path / "out", "true") == folder
    assert checkpoint.find(tmp_path / "other", str(tmp_path / "out")) == folder
    assert checkpoint.find(tmp_path / "other", "auto") is None
