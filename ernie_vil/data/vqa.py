"""Visual question answering (VQA v2): a question on a picture, answered by one of a list of answers.

Samples are the same from whatever source the questions come: :mod:`ernie_vil.data.vqa_questions` reads the official
files, :mod:`ernie_vil.data.vqa_tsv` the original's table, :mod:`ernie_vil.data.vqa_visual_genome` Visual Genome.
"""

from __future__ import annotations

from typing import Any, Optional, Sequence

import numpy as np
import paddle

from ernie_vil.data.regions import merge_with_ground_truth
from ernie_vil.data.text_pair import pad_sequences
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.data.vcr import pad_regions
from ernie_vil.data.vqa_questions import Questions, Scores
from ernie_vil.data.vqa_visual_genome import Mix
from ernie_vil.errors import BadRecord


class VqaDataset(paddle.io.Dataset):
    """Samples of one or several sources, found by the key ``(0, epoch, index)``.

    Args:
        sources: the questions; numbered through in this order.
        tokenizer: of the model.
        classes: number of answers.
        max_length: longest sequence, with ``[CLS]`` and ``[SEP]``; the end of a longer one is cut off.
        max_regions: most regions of an image, the whole image included; the last ones are cut off.
        mix: chooses the question for a key; by default that with the number ``index``.

    Raises:
        BadRecord: on a look-up, a picture that the store lacks or cannot read; names the question and the store.
    """

    def __init__(
        self,
        sources: Sequence[Questions],
        tokenizer: WordPieceTokenizer,
        classes: int,
        max_length: int = 512,
        max_regions: int = 101,
        mix: Optional[Mix] = None,
    ) -> None:
        super().__init__()
        self.sources, self.tokenizer, self.classes, self.mix = sources, tokenizer, classes, mix
        self.max_length, self.max_regions = max_length, max_regions
        self._ends = np.cumsum([len(source) for source in sources])
        self.skipped = [message for source in sources for message in source.skipped]

    def __len__(self) -> int:
        """Keys of an epoch."""
        return self.mix.size if self.mix is not None else int(self._ends[-1])

    @property
    def records(self) -> int:
        """Records in the files, with those that cannot be used."""
        return int(self._ends[-1]) + len(self.skipped)

    @property
    def question_ids(self) -> list[int]:
        """Of all questions, in the order of their numbers."""
        return np.concatenate([source.question_ids for source in self.sources]).tolist()

    def find(self, number: int) -> tuple[Questions, int]:
        """The source of question ``number`` and its place there."""
        source = int(np.searchsorted(self._ends, number, side="right"))
        return self.sources[source], number - (int(self._ends[source - 1]) if source else 0)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        """A question on its picture; row 0 of the regions is the whole picture.

        Returns:
            ``index`` of the key; ``question_id``; ``input_ids``; ``region_features`` float32 ``[n, F]``,
            ``region_locations`` ``[n, 5]``; ``targets`` float32 ``[classes]``, and ``accuracies`` likewise, or
            ``None`` if no answer is known; ``question_type`` and ``answer_type``.
        """
        _, epoch, index = key
        source, place = self.find(index if self.mix is None else self.mix.question(epoch, index))
        question = source[place]
        try:
            regions = merge_with_ground_truth(source.regions(place), None, self.max_regions)
        except BadRecord as error:
            raise BadRecord(f"{source.where(place)}: {error}") from error
        words = self.tokenizer.encode(question.text)[: self.max_length - 2]
        return {
            "index": index,
            "question_id": question.question_id,
            "input_ids": [self.tokenizer.cls_id, *words, self.tokenizer.sep_id],
            "region_features": regions[0],
            "region_locations": regions[1],
            "targets": self._dense(question.targets),
            "accuracies": None if question.accuracies is None else self._dense(question.accuracies, np.float64),
            "question_type": question.question_type,
            "answer_type": question.answer_type,
        }

    def _dense(self, scores: Scores, dtype: Any = np.float32) -> np.ndarray:
        values = np.zeros(self.classes, dtype)
        values[scores[0]] = scores[1]
        return values


def collate_vqa(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put B samples together for training; regions are padded to the largest number in the batch.

    Returns:
        ``input_ids``, ``token_type_ids``, ``position_ids`` int64 and ``attention_mask`` float32 ``[B, L]``;
        ``region_features`` ``[B, N, F]``, ``region_locations`` ``[B, N, 5]``, ``region_mask`` ``[B, N]`` and
        ``targets`` ``[B, classes]`` float32; ``index`` and ``question_id`` int64 ``[B]``.
    """
    batch: dict[str, Any] = pad_sequences(
        [sample["input_ids"] for sample in samples], [[0] * len(sample["input_ids"]) for sample in samples]
    )
    batch.update(pad_regions([(sample["region_features"], sample["region_locations"]) for sample in samples]))
    batch["targets"] = np.stack([sample["targets"] for sample in samples])
    for name in ("index", "question_id"):
        batch[name] = np.array([sample[name] for sample in samples], np.int64)
    return batch


def collate_vqa_evaluation(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As :func:`collate_vqa`, with the lists of texts ``question_types`` and ``answer_types`` and, where answers are
    known, ``accuracies`` float64 ``[B, classes]``."""
    batch = collate_vqa(samples)
    if samples[0]["accuracies"] is not None:
        batch["accuracies"] = np.stack([sample["accuracies"] for sample in samples])
    for name in ("question_type", "answer_type"):
        batch[f"{name}s"] = [sample[name] for sample in samples]
    return batch
