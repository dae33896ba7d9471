"""Stores of region features: image id -> :class:`Regions`.

The format is the LMDB layout in which ViLBERT and VCR features circulate: a folder with ``data.mdb``; key ``keys``
holds a pickled list of image ids, and every other key a pickled dict with ``image_id``, ``image_h``, ``image_w``,
``num_boxes`` and, as base64 of little-endian float32, ``features`` [num_boxes, F] and ``boxes`` [num_boxes, 4]
(x1, y1, x2, y2 in pixels); the stores of ViLBERT's multi-task release have arrays in the place of base64. There may
also be ``class_probs`` (``cls_prob`` in ViLBERT's) and ``attribute_probs``, and in stores written here under the key
``fingerprint`` a JSON object that says which extractor made them.
"""

from __future__ import annotations

import base64
import binascii
import collections
import json
import os
import pickle
import shutil
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import lmdb
import numpy as np

from ernie_vil import pickles
from ernie_vil.data.region_arrays import (
    OPTIONAL_ARRAYS,
    Regions,
    box_locations,
    check_regions,
    merge_with_ground_truth,
    optional_arrays,
    with_whole_image,
)
from ernie_vil.errors import BadRecord, UserError

__all__ = [
    "LmdbRegionStore",
    "Regions",
    "box_locations",
    "check_fingerprints",
    "check_regions",
    "merge_with_ground_truth",
    "open_store",
    "with_whole_image",
    "write_lmdb_store",
]

_KEYS, _FINGERPRINT = b"keys", b"fingerprint"
_INITIAL_MAP_SIZE = 1 << 28
_OTHER_NAMES = {"cls_prob": "class_probs"}  # in ViLBERT's features of Conceptual Captions


class LmdbRegionStore:
    """Read-only mapping image id -> :class:`Regions` over an LMDB folder.

    Nothing is opened until the first look-up, and every process opens the file for itself, so a store can be pickled
    or used after a fork.

    Args:
        path: folder that holds ``data.mdb``.
        feature_size: expected width F of the features; ``None`` takes whatever the store has.

    Raises:
        UserError: on construction when the folder is missing or is no LMDB store; on the first look-up when the
            width of the store's features is not ``feature_size``.
        BadRecord: on a look-up whose record is absent, damaged or implausible (see :func:`check_regions`).
    """

    def __init__(self, path: Union[str, Path], feature_size: Optional[int] = None) -> None:
        self.path = Path(path)
        self._expected_size = feature_size
        self._found_size: Optional[int] = None
        self._keys: Optional[list[str]] = None
        self._environment_of: Optional[tuple[int, lmdb.Environment]] = None
        _require_store(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment_of": None}

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, image_id: object) -> bool:
        if not isinstance(image_id, str) or image_id.encode() in (_KEYS, _FINGERPRINT):
            return False
        try:
            with self._environment().begin(buffers=True) as transaction:
                return transaction.get(image_id.encode()) is not None
        except lmdb.BadValsizeError:  # an id too long for any key, or empty
            return False

    def __getitem__(self, image_id: str) -> Regions:
        feature_size = self.feature_size
        where = self._where(image_id)
        regions = _regions_from_record(self._record(image_id), feature_size, where)
        check_regions(regions, where)
        return regions

    def keys(self) -> list[str]:
        """Image ids in the order of the store."""
        if self._keys is None:
            self._keys = self._read_keys()
        return self._keys

    @property
    def feature_size(self) -> Optional[int]:
        """Width F of the features; ``None`` for an empty store of unknown width."""
        if self._found_size is None:
            self._found_size = self._sample_feature_size()
        return self._found_size

    @property
    def fingerprint(self) -> Optional[dict[str, Any]]:
        """What the extractor said of itself, or ``None`` for a store that does not say."""
        data = self._get(_FINGERPRINT)
        if data is None:
            return None
        try:
            fingerprint = json.loads(data)
        except ValueError as error:
            raise UserError(f"{self.path}: the store's fingerprint is not JSON ({error}).") from None
        if not isinstance(fingerprint, dict):
            raise UserError(f"{self.path}: the store's fingerprint is not a JSON object.")
        return fingerprint

    def _where(self, image_id: object) -> str:
        return f"{self.path}, image {image_id}"

    def _environment(self) -> lmdb.Environment:
        if self._environment_of is None or self._environment_of[0] != os.getpid():
            self._environment_of = (os.getpid(), _open_environment(self.path))
        return self._environment_of[1]

    def _get(self, key: bytes) -> Optional[bytes]:
        try:
            with self._environment().begin() as transaction:
                return transaction.get(key)
        except lmdb.Error as error:
            raise BadRecord(f"{self.path}, key {key.decode(errors='replace')}: cannot be read ({error})") from None

    def _record(self, image_id: str) -> dict[str, Any]:
        key = image_id.encode()
        data = self._get(key) if key not in (_KEYS, _FINGERPRINT) else None
        if data is None:
            raise BadRecord(f"{self._where(image_id)}: not in the store")
        record = pickles.loads(data, self._where(image_id))
        if not isinstance(record, dict):
            raise BadRecord(f"{self._where(image_id)}: a {type(record).__name__} instead of a dict")
        return record

    def _read_keys(self) -> list[str]:
        data = self._get(_KEYS)
        if data is None:
            with self._environment().begin() as transaction, transaction.cursor() as cursor:
                names = [name for name in cursor.iternext(values=False) if name not in (_KEYS, _FINGERPRINT)]
        else:
            try:
                names = pickles.loads(data, f"{self.path}, key {_KEYS.decode()}")
            except BadRecord as error:
                raise UserError(f"{error}. The store's list of images is damaged; fetch or write it again.") from None
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, (str, bytes)) for name in names):
            raise UserError(f"{self.path}: the entry {_KEYS.decode()!r} is not a list of image ids.")
        return [name if isinstance(name, str) else name.decode("utf-8", "replace") for name in names]

    def _sample_feature_size(self) -> Optional[int]:
        # Three records rather than one: a single damaged record must not pass for the width of the store.
        widths: collections.Counter[int] = collections.Counter()
        for image_id in self.keys()[:3]:
            try:
                record = self._record(image_id)
                count = _whole_number(record, "num_boxes", self._where(image_id))
                size = len(_float_bytes(record, "features", self._where(image_id)))
            except BadRecord:
                continue
            if size and size % (4 * count) == 0:
                widths[size // (4 * count)] += 1
        if not widths or self._expected_size in widths:
            return self._expected_size
        found = widths.most_common(1)[0][0]
        if self._expected_size is not None:
            raise UserError(
                f"{self.path}: the features are {found} wide, the model expects {self._expected_size}. Use features of "
                f"the extractor that the model was trained with, or set model.overrides.feature_size to {found}."
            )
        return found


def open_store(path: Union[str, Path], feature_size: Optional[int] = None) -> LmdbRegionStore:
    """The region store at ``path``; see :class:`LmdbRegionStore`."""
    return LmdbRegionStore(path, feature_size)


def check_fingerprints(stores: Sequence[LmdbRegionStore]) -> None:
    """Refuse to use stores of different extractors together.

    Stores without a fingerprint (those in circulation) go with each other, but not with one that has it.

    Raises:
        UserError: two stores differ; the message names the stores and each differing entry.
    """
    for other in stores[1:]:
        first, second = stores[0].fingerprint, other.fingerprint
        if first == second:
            continue
        if first is None or second is None:
            silent, telling = (stores[0], other) if first is None else (other, stores[0])
            difference = f"{silent.path} has no fingerprint, {telling.path} has {json.dumps(telling.fingerprint)}"
        else:
            names = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
            difference = "; ".join(f"{name}: {first.get(name)!r} and {second.get(name)!r}" for name in names)
        raise UserError(
            f"The region stores {stores[0].path} and {other.path} come from different extractors ({difference}). "
            "Extract both with the same detector and settings."
        )


def write_lmdb_store(
    path: Union[str, Path], items: Iterable[tuple[str, Regions]], fingerprint: Optional[dict[str, Any]] = None
) -> None:
    """Write a store that :class:`LmdbRegionStore`, and any reader of the ViLBERT/VCR layout, can open.

    The folder appears under its name only when it is complete.

    Raises:
        UserError: ``path`` exists and is not an empty folder, or an image id occurs twice, is empty or is reserved.
        BadRecord: a record is implausible; see :func:`check_regions`.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; give the path of a new store.")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _write_environment(unfinished, path, items, fingerprint)
        if path.exists():
            path.rmdir()
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _require_store(path: Path) -> None:
    if (path / "data.mdb").is_file():
        return
    if path.is_dir():
        there = sorted(entry.name for entry in path.iterdir())
        raise UserError(f"{path} is no LMDB store: it has no data.mdb. It holds: {_listing(there)}.")
    if path.exists():
        raise UserError(f"{path} is a file; a region store is a folder with data.mdb. Give the folder.")
    parent = path.parent
    if not parent.is_dir():
        raise UserError(f"The region store {path} does not exist, nor does {parent}.")
    there = sorted(entry.name for entry in parent.iterdir())
    raise UserError(f"The region store {path} does not exist. {parent} holds: {_listing(there)}.")


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more or "nothing"


# LMDB must not have the same file open twice in one process, so stores over one path share an environment.
_ENVIRONMENTS: weakref.WeakValueDictionary[tuple[int, int, int], lmdb.Environment] = weakref.WeakValueDictionary()


def _close_inherited() -> None:
    """An environment must not be used across a fork, and LMDB refuses to open the file again while it is there."""
    for environment in list(_ENVIRONMENTS.values()):
        environment.close()
    _ENVIRONMENTS.clear()


os.register_at_fork(after_in_child=_close_inherited)


def _open_environment(path: Path) -> lmdb.Environment:
    _require_store(path)
    file = (path / "data.mdb").stat()
    identity = (os.getpid(), file.st_dev, file.st_ino)
    environment = _ENVIRONMENTS.get(identity)
    if environment is not None:
        return environment
    try:
        environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False, subdir=True, max_readers=1024)
    except lmdb.Error as error:
        raise UserError(f"{path}: data.mdb is not a readable LMDB file ({error}).") from None
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.st_size < needed:
        environment.close()
        # Pages that are missing from a mapped file end the process with a bus error when they are touched.
        raise UserError(f"{path}: data.mdb is cut short ({file.st_size} of {needed} bytes); copy it again.")
    _ENVIRONMENTS[identity] = environment
    return environment


def _write_environment(
    folder: Path, path: Path, items: Iterable[tuple[str, Regions]], fingerprint: Optional[dict[str, Any]]
) -> None:
    environment = lmdb.open(str(folder), map_size=_INITIAL_MAP_SIZE, lock=False, subdir=True)
    try:
        names: dict[str, None] = {}
        for image_id, regions in items:
            where = f"{path}, image {image_id}"
            key = image_id.encode()
            if key in (_KEYS, _FINGERPRINT) or image_id in names or not 0 < len(key) <= environment.max_key_size():
                raise UserError(
                    f"{where}: an image id must be unique, at most {environment.max_key_size()} bytes, "
                    f"and none of {_KEYS.decode()!r}, {_FINGERPRINT.decode()!r}."
                )
            check_regions(regions, where)
            names[image_id] = None
            _put(environment, key, _record_from_regions(image_id, regions))
        _put(environment, _KEYS, pickle.dumps([name.encode() for name in names], protocol=2))
        if fingerprint is not None:
            _put(environment, _FINGERPRINT, json.dumps(fingerprint, sort_keys=True).encode())
        environment.sync(True)
    finally:
        environment.close()


def _put(environment: lmdb.Environment, key: bytes, value: bytes) -> None:
    while True:
        try:
            with environment.begin(write=True) as transaction:
                transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 2)


def _record_from_regions(image_id: str, regions: Regions) -> bytes:
    record = {
        "image_id": image_id,
        "image_h": int(regions.height),
        "image_w": int(regions.width),
        "num_boxes": len(regions.boxes),
    }
    for name, array in (("features", regions.features), ("boxes", regions.boxes), *optional_arrays(regions)):
        # Text rather than bytes: in protocol 2, the newest that the original's Python 2 reads, bytes are stored as
        # latin-1 text that is encoded again on every look-up.
        record[name] = base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()
    return pickle.dumps(record, protocol=2)


def _regions_from_record(record: dict[str, Any], feature_size: Optional[int], where: str) -> Regions:
    count = _whole_number(record, "num_boxes", where)
    record = {**{ours: record[theirs] for theirs, ours in _OTHER_NAMES.items() if theirs in record}, **record}
    optional = {name: _floats(record, name, count, None, where) for name in OPTIONAL_ARRAYS if name in record}
    return Regions(
        features=_floats(record, "features", count, feature_size, where),
        boxes=_floats(record, "boxes", count, 4, where),
        width=_whole_number(record, "image_w", where),
        height=_whole_number(record, "image_h", where),
        **optional,
    )


def _whole_number(record: dict[str, Any], name: str, where: str) -> int:
    value = record.get(name)
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRecord(f"{where}: {name} is {value!r}") from None
    if number <= 0 or (not isinstance(value, (str, bytes)) and number != value):
        raise BadRecord(f"{where}: {name} is {value!r}")
    return number


def _float_bytes(record: dict[str, Any], name: str, where: str) -> bytes:
    if name not in record:
        raise BadRecord(f"{where}: no entry {name}")
    try:
        if isinstance(record[name], np.ndarray):
            return np.ascontiguousarray(record[name], "<f4").tobytes()
        return binascii.a2b_base64(record[name])
    except (TypeError, ValueError) as error:
        raise BadRecord(f"{where}: {name} is not base64 nor an array of numbers ({error})") from None


def _floats(record: dict[str, Any], name: str, rows: int, columns: Optional[int], where: str) -> np.ndarray:
    data = _float_bytes(record, name, where)
    if columns is None:
        columns = len(data) // (4 * rows)
    if len(data) != rows * columns * 4 or not columns:
        raise BadRecord(
            f"{where}: {name} has {len(data)} bytes; {rows} boxes of {columns} float32 need {rows * columns * 4}"
        )
    return np.frombuffer(data, "<f4").reshape(rows, columns)
