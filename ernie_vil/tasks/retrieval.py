"""Image and text retrieval on Flickr30K and MSCOCO: which image belongs to a caption, and which captions to an image.

Source: ERNIE-ViL paper, section 4.2 and Table 3; the original's training with the circle loss.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from paddle import Tensor

from ernie_vil.data.mini_retrieval import mini_retrieval
from ernie_vil.data.retrieval import (
    HARD_CAPTION,
    HARD_IMAGE,
    RANDOM_CAPTION,
    RANDOM_IMAGE,
    CaptionDataset,
    RetrievalDataset,
    collate_captions,
    collate_retrieval,
    fold_images,
    fold_of,
    image_regions,
)
from ernie_vil.data.retrieval_files import RetrievalSplit, missing_captions_message, read_split
from ernie_vil.data.retrieval_tsv import RegionStores, read_hard_images
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.engine.config import RunConfig
from ernie_vil.engine.task import EvalSet, TrainSet
from ernie_vil.errors import BadRecord, UserError
from ernie_vil.models.ernie_vil import ErnieViLOutput
from ernie_vil.models.heads import MatchHead, match_vector, retrieval_loss
from ernie_vil.models.pairwise import PairScorer
from ernie_vil.tasks.opening import check_length, missing_stores, open_model, raise_missing, save_model, vocabulary_path
from ernie_vil.tasks.retrieval_options import RetrievalDataOptions, RetrievalModelOptions
from ernie_vil.tasks.retrieval_results import retrieval_metrics, write_retrieved

HEAD = "match"  # the released weights' match_fc


class RetrievalTask:
    """See :class:`ernie_vil.engine.task.Task`.

    An example is a caption: in training with its image and negatives, in evaluation against all images of the split.
    Metrics: ``ir_r1``, ``ir_r5``, ``ir_r10`` (the image of a caption is among the first so many), ``tr_...`` (one of an
    image's captions is), in per cent, mean ranks, and ``recall_mean`` over the six. Ties count against the model.

    At evaluation every image of a split is read when the split is first opened; captions whose image cannot be read are
    left out, named, and counted as skipped.
    """

    sections = {"model": RetrievalModelOptions, "data": RetrievalDataOptions}
    metric = "recall_mean"
    metric_names = ("recall_mean", *(f"{way}_r{cut}" for way in ("ir", "tr") for cut in (1, 5, 10)))
    unlabelled = ()
    splits = ("train", "val", "test")

    def __init__(
        self, config: RunConfig, splits: Optional[Sequence[str]] = ("train", "val"), *, trained: bool = False
    ) -> None:
        """Open vocabulary and weights; see :class:`ernie_vil.tasks.vcr.VcrTask` for the arguments."""
        self.config, self.options, self.files = config, config.model, config.data
        self._captions: dict[str, CaptionDataset] = {}
        self._scorer: Optional[tuple[str, PairScorer]] = None
        raise_missing([] if splits is None else self.missing_files(config.data, splits))
        self.vocabulary = vocabulary_path(self.options, self.files)
        self.tokenizer = WordPieceTokenizer.from_file(self.vocabulary)
        self.model = open_model(config, self.tokenizer, lambda model_config: {HEAD: MatchHead(model_config)}, trained)
        check_length("data.max_length", self.files.max_length, self.model)

    @staticmethod
    def mini_data() -> dict[str, Any]:
        """The ``data`` section of a miniature run; the data are made on first use."""
        folder = mini_retrieval()
        captions = str(folder / "dataset_mini.json")
        return {
            **dict.fromkeys(("train", "val", "test"), captions),
            "features": [str(folder / "features.lmdb")],
            "image_key": "stem",
            "vocab": str(folder / "vocab.txt"),
        }

    @staticmethod
    def missing_files(files: RetrievalDataOptions, splits: Sequence[str]) -> list[str]:
        """One message for everything that work on ``splits`` needs and that is not there."""
        faults = [
            f"data.{split}: {missing_captions_message(Path(getattr(files, split)))}"
            for split in splits
            if not Path(getattr(files, split)).is_file()
        ]
        if not files.features:
            faults.append("data.features: no store of region features")
        faults += missing_stores(
            (f"data.features.{number}", path) for number, path in enumerate(files.features) if not Path(path).is_file()
        )
        for key in ("vocab", "hard_negatives"):
            path = getattr(files, key)
            if path and not Path(path).is_file():
                faults.append(f"data.{key}: {path}: no such file")
        return faults

    @property
    def schema(self) -> list[str]:
        """How each negative of a training example is drawn; the images come before the captions."""
        files = self.files
        counts = (
            (RANDOM_IMAGE, files.random_images),
            (HARD_IMAGE, files.hard_images),
            (RANDOM_CAPTION, files.random_captions),
            (HARD_CAPTION, files.hard_captions),
        )
        return [way for way, count in counts for _ in range(count)]

    def largest_batch(self, examples: int) -> tuple[int, int, int]:
        """Texts, tokens and regions of the largest batch that so many examples can make."""
        return examples * (1 + len(self.schema)), self.files.max_length, self.files.max_regions

    def train_set(self) -> TrainSet:
        split = self._read("train")
        stores = self.stores
        absent = {image: f"image {image} has no features" for image in split.images if image not in stores}
        split = split.with_regions(absent)
        hard = read_hard_images(self.files.hard_negatives) if self.files.hard_negatives else None
        lengths = (self.files.max_length, self.files.max_regions)
        dataset = RetrievalDataset(split, stores, self.tokenizer, self.schema, hard, self.config.seed, *lengths)
        return TrainSet(dataset, collate_retrieval, (len(dataset),), split.records, unreadable=split.skipped)

    def eval_set(self, split: str) -> EvalSet:
        dataset = self.captions(split)
        keys = dataset.keys(self.splits.index(split), self.files.eval_folds)
        # The parameters may have changed since the images were last encoded.
        self._scorer = None
        return EvalSet(dataset, collate_captions, keys, dataset.split.records, dataset.split.skipped)

    def captions(self, split: str) -> CaptionDataset:
        """The captions of a split whose images can be read; looked at once, when they are first asked for."""
        if split not in self._captions:
            found = self._read(split)
            if split == "val" and self.files.val_images is not None:
                found = found.first_images(self.files.val_images)
            faults = {}
            for image in found.images:
                try:
                    image_regions(self.stores, image, self.files.max_regions)
                except BadRecord as error:
                    faults[image] = str(error)
            found = found.with_regions(faults)
            if self.files.eval_folds > len(found.images):
                raise UserError(
                    f"data.eval_folds: {self.files.eval_folds} folds of {len(found.images)} images ({split})"
                )
            self._captions[split] = CaptionDataset(found, self.tokenizer, self.files.max_length)
        return self._captions[split]

    def _read(self, split: str) -> RetrievalSplit:
        return read_split(getattr(self.files, split), split, self.files.image_key)

    @cached_property
    def stores(self) -> RegionStores:
        return RegionStores(self.files.features, self.model.config.feature_size)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"match": float(batch["index"].shape[0])}

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        scores = self.scores(batch).reshape([batch["index"].shape[0], -1])
        return {"match": retrieval_loss(scores, self.options.margin, self.options.scale)}

    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """Scores of all members of the groups, ``[n g, 1]``, by the plain forward pass."""
        names = ("input_ids", "token_type_ids", "position_ids", "attention_mask")
        regions = ("region_features", "region_locations", "region_mask", "region_rows")
        output = self.model(*(batch[name] for name in (*names, *regions)))
        return self.model.heads[HEAD](match_vector(output, self.options.fusion))

    def predict(self, batch: Mapping[str, Any]) -> list[dict]:
        split = self.splits[int(batch["part"][0])]
        files, captions = self.files, self.captions(split).split
        scorer = self._pair_scorer(split)
        texts = [row[:length] for row, length in zip(batch["input_ids"].tolist(), batch["length"].tolist())]
        indices = batch["index"].tolist()
        folds = [fold_of(captions.captions[index].image, len(captions.images), files.eval_folds) for index in indices]
        records = []
        for fold in sorted(set(folds)):
            images = fold_images(fold, len(captions.images), files.eval_folds)
            rows = [row for row, own in enumerate(folds) if own == fold]
            for row, scores in zip(rows, scorer.scores([texts[row] for row in rows], images)):
                records.append(
                    {
                        "key": (int(batch["part"][row]), 0, indices[row]),
                        "caption": indices[row],
                        "image": captions.captions[indices[row]].image,
                        "first": images.start,
                        "scores": scores,
                    }
                )
        return records

    def _pair_scorer(self, split: str) -> PairScorer:
        """The images of a split, encoded once an evaluation."""
        if self._scorer is None or self._scorer[0] != split:
            scorer = PairScorer(self.model, self._joined_score, self.options.pairs)
            images = self.captions(split).split.images
            scorer.add_images(image_regions(self.stores, image, self.files.max_regions) for image in images)
            self._scorer = split, scorer
        return self._scorer[1]

    def _joined_score(self, text_pooled: Tensor, region_pooled: Tensor) -> Tensor:
        output = ErnieViLOutput(text_pooled, region_pooled, text_pooled, region_pooled)
        return self.model.heads[HEAD](match_vector(output, self.options.fusion))

    def metrics(self, records: list[dict]) -> dict[str, float]:
        return retrieval_metrics(records)

    def write_predictions(self, records: list[dict], split: str, path: Path) -> None:
        write_retrieved(records, self.captions(split).split, path)

    def save_pretrained(self, folder: Path) -> None:
        save_model(self.model, self.vocabulary, folder)
