"""NLVR v1: is the sentence true of the image? Trained and evaluated as image-text matching.

Source: Suhr et al., "A Corpus of Natural Language for Visual Reasoning", ACL 2017.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import numpy as np
from paddle import Tensor, nn

from ernie_vil.data.mini_nlvr import mini_nlvr
from ernie_vil.data.nlvr import IMAGES, SPLITS, NlvrDataset, NlvrExample, collate_nlvr, divide, read_examples
from ernie_vil.data.regions import open_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.engine.config import RunConfig
from ernie_vil.engine.task import EvalSet, TrainSet
from ernie_vil.models.ernie_vil import ErnieViLConfig
from ernie_vil.models.heads import MatchHead, RegionHead, match_vector, region_loss
from ernie_vil.models.pretraining_heads import match_losses
from ernie_vil.tasks.nlvr_options import FEATURES_HINT, NlvrDataOptions, NlvrModelOptions
from ernie_vil.tasks.opening import check_length, missing_stores, open_model, raise_missing, save_model, vocabulary_path

MATCH, REGION = "match_fc", "region"


class NlvrTask:
    """See :class:`ernie_vil.engine.task.Task`. The heads are those of image-text matching and, for
    generated statements, of referring expressions: which regions a statement speaks of.

    Metrics over a split, in per cent: ``accuracy`` over images, six of every example, as published; ``consistency``,
    the share of sentences that are judged rightly with all images they were written for (24 as a rule), as in the
    corpus' own program; ``all_six``, the share of examples whose six images are all judged rightly. ``loss`` is the
    mean cross entropy.

    Split ``val`` is a part of the training file, divided by ``directory``; ``dev`` is the corpus' development set.
    """

    sections = {"model": NlvrModelOptions, "data": NlvrDataOptions}
    metric = "accuracy"
    metric_names = ("accuracy", "consistency", "all_six")
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
        self._datasets: dict[tuple[str, bool], NlvrDataset] = {}
        self._skipped: dict[str, Sequence[str]] = {}
        raise_missing([] if splits is None else self.missing_files(config.data, splits))
        self.vocabulary = vocabulary_path(self.options, self.files)
        self.tokenizer = WordPieceTokenizer.from_file(self.vocabulary)
        self.model = open_model(config, self.tokenizer, _heads, trained)
        check_length("data.max_length", self.files.max_length, self.model)

    @staticmethod
    def mini_data() -> dict[str, Any]:
        """The ``data`` section of a miniature run; the data are made on first use."""
        folder = mini_nlvr()
        names = {
            "train": "train.json",
            "dev": "dev.json",
            "features": "train.lmdb",
            "dev_features": "dev.lmdb",
            "vocab": "vocab.txt",
        }
        return {key: str(folder / name) for key, name in names.items()}

    @staticmethod
    def missing_files(files: NlvrDataOptions, splits: Sequence[str]) -> list[str]:
        """One message for everything that work on ``splits`` needs and that is not there."""
        faults = []
        for file, store, used in (
            ("train", "features", {"train", "val"} & set(splits)),
            ("dev", "dev_features", "dev" in splits),
        ):
            if not used:
                continue
            for key in (file, store):
                if getattr(files, key) is None:
                    faults.append(f"data.{key}: not given")
            path = getattr(files, file)
            if path and not Path(path).is_file():
                faults.append(f"data.{file}: {path}: no such file; the README says where the corpus is to be had")
            faults += missing_stores([(f"data.{store}", getattr(files, store))], FEATURES_HINT)
        if files.vocab and not Path(files.vocab).is_file():
            faults.append(f"data.vocab: {files.vocab}: no such file; tools/prepare_nlvr.py writes it")
        return faults

    def largest_batch(self, examples: int) -> tuple[int, int, int]:
        """Texts, tokens and regions of the largest batch that so many examples can make (eight things in a box)."""
        return examples, self.files.max_length, 28

    def train_set(self) -> TrainSet:
        dataset = self.dataset("train", training=True)
        skipped = self._skipped["train"]
        return TrainSet(dataset, collate_nlvr, (len(dataset),), len(dataset) + len(skipped), unreadable=skipped)

    def eval_set(self, split: str) -> EvalSet:
        dataset = self.dataset(split)
        skipped = self._skipped[split]
        keys = [(0, 0, index) for index in range(len(dataset))]
        return EvalSet(dataset, collate_nlvr, keys, len(dataset) + len(skipped), skipped)

    def dataset(self, split: str, training: bool = False) -> NlvrDataset:
        """The examples of a split; its file is read when it is first asked for."""
        if (split, training) not in self._datasets:
            part = "dev" if split == "dev" else "train"
            self._datasets[split, training] = NlvrDataset(
                self._examples(split, part),
                part,
                open_store(self.files.dev_features if part == "dev" else self.files.features, self._width()),
                self.tokenizer,
                training,
                self.files.changes,
                self.files.statement_share,
                self.files.simple_share,
                self.files.max_length,
                self.config.seed,
            )
        return self._datasets[split, training]

    def _examples(self, split: str, part: str) -> Sequence[NlvrExample]:
        examples, skipped = read_examples(getattr(self.files, part))
        # Lines that cannot be read belong to no directory: they count for the training part.
        self._skipped[split] = [] if split == "val" else skipped
        if part == "dev":
            return examples
        return divide(examples, self.files.validation_directories)[split == "val"]

    def _width(self) -> int:
        return self.model.config.feature_size

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        known = float(np.asarray(batch["region_weights"]).sum()) if self.options.region_weight else 0.0
        return {"match": float(batch["labels"].shape[0]), **({"region": known} if known else {})}

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        scores, region_scores = self.scores(batch)
        losses = {"match": match_losses(scores, batch["labels"]).sum()}
        if "region" in self.counts(batch):
            loss = region_loss(region_scores, batch["region_labels"], batch["region_weights"])
            losses["region"] = loss * self.options.region_weight
        return losses

    def scores(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Of the image ``[B, 1]`` (above 0 means true) and of its regions ``[B, N]``."""
        output = self.model(
            batch["input_ids"],
            batch["token_type_ids"],
            batch["position_ids"],
            batch["attention_mask"],
            batch["region_features"],
            batch["region_locations"],
            batch["region_mask"],
        )
        match = match_vector(output, self.options.fusion, self.options.match_dropout, self.model.training)
        heads = self.model.heads
        return heads[MATCH](match), heads[REGION](output.region_hidden).squeeze(-1)

    def predict(self, batch: Mapping[str, Any]) -> list[dict]:
        """Records with the number of the ``sentence``, the ``label`` and the ``score`` of an image."""
        scores = self.scores(batch)[0].astype("float32").numpy()[:, 0].tolist()
        columns = zip(*(batch[name].numpy().tolist() for name in ("index", "sentence", "labels")), scores)
        return [
            {"key": (0, 0, index), "sentence": sentence, "label": label > 0.5, "score": score}
            for index, sentence, label, score in columns
        ]

    def metrics(self, records: list[dict]) -> dict[str, float]:
        return nlvr_metrics(records)

    def write_predictions(self, records: list[dict], split: str, path: Path) -> None:
        """The CSV that the corpus' own program reads: ``dev-ID-K.png,true`` or ``false``."""
        dataset = self.dataset(split)
        lines = []
        for record in records:
            number, image = divmod(record["key"][2], IMAGES)
            name = dataset.examples[number].image(dataset.part, image)
            lines.append(f"{name}.png,{'true' if record['score'] > 0 else 'false'}\n")
        path.write_text("".join(lines), encoding="utf-8")

    def save_pretrained(self, folder: Path) -> None:
        save_model(self.model, self.vocabulary, folder)


def _heads(sizes: ErnieViLConfig) -> dict[str, nn.Layer]:
    return {MATCH: MatchHead(sizes), REGION: RegionHead(sizes)}


def nlvr_metrics(records: Sequence[dict]) -> dict[str, float]:
    """Metrics (see :class:`NlvrTask`) of records as :meth:`NlvrTask.predict` makes them."""
    labels = np.array([record["label"] for record in records], dtype=bool)
    scores = np.array([record["score"] for record in records], dtype=np.float64)
    right = (scores > 0) == labels
    return {
        "accuracy": 100.0 * float(right.mean()),
        "consistency": _all_right([record["sentence"] for record in records], right),
        "all_six": _all_right([record["key"][2] // IMAGES for record in records], right),
        "loss": float(np.logaddexp(0.0, np.where(labels, -scores, scores)).mean()),
    }


def _all_right(groups: Sequence[int], right: np.ndarray) -> float:
    """Share of groups, in per cent, all members of which are right."""
    _, group = np.unique(np.array(groups), return_inverse=True)
    return 100.0 * (1.0 - float((np.bincount(group, ~right) > 0).mean()))
