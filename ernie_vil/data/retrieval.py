"""Image and text retrieval: captions with their images and drawn negatives to train on, captions to score images by.

Sequences, the order of a group and the ways of drawing are those of the original's reader.
"""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence

import numpy as np
import paddle

from ernie_vil.data.region_arrays import pad_regions
from ernie_vil.data.regions import merge_with_ground_truth
from ernie_vil.data.retrieval_files import RetrievalSplit
from ernie_vil.data.text_pair import pad_sequences
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.errors import BadRecord, UserError

# Random or hard, image or caption: ways of drawing a negative, by the original's names.
RANDOM_IMAGE, HARD_IMAGE, RANDOM_CAPTION, HARD_CAPTION = "ei", "hi", "ec", "hc"
_ATTEMPTS = 20


class RetrievalDataset(paddle.io.Dataset):
    """Groups of a caption with its image and, behind it, negatives, found by the key ``(0, epoch, caption)``.

    A negative is another image with the caption, or another image's caption with the image. Its image is drawn from all
    others (random) or from the image's hard ones; of its captions, each is as likely. Draws depend on ``(seed, epoch,
    caption)`` alone.

    Args:
        split: captions and images.
        store: region features by image.
        tokenizer: of the model.
        schema: how each negative is drawn, from the names above.
        hard_images: for every image its hard negatives; needed where the schema asks for them.
        seed: of the draws.
        max_length: longest sequence, with ``[CLS]`` and ``[SEP]``.
        max_regions: most regions of an image, the whole image included.

    Raises:
        UserError: fewer than two images, or images without hard negatives.
        BadRecord: on a look-up, an image that the store cannot read. An unreadable *negative* is drawn anew; it is
            named when its own captions are looked up.
    """

    def __init__(
        self,
        split: RetrievalSplit,
        store: Any,
        tokenizer: WordPieceTokenizer,
        schema: Sequence[str],
        hard_images: Optional[Mapping[str, Sequence[str]]] = None,
        seed: int = 0,
        max_length: int = 512,
        max_regions: int = 101,
    ) -> None:
        super().__init__()
        self.split, self.store, self.tokenizer, self.schema, self.seed = split, store, tokenizer, tuple(schema), seed
        self.max_length, self.max_regions = max_length, max_regions
        self._captions_of = split.captions_of()
        if len(split.images) < 2:
            raise UserError("negatives need at least two images with captions and region features")
        self._hard: list[list[int]] = []
        if {HARD_IMAGE, HARD_CAPTION} & set(self.schema):
            self._hard = hard_places(split.images, hard_images or {})

    def __len__(self) -> int:
        return len(self.split.captions)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        """One group.

        Returns:
            ``index`` of the caption; ``input_ids``: the group's different captions, the right one first; ``regions``:
            features and locations of its different images, the right one first; ``pairs``: for every member of the
            group the places in these two lists, the positive first.
        """
        _, epoch, index = key
        caption = self.split.captions[index]
        try:
            regions = {caption.image: self._regions(caption.image)}
        except BadRecord as error:
            raise BadRecord(f"{caption.where}: {error}") from error
        texts, pairs = [index], [(0, 0)]
        rng = np.random.default_rng([self.seed, epoch, index])
        for way in self.schema:
            if way in (RANDOM_CAPTION, HARD_CAPTION):
                others = self._captions_of[self._draw_image(rng, way, caption.image)]
                texts.append(others[int(rng.integers(len(others)))])
                pairs.append((len(texts) - 1, 0))
            else:
                image = self._draw_readable(rng, way, caption.image, regions)
                pairs.append((0, list(regions).index(image)))
        encoded = [encode(self.tokenizer, self.split.captions[text].text, self.max_length) for text in texts]
        return {"index": index, "input_ids": encoded, "regions": list(regions.values()), "pairs": pairs}

    def _draw_image(self, rng: np.random.Generator, way: str, own: int) -> int:
        if way in (HARD_IMAGE, HARD_CAPTION):
            return self._hard[own][int(rng.integers(len(self._hard[own])))]
        while True:
            image = int(rng.integers(len(self.split.images)))
            if image != own:
                return image

    def _draw_readable(self, rng: np.random.Generator, way: str, own: int, regions: dict[int, Any]) -> int:
        for attempt in range(_ATTEMPTS):
            image = self._draw_image(rng, way, own)
            try:
                if image not in regions:
                    regions[image] = self._regions(image)
                return image
            except BadRecord as error:
                if attempt == _ATTEMPTS - 1:
                    raise BadRecord(
                        f"{self.split.captions[own].where}: no readable negative; the last: {error}"
                    ) from error
        raise AssertionError("unreachable")

    def _regions(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        return image_regions(self.store, self.split.images[image], self.max_regions)


class CaptionDataset(paddle.io.Dataset):
    """The captions of a split alone, found by the key ``(part, 0, caption)``; they are tokenized once, here.

    ``keys(part, folds)`` lists them by fold and length, so that batches of neighbours have little padding.
    """

    def __init__(self, split: RetrievalSplit, tokenizer: WordPieceTokenizer, max_length: int = 512) -> None:
        super().__init__()
        self.split = split
        self.input_ids = [encode(tokenizer, caption.text, max_length) for caption in split.captions]

    def __len__(self) -> int:
        return len(self.input_ids)

    def keys(self, part: int = 0, folds: int = 1) -> list[tuple[int, int, int]]:
        def order(index: int) -> tuple[int, int]:
            image = self.split.captions[index].image
            return fold_of(image, len(self.split.images), folds), len(self.input_ids[index])

        return [(part, 0, index) for index in sorted(range(len(self)), key=order)]

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        part, _, index = key
        return {"part": part, "index": index, "input_ids": self.input_ids[index]}


def encode(tokenizer: WordPieceTokenizer, text: str, max_length: int) -> list[int]:
    """``[CLS] text [SEP]``; too long a sequence is cut, and its last token becomes ``[SEP]``."""
    ids = [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]
    return ids if len(ids) <= max_length else [*ids[: max_length - 1], tokenizer.sep_id]


def image_regions(store: Any, image_id: str, max_regions: int) -> tuple[np.ndarray, np.ndarray]:
    """Features ``[n, F]`` and locations ``[n, 5]`` of the whole image and its boxes. Raises :class:`BadRecord`."""
    features, locations = merge_with_ground_truth(store[image_id], None, max_regions)
    return features, locations.astype(np.float32)


def fold_of(image: int, images: int, folds: int) -> int:
    """The fold of an image: ``folds`` equal stretches in the order of the file."""
    return image * folds // images


def fold_images(fold: int, images: int, folds: int) -> range:
    """The images of a fold."""
    first, stop = (-(-number * images // folds) for number in (fold, fold + 1))
    return range(first, stop)


def hard_places(images: Sequence[str], hard_images: Mapping[str, Sequence[str]]) -> list[list[int]]:
    """For every image the places of its hard negatives; itself and images that are not there are left out.

    Raises:
        UserError: an image has none; the first few are named.
    """
    place = {image: index for index, image in enumerate(images)}
    found = [[place[name] for name in hard_images.get(own, ()) if name in place and name != own] for own in images]
    lacking = [image for image, pool in zip(images, found) if not pool]
    if lacking:
        raise UserError(
            f"data.hard_negatives: {len(lacking)} of {len(images)} images have no hard negative there: "
            f"{', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}"
        )
    return found


def collate_retrieval(samples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Put n groups of g members together. An image that several members share is there once.

    Returns:
        ``input_ids``, ``token_type_ids``, ``position_ids`` int64 and ``attention_mask`` float32 ``[n g, L]``;
        ``region_features`` ``[m, N, F]``, ``region_locations`` ``[m, N, 5]`` and ``region_mask`` ``[m, N]`` float32 of
        the m images; ``region_rows`` int64 ``[n g]``, the image of each member; ``index`` int64 ``[n]``.
    """
    texts = [sample["input_ids"][text] for sample in samples for text, _ in sample["pairs"]]
    batch = pad_sequences(texts, [[0] * len(ids) for ids in texts])
    batch.update(pad_regions([regions for sample in samples for regions in sample["regions"]]))
    starts = np.cumsum([0, *(len(sample["regions"]) for sample in samples)])
    rows = [start + image for start, sample in zip(starts.tolist(), samples) for _, image in sample["pairs"]]
    batch["region_rows"] = np.array(rows, dtype=np.int64)
    batch["index"] = np.array([sample["index"] for sample in samples], dtype=np.int64)
    return batch


def collate_captions(samples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Captions put together: ``input_ids`` int64 ``[n, L]``, ``length``, ``part`` and ``index`` int64 ``[n]``."""
    padded = pad_sequences([sample["input_ids"] for sample in samples], [[0] * len(s["input_ids"]) for s in samples])
    batch = {"input_ids": padded["input_ids"]}
    batch["length"] = np.array([len(sample["input_ids"]) for sample in samples], dtype=np.int64)
    for name in ("part", "index"):
        batch[name] = np.array([sample[name] for sample in samples], dtype=np.int64)
    return batch
