"""Checkpoints: a new folder per save, then an atomic pointer to it.

``<output>/checkpoints/step-00000120/`` holds the model folder (``config.json``, ``model_state.pdparams``,
``vocab.txt``), ``optimizer.pdopt``, ``trainer.json`` and ``config.yaml``; the files ``latest`` and ``best`` beside it
hold the name of a folder. A folder appears under its name only when it is complete, and a pointer changes only after
that, so a run that is killed at any moment leaves a usable state.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable

import numpy as np

from ernie_vil import pickles
from ernie_vil.errors import UserError

TRAINER_FILE = "trainer.json"
MODEL_FILE = "model_state.pdparams"
OPTIMIZER_FILE = "optimizer.pdopt"
UNFINISHED = ".unfinished-"


def folder_of(output: Path) -> Path:
    return output / "checkpoints"


def save(output: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a temporary folder, make it durable and give it its name. Returns the folder."""
    parent = folder_of(output)
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(f"{UNFINISHED}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    # A run resumed from an earlier step comes by here again; its folder gets a name of its own, since a pointer may
    # still name the old one and nothing that is pointed at is ever replaced.
    candidates = (f"step-{step:08d}" + (f"-{again}" if again else "") for again in itertools.count())
    name = next(candidate for candidate in candidates if not (parent / candidate).exists())
    temporary = parent / f"{UNFINISHED}{name}"
    temporary.mkdir()
    write(temporary)
    for file in temporary.iterdir():
        _sync(file)
    _sync(temporary)
    target = parent / name
    temporary.rename(target)
    _sync(parent)
    return target


def point(output: Path, pointer: str, target: Path) -> None:
    """Make the pointer ``latest`` or ``best`` name ``target``, atomically."""
    parent = folder_of(output)
    temporary = parent / f"{UNFINISHED}{pointer}"
    temporary.write_text(target.name + "\n", encoding="utf-8")
    _sync(temporary)
    temporary.replace(parent / pointer)
    _sync(parent)


def follow(output: Path, pointer: str) -> Path | None:
    """The folder that a pointer names, None without such a pointer. Raises :class:`UserError` if it dangles."""
    file = folder_of(output) / pointer
    target = _target(output, pointer)
    if target is None:
        return None
    if not (target / TRAINER_FILE).is_file():
        raise UserError(f"{file}: names {target.name}, which is not a checkpoint; there are: {_names(file.parent)}")
    return target


def prune(output: Path, keep: int) -> None:
    """Delete all but the ``keep`` checkpoints that were written last and those that a pointer names."""
    pointed = {_target(output, "latest"), _target(output, "best")}
    folders = sorted(folder_of(output).glob("step-*"), key=lambda folder: folder.stat().st_mtime_ns)
    for folder in folders[: max(len(folders) - keep, 0)]:
        if folder not in pointed:
            shutil.rmtree(folder)


def find(output: Path, resume: str | None) -> Path | None:
    """Where to continue from: nowhere (``None``), the latest if any (``"auto"``) or without fail (``"true"``), a path.

    A path may be a checkpoint or an output folder. Raises :class:`UserError` saying what is there instead.
    """
    if resume is None:
        return None
    if resume in ("auto", "true"):
        found = follow(output, "latest")
        if found is None and resume == "true":
            raise UserError(f"{output}: nothing to resume: there is no {folder_of(output) / 'latest'}")
        return found
    path = Path(resume)
    if (path / TRAINER_FILE).is_file():
        return path
    found = follow(path, "latest") if path.is_dir() else None
    if found is None:
        raise UserError(
            f"--resume {path}: not a checkpoint (no {TRAINER_FILE}) and not an output folder; {listing(path)}"
        )
    return found


def find_model(path: Path) -> Path:
    """The model folder behind a path: an output folder's best (else latest) checkpoint, or the folder itself."""
    if folder_of(path).is_dir():
        found = follow(path, "best") or follow(path, "latest")
        if found is None:
            raise UserError(f"{path}: its run has not saved a checkpoint yet")
        return found
    return path


def read_trainer(folder: Path) -> dict[str, Any]:
    """What ``trainer.json`` of a checkpoint says. Raises :class:`UserError` if it is not to be read."""
    path = folder / TRAINER_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: damaged: a {type(state).__name__} instead of an object")
    return state


def read_optimizer(folder: Path) -> dict[str, np.ndarray]:
    return pickles.load_state(folder / OPTIMIZER_FILE)


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it, or None where ``folder`` is in no git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def listing(path: Path) -> str:
    """What is to be found at a path that was not what it should be, for error messages."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return f"{path} holds: {_names(path)}" if path.is_dir() else f"{path} is a file"


def _names(folder: Path, most: int = 12) -> str:
    names = sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))
    return (", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")) or "nothing"


def _target(output: Path, pointer: str) -> Path | None:
    file = folder_of(output) / pointer
    return file.parent / file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
