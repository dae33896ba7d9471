"""Referring expressions: find the box that a phrase speaks of (RefCOCO, RefCOCO+, RefCOCOg).

Source: ERNIE-ViL paper, section 4.2; the original's program for RefCOCO+.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import numpy as np
import paddle.nn.functional as F
from paddle import Tensor

from ernie_vil.data.mini_refcoco import mini_refcoco
from ernie_vil.data.refcoco import SPLITS, RefcocoDataset, ReferExpressions, collate_refcoco
from ernie_vil.data.refcoco_tsv import TsvExpressions
from ernie_vil.data.refer import Detections, ReferAnnotations
from ernie_vil.data.regions import check_fingerprints, open_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.engine.config import RunConfig
from ernie_vil.engine.task import EvalSet, TrainSet
from ernie_vil.models.heads import RegionHead, region_loss
from ernie_vil.tasks.opening import (
    check_length,
    encode,
    missing_stores,
    open_model,
    raise_missing,
    save_model,
    vocabulary_path,
)
from ernie_vil.tasks.refcoco_options import RefcocoDataOptions, RefcocoModelOptions

HEAD = "region"
RIGHT_ABOVE = 0.5
"""Overlap above which a box is the right answer. The original counts exactly 0.5 as right too."""


class RefcocoTask:
    """See :class:`ernie_vil.engine.task.Task`.

    The answer is the candidate with the highest logit; the whole image, which has a logit too, is none. Metrics over
    the expressions of a split: ``accuracy`` (per cent of answers whose overlap with the target is above 0.5),
    ``mean_iou`` of the answers, and ``upper_bound``, the accuracy of whoever always takes the best candidate. An image
    without a candidate counts as a wrong answer with overlap 0.
    """

    sections = {"model": RefcocoModelOptions, "data": RefcocoDataOptions}
    metric = "accuracy"
    metric_names = ("accuracy", "mean_iou")
    unlabelled = ()
    splits = SPLITS

    def __init__(
        self, config: RunConfig, splits: Optional[Sequence[str]] = ("train", "val"), *, trained: bool = False
    ) -> None:
        """Open vocabulary and weights for work on ``splits``; with ``trained`` the weights must hold the head too.

        Raises :class:`UserError` listing all missing files (``splits=None`` does not look for them), or saying what is
        wrong with vocabulary or weights.
        """
        self.config, self.options, self.files = config, config.model, config.data
        self._datasets: dict[tuple[str, bool], RefcocoDataset] = {}
        raise_missing([] if splits is None else self.missing_files(config.data, splits))
        self.vocabulary = vocabulary_path(self.options, self.files)
        self.tokenizer = WordPieceTokenizer.from_file(self.vocabulary)
        self.model = open_model(config, self.tokenizer, lambda sizes: {HEAD: RegionHead(sizes)}, trained)
        check_length("data.max_length", self.files.max_length, self.model)

    @staticmethod
    def mini_data() -> dict[str, Any]:
        """The ``data`` section of a miniature run; the data are made on first use."""
        folder = mini_refcoco()
        names = {
            "refs": "refs(unc).p",
            "instances": "instances.json",
            "features": "features.lmdb",
            "gt_features": "gt_features.lmdb",
            "detections": "detections.json",
            "vocab": "vocab.txt",
        }
        return {"format": "refer", **{key: str(folder / name) for key, name in names.items()}}

    @staticmethod
    def missing_files(files: RefcocoDataOptions, splits: Sequence[str]) -> list[str]:
        """One message for everything that work on ``splits`` needs and that is not there."""
        paths = [("vocab", files.vocab)]
        faults = []
        if files.format == "tsv":
            faults += [f"data.{split}: no table is given" for split in splits if not getattr(files, split)]
            paths += [(split, path) for split in splits for path in getattr(files, split)]
        else:
            paths += [("refs", files.refs), ("instances", files.instances), ("detections", files.detections)]
            stores = [(f"data.{key}", getattr(files, key)) for key in ("features", "gt_features")]
            faults += missing_stores(stores)
        return [
            f"data.{key}: {path}: no such file{'; the README says where it is to be had' if key != 'vocab' else ''}"
            for key, path in paths
            if path and not Path(path).is_file()
        ] + faults

    def largest_batch(self, examples: int) -> tuple[int, int, int]:
        """Texts, tokens and regions of the largest batch that so many examples can make."""
        return examples, self.files.max_length, self.files.max_regions

    def train_set(self) -> TrainSet:
        dataset = self.dataset("train", training=True)
        skipped = dataset.expressions.skipped
        return TrainSet(dataset, collate_refcoco, (len(dataset),), len(dataset) + len(skipped), unreadable=skipped)

    def eval_set(self, split: str) -> EvalSet:
        dataset = self.dataset(split)
        skipped = dataset.expressions.skipped
        keys = [(0, 0, index) for index in range(len(dataset))]
        return EvalSet(dataset, collate_refcoco, keys, len(dataset) + len(skipped), skipped)

    def dataset(self, split: str, training: bool = False) -> RefcocoDataset:
        """The expressions of a split; its file is read when it is first asked for."""
        key = (split, training)
        if key not in self._datasets:
            files, width = self.files, self.model.config.feature_size
            expressions: Any
            if files.format == "tsv":
                expressions = TsvExpressions(getattr(files, split), training, files.candidates, width)
            else:
                expressions = ReferExpressions(
                    self.annotations, split, *self.stores, training, files.candidates, self.detections
                )
            self._datasets[key] = RefcocoDataset(
                expressions, self.tokenizer, training, files.max_length, files.max_regions, width
            )
        return self._datasets[key]

    @cached_property
    def annotations(self) -> ReferAnnotations:
        return ReferAnnotations(self.files.refs, self.files.instances)

    @cached_property
    def detections(self) -> Optional[Detections]:
        return Detections(self.files.detections) if self.files.detections else None

    @cached_property
    def stores(self) -> tuple[Any, Any]:
        """Region features of detected and of annotated boxes (None where they are not used)."""
        width = self.model.config.feature_size
        stores = [open_store(path, width) if path else None for path in (self.files.features, self.files.gt_features)]
        check_fingerprints([store for store in stores if store is not None])
        return stores[0], stores[1]

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {HEAD: float(batch["region_mask"].sum())}

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The sum over all regions, those of the whole images included; the mean is multiplied by a batch size."""
        factor = self.options.loss_factor or self.config.train.batch_size
        return {HEAD: region_loss(self.logits(batch), batch["labels"], batch["region_mask"]) * float(factor)}

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """``[B, N]``, one for each region."""
        output = encode(self.model, batch)
        hidden = F.dropout(output.region_hidden, self.options.region_dropout, training=self.model.training)
        return self.model.heads[HEAD](hidden).squeeze(-1)

    def predict(self, batch: Mapping[str, Any]) -> list[dict]:
        """Records with ``box`` (x1, y1, x2, y2; ``None`` without a candidate), its ``score`` and ``iou``, the
        ``best_iou`` among the candidates, and the ``target``."""
        logits = self.logits(batch).astype("float32").numpy()
        names = ("index", "candidates", "labels", "boxes", "target")
        columns = zip(*(batch[name].numpy() for name in names), logits)
        records = []
        for index, candidates, ious, boxes, target, scores in columns:
            record = {"key": (0, 0, int(index)), "target": target.tolist()}
            usable = np.flatnonzero(candidates)
            if len(usable):
                chosen = usable[int(np.argmax(scores[usable]))]
                record.update(box=boxes[chosen].tolist(), score=float(scores[chosen]), iou=float(ious[chosen]))
                record.update(best_iou=float(ious[usable].max()))
            else:
                record.update(box=None, score=None, iou=0.0, best_iou=0.0)
            records.append(record)
        return records

    def metrics(self, records: list[dict]) -> dict[str, float]:
        return refcoco_metrics(records)

    def write_predictions(self, records: list[dict], split: str, path: Path) -> None:
        """A JSON list, one object for every expression of the split in its order.

        Keys: ``ref_id``, ``sent_id`` and ``image_id`` (``line`` for the original's table), ``expression``, ``box``
        (x1, y1, x2, y2 in pixels, or null), ``score``, ``iou`` and ``target``.
        """
        expressions = self.dataset(split).expressions
        rows = []
        for record in records:
            index = record["key"][2]
            kept = {name: record[name] for name in ("box", "score", "iou", "target")}
            rows.append({**expressions.identity(index), "expression": expressions.texts[index], **kept})
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def save_pretrained(self, folder: Path) -> None:
        save_model(self.model, self.vocabulary, folder)


def refcoco_metrics(records: Sequence[dict]) -> dict[str, float]:
    """``accuracy`` and ``upper_bound`` in per cent and ``mean_iou``, over records of :meth:`RefcocoTask.predict`."""
    if not records:
        return {name: float("nan") for name in ("accuracy", "mean_iou", "upper_bound")}
    ious, best = (np.array([record[name] for record in records]) for name in ("iou", "best_iou"))
    return {
        "accuracy": 100.0 * float((ious > RIGHT_ABOVE).mean()),
        "mean_iou": float(ious.mean()),
        "upper_bound": 100.0 * float((best > RIGHT_ABOVE).mean()),
    }
