"""Visual commonsense reasoning: choose the answer to a question (Q->A) and the reason for it (QA->R).

Source: Zellers et al., CVPR 2019; ERNIE-ViL paper, section 4.2; the original's joint training of both tasks.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import paddle
from paddle import Tensor

from ernie_vil.data.mini_vcr import mini_vcr
from ernie_vil.data.names import NameDraws
from ernie_vil.data.regions import check_fingerprints, open_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.data.vcr import CHOICES, Q_TO_A, QA_TO_R, VcrDataset, VcrFile, collate_vcr, missing_file_message
from ernie_vil.engine.config import RunConfig
from ernie_vil.engine.task import EvalSet, TrainSet
from ernie_vil.models.heads import ChoiceHead, choice_loss, match_vector
from ernie_vil.tasks.opening import (
    check_length,
    encode,
    missing_stores,
    open_model,
    raise_missing,
    save_model,
    vocabulary_path,
)
from ernie_vil.tasks.vcr_options import FEATURES_HINT, VcrDataOptions, VcrModelOptions
from ernie_vil.tasks.vcr_results import vcr_metrics, write_leaderboard

PARTS = ("qa", "qar")


class VcrTask:
    """See :class:`ernie_vil.engine.task.Task`. Both parts are trained in turn, each with its own head.

    Metrics, over all questions of a split: ``q_a`` and ``qa_r`` (accuracy in per cent), ``q_ar`` (share of questions
    with both right) and the mean softmax cross entropies ``q_a_loss`` and ``qa_r_loss``. The original prints the mean
    of batch accuracies and no ``q_ar``.
    """

    sections = {"model": VcrModelOptions, "data": VcrDataOptions}
    metric = "q_ar"
    metric_names = ("q_ar", "q_a", "qa_r")
    unlabelled = ("test",)
    splits = ("train", "val", "test")

    def __init__(
        self, config: RunConfig, splits: Optional[Sequence[str]] = ("train", "val"), *, trained: bool = False
    ) -> None:
        """Open vocabulary and weights for work on ``splits``; with ``trained`` the weights must hold the heads too.

        Raises :class:`UserError` listing all missing files (``splits=None`` does not look for them), or saying what is
        wrong with vocabulary or weights.
        """
        self.config, self.options, self.files = config, config.model, config.data
        self._datasets: dict[str, VcrDataset] = {}
        raise_missing([] if splits is None else self.missing_files(config.data, splits))
        self.vocabulary = vocabulary_path(self.options, self.files)
        self.tokenizer = WordPieceTokenizer.from_file(self.vocabulary)
        heads = dict.fromkeys((self.options.answer_head, self.options.rationale_head))
        self.model = open_model(
            config,
            self.tokenizer,
            lambda model_config: {name: ChoiceHead(model_config) for name in heads},
            trained,
            " (model.answer_head and model.rationale_head name the heads that are looked for)",
        )
        longest = max(self.files.max_answer_length, self.files.max_rationale_length)
        check_length("data.max_answer_length, data.max_rationale_length", longest, self.model)

    @staticmethod
    def mini_data() -> dict[str, Any]:
        """The ``data`` section of a miniature run; the data are made on first use."""
        folder = mini_vcr()
        return {
            **{split: str(folder / f"{split}.jsonl") for split in ("train", "val", "test")},
            "features": str(folder / "features.lmdb"),
            "gt_features": str(folder / "gt_features.lmdb"),
            "vocab": str(folder / "vocab.txt"),
        }

    @staticmethod
    def missing_files(files: VcrDataOptions, splits: Sequence[str]) -> list[str]:
        """One message for everything that work on ``splits`` needs and that is not there."""
        faults = [
            f"data.{split}: {missing_file_message(Path(getattr(files, split)))}"
            for split in splits
            if not Path(getattr(files, split)).is_file()
        ]
        stores = ((f"data.{key}", getattr(files, key)) for key in ("features", "gt_features"))
        faults += missing_stores(stores, FEATURES_HINT)
        for key in ("vocab", "names", "recorded_names"):
            path = getattr(files, key)
            if path and not Path(path).is_file():
                faults.append(f"data.{key}: {path}: no such file")
        return faults

    def largest_batch(self, examples: int) -> tuple[int, int, int]:
        """Texts, tokens and regions of the largest batch that so many examples can make."""
        longest = max(self.files.max_answer_length, self.files.max_rationale_length)
        return CHOICES * examples, longest, self.files.max_regions

    def train_set(self) -> TrainSet:
        dataset = self.dataset("train")
        return TrainSet(
            dataset,
            collate_vcr,
            dataset.sizes,
            len(dataset.file) + len(dataset.file.skipped),
            self.files.turn,
            drop_incomplete_turns=self.files.drop_incomplete_turns,
            unreadable=dataset.file.skipped,
        )

    def eval_set(self, split: str) -> EvalSet:
        dataset = self.dataset(split)
        keys = [(part, 0, index) for part in (Q_TO_A, QA_TO_R) for index in range(dataset.sizes[part])]
        return EvalSet(dataset, collate_vcr, keys, len(dataset.file) + len(dataset.file.skipped), dataset.file.skipped)

    def dataset(self, split: str) -> VcrDataset:
        """The questions of a split; its file is read through once, when it is first asked for."""
        if split not in self._datasets:
            self._datasets[split] = self._open_dataset(split)
        return self._datasets[split]

    def _open_dataset(self, split: str) -> VcrDataset:
        names = (
            NameDraws.from_recorded(self.files.recorded_names, split)
            if self.files.recorded_names
            else NameDraws.from_table(self.files.names, self.config.seed)
        )
        file = VcrFile(getattr(self.files, split), split)
        lengths = (self.files.max_answer_length, self.files.max_rationale_length)
        return VcrDataset(file, self.tokenizer, *self.stores, names, lengths, self.files.max_regions)

    @cached_property
    def stores(self) -> tuple[Any, Any]:
        """Region features of detected and of ground-truth boxes (None where they are not used)."""
        width = self.model.config.feature_size
        stores = [open_store(path, width) if path else None for path in (self.files.features, self.files.gt_features)]
        check_fingerprints([store for store in stores if store is not None])
        return stores[0], stores[1]

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {PARTS[int(batch["part"][0])]: float(batch["input_ids"].shape[0])}

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        part = int(batch["part"][0])
        return {PARTS[part]: choice_loss(self.scores(batch)[part], batch["labels"], CHOICES)}

    def scores(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Scores of both heads for every choice, ``[4 n, 1]`` each."""
        output = encode(self.model, batch)
        rate = self.model.config.attention_probs_dropout_prob if self.options.match_dropout else 0.0
        match = match_vector(output, self.options.fusion, rate, self.model.training)
        heads = self.model.heads
        return heads[self.options.answer_head](match), heads[self.options.rationale_head](match)

    def predict(self, batch: Mapping[str, Any]) -> list[dict]:
        scores = paddle.concat(self.scores(batch), axis=1).astype("float32").reshape([-1, CHOICES, len(PARTS)]).numpy()
        names = ("part", "index", "question_index", "answer_index", "labels")
        columns = zip(*(batch[name].numpy().tolist() for name in names))
        return [
            {
                "key": (part, 0, index),
                "question": question,
                "answer": answer,
                "label": label,
                "scores": scores[row, :, part],
            }
            for row, (part, index, question, answer, label) in enumerate(columns)
        ]

    def metrics(self, records: list[dict]) -> dict[str, float]:
        return vcr_metrics(records)

    def write_predictions(self, records: list[dict], split: str, path: Path) -> None:
        file = self.dataset(split).file
        write_leaderboard(records, lambda question: file[question].annot_id, path)

    def save_pretrained(self, folder: Path) -> None:
        save_model(self.model, self.vocabulary, folder)
