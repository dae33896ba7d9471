"""Visual question answering (VQA v2) as classification over the frequent answers.

Source: Goyal et al., CVPR 2017; ERNIE-ViL paper, section 4.2; the original's program for VQA.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import numpy as np
import paddle.nn.functional as F
from paddle import Tensor

from ernie_vil.data.mini_vqa import mini_vqa
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.data.vqa import VqaDataset, collate_vqa, collate_vqa_evaluation
from ernie_vil.data.vqa_answers import AnswerList
from ernie_vil.data.vqa_visual_genome import Mix
from ernie_vil.engine.config import RunConfig
from ernie_vil.engine.task import EvalSet, TrainSet
from ernie_vil.errors import UserError
from ernie_vil.models.heads import AnswerHead, answer_loss, match_vector
from ernie_vil.tasks.opening import check_length, missing_stores, open_model, raise_missing, save_model, vocabulary_path
from ernie_vil.tasks.vqa_options import SPLITS, UNLABELLED, VqaDataOptions, VqaModelOptions
from ernie_vil.tasks.vqa_results import vqa_metrics, write_results
from ernie_vil.tasks.vqa_sources import VqaSources

HEAD = "vqa"
ANSWERS_FILE = "answers.json"


class VqaTask:
    """See :class:`ernie_vil.engine.task.Task`.

    Metrics, over all questions of a split: ``accuracy`` in per cent as the public evaluation has it, the same for each
    type of answer and of question (``answer_type/number``, ``question_type/how many``), and ``loss``, the mean over
    questions of the sum over answers of the sigmoid cross entropy.
    """

    sections = {"model": VqaModelOptions, "data": VqaDataOptions}
    metric = "accuracy"
    metric_names = ("accuracy", *(f"answer_type/{name}" for name in ("yes/no", "number", "other")))
    unlabelled = UNLABELLED
    splits = SPLITS

    def __init__(
        self, config: RunConfig, splits: Optional[Sequence[str]] = ("train", "val"), *, trained: bool = False
    ) -> None:
        """Open answers, vocabulary and weights for work on ``splits``; with ``trained`` the weights must hold the head.

        Raises :class:`UserError` listing all missing files (``splits=None`` does not look for them), or saying what is
        wrong with answers, vocabulary or weights.
        """
        self.config, self.options, self.files = config, config.model, config.data
        self._datasets: dict[tuple[str, bool], VqaDataset] = {}
        raise_missing([] if splits is None else self.missing_files(config.data, splits))
        self.answers = self._open_answers()
        self.vocabulary = vocabulary_path(self.options, self.files)
        self.tokenizer = WordPieceTokenizer.from_file(self.vocabulary)
        try:
            self.model = open_model(
                config,
                self.tokenizer,
                lambda sizes: {HEAD: AnswerHead(sizes, len(self.answers), self.options.head_hidden_size)},
                trained,
            )
        except UserError as error:
            if f"heads.{HEAD}." not in str(error):
                raise
            raise UserError(
                f"{error}\n{self.answers.source} has {len(self.answers)} answers and model.head_hidden_size is "
                f"{self.options.head_hidden_size}; both must be those that the weights were trained with."
            ) from None
        check_length("data.max_length", self.files.max_length, self.model)

    def _open_answers(self) -> AnswerList:
        """``data.answers``, else what lies with the weights; if there are both, they must agree."""
        weights = self.options.weights
        path = Path(weights) / ANSWERS_FILE if weights else None
        beside = AnswerList.read(path) if path and path.is_file() else None
        chosen = AnswerList.read(self.files.answers) if self.files.answers else beside
        if chosen is None:
            raise UserError(
                f"data.answers: not given, and there is no {ANSWERS_FILE} with model.weights; "
                "ernie_vil.data.vqa_answers.write_answer_list makes a list of the annotations of train and val"
            )
        if beside is not None and chosen.answers != beside.answers:
            pairs = zip(chosen.answers, beside.answers)
            difference = next((f"class {i} is {a!r} here, {b!r} there" for i, (a, b) in enumerate(pairs) if a != b), "")
            raise UserError(
                f"data.answers: {chosen.source} has {len(chosen)} answers, {path} of the weights {len(beside)}"
                f"{difference and '; '}{difference}; weights and answers must belong together"
            )
        return chosen

    @staticmethod
    def mini_data() -> dict[str, Any]:
        """The ``data`` section of a miniature run; the data are made on first use."""
        folder = mini_vqa()
        names = {
            "train": ["v2_OpenEnded_mscoco_train2014_questions.json"],
            "train_annotations": ["v2_mscoco_train2014_annotations.json"],
            "val": ["v2_OpenEnded_mscoco_val2014_questions.json"],
            "val_annotations": ["v2_mscoco_val2014_annotations.json"],
            "test_dev": ["v2_OpenEnded_mscoco_test-dev2015_questions.json"],
            "test_std": ["v2_OpenEnded_mscoco_test2015_questions.json"],
            "visual_genome": ["question_answers.json"],
        }
        single = {"visual_genome_images": "image_data.json", "features": "features.lmdb", "answers": ANSWERS_FILE}
        return {
            "format": "official",
            "held_out_images": None,
            "test_features": None,
            **{key: [str(folder / name) for name in files] for key, files in names.items()},
            **{key: str(folder / name) for key, name in {**single, "vocab": "vocab.txt"}.items()},
        }

    @staticmethod
    def missing_files(files: VqaDataOptions, splits: Sequence[str]) -> list[str]:
        """One message for everything that work on ``splits`` needs and that is not there."""
        faults = [f"data.{split}: no file is given" for split in splits if not getattr(files, split)]
        official = files.format == "official"
        keys = list(splits)
        keys += [f"{split}_annotations" for split in splits if official and split not in UNLABELLED]
        if "train" in splits:
            keys.append("visual_genome")
        paths = [(key, path) for key in keys for path in getattr(files, key)]
        if "train" in splits and official and files.visual_genome:
            paths.append(("visual_genome_images", files.visual_genome_images))
        faults += [
            f"data.{key}: {path}: no such file; the README says where it is to be had, or try --mini"
            for key, path in paths
            if path and not Path(path).is_file()
        ]
        if official:
            stores = {"train": "features", "val": "features"}
            used = {stores.get(split, "test_features" if files.test_features else "features") for split in splits}
            faults += missing_stores((f"data.{key}", getattr(files, key)) for key in sorted(used))
        for key in ("answers", "vocab"):
            path = getattr(files, key)
            if path and not Path(path).is_file():
                faults.append(f"data.{key}: {path}: no such file")
        return faults

    def largest_batch(self, examples: int) -> tuple[int, int, int]:
        """Texts, tokens and regions of the largest batch that so many examples can make."""
        return examples, self.files.max_length, self.files.max_regions

    def train_set(self) -> TrainSet:
        dataset = self._dataset("train", training=True)
        return TrainSet(dataset, collate_vqa, (len(dataset),), dataset.records, unreadable=dataset.skipped)

    def eval_set(self, split: str) -> EvalSet:
        dataset = self._dataset(split)
        keys = [(0, 0, index) for index in range(len(dataset))]
        return EvalSet(dataset, collate_vqa_evaluation, keys, dataset.records, dataset.skipped)

    def _dataset(self, split: str, training: bool = False) -> VqaDataset:
        """The questions of a split; ``training`` adds those of Visual Genome. Files are read when first asked for."""
        key = (split, training)
        if key not in self._datasets:
            own = self.sources.training() if training else self.sources.questions(split)
            extra = self.sources.visual_genome() if training else ()
            passes, mix = self.files.visual_genome_epochs, None
            if extra and passes is not None:
                mix = Mix(sum(map(len, own)), sum(map(len, extra)), passes, self.config.seed)
            lengths = (self.files.max_length, self.files.max_regions)
            self._datasets[key] = VqaDataset([*own, *extra], self.tokenizer, len(self.answers), *lengths, mix)
        return self._datasets[key]

    @cached_property
    def sources(self) -> VqaSources:
        """The files of the config."""
        return VqaSources(self.files, self.answers, self.model.config.feature_size)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {HEAD: float(batch["input_ids"].shape[0])}

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {HEAD: answer_loss(self.logits(batch), batch["targets"])}

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Of every answer, ``[B, classes]``."""
        output = self.model(
            batch["input_ids"],
            batch["token_type_ids"],
            batch["position_ids"],
            batch["attention_mask"],
            batch["region_features"],
            batch["region_locations"],
            batch["region_mask"],
        )
        return self.model.heads[HEAD](match_vector(output))

    def predict(self, batch: Mapping[str, Any]) -> list[dict]:
        """Records with the ``label`` of the highest logit (the first one of several) and the ``logit``; where answers
        are known also ``accuracy``, ``loss``, ``question_type`` and ``answer_type``."""
        logits = self.logits(batch).astype("float32")
        labels = logits.argmax(axis=1).numpy()
        records = [
            {"key": (0, 0, index), "label": int(label), "logit": float(row[label])}
            for index, label, row in zip(batch["index"].tolist(), labels, logits.numpy())
        ]
        if "accuracies" in batch:
            losses = F.binary_cross_entropy_with_logits(logits, batch["targets"], reduction="none").sum(axis=1)
            accuracies = np.take_along_axis(batch["accuracies"].numpy(), labels[:, None], axis=1)[:, 0]
            types = zip(batch["question_types"], batch["answer_types"])
            for record, accuracy, loss, kinds in zip(records, accuracies.tolist(), losses.tolist(), types):
                record.update(accuracy=accuracy, loss=loss, question_type=kinds[0], answer_type=kinds[1])
        return records

    def metrics(self, records: list[dict]) -> dict[str, float]:
        return vqa_metrics([record for record in records if "accuracy" in record])

    def write_predictions(self, records: list[dict], split: str, path: Path) -> None:
        question_ids = self._dataset(split).question_ids
        write_results(
            question_ids,
            {question_ids[record["key"][2]]: self.answers.answers[record["label"]] for record in records},
            path,
        )

    def save_pretrained(self, folder: Path) -> None:
        save_model(self.model, self.vocabulary, folder)
        self.answers.write(folder / ANSWERS_FILE)
