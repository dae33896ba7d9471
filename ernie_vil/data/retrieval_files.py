"""Captions of images for retrieval: Karpathy's JSON files and the original's tables.

Karpathy's ``dataset_flickr30k.json`` and ``dataset_coco.json`` hold all splits: per image ``filename``, ``imgid``,
``split``, for COCO ``cocoid``, and ``sentences`` with ``raw`` and ``sentid``. The original's tables have lines of
``image id<TAB>caption id<TAB>caption``, one file a split.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Union

from ernie_vil.errors import BadRecord, UserError

IMAGE_KEYS = ("stem", "filename", "cocoid", "imgid")
# COCO's images that are in neither of the 5,000 of val and test have a split of their own; all train with them.
_KARPATHY_SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


@dataclass(frozen=True)
class Caption:
    """One caption: ``id`` is unique in its file, ``image`` the image's place in :attr:`RetrievalSplit.images`."""

    id: str
    text: str
    image: int
    where: str
    """Where it stands, for messages."""


@dataclass
class RetrievalSplit:
    """The captions and images of one split, images in the order of the file.

    ``skipped`` has a message for every record that was left out, ``records`` is the number of captions in the file (an
    image without any counts as one).
    """

    captions: list[Caption] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    """Keys into the region store. Each image has a caption."""
    skipped: list[str] = field(default_factory=list)
    records: int = 0

    def captions_of(self) -> list[list[int]]:
        """For every image, the places of its captions."""
        found: list[list[int]] = [[] for _ in self.images]
        for index, caption in enumerate(self.captions):
            found[caption.image].append(index)
        return found

    def first_images(self, count: int) -> RetrievalSplit:
        """The first ``count`` images alone."""
        return self._select(set(self.images[:count]), [], whole=False)

    def with_regions(self, faults: dict[str, str]) -> RetrievalSplit:
        """Without the images that ``faults`` names, each with its fault; their captions are named in ``skipped``."""
        if not faults:
            return self
        lost = [
            f"{caption.where}: {faults[self.images[caption.image]]}"
            for caption in self.captions
            if self.images[caption.image] in faults
        ]
        return self._select(set(self.images) - set(faults), lost, whole=True)

    def _select(self, kept: Container[str], lost: list[str], whole: bool) -> RetrievalSplit:
        images = [image for image in self.images if image in kept]
        place = {image: index for index, image in enumerate(images)}
        captions = [
            Caption(caption.id, caption.text, place[self.images[caption.image]], caption.where)
            for caption in self.captions
            if self.images[caption.image] in place
        ]
        if whole:
            return RetrievalSplit(captions, images, [*self.skipped, *lost], self.records)
        return RetrievalSplit(captions, images, [], len(captions))


def read_split(path: Union[str, Path], split: str, image_key: str = "stem") -> RetrievalSplit:
    """The captions of a split, from Karpathy's JSON (``.json``) or a table of the original (any other name).

    A caption for the second time (by its id), one without text, an image without captions or for the second time, and a
    line or entry that cannot be read are left out and named.

    Args:
        path: the file. Of a table, all lines belong to the split.
        split: ``train`` (with COCO's ``restval``), ``val`` or ``test``.
        image_key: what of Karpathy's entries is the key into the region store: ``filename``, its ``stem``, ``cocoid``
            or ``imgid``.

    Raises:
        UserError: no such file, not of the format, or no usable caption of the split.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(missing_captions_message(path))
    found = RetrievalSplit()
    if path.suffix == ".json":
        _read_karpathy(path, split, image_key, found)
    else:
        _read_table(path, found)
    if not found.captions:
        reasons = "".join(f"\n  {message}" for message in found.skipped[:20])
        raise UserError(f"{path}: no usable caption of the split {split}{reasons and ':'}{reasons}")
    return found


def missing_captions_message(path: Path) -> str:
    """What to say to someone whose captions are not where the configuration looks for them."""
    found = f"there is no folder {path.parent} either"
    if path.parent.is_dir():
        names = sorted(entry.name for entry in path.parent.iterdir())[:20]
        found = f"{path.parent} holds {', '.join(names) or 'nothing'}"
    return (
        f"{path}: no such caption file; {found}. Give Karpathy's dataset_flickr30k.json or dataset_coco.json (or a "
        "table of image id, caption id, caption), or try the miniature data with --mini"
    )


class _Ids:
    """Refuses ids that stood before."""

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        self.captions: set[str] = set()

    def new_caption(self, identity: str) -> str:
        if identity in self.captions:
            raise BadRecord(f"caption id {identity} stands for the second time")
        self.captions.add(identity)
        return identity


def _read_karpathy(path: Path, split: str, image_key: str, found: RetrievalSplit) -> None:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{path}: not Karpathy's format: it must be an object with a list `images`")
    ids = _Ids()
    for number, entry in enumerate(entries):
        where = f"{path}: images[{number}]"
        try:
            if not isinstance(entry, dict) or not isinstance(entry.get("split"), str):
                raise BadRecord("no object with a `split`")
            if entry["split"] not in _KARPATHY_SPLITS[split]:
                continue
            key = _image_key(entry, image_key)
            sentences = entry.get("sentences")
            if not isinstance(sentences, list) or not sentences:
                raise BadRecord(f"image {key} has no captions")
            if key in ids.images:
                raise BadRecord(f"image {key} stands for the second time")
        except BadRecord as error:
            found.records += 1
            found.skipped.append(f"{where}: {error}")
            continue
        ids.images[key] = len(found.images)
        _add_sentences(sentences, f"{where} ({key})", len(found.images), ids, found)
        if found.captions and found.captions[-1].image == len(found.images):
            found.images.append(key)
        else:
            found.skipped.append(f"{where}: image {key} has no usable caption")
            found.records += 1


def _add_sentences(sentences: list, where: str, image: int, ids: _Ids, found: RetrievalSplit) -> None:
    for place, sentence in enumerate(sentences):
        found.records += 1
        here = f"{where}, sentence {place}"
        try:
            if not isinstance(sentence, dict) or type(sentence.get("sentid")) is not int:
                raise BadRecord("no object with a whole number `sentid`")
            text = sentence.get("raw")
            if text is None and isinstance(sentence.get("tokens"), list):
                text = " ".join(map(str, sentence["tokens"]))
            if not isinstance(text, str) or not text.strip():
                raise BadRecord(f"caption {sentence['sentid']} has no text in `raw`")
            found.captions.append(Caption(ids.new_caption(str(sentence["sentid"])), text.strip(), image, here))
        except BadRecord as error:
            found.skipped.append(f"{here}: {error}")


def _image_key(entry: dict[str, Any], image_key: str) -> str:
    name = "filename" if image_key == "stem" else image_key
    value = entry.get(name)
    if not (isinstance(value, str) or type(value) is int) or value == "":
        raise BadRecord(f"no `{name}`, which data.image_key {image_key} asks for")
    return Path(str(value)).stem if image_key == "stem" else str(value)


def _read_table(path: Path, found: RetrievalSplit) -> None:
    ids = _Ids()
    for where, columns in table_lines(path):
        found.records += 1
        try:
            if len(columns) != 3:
                raise BadRecord(f"{len(columns)} columns instead of 3 (image id, caption id, caption)")
            # As in the original, bytes that are not UTF-8 are passed over.
            image, identity, text = (column.decode("utf-8", "ignore").strip() for column in columns)
            if not image or not identity or not text:
                raise BadRecord("image id, caption id or caption is empty")
            place = ids.images.get(image, len(found.images))
            found.captions.append(Caption(ids.new_caption(identity), text, place, where))
        except BadRecord as error:
            found.skipped.append(f"{where}: {error}")
            continue
        if image not in ids.images:
            ids.images[image] = place
            found.images.append(image)


def table_lines(path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """``FILE:LINE`` and the columns of every line of a table that is not white space."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", line.rstrip(b"\r\n").split(b"\t")
