"""From the NLVR corpus as it is published to what training reads: region stores, vocabulary, sentences with images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Iterator, Sequence

from ernie_vil.data.nlvr import IMAGES, NlvrExample, NlvrImages, divide, read_examples
from ernie_vil.data.nlvr_regions import COLUMNS, nlvr_regions
from ernie_vil.data.nlvr_statements import WORDS
from ernie_vil.data.nlvr_text import Speller, vocabulary
from ernie_vil.data.regions import Regions, write_lmdb_store
from ernie_vil.errors import BadRecord, UserError

VALIDATION_DIRECTORIES = tuple(range(8))
VERSION = 1


def fingerprint() -> dict:
    """What the stores say of how their features were made."""
    return {"extractor": "ernie_vil.data.nlvr_regions", "version": VERSION, "columns": len(COLUMNS)}


def find_images(folder: Path, part: str) -> Path:
    """``PART_images.zip``, or a folder ``PART_images`` or ``PART/images``. Raises :class:`UserError`."""
    for place in (folder / f"{part}_images.zip", folder / f"{part}_images", folder / part / "images"):
        if place.exists():
            return place
    raise UserError(f"{folder}: neither {part}_images.zip nor a folder {part}_images with the images of {part}.json")


def write_store(annotations: Path, images: Path, part: str, store: Path) -> tuple[list[NlvrExample], int, list[str]]:
    """Write the regions of all images of a part that are there.

    Returns:
        The examples, the number of images written, and a message for each record or image that was left out; an
        example's first image must be there, its five others need not.

    Raises:
        UserError: files that are missing or unusable, or a store that is there already.
    """
    examples, skipped = read_examples(annotations)
    source = NlvrImages(images)
    written = 0

    def items() -> Iterator[tuple[str, Regions]]:
        nonlocal written
        for example in examples:
            for number in range(IMAGES):
                name = example.image(part, number)
                if number and name not in source:
                    continue
                try:
                    regions = nlvr_regions(source.pixels(name), f"{images}, {name}.png")
                except BadRecord as error:
                    skipped.append(str(error))
                else:
                    written += 1
                    yield name, regions

    write_lmdb_store(store, items(), fingerprint())
    if not written:
        raise UserError(f"{images}: holds none of the images of {annotations}; " + "; ".join(skipped[:3]))
    return examples, written, skipped


def write_texts(examples: Sequence[NlvrExample], folder: Path) -> None:
    """Write ``vocab.txt`` and ``train_captions.jsonl`` and ``val_captions.jsonl`` (true sentences: id, image, text).

    Words are counted in the training part alone.
    """
    parts = dict(zip(("train", "val"), divide(examples, VALIDATION_DIRECTORIES)))
    tokens = vocabulary((example.sentence for example in parts["train"]), WORDS)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    speller = Speller(tokens)
    for name, part in parts.items():
        lines = [
            {
                "id": example.identifier,
                "image_id": example.image("train", 0),
                "caption": speller.normalise(example.sentence),
            }
            for example in part
            if example.label
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}_captions.jsonl").write_text(text, encoding="utf-8")
