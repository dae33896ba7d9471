"""Which files the questions of a split of VQA come from, and which of their questions it takes."""

from __future__ import annotations

from functools import cached_property
from typing import Optional, Sequence

import numpy as np

from ernie_vil.data.regions import LmdbRegionStore, check_fingerprints, open_store
from ernie_vil.data.vqa_answers import AnswerList
from ernie_vil.data.vqa_questions import Questions, QuestionTable, read_official
from ernie_vil.data.vqa_tsv import TsvQuestions
from ernie_vil.data.vqa_visual_genome import read_visual_genome
from ernie_vil.errors import UserError
from ernie_vil.tasks.vqa_options import UNLABELLED, VqaDataOptions

_HELD_OUT_SEED = 2014


class VqaSources:
    """Opens the files of a config's ``data`` section when they are first asked for, each of them once.

    All methods raise :class:`UserError` for files that cannot be used.
    """

    def __init__(self, files: VqaDataOptions, answers: AnswerList, feature_size: int) -> None:
        self.files, self.answers, self.feature_size = files, answers, feature_size
        self._tables: dict[tuple[str, Optional[str]], QuestionTable] = {}
        self._stores: dict[str, LmdbRegionStore] = {}

    def questions(self, split: str) -> Sequence[Questions]:
        """The questions of a split, Visual Genome's not among them."""
        if self.files.format == "tsv":
            return [self._table(path) for path in getattr(self.files, split)]
        tables = self._official(split)
        if self.files.held_out_images is None or split not in ("train", "val"):
            return tables
        return [table.select(np.isin(table.image_ids, self._held_out) == (split == "val")) for table in tables]

    def training(self) -> Sequence[Questions]:
        """The questions of ``train``, unless ``val`` has some of them."""
        own = self.questions("train")
        ids = [np.concatenate([table.question_ids for table in tables]) for tables in (own, self.questions("val"))]
        shared = np.intersect1d(*ids)
        if len(shared):
            raise UserError(
                f"data.train and data.val share {len(shared)} questions (such as {shared[0]}), so that validation "
                "would say nothing; hold images of val out of training with data.held_out_images"
            )
        return own

    def visual_genome(self) -> Sequence[Questions]:
        """The additional questions for training; none on an image that is validated on."""
        if self.files.format == "tsv":
            return [self._table(path, unique=False) for path in self.files.visual_genome]
        tables = self.questions("val")
        images = frozenset(np.concatenate([table.image_ids for table in tables]).tolist())
        images_file = str(self.files.visual_genome_images)
        return [
            read_visual_genome(path, images_file, self.answers, self._store("features"), images)
            for path in self.files.visual_genome
        ]

    def _table(self, path: str, unique: bool = True) -> TsvQuestions:
        return TsvQuestions(path, len(self.answers), self.feature_size, unique)

    def _official(self, split: str) -> list[QuestionTable]:
        paths = getattr(self.files, split)
        annotations = getattr(self.files, f"{split}_annotations", None) or [None] * len(paths)
        store = self._store("test_features" if split in UNLABELLED and self.files.test_features else "features")
        for pair in zip(paths, annotations):
            if pair not in self._tables:
                self._tables[pair] = read_official(*pair, self.answers, store)
        return [self._tables[pair] for pair in zip(paths, annotations)]

    @cached_property
    def _held_out(self) -> np.ndarray:
        images = np.unique(np.concatenate([table.image_ids for table in self._official("val")]))
        count = int(self.files.held_out_images or 0)
        if count > len(images):
            raise UserError(f"data.held_out_images: {count} of the {len(images)} images of data.val")
        return np.random.default_rng(_HELD_OUT_SEED).permutation(images)[:count]

    def _store(self, key: str) -> LmdbRegionStore:
        if key not in self._stores:
            self._stores[key] = open_store(getattr(self.files, key), self.feature_size)
            check_fingerprints(list(self._stores.values()))
        return self._stores[key]
