"""The cloze test: one node of a caption's scene graph is masked and is to be found (paper, Tables 5 and 6)."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any, Optional, Sequence

import numpy as np
import paddle

from ernie_vil.data.region_arrays import box_locations, pad_regions, with_whole_image
from ernie_vil.data.text_pair import pad_sequences
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.errors import BadRecord
from ernie_vil.scene_graph.files import CaptionFile, CaptionRecord
from ernie_vil.scene_graph.graph import Spans
from ernie_vil.scene_graph.masking import KIND_NAMES, NODE_KINDS, Unit, mask_node, maskable_units

KINDS = tuple(KIND_NAMES[kind] for kind in NODE_KINDS)
"""The parts of the test: object, attribute, relation."""


@dataclass(frozen=True)
class Tokens:
    """A caption in pieces: their ids and characters, without ``[CLS]`` and ``[SEP]``, and for each of :data:`KINDS` the
    units that can be masked."""

    ids: list[int]
    spans: list[tuple[int, int]]
    units: tuple[list[Unit], ...]


class ClozeDataset(paddle.io.Dataset):
    """Examples found by the key ``(part, 0, index)``: node ``index`` of a kind, in the order of the captions.

    Every node that can be masked is an example of its own: all its pieces become ``[MASK]``, whatever else the caption
    says stays, and no region is masked. Nodes that the tokenizer cut or that lie behind ``max_length`` are left out;
    relations with the same words are one node (see :mod:`ernie_vil.scene_graph.masking`).

    The captions are read through once, on construction.

    Args:
        file: captions with their scene graphs.
        tokenizer: of the model, with ``[MASK]``.
        store: regions of the pictures.
        max_length: most tokens of a caption, with ``[CLS]`` and ``[SEP]``.
        max_regions: most regions of a picture, the whole picture included.
        max_examples: of a kind that has more nodes, so many evenly spaced ones are taken; ``None`` takes all.

    Raises:
        BadRecord: on a look-up, a picture that the store lacks or cannot read; names the caption's line and the store.
    """

    def __init__(
        self,
        file: CaptionFile,
        tokenizer: WordPieceTokenizer,
        store: Any,
        max_length: int = 36,
        max_regions: int = 37,
        max_examples: Optional[int] = None,
    ) -> None:
        super().__init__()
        self.file = file
        self.tokenizer = tokenizer
        self.store = store
        self.max_length = max_length
        self.max_regions = max_regions
        self.unreadable: list[str] = list(file.skipped)
        """Captions that were left out, each with its place and the reason."""
        self.left_out = dict.fromkeys(KINDS, 0)
        """Nodes beyond ``max_examples``, by kind."""
        places = self._places()
        self._places_of = []
        for kind, found in zip(KINDS, places):
            if max_examples is not None and len(found) > max_examples:
                self.left_out[kind] = len(found) - max_examples
                found = found[np.arange(max_examples) * len(found) // max_examples]
            self._places_of.append(found)
        self.sizes = tuple(map(len, self._places_of))
        """Number of examples of the three kinds."""
        self.keys = [(part, 0, index) for part, size in enumerate(self.sizes) for index in range(size)]
        """The keys of all examples, kind by kind."""

    def _places(self) -> list[np.ndarray]:
        """For each kind, the number of the caption and the number of the unit in it, ``[n, 2]``."""
        places = [array("q") for _ in KINDS]
        for index in range(len(self.file)):
            try:
                record = self.file[index]
            except BadRecord as error:
                self.unreadable.append(str(error))
                continue
            for found, units in zip(places, self._tokens(record).units):
                for number in range(len(units)):
                    found.extend((index, number))
        return [np.array(found, dtype=np.int64).reshape(-1, 2) for found in places]

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        """One masked caption.

        Returns:
            ``part`` and ``index`` of the key; ``input_ids``; ``columns`` and ``labels``: places and true ids of the
            masked pieces; ``region_features`` float32 ``[n, F]`` and ``region_locations`` ``[n, 5]``.
        """
        part, _, index = key
        record, tokens, unit = self._look_up(key)
        masked = mask_node(tokens.ids, unit.pieces, self.tokenizer.mask_id)
        features, locations = self._regions(record.image_id, self._places_of[part][index, 0])
        return {
            "part": part,
            "index": index,
            "input_ids": [self.tokenizer.cls_id, *masked, self.tokenizer.sep_id],
            "columns": [1 + piece for piece in unit.pieces],
            "labels": [tokens.ids[piece] for piece in unit.pieces],
            "region_features": features,
            "region_locations": locations,
        }

    def node(self, key: tuple[int, int, int]) -> tuple[CaptionRecord, Spans]:
        """The caption of an example, and the characters of what is masked in it."""
        record, tokens, unit = self._look_up(key)
        spans: list[tuple[int, int]] = []
        for before, piece in zip((-2, *unit.pieces), unit.pieces):
            start, end = tokens.spans[piece]
            if piece == before + 1:
                start = spans.pop()[0]
            spans.append((start, end))
        return record, tuple(spans)

    def _look_up(self, key: tuple[int, int, int]) -> tuple[CaptionRecord, Tokens, Unit]:
        part, _, index = key
        caption, number = self._places_of[part][index].tolist()
        record = self.file[caption]
        tokens = self._tokens(record)
        return record, tokens, tokens.units[part][number]

    def _tokens(self, record: CaptionRecord) -> Tokens:
        ids, spans = self.tokenizer.encode_with_spans(record.graph.caption)
        kept = self.max_length - 2
        units = maskable_units(record.graph, spans, kept)
        return Tokens(ids[:kept], spans[:kept], tuple(units[kind] for kind in NODE_KINDS))

    def _regions(self, image_id: str, caption: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            regions = self.store[image_id]
        except BadRecord as error:
            # The same message for all nodes of the caption: it counts as one bad record.
            raise BadRecord(f"{self.file.where(int(caption))}: {error}") from error
        locations = box_locations(regions.boxes, regions.width, regions.height)
        features, locations = with_whole_image(regions.features, locations)
        return features[: self.max_regions], locations[: self.max_regions]


def collate_cloze(samples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Put n samples together.

    Returns:
        ``input_ids``, ``token_type_ids``, ``position_ids`` int64 and ``attention_mask`` float32 ``[n, L]``;
        ``region_features`` ``[n, N, F]``, ``region_locations`` ``[n, N, 5]`` and ``region_mask`` ``[n, N]`` float32;
        for all m masked pieces ``token_positions`` (row * L + column), ``token_labels`` (true ids) and ``token_rows``
        (which sample), int64 ``[m]``; ``part`` and ``index`` of the keys, int64 ``[n]``.
    """
    ids = [sample["input_ids"] for sample in samples]
    batch = pad_sequences(ids, [[0] * len(row) for row in ids])
    batch.update(pad_regions([(sample["region_features"], sample["region_locations"]) for sample in samples]))
    length = batch["input_ids"].shape[1]
    places = [(row, column) for row, sample in enumerate(samples) for column in sample["columns"]]
    batch["token_positions"] = np.array([row * length + column for row, column in places], dtype=np.int64)
    batch["token_labels"] = np.array([label for sample in samples for label in sample["labels"]], dtype=np.int64)
    batch["token_rows"] = np.array([row for row, _ in places], dtype=np.int64)
    for name in ("part", "index"):
        batch[name] = np.array([sample[name] for sample in samples], dtype=np.int64)
    return batch
