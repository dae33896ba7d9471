"""Readers of caption files: COCO, Conceptual Captions, SBU, Visual Genome, VCR, Flickr30k, and plain formats.

All of them stream: memory does not grow with the file, but for 8 bytes a caption that tell whether an id stood before.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Optional, Union

from ernie_vil.data.json_stream import json_items, json_keys
from ernie_vil.data.unique_ids import SeenIds
from ernie_vil.errors import BadRecord, UserError

PathLike = Union[str, Path]
MAX_SKIP_RATIO = 0.001
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
LISTED = 20


@dataclass(frozen=True)
class Caption:
    """A caption of a picture, as it stands in its source.

    ``id`` is unique in the source; ``image_id`` is the picture's key in the region feature store.
    """

    id: str
    image_id: str
    text: str


Entry = tuple[str, Callable[[], Caption]]
"""Where a record stands, and reading it: it gives the caption or raises :class:`BadRecord` with the reason."""


def read_captions(
    path: PathLike,
    format: str = "auto",
    image_ids: Optional[PathLike] = None,
    seed: int = 0,
    max_skip_ratio: float = MAX_SKIP_RATIO,
    report: Optional[Callable[[str], None]] = None,
) -> Iterator[Caption]:
    """The captions of a file, in its order.

    ========================  ====================================  =====================  =====================
    format                    file                                  id                     image_id
    ========================  ====================================  =====================  =====================
    ``coco``                  captions_*.json                       of the annotation      ``image_id``
    ``conceptual-captions``   TSV: caption, URL [, image id]        line                   3rd column, else line
    ``sbu``                   sbu-captions-all.json, the text file  line or place in the   as the id
                              of captions, or a TSV as above        list, from 1
    ``visual-genome``         region_descriptions.json              ``region_id``          ``image_id``
    ``vcr``                   train.jsonl, val.jsonl                ``annot_id``           as in VcrRecord
    ``flickr30k``             token file: NAME.jpg#0, caption       NAME.jpg#0             NAME
    ``jsonl``                 {"id", "image_id", "caption"}         ``id``                 ``image_id``
    ``text``                  one caption a line                    line                   line
    ========================  ====================================  =====================  =====================

    VCR's text is question, right answer and rationale, with the names that the fine-tuning run gives with this seed in
    QA→R. Files of lines may be compressed (``.gz``).

    Args:
        path: the file.
        format: from the table; ``auto`` tells it by the suffix and the first record.
        image_ids: a text file with the image id of every record, line by line, in the place of the above. An empty line
            means that the picture is not to be had.
        seed: of VCR's names.
        max_skip_ratio: share of the records that may be damaged: no caption, no image id, not of the format.
        report: called with ``FILE:LINE: reason`` of every damaged record.

    Raises:
        UserError: unknown format, no such file, a file that is not of the format at all, an id for the second time,
            more damaged records than ``max_skip_ratio`` (raised at the end; up to 20 are named), or no caption.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such caption file")
    if format == "auto":
        format = detect_format(path)
    if format not in FORMATS:
        raise UserError(f"{format!r} is no format of captions; known are auto, {', '.join(FORMATS)}")
    entries = FORMATS[format](path, seed) if format == "vcr" else FORMATS[format](path)
    if image_ids is not None:
        entries = _with_image_ids(entries, Path(image_ids))
    seen, damaged, listed, good = SeenIds(), 0, "", 0
    for where, read in entries:
        try:
            caption = read()
            _check(caption)
        except BadRecord as error:
            damaged += 1
            listed += f"\n  {where}: {error}" if damaged <= LISTED else ""
            if report is not None:
                report(f"{where}: {error}")
            continue
        if not seen.add(caption.id):
            raise UserError(f"{where}: the id {caption.id!r} stands for the second time; ids must be unique")
        good += 1
        yield caption
    listed += f"\n  and {damaged - LISTED} more" if damaged > LISTED else ""
    if damaged > max_skip_ratio * (good + damaged):
        share = f"{damaged} of {good + damaged} records are damaged, more than the share of {max_skip_ratio}"
        raise UserError(f"{path}: {share} that may be skipped (format {format}):{listed}")
    if not good:
        raise UserError(f"{path}: holds no caption (format {format}){listed}")


def detect_format(path: Path) -> str:
    """The format of a file by its suffix and first record; :class:`UserError` if that does not tell."""
    suffix = next((suffix for suffix in reversed(path.suffixes) if suffix != ".gz"), "")
    if suffix == ".json":
        keys = json_keys(path)
        marks = {"annotations": "coco", "captions": "sbu", "image_urls": "sbu"}
        found = "visual-genome" if keys is None else next((marks[key] for key in keys if key in marks), None)
    elif suffix == ".jsonl":
        with _open(path) as file:
            found = "vcr" if b'"annot_id"' in file.readline() else "jsonl"
    else:
        found = {".tsv": "conceptual-captions", ".token": "flickr30k", ".txt": "text"}.get(suffix)
    if found is None:
        raise UserError(f"{path}: cannot tell the format; name one of {', '.join(FORMATS)}")
    return found


def _coco(path: Path) -> Iterator[Entry]:
    for number, item in enumerate(json_items(path, "annotations"), start=1):
        yield f"{path}: annotation {number}", lambda item=item: _caption_of(item, "id", "image_id", "caption")


def _visual_genome(path: Path) -> Iterator[Entry]:
    for number, image in enumerate(json_items(path), start=1):
        regions = image.get("regions") if isinstance(image, dict) else None
        if not isinstance(regions, list):
            yield f"{path}: image {number}", lambda: _refuse("it has no list of `regions`")
            continue
        for place, region in enumerate(regions, start=1):
            if isinstance(region, dict) and "image_id" not in region:
                region = {**region, "image_id": image.get("id")}
            where = f"{path}: image {number}, region {place}"
            yield where, lambda region=region: _caption_of(region, "region_id", "image_id", "phrase")


def _sbu(path: Path) -> Iterator[Entry]:
    if path.suffix == ".json":
        for number, text in enumerate(json_items(path, "captions"), start=1):
            yield f"{path}: caption {number}", lambda text=text, number=number: Caption(str(number), str(number), text)
        return
    with _open(path) as file:
        columns = b"\t" in file.readline()
    yield from _tsv(path) if columns else _text(path)


def _tsv(path: Path) -> Iterator[Entry]:
    def read(line: bytes, number: int) -> Caption:
        columns = _decode(line).split("\t")
        if len(columns) not in (2, 3):
            raise BadRecord(f"{len(columns)} columns; expected caption<TAB>URL, or caption<TAB>URL<TAB>image id")
        return Caption(str(number), columns[2].strip() if len(columns) == 3 else str(number), columns[0])

    return _lines(path, read)


def _flickr30k(path: Path) -> Iterator[Entry]:
    def read(line: bytes, number: int) -> Caption:
        name, tab, text = _decode(line).partition("\t")
        image, mark, _ = name.partition("#")
        if not tab or not mark:
            raise BadRecord("expected NAME.jpg#0<TAB>caption")
        return Caption(name, image.rpartition(".")[0] or image, text)

    return _lines(path, read)


def _text(path: Path) -> Iterator[Entry]:
    return _lines(path, lambda line, number: Caption(str(number), str(number), _decode(line)))


def _jsonl(path: Path) -> Iterator[Entry]:
    return _lines(path, lambda line, number: _caption_of(_loads(line), "id", "image_id", "caption"), blank=False)


def _vcr(path: Path, seed: int) -> Iterator[Entry]:
    from ernie_vil.data.names import NameDraws
    from ernie_vil.data.vcr import QA_TO_R, parse_record, plain_text

    draws = NameDraws.from_table(seed=seed)

    def read(line: bytes, number: int) -> Caption:
        try:
            record = parse_record(line, "", labelled=True)
        except BadRecord as error:
            raise BadRecord(str(error).lstrip(": ")) from None
        split = record.annot_id.partition("-")[0]
        names = draws.draw(QA_TO_R, split, number, number - 1, record.objects)
        parts = (record.question, record.answers[record.answer_label], record.rationales[record.rationale_label])
        return Caption(record.annot_id, record.image_id, " ".join(plain_text(part, names) for part in parts))

    return _lines(path, read, blank=False)


FORMATS: dict[str, Callable[..., Iterator[Entry]]] = {
    "coco": _coco,
    "conceptual-captions": _tsv,
    "sbu": _sbu,
    "visual-genome": _visual_genome,
    "vcr": _vcr,
    "flickr30k": _flickr30k,
    "jsonl": _jsonl,
    "text": _text,
}


def _lines(path: Path, read: Callable[[bytes, int], Caption], blank: bool = True) -> Iterator[Entry]:
    """Entries of a file of lines. ``blank``: a line of white space is a record (without a caption)."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                line = (line[3:] if number == 1 and line.startswith(b"\xef\xbb\xbf") else line).rstrip(b"\r\n")
                if blank or line.strip():
                    yield f"{path}:{number}", lambda line=line, number=number: read(line, number)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})") from None


def _with_image_ids(entries: Iterator[Entry], path: Path) -> Iterator[Entry]:
    if not path.is_file():
        raise UserError(f"{path}: no such file of image ids")
    end = object()
    with path.open("rb") as file:
        for number, (entry, line) in enumerate(itertools.zip_longest(entries, file, fillvalue=end), start=1):
            if entry is end or line is end:
                more = "records" if line is end else "image ids"
                raise UserError(
                    f"{path}:{number}: there are more {more}; give an image id for every record, line by line"
                )
            where, read = entry

            def renamed(read: Callable[[], Caption] = read, line: bytes = line) -> Caption:
                caption = read()
                return Caption(caption.id, _decode(line).strip(), caption.text)

            yield where, renamed


def _caption_of(item: Any, id_key: str, image_key: str, text_key: str) -> Caption:
    if not isinstance(item, dict):
        raise BadRecord(f"expected a JSON object, found {type(item).__name__}")
    values = []
    for key in (id_key, image_key):
        value = item.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise BadRecord(f"`{key}` is {repr(value)[:60]}, neither a number nor a text")
        values.append(str(value))
    if text_key not in item:
        raise BadRecord(f"image without caption: there is no `{text_key}`")
    return Caption(values[0], values[1], item[text_key])


def _check(caption: Caption) -> None:
    if not isinstance(caption.text, str):
        raise BadRecord(f"the caption is {repr(caption.text)[:60]}, not a text")
    if not caption.text.strip():
        raise BadRecord("image without caption: the caption is empty")
    if not caption.image_id.strip():
        raise BadRecord("caption without image: the image id is empty")
    if not caption.id.strip():
        raise BadRecord("the id is empty")
    if any(LONE_SURROGATE.search(text) for text in (caption.id, caption.image_id, caption.text)):
        raise BadRecord("holds half a surrogate pair, which is no character")


def _refuse(reason: str) -> Caption:
    raise BadRecord(reason)


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(f"not a text in UTF-8 ({error.reason} at byte {error.start})") from None


def _loads(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not a line of JSON ({error})") from None
