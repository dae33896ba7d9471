"""Pre-training: scene-graph prediction, masked tokens, masked regions, image-text matching (paper, section 3).

A caption is shown with its image or, in ``data.negative_share`` of the cases, with a random other one. Parts of the
caption and of the regions are masked either way, but only pairs that belong together are asked what was there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import numpy as np
from paddle import Tensor

from ernie_vil.data.mini_captions import mini_captions
from ernie_vil.data.pretraining import CaptionSource, MaskRates, PretrainingDataset, collate_pretraining
from ernie_vil.data.regions import check_fingerprints, open_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.engine.config import RunConfig
from ernie_vil.engine.task import EvalSet, TrainSet
from ernie_vil.errors import UserError
from ernie_vil.models.heads import MatchHead, match_vector
from ernie_vil.models.pretraining_heads import (
    RegionTargetHead,
    TokenHead,
    at_positions,
    match_losses,
    region_class_losses,
    region_feature_losses,
    token_logits,
    token_losses,
)
from ernie_vil.scene_graph.files import CaptionFile
from ernie_vil.scene_graph.masking import KIND_NAMES
from ernie_vil.tasks.opening import (
    check_length,
    encode,
    missing_stores,
    open_model,
    raise_missing,
    save_model,
    vocabulary_path,
)
from ernie_vil.tasks.pretrain_options import PretrainDataOptions, PretrainModelOptions


class PretrainTask:
    """See :class:`ernie_vil.engine.task.Task`.

    Losses: ``token``, ``object``, ``attribute``, ``relation`` (cross entropy of masked tokens of that kind),
    ``region`` and ``match``, each averaged over its elements, weighted by ``model.loss_weights`` and summed.

    Metrics: the same averages without weights as ``*_loss``, the share of masked tokens that were found (``token``,
    ``object``, ``attribute``, ``relation``, and ``accuracy`` over all four) and of pairs judged rightly (``match``), in
    per cent. Masks and negative images of the evaluation stay the same.
    """

    sections = {"model": PretrainModelOptions, "data": PretrainDataOptions}
    metric = "accuracy"
    metric_names = ("accuracy", *KIND_NAMES, "match")
    unlabelled = ()
    splits = ("train", "val")
    prediction_suffixes = (".jsonl",)

    def __init__(
        self, config: RunConfig, splits: Optional[Sequence[str]] = ("train", "val"), *, trained: bool = False
    ) -> None:
        """Open vocabulary and weights; see :class:`ernie_vil.tasks.vcr.VcrTask` for the arguments."""
        self.config, self.options, self.files = config, config.model, config.data
        self._datasets: dict[str, PretrainingDataset] = {}
        raise_missing([] if splits is None else self.missing_files(config.data, splits))
        self.vocabulary = vocabulary_path(self.options, self.files)
        self.tokenizer = WordPieceTokenizer.from_file(self.vocabulary)
        if self.tokenizer.mask_id is None:
            raise UserError(f"{self.vocabulary}: has no [MASK], which pre-training needs")
        self.model = open_model(config, self.tokenizer, self._heads, trained)
        check_length("data.max_length", self.files.max_length, self.model)

    def _heads(self, model_config: Any) -> dict[str, Any]:
        heads = {"mlm": TokenHead(model_config), "match_fc": MatchHead(model_config)}
        if self.options.region_target == "classes":
            heads["region_classes"] = RegionTargetHead(model_config, self.options.region_classes)
        if self.options.region_target == "features":
            heads["region_features"] = RegionTargetHead(model_config, model_config.feature_size)
        return heads

    @staticmethod
    def mini_data() -> dict[str, Any]:
        """The ``data`` section of a miniature run; the data are made on first use."""
        folder = mini_captions()
        features = str(folder / "features.lmdb")
        sources = {
            split: [{"captions": str(folder / f"{split}.jsonl"), "features": features}] for split in ("train", "val")
        }
        return {**sources, "vocab": str(folder / "vocab.txt")}

    @staticmethod
    def missing_files(files: PretrainDataOptions, splits: Sequence[str]) -> list[str]:
        """One message for everything that work on ``splits`` needs and that is not there."""
        faults = []
        for split in splits:
            sources = getattr(files, split)
            if not sources:
                faults.append(f"data.{split}: no source of captions; give a list of {{captions: ..., features: ...}}")
            for number, source in enumerate(sources):
                where = f"data.{split}.{number}"
                if not Path(source.captions).is_file():
                    faults.append(
                        f"{where}.captions: {source.captions}: no such file; tools/parse_scene_graphs.py writes it "
                        "from captions (README, section Pre-training), or try --mini"
                    )
                stores = (("features", source.features), ("gt_features", source.gt_features))
                faults += missing_stores((f"{where}.{key}", path) for key, path in stores)
        if files.vocab and not Path(files.vocab).is_file():
            faults.append(f"data.vocab: {files.vocab}: no such file")
        return faults

    def largest_batch(self, examples: int) -> tuple[int, int, int]:
        """Texts, tokens and regions of the largest batch that so many examples can make."""
        return examples, self.files.max_length, self.files.max_regions

    def train_set(self) -> TrainSet:
        dataset = self.dataset("train")
        return TrainSet(dataset, collate_pretraining, (len(dataset),), dataset.records, unreadable=dataset.unreadable)

    def eval_set(self, split: str) -> EvalSet:
        dataset = self.dataset(split)
        keys = [(0, 0, index) for index in range(len(dataset))]
        return EvalSet(dataset, collate_pretraining, keys, dataset.records, dataset.unreadable)

    def dataset(self, split: str) -> PretrainingDataset:
        """The captions of a split; the files are indexed once, when they are first asked for."""
        if split not in self._datasets:
            sources = [
                CaptionSource(CaptionFile(source.captions), *self._stores(source.features, source.gt_features))
                for source in getattr(self.files, split)
            ]
            check_fingerprints([source.detected for source in sources])
            self._datasets[split] = PretrainingDataset(
                sources,
                self.tokenizer,
                MaskRates(**vars(self.files.masks)),
                seed=self.config.seed,
                max_length=self.files.max_length,
                max_regions=self.files.max_regions,
                negative_share=self.files.negative_share,
                region_target=self.options.region_target,
                region_classes=self.options.region_classes,
            )
        return self._datasets[split]

    def _stores(self, *paths: Optional[str]) -> list[Any]:
        width = self.model.config.feature_size
        return [open_store(path, width) if path else None for path in paths]

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        kinds = np.asarray(batch["token_kinds"])
        counts = {name: float((kinds == kind).sum()) for kind, name in enumerate(KIND_NAMES)}
        counts["region"] = float(np.asarray(batch["region_weights"]).sum()) if "region_weights" in batch else 0.0
        counts["match"] = float(batch["match_labels"].shape[0]) if self.files.negative_share else 0.0
        return {name: count for name, count in counts.items() if count and getattr(self.options.loss_weights, name)}

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        wanted = self.counts(batch)
        elements = self.element_losses(batch)
        kinds = batch["token_kinds"]
        sums = {
            name: (elements["token"] * (kinds == kind).astype("float32")).sum()
            for kind, name in enumerate(KIND_NAMES)
            if name in wanted
        }
        if "region" in wanted:
            sums["region"] = (elements["region"] * batch["region_weights"]).sum()
        if "match" in wanted:
            sums["match"] = elements["match"].sum()
        return {name: loss * getattr(self.options.loss_weights, name) for name, loss in sums.items()}

    def element_losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Losses of every masked token ``[m]``, masked region ``[k]`` and pair ``[n]``, and what was predicted."""
        output = encode(self.model, batch)
        logits = token_logits(self.model, output.text_hidden, batch["token_positions"])
        scores = self.model.heads["match_fc"](match_vector(output, self.options.fusion))
        elements = {
            "token": token_losses(logits, batch["token_labels"]),
            "found": (logits.argmax(axis=-1) == batch["token_labels"]),
            "match": match_losses(scores, batch["match_labels"]),
            "matched": (scores.reshape([-1]) > 0) == (batch["match_labels"] > 0.5),
        }
        if self.options.region_target != "none":
            hidden = at_positions(output.region_hidden, batch["region_positions"])
            predicted = self.model.heads[f"region_{self.options.region_target}"](hidden)
            compare = region_class_losses if self.options.region_target == "classes" else region_feature_losses
            elements["region"] = compare(predicted, batch["region_targets"])
        return elements

    def predict(self, batch: Mapping[str, Any]) -> list[dict]:
        """One record per caption: sums of losses, of successes and counts, by kind."""
        elements = {name: tensor.numpy() for name, tensor in self.element_losses(batch).items()}
        rows = batch["input_ids"].shape[0]
        records = [{"key": (0, 0, index)} for index in batch["index"].numpy().tolist()]
        kinds = batch["token_kinds"].numpy()
        token_rows = batch["token_positions"].numpy() // batch["input_ids"].shape[1]
        for kind, name in enumerate(KIND_NAMES):
            _tally(
                records,
                name,
                token_rows[kinds == kind],
                elements["token"][kinds == kind],
                elements["found"][kinds == kind],
            )
        if "region" in elements:
            used = batch["region_weights"].numpy() > 0
            region_rows = batch["region_positions"].numpy() // batch["region_features"].shape[1]
            _tally(records, "region", region_rows[used], elements["region"][used], np.zeros(int(used.sum())))
        _tally(records, "match", np.arange(rows), elements["match"], elements["matched"])
        return records

    def metrics(self, records: list[dict]) -> dict[str, float]:
        sums = {name: np.sum([record[name] for record in records], axis=0) for name in records[0] if name != "key"}
        shares = {name: 100 * right / count for name, (_, right, count) in sums.items() if count and name != "region"}
        losses = {f"{name}_loss": loss / count for name, (loss, _, count) in sums.items() if count}
        best = self.config.train.best_metric
        if best in sums and best not in shares:
            raise UserError(f"train.best_metric: {best}: nothing of that kind is masked in data.val; choose another")
        _, right, count = np.sum([sums[name] for name in KIND_NAMES], axis=0)
        return {"accuracy": 100 * right / count if count else 0.0, **shares, **losses}

    def write_predictions(self, records: list[dict], split: str, path: Path) -> None:
        """JSON lines: for each caption its place in the split and, by kind, losses summed, hits and elements."""
        lines = [
            {"index": record["key"][2], **{name: value for name, value in record.items() if name != "key"}}
            for record in records
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def save_pretrained(self, folder: Path) -> None:
        save_model(self.model, self.vocabulary, folder)


def _tally(records: list[dict], name: str, rows: np.ndarray, losses: np.ndarray, right: np.ndarray) -> None:
    """Add to each record ``name``: (sum of losses, number right, number) of its elements, which are in ``rows``."""
    size = len(records)
    columns = [np.bincount(rows, weights, size) for weights in (losses, right.astype(float), np.ones(len(rows)))]
    for record, values in zip(records, np.stack(columns, axis=1).astype(float).tolist()):
        record[name] = values
