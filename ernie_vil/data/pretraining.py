"""Pre-training samples: a caption with its image or a random other one, parts of both masked (paper, section 3)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Iterable, Optional, Sequence

import numpy as np
import paddle

from ernie_vil.data.region_arrays import Regions, pad_regions
from ernie_vil.data.region_masking import MaskedRegions, mask_regions
from ernie_vil.data.text_pair import pad_sequences
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.errors import BadRecord, UserError
from ernie_vil.scene_graph.files import CaptionFile, CaptionRecord
from ernie_vil.scene_graph.masking import (
    KIND_NAMES,
    NODE_KINDS,
    TOKEN,
    MaskedCaption,
    Unit,
    mask_caption,
    maskable_units,
    ordinary_token_ids,
)

REGION_TARGETS = ("classes", "features", "none")
# Random streams of a sample. Each is a generator of its own, so that more or fewer draws of one leave the others alone.
_TOKENS, _REGIONS, _NEGATIVES = range(3)
# Random draws of another image before it is searched for; also how many unreadable images are passed over.
_TRIES = 20

Key = tuple[int, int, int]
Units = dict[int, list[Unit]]


@dataclass(frozen=True)
class CaptionSource:
    """Captions and the regions of their images; annotated boxes (``ground_truth``) are put behind the detected ones."""

    captions: CaptionFile
    detected: Any
    ground_truth: Optional[Any] = None


@dataclass(frozen=True)
class MaskRates:
    """Shares that are masked: of all word pieces at random, of the nodes of each kind, of the regions.

    Nodes are masked besides the word pieces; see :mod:`ernie_vil.scene_graph.masking`.
    """

    token: float = 0.15
    object: float = 0.3
    attribute: float = 0.3
    relation: float = 0.3
    region: float = 0.15

    @property
    def of_kinds(self) -> tuple[float, ...]:
        """In the order of ``KIND_NAMES``."""
        return tuple(getattr(self, name) for name in KIND_NAMES)


class PretrainingDataset(paddle.io.Dataset):
    """Samples found by the key ``(part, epoch, index)``; the captions of all sources follow each other in one part.

    Masks and the choice of the image are drawn anew in every epoch, from ``seed``, epoch and index alone. An evaluation
    uses epoch 0 and so always has the same ones. Nothing of a caption is kept in memory.

    With probability ``negative_share`` a caption is shown with the image of another caption of its source, never with
    its own. Such a pair is masked like any other, so that masks do not tell which it is, but has no targets.

    Args:
        sources: captions and stores.
        tokenizer: of the model, with ``[MASK]``.
        rates: what is masked.
        seed: of all draws.
        max_length: most tokens of a caption, with ``[CLS]`` and ``[SEP]``; longer captions are cut.
        max_regions: most regions of an image, the whole-image row included.
        negative_share: see above.
        region_target: ``classes``: the detector's class distribution (``class_probs`` of the stores); ``features``; or
            ``none``, with which no region is masked.
        region_classes: columns that ``class_probs`` must have; ``None`` takes any.

    Raises:
        UserError: on construction, no source, no ``[MASK]``, too small a ``max_length``, a source whose captions are
            all of one image though other images are called for, or a store without fitting ``class_probs`` (the last
            also on a look-up).
        BadRecord: on a look-up, an empty caption, nodes that are not those of the caption, or a caption without image;
            names the line.
    """

    def __init__(
        self,
        sources: Sequence[CaptionSource],
        tokenizer: WordPieceTokenizer,
        rates: MaskRates = MaskRates(),
        *,
        seed: int = 0,
        max_length: int = 36,
        max_regions: int = 37,
        negative_share: float = 0.5,
        region_target: str = "classes",
        region_classes: Optional[int] = None,
    ) -> None:
        super().__init__()
        if not sources:
            raise UserError("pre-training needs a source of captions")
        if region_target not in REGION_TARGETS:
            raise UserError(f"region_target is {region_target!r}; it can be {', '.join(REGION_TARGETS)}")
        if max_length < 3:
            raise UserError(
                f"max_length is {max_length}; a caption takes at least 3 tokens, [CLS] and [SEP] among them"
            )
        if tokenizer.mask_id is None:
            raise UserError(f"{tokenizer.where}: has no [MASK], which pre-training needs")
        self.sources = list(sources)
        self.tokenizer = tokenizer
        self.rates = rates
        self.seed = seed
        self.max_length = max_length
        self.max_regions = max_regions
        self.negative_share = negative_share
        self.region_target = region_target
        self.region_classes = region_classes
        self.unreadable: list[str] = [message for source in self.sources for message in source.captions.skipped]
        """Captions that were left out when the files were opened, each with its place and the reason."""
        self._ordinary_ids = ordinary_token_ids(tokenizer.vocabulary)
        if not len(self._ordinary_ids):
            raise UserError(f"{tokenizer.where}: holds nothing but special tokens")
        self._ends = np.cumsum([len(source.captions) for source in self.sources])
        for source in self.sources:
            self._check(source)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def records(self) -> int:
        """Number of captions in the files, those left out included."""
        return len(self) + len(self.unreadable)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """One caption with an image.

        Returns:
            ``index`` of the key; ``input_ids``; ``matched``: whether the image is its own; ``columns``, ``labels`` and
            ``kinds`` int64 of the masked pieces: place in ``input_ids``, true id, kind; ``region_features`` float32
            ``[n, F]``, ``region_locations`` ``[n, 5]``; ``rows`` int64 of the masked regions and their ``targets``
            float32, ``None`` with ``region_target`` "none". A pair that does not belong together has masked pieces and
            regions, but none of them to predict.
        """
        _, epoch, index = key
        source, place = self._locate(index)
        text = self.masked_caption(key)[2]
        matched, regions = self._image(source, place, epoch, index)
        targets = slice(None) if matched else slice(0)
        return {
            "index": index,
            "input_ids": [self.tokenizer.cls_id, *text.token_ids.tolist(), self.tokenizer.sep_id],
            "matched": matched,
            "columns": text.positions[targets] + 1,
            "labels": text.labels[targets],
            "kinds": text.kinds[targets],
            "region_features": regions.features,
            "region_locations": regions.locations,
            "rows": regions.rows[targets],
            "targets": None if regions.targets is None else regions.targets[targets],
        }

    def masked_caption(self, key: Key) -> tuple[CaptionRecord, Units, MaskedCaption]:
        """A caption, what can be and what is masked in it. Places count its pieces from 0. Reads no image."""
        _, epoch, index = key
        source, place = self._locate(index)
        record = source.captions[place]
        token_ids, spans = self.tokenizer.encode_with_spans(record.graph.caption)
        if not token_ids:
            raise BadRecord(f"{source.captions.where(place)}: the caption {record.graph.caption!r} has no words")
        token_ids = token_ids[: self.max_length - 2]
        units = maskable_units(record.graph, spans, len(token_ids))
        rng = self._stream(epoch, index, _TOKENS)
        masked = mask_caption(token_ids, units, self.rates.of_kinds, self.tokenizer.mask_id, self._ordinary_ids, rng)
        return record, units, masked

    def _locate(self, index: int) -> tuple[CaptionSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"caption {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self.sources[number]
        return source, index - int(self._ends[number]) + len(source.captions)

    def _stream(self, epoch: int, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, index, purpose])

    def _image(self, source: CaptionSource, place: int, epoch: int, index: int) -> tuple[bool, MaskedRegions]:
        """Whether the image is the caption's own, and its regions."""
        rng = self._stream(epoch, index, _NEGATIVES)
        own = rng.random() >= self.negative_share
        try:
            if own:
                return True, self._masked_regions(source, source.captions.image_id(place), epoch, index)
            for _ in range(_TRIES):
                other = self._other_image(source.captions, place, rng)
                try:
                    return False, self._masked_regions(source, other, epoch, index)
                except BadRecord as error:
                    # The fault is that image's, and is reported with its own captions. Reported here, one bad image
                    # would count against every caption that happens to draw it.
                    fault = error
            raise fault
        except BadRecord as error:
            raise BadRecord(f"{source.captions.where(place)}: {error}") from error

    @staticmethod
    def _other_image(captions: CaptionFile, place: int, rng: np.random.Generator) -> str:
        own = captions.image_id(place)
        for _ in range(_TRIES):
            other = captions.image_id(int(rng.integers(len(captions))))
            if other != own:
                return other
        start = int(rng.integers(len(captions)))
        candidates = (captions.image_id((start + step) % len(captions)) for step in range(len(captions)))
        return next(image_id for image_id in candidates if image_id != own)

    def _masked_regions(self, source: CaptionSource, image_id: str, epoch: int, index: int) -> MaskedRegions:
        detected = self._regions(source.detected, image_id)
        ground_truth = None if source.ground_truth is None else self._regions(source.ground_truth, image_id)
        rate = 0.0 if self.region_target == "none" else self.rates.region
        rng = self._stream(epoch, index, _REGIONS)
        try:
            return mask_regions(detected, ground_truth, self.max_regions, rate, rng, self.region_target)
        except BadRecord as error:
            raise BadRecord(f"{source.detected.path}, image {image_id}: {error}") from error

    def _regions(self, store: Any, image_id: str) -> Regions:
        regions: Regions = store[image_id]
        if self.region_target == "classes":
            if regions.class_probs is None:
                raise UserError(
                    f"{store.path}: has no class_probs, which masked regions are trained on; extract them too, or set "
                    "model.region_target=features"
                )
            columns = regions.class_probs.shape[1]
            if self.region_classes not in (None, columns):
                raise UserError(
                    f"{store.path}: class_probs has {columns} classes, but model.region_classes is "
                    f"{self.region_classes}; set it to {columns} if the store is the right one"
                )
        return regions

    def _check(self, source: CaptionSource) -> None:
        captions = source.captions
        if self.negative_share > 0 and all(
            captions.image_id(place) == captions.image_id(0) for place in range(1, len(captions))
        ):
            raise UserError(
                f"{captions.path}: all captions are of the image {captions.image_id(0)!r}, so none can be shown with "
                "another one; set data.negative_share=0, or use more images"
            )
        for store in (source.detected, source.ground_truth):
            if store is not None:
                # A bad image is met again, and counted, when its sample is asked for.
                with contextlib.suppress(BadRecord):
                    self._regions(store, captions.image_id(0))


def collate_pretraining(samples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Put n samples together.

    Returns:
        ``input_ids``, ``token_type_ids``, ``position_ids`` int64 and ``attention_mask`` float32 ``[n, L]``;
        ``region_features`` ``[n, N, F]``, ``region_locations`` ``[n, N, 5]`` and ``region_mask`` ``[n, N]`` float32;
        ``match_labels`` float32 ``[n]``, 1 where caption and image belong together; ``index`` int64 ``[n]``.

        Of all m masked pieces, int64 ``[m]``: ``token_positions`` (row * L + column), ``token_labels`` and
        ``token_kinds``. Of all k masked regions: ``region_positions`` int64 ``[k]`` (row * N + region),
        ``region_targets`` float32 ``[k, C]`` and ``region_weights`` float32 ``[k]``, all 1; with ``region_target``
        "none" these three are left out. No array is empty: where there is no target, there is one of position 0, and
        kind -1 or weight 0, which does not count.
    """
    ids = [sample["input_ids"] for sample in samples]
    batch = pad_sequences(ids, [[0] * len(row) for row in ids])
    batch.update(pad_regions([(sample["region_features"], sample["region_locations"]) for sample in samples]))
    batch["match_labels"] = np.array([sample["matched"] for sample in samples], dtype=np.float32)
    batch["index"] = np.array([sample["index"] for sample in samples], dtype=np.int64)
    batch["token_positions"] = _flat_positions(samples, "columns", batch["input_ids"].shape[1])
    for name, key in (("token_labels", "labels"), ("token_kinds", "kinds")):
        batch[name] = np.concatenate([sample[key] for sample in samples])
    if not len(batch["token_positions"]):
        for name, value in (("token_positions", 0), ("token_labels", 0), ("token_kinds", -1)):
            batch[name] = np.array([value], dtype=np.int64)
    if samples[0]["targets"] is not None:
        batch["region_positions"] = _flat_positions(samples, "rows", batch["region_features"].shape[1])
        batch["region_targets"] = np.concatenate([sample["targets"] for sample in samples])
        batch["region_weights"] = np.ones(len(batch["region_positions"]), dtype=np.float32)
        if not len(batch["region_positions"]):
            batch["region_positions"] = np.zeros(1, dtype=np.int64)
            batch["region_targets"] = np.zeros([1, batch["region_targets"].shape[1]], dtype=np.float32)
            batch["region_weights"] = np.zeros(1, dtype=np.float32)
    return batch


def _flat_positions(samples: Sequence[dict[str, Any]], name: str, width: int) -> np.ndarray:
    return np.concatenate([row * width + sample[name] for row, sample in enumerate(samples)]).astype(np.int64)


def masked_shares(dataset: PretrainingDataset, keys: Iterable[Key]) -> dict[str, float]:
    """What is masked of the captions in fact, to hold against :class:`MaskRates`.

    Returns:
        For each of ``KIND_NAMES`` the share that is masked: of all word pieces at random (those of nodes count among
        all), and of the nodes of a kind that can be masked (nan where there is none).
    """
    masked, total = np.zeros(len(KIND_NAMES)), np.zeros(len(KIND_NAMES))
    for key in keys:
        _, units, caption = dataset.masked_caption(key)
        total[TOKEN] += len(caption.token_ids)
        masked[TOKEN] += np.count_nonzero(caption.kinds == TOKEN)
        for kind in NODE_KINDS:
            total[kind] += len(units[kind])
            masked[kind] += sum(unit.kind == kind for unit in caption.units)
    shares = np.divide(masked, total, out=np.full(len(total), np.nan), where=total > 0)
    return dict(zip(KIND_NAMES, shares.tolist()))
