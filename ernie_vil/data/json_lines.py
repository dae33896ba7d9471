"""Looking up single lines of a large JSON-lines file."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Callable, Union

import numpy as np

from ernie_vil.errors import BadRecord


class JsonLines:
    """The usable lines of a file. Keeps their places, not their contents.

    Lines of white space are passed over.

    Args:
        path: the file.
        check: called once with every line and its ``FILE:LINE``; raises :class:`BadRecord` for one that cannot be used,
            which is left out and named in ``skipped``.
    """

    def __init__(self, path: Union[str, Path], check: Callable[[bytes, str], None]) -> None:
        self.path = Path(path)
        self.skipped: list[str] = []
        offsets, lines = array("q"), array("q")
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        check(line, f"{self.path}:{number}")
                    except BadRecord as error:
                        self.skipped.append(str(error))
                    else:
                        offsets.append(offset)
                        lines.append(number)
                offset += len(line)
        self._offsets = np.array(offsets, dtype=np.int64)
        self._lines = np.array(lines, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> bytes:
        # Opened for every line: a file shared by forked workers would share its position too.
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return file.readline()

    def line(self, index: int) -> int:
        """Line number, from 1."""
        return int(self._lines[index])

    def where(self, index: int) -> str:
        """``FILE:LINE``."""
        return f"{self.path}:{self.line(index)}"

    def why_empty(self) -> str:
        """What to say of a file in which there is no usable line."""
        reasons = "".join(f"\n  {message}" for message in self.skipped[:20])
        return f"all {len(self.skipped)} lines are bad:{reasons}" if reasons else "the file is empty"
