"""NLVR v1: is a sentence true of a synthetic image of three boxes? (Suhr et al., ACL 2017.)

The annotations are the corpus' JSON lines; the images lie in a zip file or a folder as ``DIRECTORY/SPLIT-ID-K.png``.
``K`` is 0 to 5: six images of an example that differ in the order of their boxes alone.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence, Union

import numpy as np
import paddle
from PIL import Image

from ernie_vil.data.nlvr_changes import ORDERS, Changes, change_regions, change_sentence, possible_changes
from ernie_vil.data.nlvr_statements import Scene, draw_statement
from ernie_vil.data.nlvr_text import Speller
from ernie_vil.data.region_arrays import pad_regions
from ernie_vil.data.regions import LmdbRegionStore, Regions, box_locations
from ernie_vil.data.text_pair import pad_sequences
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.errors import BadRecord, UserError

SPLITS = ("train", "val", "dev")
IMAGES = len(ORDERS)


@dataclass(frozen=True)
class NlvrExample:
    """A sentence with its images. ``where`` is ``FILE:LINE``."""

    identifier: str
    sentence: str
    label: bool
    directory: str
    where: str

    @property
    def sentence_number(self) -> int:
        """The same for the examples (four as a rule) that share a sentence."""
        return int(self.identifier.split("-")[0])

    def image(self, part: str, number: int) -> str:
        """Key of an image in the store, and its file's name without ``.png``; ``part`` is ``train`` or ``dev``."""
        return f"{part}-{self.identifier}-{number}"


def read_examples(path: Union[str, Path]) -> tuple[list[NlvrExample], list[str]]:
    """The usable lines of an annotation file, and a message for each other one.

    Raises :class:`UserError` if there is no such file or no usable line in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; it is one of the corpus' JSON-lines files")
    examples: list[NlvrExample] = []
    skipped: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            example = _example(line, f"{path}:{number}")
            if example.identifier in seen:
                raise BadRecord(f"{example.where}: the identifier {example.identifier} occurred before")
        except BadRecord as error:
            skipped.append(str(error))
        else:
            seen.add(example.identifier)
            examples.append(example)
    if not examples:
        raise UserError(f"{path}: no usable line; " + ("; ".join(skipped[:3]) or "the file is empty"))
    return examples, skipped


def _example(line: bytes, where: str) -> NlvrExample:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{where}: not a line of JSON ({error})") from None
    if not isinstance(fields, dict):
        raise BadRecord(f"{where}: expected a JSON object, found {type(fields).__name__}")
    values = []
    for name in ("identifier", "sentence", "label", "directory"):
        value = fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise BadRecord(f"{where}: `{name}` is {value!r}, not a text")
        values.append(value)
    identifier, sentence, label, directory = values
    if not re.fullmatch(r"[0-9]+-[0-9]+", identifier):
        raise BadRecord(f"{where}: `identifier` is {identifier!r}, not of the form 1304-0")
    if label.lower() not in ("true", "false"):
        raise BadRecord(f"{where}: `label` is {label!r}, neither true nor false")
    return NlvrExample(identifier, sentence, label.lower() == "true", directory, where)


def divide(examples: Sequence[NlvrExample], held_out: Sequence[int]) -> tuple[list[NlvrExample], list[NlvrExample]]:
    """Training and validation part: examples whose ``directory`` is among ``held_out`` are the second.

    All examples of one sentence share a directory. Raises :class:`UserError` if either part is empty.
    """
    names = {str(number) for number in held_out}
    parts: tuple[list[NlvrExample], list[NlvrExample]] = ([], [])
    for example in examples:
        parts[example.directory in names].append(example)
    for part, name in zip(parts, ("training", "validation")):
        if not part:
            raise UserError(f"data.validation_directories: {list(held_out)} leave no example for {name}")
    return parts


class NlvrImages:
    """The images of one zip file or folder, found by their file names whatever folders they lie in.

    Raises :class:`UserError` if ``path`` is neither.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)
        self._zip: Optional[zipfile.ZipFile] = None
        if self.path.is_dir():
            places: Iterator[str] = (str(file) for file in self.path.rglob("*.png"))
        else:
            try:
                self._zip = zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"{self.path}: neither a folder nor a zip file of images ({error})") from None
            places = (name for name in self._zip.namelist() if name.endswith(".png"))
        self._places = {Path(place).stem: place for place in places}

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def pixels(self, name: str) -> np.ndarray:
        """The image ``[h, w, 3]`` of bytes. Raises :class:`BadRecord` naming it if it is missing or damaged."""
        if name not in self._places:
            raise BadRecord(f"{self.path}: no image {name}.png")
        try:
            place = self._places[name]
            data = Path(place).read_bytes() if self._zip is None else self._zip.read(place)
            with Image.open(io.BytesIO(data)) as image:
                return np.array(image.convert("RGB"))
        except (OSError, zipfile.BadZipFile, SyntaxError, ValueError, EOFError) as error:
            raise BadRecord(f"{self.path}, {name}.png: cannot be read ({error})") from None


class NlvrDataset(paddle.io.Dataset):
    """Samples found by the key ``(part, epoch, index)``; everything random follows from the seed, epoch and index.

    In training ``index`` is an example's number, its image is the first of the six, changed at random where ``changes``
    allows it; ``statement_share`` of the samples are generated statements instead, about this image or another one.
    Otherwise ``index`` is ``6 * example + image``; an image that the store lacks is made from the first by reordering
    its boxes (what the corpus' own images are).

    Args:
        examples: of the split.
        part: prefix of the images' names, ``train`` or ``dev``.
        store: regions of :func:`ernie_vil.data.nlvr_regions.nlvr_regions`.
        tokenizer: of the model.
        training: see above.
        changes: which changes keep the truth and may be made; see :mod:`ernie_vil.data.nlvr_changes`.
        statement_share: share of training samples that are statements.
        simple_share: share of simple ones among the statements.
        max_length: longest sequence, with ``[CLS]`` and ``[SEP]``.

    Raises:
        BadRecord: on a look-up, an image that the store lacks or cannot read.
    """

    def __init__(
        self,
        examples: Sequence[NlvrExample],
        part: str,
        store: LmdbRegionStore,
        tokenizer: WordPieceTokenizer,
        training: bool = False,
        changes: Sequence[str] = (),
        statement_share: float = 0.0,
        simple_share: float = 0.0,
        max_length: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.examples, self.part, self.store = examples, part, store
        self.tokenizer, self.training, self.max_length, self.seed = tokenizer, training, max_length, seed
        self.changes, self.statement_share, self.simple_share = changes, statement_share, simple_share
        self._scenes: dict[int, Scene] = {}
        speller = Speller(list(tokenizer.vocabulary))
        self.sentences = [speller.normalise(example.sentence) for example in examples]

    def __len__(self) -> int:
        return len(self.examples) * (1 if self.training else IMAGES)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        """A sample.

        Returns:
            ``input_ids``; ``region_features`` ``[n, F]`` and ``region_locations`` ``[n, 5]``; ``region_labels`` and
            ``region_weights`` ``[n]``: whether a statement speaks of a region, and whether that is known; ``label``, 1
            for true; ``index`` of the key; ``sentence``: number of the example's sentence.
        """
        _, epoch, index = key
        number, image = (index, 0) if self.training else divmod(index, IMAGES)
        example, sentence = self.examples[number], self.sentences[number]
        label, regions = example.label, self._regions(example, image)
        known: list[Optional[bool]] = [None] * len(regions.boxes)
        if self.training:
            rng = np.random.default_rng([self.seed, epoch, index])
            if rng.random() < self.statement_share:
                simple = bool(rng.random() < self.simple_share)
                drawn = draw_statement(number, self._scene, len(self.examples), rng, simple)
                sentence, label, regions = drawn.text, drawn.truth, self._regions(self.examples[drawn.image], 0)
                known = drawn.of_rows()
            change = Changes.draw(possible_changes(sentence, regions.features, self.changes), rng)
            sentence, regions = change_sentence(sentence, change), change_regions(regions, change)
        ids = self.tokenizer.encode(sentence)[: self.max_length - 2]
        return {
            "index": index,
            "input_ids": [self.tokenizer.cls_id, *ids, self.tokenizer.sep_id],
            "region_features": regions.features,
            "region_locations": box_locations(regions.boxes, regions.width, regions.height),
            "region_labels": [float(bool(value)) for value in known],
            "region_weights": [float(value is not None) for value in known],
            "label": float(label),
            "sentence": example.sentence_number,
        }

    def _scene(self, number: int) -> Scene:
        if number not in self._scenes:
            self._scenes[number] = Scene.from_features(self._regions(self.examples[number], 0).features)
        return self._scenes[number]

    def _regions(self, example: NlvrExample, image: int) -> Regions:
        name = example.image(self.part, image)
        try:
            if image and name not in self.store:
                return change_regions(self.store[example.image(self.part, 0)], Changes(boxes=ORDERS[image]))
            return self.store[name]
        except BadRecord as error:
            raise BadRecord(f"{example.where}: {error}") from None


def collate_nlvr(samples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Put n samples together; texts and regions are padded to the longest of the batch.

    Returns:
        ``input_ids``, ``token_type_ids``, ``position_ids`` int64 and ``attention_mask`` float32 ``[n, L]``;
        ``region_features`` ``[n, N, F]``, ``region_locations`` ``[n, N, 5]``, ``region_mask``, ``region_labels`` and
        ``region_weights`` ``[n, N]`` and ``labels`` ``[n]`` float32; ``index`` and ``sentence`` int64 ``[n]``.
    """
    ids = [sample["input_ids"] for sample in samples]
    batch = pad_sequences(ids, [[0] * len(sequence) for sequence in ids])
    batch.update(pad_regions([(sample["region_features"], sample["region_locations"]) for sample in samples]))
    for name in ("region_labels", "region_weights"):
        batch[name] = np.zeros_like(batch["region_mask"])
        for row, sample in enumerate(samples):
            batch[name][row, : len(sample[name])] = sample[name]
    batch["labels"] = np.array([sample["label"] for sample in samples], dtype=np.float32)
    for name in ("index", "sentence"):
        batch[name] = np.array([sample[name] for sample in samples], dtype=np.int64)
    return batch
