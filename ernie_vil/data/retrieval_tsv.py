"""The original's files of Flickr30K besides the captions: tables of region features, and mined negatives.

A line of a region table has six columns, separated by tabs: image id, width, height, number of boxes, boxes (base64 of
little-endian float32, x1 y1 x2 y2 in pixels) and features (likewise).
"""

from __future__ import annotations

import binascii
from array import array
from pathlib import Path
from typing import Any, Optional, Sequence, Union

import numpy as np

from ernie_vil import pickles
from ernie_vil.data.regions import LmdbRegionStore, Regions, check_fingerprints, check_regions, open_store
from ernie_vil.errors import BadRecord, UserError

_COLUMNS = 6


class TableRegionStore:
    """Image id -> :class:`Regions` over a table of the original. Keeps the places of the lines, not their contents.

    The original loads all of it into memory. An image for the second time is refused.

    Raises:
        UserError: on construction, a missing file, a line without image id and six columns, or a repeated image.
        BadRecord: on a look-up of an image that is absent, damaged or implausible.
    """

    def __init__(self, path: Union[str, Path], feature_size: Optional[int] = None) -> None:
        self.path = Path(path)
        self.feature_size = feature_size
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such table of region features")
        self.fingerprint: Optional[dict[str, Any]] = None
        self._places: dict[str, int] = {}
        self._offsets = array("q")
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    image_id = line.split(b"\t", 1)[0].decode("utf-8", "ignore").strip()
                    if not image_id or line.count(b"\t") != _COLUMNS - 1:
                        raise UserError(
                            f"{self.path}:{number}: {line.count(bytes([9])) + 1} columns instead of {_COLUMNS} "
                            "(image id, width, height, number of boxes, boxes, features)"
                        )
                    if image_id in self._places:
                        raise UserError(f"{self.path}:{number}: image {image_id} stands for the second time")
                    self._places[image_id] = len(self._offsets)
                    self._offsets.append(offset)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def __getitem__(self, image_id: str) -> Regions:
        where = f"{self.path}, image {image_id}"
        if image_id not in self._places:
            raise BadRecord(f"{where}: not in the table")
        # Opened for every line: a file shared by forked workers would share its position too.
        with self.path.open("rb") as file:
            file.seek(self._offsets[self._places[image_id]])
            columns = file.readline().rstrip(b"\r\n").split(b"\t")
        width, height, count = (_whole(column, where) for column in columns[1:4])
        boxes = _floats(columns[4], count, 4, f"{where}: boxes")
        regions = Regions(_floats(columns[5], count, self.feature_size, f"{where}: features"), boxes, width, height)
        check_regions(regions, where)
        return regions


class RegionStores:
    """Several stores as one: an image is looked up in the first that has it. Folders are LMDB, files are tables."""

    def __init__(self, paths: Sequence[Union[str, Path]], feature_size: Optional[int] = None) -> None:
        self.stores = [
            TableRegionStore(path, feature_size) if Path(path).is_file() else open_store(path, feature_size)
            for path in paths
        ]
        check_fingerprints([store for store in self.stores if isinstance(store, LmdbRegionStore)])

    def __contains__(self, image_id: object) -> bool:
        return any(image_id in store for store in self.stores)

    def __getitem__(self, image_id: str) -> Regions:
        for store in self.stores:
            if image_id in store:
                return store[image_id]
        raise BadRecord(f"image {image_id} has no features in {', '.join(str(store.path) for store in self.stores)}")


def read_hard_images(path: Union[str, Path]) -> dict[str, list[str]]:
    """Mined negatives: for every image, others that a model takes for it, the likeliest first.

    The file is the original's pickle: ``train_image_list`` (image ids) and ``train_hard_pool`` (for each, places in
    that list; the first one is passed over, since it is the image itself).

    Raises:
        UserError: a missing or damaged file, or one of another form.
    """
    try:
        content = pickles.load(path)
    except BadRecord as error:
        raise UserError(f"{error}; the file of hard negatives is damaged") from None
    try:
        names = [str(name) for name in content["train_image_list"]]
        rows = [[int(place) for place in row] for row in content["train_hard_pool"]]
        pools = {name: [names[place] for place in row[1:]] for name, row in zip(names, rows) if min(row) >= 0}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: not a file of hard negatives ({type(error).__name__}: {error})") from None
    if len(rows) != len(names) or len(pools) != len(names):
        raise UserError(f"{path}: {len(rows)} rows of train_hard_pool for {len(names)} images, or negative places")
    return pools


def _whole(column: bytes, where: str) -> int:
    text = column.strip()
    if not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise BadRecord(f"{where}: {column[:40]!r} is not a number above 0")
    return int(text)


def _floats(column: bytes, rows: int, width: Optional[int], where: str) -> np.ndarray:
    try:
        values = np.frombuffer(binascii.a2b_base64(column), "<f4")
        return values.reshape(rows, width or -1)
    except ValueError as error:
        raise BadRecord(f"{where} are not base64 of {rows} rows of float32 ({error})") from None
