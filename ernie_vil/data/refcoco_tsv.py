"""The original's table of referring expressions: everything of an example on one line.

Nine columns, separated by tabs: expression, image width, image height, number of detected boxes, number of annotated
boxes, all boxes (base64 of float32, the annotated ones last), their features (likewise), the target's
``x1 y1 x2 y2``, and the intersection over union of every box with the target, separated by blanks.
"""

from __future__ import annotations

import binascii
import gzip
import os
import shutil
import tempfile
import weakref
import zlib
from pathlib import Path
from typing import Any, Sequence, Union

import numpy as np

from ernie_vil.data.json_lines import JsonLines
from ernie_vil.data.refcoco import ReferredRegions
from ernie_vil.data.refer import check_target
from ernie_vil.data.regions import Regions, check_regions
from ernie_vil.errors import BadRecord, UserError

_COLUMNS = 9
_HIGHEST_IOU = 1.0001  # single precision rounds a little above 1


class TsvExpressions:
    """The expressions of a split from one or several tables; ``.gz`` files are unpacked into temporary ones.

    Every line is looked at once, on construction; boxes and features are decoded on a look-up.

    Args:
        paths: the files, in this order.
        training, track: as for :class:`ernie_vil.data.refcoco.ReferExpressions`. The original makes no difference
            between detected and annotated boxes at evaluation, which is the track ``all``.
        feature_size: width of the features.

    Raises:
        UserError: a missing file, or no usable line in all of them.
    """

    def __init__(
        self,
        paths: Sequence[Union[str, Path]],
        training: bool = False,
        track: str = "detected",
        feature_size: int = 2048,
    ) -> None:
        self._training, self._track, self._feature_size = training, track, feature_size
        self.texts: list[str] = []
        self._files: list[tuple[Path, JsonLines]] = []
        self._places: list[tuple[int, int]] = []
        self.skipped: list[str] = []
        for number, path in enumerate(map(Path, paths)):
            if not path.is_file():
                raise UserError(f"{path}: no such table of referring expressions")
            lines = JsonLines(_unpacked(path, self), lambda line, where, path=path: self._check(line, where, path))
            self._files.append((path, lines))
            self._places += [(number, index) for index in range(len(lines))]
            self.skipped += lines.skipped
        if not self._places:
            reasons = "".join(f"\n  {message}" for message in self.skipped[:20])
            raise UserError(f"{', '.join(map(str, paths))}: no usable line{reasons and ':'}{reasons}")

    def referred(self, index: int) -> ReferredRegions:
        """See :class:`ernie_vil.data.refcoco.ReferredRegions`. Raises :class:`BadRecord`."""
        file, line = self._places[index]
        row = _Row(self._files[file][1][line], self._feature_size)
        count = sum(row.counts)
        regions = Regions(
            _floats(row.features, count, self._feature_size, "features"),
            _floats(row.boxes, count, 4, "boxes"),
            row.width,
            row.height,
        )
        if count:
            check_regions(regions, "the line")
        kept = slice(None)
        if not self._training and self._track == "detected":
            kept = slice(row.counts[0])
        elif not self._training and self._track == "ground_truth":
            kept = slice(row.counts[0], None)
        ious = row.ious[kept]
        return ReferredRegions(
            Regions(regions.features[kept], regions.boxes[kept], row.width, row.height),
            ious,
            np.ones(len(ious), bool),
            np.array(row.target),
        )

    def where(self, index: int) -> str:
        file, line = self._places[index]
        path, lines = self._files[file]
        return f"{path}:{lines.line(line)}"

    def identity(self, index: int) -> dict[str, Any]:
        return {"line": self.where(index)}

    def _check(self, line: bytes, where: str, path: Path) -> None:
        try:
            self.texts.append(_Row(line, self._feature_size).text)
        except BadRecord as error:
            raise BadRecord(f"{path}:{where.rpartition(':')[2]}: {error}") from None


class _Row:
    """The columns of a line, checked but for the contents of boxes and features, which stay base64."""

    def __init__(self, line: bytes, feature_size: int) -> None:
        columns = line.rstrip(b"\r\n").split(b"\t")
        if len(columns) != _COLUMNS:
            raise BadRecord(f"{len(columns)} columns instead of {_COLUMNS}")
        # As in the original, bytes that are not UTF-8 are passed over.
        self.text = columns[0].decode("utf-8", "ignore").strip()
        if not self.text:
            raise BadRecord("the expression is empty")
        self.width, self.height = (_whole(columns[i], name, 1) for i, name in ((1, "width"), (2, "height")))
        self.counts = tuple(_whole(columns[i], name, 0) for i, name in ((3, "boxes"), (4, "ground-truth boxes")))
        self.boxes, self.features = columns[5:7]
        count = sum(self.counts)
        for name, data, width in (("boxes", self.boxes, 4), ("features", self.features, feature_size)):
            if _decoded_size(data) != count * width * 4:
                raise BadRecord(
                    f"{_decoded_size(data)} bytes of {name}; {count} boxes of {width} float32 need {count * width * 4}"
                )
        target = _numbers(columns[7], "the target")
        if len(target) != 4:
            raise BadRecord(f"the target has {len(target)} numbers instead of 4")
        self.target = check_target(tuple(target.tolist()), self.width, self.height)
        self.ious = _numbers(columns[8], "the overlaps")
        if len(self.ious) != count:
            raise BadRecord(f"{len(self.ious)} overlaps for {count} boxes")
        if not ((self.ious >= 0) & (self.ious <= _HIGHEST_IOU)).all():
            raise BadRecord("an overlap is not from 0 to 1")


def _whole(column: bytes, name: str, least: int) -> int:
    text = column.strip()
    if not text.isdigit() or len(text) > 9 or int(text) < least:
        raise BadRecord(f"the {'number of ' if least == 0 else ''}{name} is {repr(column.decode('latin1'))[:40]}")
    return int(text)


def _numbers(column: bytes, name: str) -> np.ndarray:
    try:
        return np.array([float(text) for text in column.split()], np.float64)
    except ValueError:
        raise BadRecord(f"{name}: {repr(column.decode('latin1'))[:60]} are not numbers") from None


def _decoded_size(data: bytes) -> int:
    return len(data) // 4 * 3 - (len(data) - len(data.rstrip(b"=")))


def _floats(data: bytes, rows: int, columns: int, name: str) -> np.ndarray:
    try:
        return np.frombuffer(binascii.a2b_base64(data), "<f4").reshape(rows, columns)
    except ValueError as error:
        raise BadRecord(f"the {name} are not base64 of {rows} x {columns} float32 ({error})") from None


def _unpacked(path: Path, owner: object) -> Path:
    """A path under which lines can be looked up; a temporary file goes when ``owner`` does."""
    if path.suffix != ".gz":
        return path
    handle, name = tempfile.mkstemp(prefix=f"{path.stem}.")
    # Only here: processes that load data inherit the owner, but not the file.
    weakref.finalize(owner, _remove_in, os.getpid(), name)
    try:
        with gzip.open(path) as packed, os.fdopen(handle, "wb") as plain:
            shutil.copyfileobj(packed, plain)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked into {name} ({error})") from None
    return Path(name)


def _remove_in(process: int, name: str) -> None:
    if os.getpid() == process:
        Path(name).unlink(missing_ok=True)
