"""Where miniature data sets are kept, and how a folder of files comes into being all at once."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Callable

from ernie_vil.errors import UserError

MARKER = "mini.json"


def mini_folder(name: str, home: Path | None = None) -> Path:
    """``mini/<name>`` under ``home``, else under ``$ERNIE_VIL_HOME``, else under ``~/.cache/ernie_vil``."""
    root = home if home is not None else os.environ.get("ERNIE_VIL_HOME") or Path.home() / ".cache" / "ernie_vil"
    return Path(root).expanduser() / "mini" / name


def write_whole(folder: Path, parameters: dict, write: Callable[[Path], None]) -> None:
    """Makes ``folder`` all at once: ``write`` fills a temporary sibling, which is renamed when it is finished.

    A folder that is whole already is left as it is. Several processes may do this at the same time; the first one to
    finish wins and the others drop their copies.

    Raises:
        UserError: something else is at ``folder``, or the place cannot be written to.
    """
    folder = Path(folder)
    if is_whole(folder, parameters):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists but is not a whole miniature set of these parameters: delete it or name another folder"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot make the miniature set there ({error.strerror}): set ERNIE_VIL_HOME to a folder that "
            "can be written to"
        ) from None
    try:
        write(temporary)
        marker = {"parameters": parameters, "files": _file_sizes(temporary)}
        (temporary / MARKER).write_text(json.dumps(marker, sort_keys=True), encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp makes it private, but a cache may be shared
        try:
            temporary.rename(folder)  # replaces nothing, or an empty folder
        except OSError:
            if not is_whole(folder, parameters):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_whole(folder: Path, parameters: dict) -> bool:
    """Whether ``folder`` was written to its end with these ``parameters``, and all its files still have their sizes."""
    try:
        marker = json.loads((Path(folder) / MARKER).read_text(encoding="utf-8"))
        same_files = all((Path(folder) / name).stat().st_size == size for name, size in marker["files"].items())
        return same_files and marker["parameters"] == parameters
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _file_sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock.mdb")
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
