"""Caption files: captions with their scene graphs, as ``tools/parse_scene_graphs.py`` writes them.

JSON lines, one caption a line, in the order of the source:
``{"id": ..., "image_id": ..., "caption": ..., "objects": [...], "attributes": [...], "relations": [...]}``. Parquet has
the same columns, the nodes as JSON text.
"""

from __future__ import annotations

import json
import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional, Union

import numpy as np

from ernie_vil.data.json_lines import JsonLines
from ernie_vil.data.unique_ids import SeenIds
from ernie_vil.errors import BadRecord, UserError
from ernie_vil.scene_graph.graph import SceneGraph

NODE_COLUMNS = ("objects", "attributes", "relations")
COLUMNS = ("id", "image_id", "caption", *NODE_COLUMNS)
# Rows that are read together: a look-up decodes one group.
PARQUET_GROUP = 256


@dataclass(frozen=True)
class CaptionRecord:
    """A caption with its graph."""

    id: str
    image_id: str
    """Key into the region feature store."""
    graph: SceneGraph


class CaptionFile:
    """A caption file as a sequence of :class:`CaptionRecord`. Keeps the places of the captions, not their contents.

    On construction every line must be a JSON object with texts ``id``, ``image_id`` and ``caption``; one that is not,
    or whose id stood before, is left out and named in ``skipped`` (``FILE:LINE: reason``). The nodes are checked when
    they are looked up.

    Args:
        path: JSON lines, or parquet by the suffix ``.parquet`` (needs pyarrow).

    Raises:
        UserError: the file is missing, is not what its suffix says, or holds no usable caption.
        BadRecord: on a look-up, nodes that are not those of the caption; names the line.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such caption file; tools/parse_scene_graphs.py makes one of captions")
        self._image_ids = _Texts()
        self._seen = SeenIds()
        self._rows: Union[JsonLines, _ParquetRows]
        if self.path.suffix == ".parquet":
            self._rows = _ParquetRows(self.path, self._check)
        else:
            self._rows = JsonLines(self.path, self._check_line)
        self.skipped: list[str] = self._rows.skipped
        del self._seen
        if not len(self):
            raise UserError(f"{self.path}: no usable caption; {self._rows.why_empty()}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> CaptionRecord:
        where, row = self.where(index), self._rows[index]
        values = _decoded(row, where) if isinstance(row, bytes) else _with_nodes(row, where)
        return CaptionRecord(values["id"], values["image_id"], SceneGraph.from_dict(values, where))

    def __iter__(self) -> Iterator[CaptionRecord]:
        return (self[index] for index in range(len(self)))

    def image_id(self, index: int) -> str:
        """Key of the picture; nothing is read."""
        return self._image_ids[index]

    def where(self, index: int) -> str:
        """``FILE:LINE`` (of parquet the row, from 1)."""
        return self._rows.where(index)

    def _check_line(self, line: bytes, where: str) -> None:
        self._check(_decoded(line, where), where)

    def _check(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise BadRecord(f"{where}: expected a JSON object, found {type(values).__name__}")
        for name in ("id", "image_id", "caption"):
            if not isinstance(values.get(name), str) or not values[name]:
                raise BadRecord(f"{where}: `{name}` is {values.get(name)!r}, not a text")
        if not self._seen.add(values["id"]):
            raise BadRecord(f"{where}: the id {values['id']!r} stands for the second time")
        self._image_ids.append(values["image_id"])


def import_pyarrow() -> Any:
    """The module ``pyarrow.parquet``, or :class:`UserError` with what to install."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError('parquet files need pyarrow: pip install "ernie-vil-paddle[nlp]" or write .jsonl') from None
    return pyarrow.parquet


def write_parquet(lines: Path, path: Path) -> None:
    """Rewrite a JSON-lines caption file as parquet; constant memory."""
    parquet = import_pyarrow()
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
    with parquet.ParquetWriter(path, schema) as writer, lines.open("rb") as file:
        rows: list[dict[str, str]] = []
        for line in file:
            values = json.loads(line)
            nodes = {name: json.dumps(values[name]) for name in NODE_COLUMNS}
            rows.append({**{name: values[name] for name in COLUMNS}, **nodes})
            if len(rows) == PARQUET_GROUP:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema), row_group_size=PARQUET_GROUP)
                rows = []
        if rows:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema), row_group_size=PARQUET_GROUP)


class _Texts:
    """A list of short texts in one piece of memory: forked workers share it, and a text takes 8 bytes and itself."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self._ends) - 1:
            raise IndexError(index)
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")


class _ParquetRows:
    """Rows of a parquet file; the same face as :class:`JsonLines`."""

    def __init__(self, path: Path, check: Any) -> None:
        self.path = path
        self.skipped: list[str] = []
        self._parquet = import_pyarrow()
        self._file: Optional[tuple[int, Any]] = None
        self._group: tuple[int, list[dict[str, Any]]] = (-1, [])
        try:
            file = self._parquet.ParquetFile(path)
            missing = set(COLUMNS) - set(file.schema_arrow.names)
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: not a parquet file ({error})") from None
        if missing:
            raise UserError(f"{path}: not a caption file; it lacks the columns {', '.join(sorted(missing))}")
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        rows = array("q")
        number = 0
        for batch in file.iter_batches(columns=["id", "image_id", "caption"]):
            for values in batch.to_pylist():
                try:
                    check(values, f"{path}:{number + 1}")
                except BadRecord as error:
                    self.skipped.append(str(error))
                else:
                    rows.append(number)
                number += 1
        self._rows = np.array(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self._rows[index])
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if self._group[0] != group:
            table = self._own_file().read_row_group(group, columns=list(COLUMNS), use_threads=False)
            self._group = (group, table.to_pylist())
        return self._group[1][row - int(self._starts[group])]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None, "_parquet": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _parquet=import_pyarrow())

    def where(self, index: int) -> str:
        return f"{self.path}:{int(self._rows[index]) + 1}"

    def why_empty(self) -> str:
        reasons = "".join(f"\n  {message}" for message in self.skipped[:20])
        return f"all {len(self.skipped)} rows are bad:{reasons}" if reasons else "the file is empty"

    def _own_file(self) -> Any:
        # A forked worker would share the position in its parent's file, and Arrow's threads do not survive a fork.
        if self._file is None or self._file[0] != os.getpid():
            self._file = (os.getpid(), self._parquet.ParquetFile(self.path))
        return self._file[1]


def _decoded(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{where}: not a line of JSON ({error})") from None


def _with_nodes(row: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        return {**row, **{name: json.loads(row[name]) for name in NODE_COLUMNS}}
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRecord(f"{where}: the nodes are not JSON ({error})") from None
