"""Parsed captions: tokens with tags and dependency trees, as training and evaluation of the small pipeline read them.

JSON lines (``.gz`` or not), one caption a line: ``{"id", "image_id", "tokens", "lemmas", "pos", "tags", "deps",
"heads"}``; lists of one length, ``heads`` are indices of tokens, and the root of a sentence is its own head.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Union

from ernie_vil.errors import UserError

LAYERS = ("tokens", "lemmas", "pos", "tags", "deps")
# Of a hundred images, the first are for the test, the next for choosing settings. The salt keeps this split apart from
# others that hash image ids.
SALT = "scene-graph-pipeline"
TEST_SHARE, DEV_SHARE = 10, 3


@dataclass(frozen=True)
class ParsedCaption:
    """A caption and its parse; the attributes are those of the file."""

    id: str
    image_id: str
    tokens: tuple[str, ...]
    lemmas: tuple[str, ...]
    pos: tuple[str, ...]
    tags: tuple[str, ...]
    deps: tuple[str, ...]
    heads: tuple[int, ...]

    @property
    def text(self) -> str:
        """The tokens with blanks between them."""
        return " ".join(self.tokens)


def read_parsed(path: Union[str, Path]) -> Iterator[ParsedCaption]:
    """The captions of a file that have tokens.

    Raises:
        UserError: naming the file and line: it is missing, not of this layout, or a head is outside of the caption.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of parsed captions")
    lines = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                lines += 1
                caption = _from_json(json.loads(line))
                if caption.tokens:
                    yield caption
    except (gzip.BadGzipFile, EOFError, ValueError, KeyError, TypeError) as error:
        message = f"not a parsed caption ({type(error).__name__}: {error}); make the file with --annotate"
        raise UserError(f"{path}: line {max(lines, 1)}: {message}") from None


def _from_json(values: Mapping[str, Any]) -> ParsedCaption:
    layers = {name: tuple(map(str, values[name])) for name in LAYERS}
    heads = tuple(map(int, values["heads"]))
    size = len(layers["tokens"])
    if any(len(layer) != size for layer in (*layers.values(), heads)):
        raise ValueError("the layers differ in length")
    if not all(0 <= head < size for head in heads):
        raise ValueError("a head is outside of the caption")
    return ParsedCaption(str(values["id"]), str(values["image_id"]), heads=heads, **layers)


def part_of(image_id: str) -> str:
    """``"test"``, ``"dev"`` or ``"train"``: the part of a caption, by its image, so that no image is in two of them."""
    place = int(hashlib.sha1(f"{SALT}:{image_id}".encode()).hexdigest(), 16) % 100
    return "test" if place < TEST_SHARE else "dev" if place < TEST_SHARE + DEV_SHARE else "train"


def to_doc(vocab: Any, caption: ParsedCaption) -> Any:
    """The caption as a spaCy 3 ``Doc`` with all its annotations; a blank stands after every token but the last."""
    from spacy.tokens import Doc

    size = len(caption.tokens)
    return Doc(
        vocab,
        words=list(caption.tokens),
        spaces=[True] * (size - 1) + [False],
        lemmas=list(caption.lemmas),
        pos=list(caption.pos),
        tags=list(caption.tags),
        deps=list(caption.deps),
        heads=list(caption.heads),
    )


def annotate(nlp: Any, captions: Iterable[Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """Lines of a file of parsed captions, made by a spaCy 2 or 3 pipeline.

    Args:
        nlp: such as ``spacy.load("en_core_web_sm-2.2.5")`` under spaCy 2.3.9.
        captions: ``id``, ``image_id`` and ``caption`` each. White space is made single blanks.
    """
    pairs = ((" ".join(caption["caption"].split()), caption) for caption in captions)
    for doc, caption in nlp.pipe(pairs, as_tuples=True, batch_size=256):
        yield {
            "id": caption["id"],
            "image_id": caption["image_id"],
            "tokens": [token.text for token in doc],
            "lemmas": [token.lemma_ for token in doc],
            "pos": [token.pos_ for token in doc],
            "tags": [token.tag_ for token in doc],
            "deps": [token.dep_ for token in doc],
            "heads": [token.head.i for token in doc],
        }


def read_captions(path: Union[str, Path]) -> Iterator[dict[str, str]]:
    """Captions to annotate: a COCO captions file or Visual Genome's ``region_descriptions.json`` (``.json``), or a CSV
    with the columns ``region_id``, ``image_id`` and ``caption`` (FACTUAL's). Equal texts come once.

    Raises:
        UserError: the file is missing or is none of these.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of captions")
    seen = set()
    try:
        for number, image, text in _csv_rows(path) if path.suffix == ".csv" else _json_rows(path):
            key = " ".join(text.lower().split())
            if key and key not in seen:
                seen.add(key)
                yield {"id": str(number), "image_id": str(image), "caption": text}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: neither COCO captions nor region descriptions ({type(error).__name__}: {error})"
        ) from None


def _csv_rows(path: Path) -> Iterator[tuple[Any, Any, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield row["region_id"], row["image_id"], row["caption"]


def _json_rows(path: Path) -> Iterator[tuple[Any, Any, str]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        for row in content["annotations"]:
            yield row["id"], row["image_id"], row["caption"]
    else:
        for image in content:
            for region in image["regions"]:
                yield region["region_id"], region["image_id"], region["phrase"]
