"""The cloze test of vision and language: find the masked object, attribute or relation of a caption by its picture.

Paper, section 4.5 and Tables 5 and 6. It evaluates what ``configs/pretrain.yaml`` has trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, NoReturn, Optional, Sequence

import numpy as np
from paddle import Tensor

from ernie_vil.data.cloze import KINDS, ClozeDataset, collate_cloze
from ernie_vil.data.mini_captions import mini_captions
from ernie_vil.data.regions import open_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.engine.config import RunConfig, option
from ernie_vil.engine.task import EvalSet
from ernie_vil.errors import UserError
from ernie_vil.models.pretraining_heads import TokenHead, token_logits
from ernie_vil.scene_graph.files import CaptionFile
from ernie_vil.tasks.cloze_report import (
    BEST,
    best_of,
    choose_sample,
    cloze_metrics,
    ranks_of,
    write_page,
    write_records,
)
from ernie_vil.tasks.opening import (
    check_length,
    encode,
    missing_stores,
    open_model,
    raise_missing,
    save_model,
    vocabulary_path,
)
from ernie_vil.tasks.options import DataOptions, ModelOptions

NOT_TRAINED = "the cloze test is not trained; it evaluates what tools/train.py -c configs/pretrain.yaml has trained"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ClozeDataOptions(DataOptions):
    """Section ``data`` of the task ``cloze``."""

    captions: str = option(
        "data/conceptual_captions/val.jsonl", "captions with scene graphs, written by tools/parse_scene_graphs.py"
    )
    features: str = option("data/conceptual_captions/val_features.lmdb", "region features of the images (LMDB)")
    images: Optional[str] = option(
        None,
        "pictures for the report: a folder with IMAGE_ID.jpg or .png, or a path with {image_id} in it; null for none",
    )
    max_examples: Optional[int] = option(
        None, "most nodes of a kind, evenly spaced over the captions; null for all", minimum=1
    )
    max_length: int = option(36, "tokens of a caption, with [CLS] and [SEP]; nodes behind are left out", minimum=4)
    max_regions: int = option(37, "regions of an image, with the whole-image row", minimum=2)


class ClozeTask:
    """See :class:`ernie_vil.engine.task.Task`.

    Metrics, in per cent: ``acc1`` and ``acc5`` over all masked nodes, ``object_acc1``, ``object_acc5``,
    ``attribute_...``, ``relation_...`` by kind; and the number of nodes, ``object_nodes`` and so on. A node of several
    pieces is masked as a whole and counts as found at k if each of its pieces has the true piece among the k best of
    the whole vocabulary at its place; the paper does not say how it counts them.
    """

    sections = {"model": ModelOptions, "data": ClozeDataOptions}
    metric = "acc1"
    metric_names = ("acc1", "acc5", *(f"{kind}_acc{k}" for kind in KINDS for k in (1, 5)))
    unlabelled = ()
    splits = ("val",)
    prediction_suffixes = (".html", ".jsonl")

    def __init__(
        self, config: RunConfig, splits: Optional[Sequence[str]] = ("train", "val"), *, trained: bool = False
    ) -> None:
        """Open vocabulary and weights; see :class:`ernie_vil.tasks.vcr.VcrTask` for the arguments."""
        if splits is not None and "train" in splits:
            self.train_set()
        self.config, self.files = config, config.data
        self._dataset: Optional[ClozeDataset] = None
        raise_missing([] if splits is None else self.missing_files(config.data, splits))
        self.vocabulary = vocabulary_path(config.model, self.files)
        self.tokenizer = WordPieceTokenizer.from_file(self.vocabulary)
        if self.tokenizer.mask_id is None:
            raise UserError(f"{self.vocabulary}: has no [MASK], which the cloze test needs")
        hint = "; the cloze test needs weights of a pre-training with masked tokens"
        self.model = open_model(config, self.tokenizer, lambda sizes: {"mlm": TokenHead(sizes)}, trained, hint)
        check_length("data.max_length", self.files.max_length, self.model)

    @staticmethod
    def mini_data() -> dict[str, Any]:
        """The ``data`` section of a miniature run; the data are made on first use."""
        folder = mini_captions()
        names = {"captions": "val.jsonl", "features": "features.lmdb", "images": "images", "vocab": "vocab.txt"}
        return {key: str(folder / name) for key, name in names.items()}

    @staticmethod
    def missing_files(files: ClozeDataOptions, splits: Sequence[str]) -> list[str]:
        """One message for everything that work on ``splits`` needs and that is not there."""
        faults = []
        if not Path(files.captions).is_file():
            faults.append(
                f"data.captions: {files.captions}: no such file; tools/parse_scene_graphs.py writes it from captions "
                "(README, section Pre-training), or try --mini"
            )
        faults += missing_stores([("data.features", files.features)])
        if files.images and "{image_id" not in files.images and not Path(files.images).is_dir():
            faults.append(f"data.images: {files.images}: no such folder; leave it out for a report without pictures")
        if files.vocab and not Path(files.vocab).is_file():
            faults.append(f"data.vocab: {files.vocab}: no such file")
        return faults

    def largest_batch(self, examples: int) -> tuple[int, int, int]:
        """Texts, tokens and regions of the largest batch that so many examples can make."""
        return examples, self.files.max_length, self.files.max_regions

    def train_set(self) -> NoReturn:
        raise UserError(NOT_TRAINED)

    def eval_set(self, split: str) -> EvalSet:
        dataset = self.dataset
        records = len(dataset.file) + len(dataset.file.skipped)
        return EvalSet(dataset, collate_cloze, dataset.keys, records, dataset.unreadable)

    @property
    def dataset(self) -> ClozeDataset:
        """The nodes of all captions; the file is read through once, when it is first asked for."""
        if self._dataset is None:
            files = self.files
            store = open_store(files.features, self.model.config.feature_size)
            lengths = (files.max_length, files.max_regions, files.max_examples)
            self._dataset = ClozeDataset(CaptionFile(files.captions), self.tokenizer, store, *lengths)
        return self._dataset

    def counts(self, batch: Mapping[str, Any]) -> NoReturn:
        raise UserError(NOT_TRAINED)

    def losses(self, batch: Mapping[str, Any]) -> NoReturn:
        raise UserError(NOT_TRAINED)

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Scores of the vocabulary at every masked place, ``[m, vocab]``."""
        output = encode(self.model, batch)
        return token_logits(self.model, output.text_hidden, batch["token_positions"])

    def predict(self, batch: Mapping[str, Any]) -> list[dict]:
        """One record per node, as :mod:`ernie_vil.tasks.cloze_report` describes it."""
        scores = self.logits(batch).astype("float32").numpy()
        labels, rows = batch["token_labels"].numpy(), batch["token_rows"].numpy()
        ranks, best = ranks_of(scores, labels), best_of(scores, BEST)
        keys = zip(batch["part"].numpy().tolist(), batch["index"].numpy().tolist())
        records = []
        for row, (part, index) in enumerate(keys):
            own = np.flatnonzero(rows == row).tolist()
            records.append(
                {
                    "key": (part, 0, index),
                    "true": labels[own].tolist(),
                    "ranks": ranks[own].tolist(),
                    "best": [best[place] for place in own],
                }
            )
        return records

    def metrics(self, records: list[dict]) -> dict[str, float]:
        left_out = {f"{kind}_left_out": count for kind, count in self.dataset.left_out.items() if count}
        return {**cloze_metrics(records), **left_out}

    def write_predictions(self, records: list[dict], split: str, path: Path) -> None:
        """By the suffix: ``.html`` is a page with pictures of some nodes, ``.jsonl`` has all of them."""
        if path.suffix == ".jsonl":
            write_records(self.lines(records), path)
        else:
            title = f"Cloze test: {self.config.model.weights} on {self.files.captions}"
            chosen = list(self.lines(choose_sample(records)))
            write_page(title, chosen, cloze_metrics(records), self.dataset.left_out, self.picture, path)

    def lines(self, records: Sequence[dict]) -> Iterator[dict]:
        """Records in words.

        ``kind``, ``id`` and ``image_id`` of the caption, ``caption``, ``words`` and ``spans`` of the node, and for each
        of its pieces the ``true`` token, its rank in ``ranks``, and the ``best`` tokens as [token, probability].
        """
        token = sorted(self.tokenizer.vocabulary, key=self.tokenizer.vocabulary.__getitem__)
        for record in records:
            caption, spans = self.dataset.node(record["key"])
            text = caption.graph.caption
            yield {
                "kind": KINDS[record["key"][0]],
                "id": caption.id,
                "image_id": caption.image_id,
                "caption": text,
                "words": " ".join(text[start:end] for start, end in spans),
                "spans": [list(span) for span in spans],
                "true": [token[piece] for piece in record["true"]],
                "ranks": record["ranks"],
                "best": [[[token[piece], share] for piece, share in place] for place in record["best"]],
            }

    def picture(self, image_id: str) -> Optional[Path]:
        """Where the picture should be; None without ``data.images``."""
        images = self.files.images
        if images is None:
            return None
        if "{image_id" in images:
            try:
                return Path(images.format(image_id=image_id))
            except (ValueError, KeyError, IndexError) as error:
                raise UserError(f"data.images: {images}: not a path with {{image_id}} in it ({error})") from None
        files = [Path(images) / f"{image_id}{suffix}" for suffix in PICTURE_SUFFIXES]
        return next((file for file in files if file.is_file()), files[0])

    def save_pretrained(self, folder: Path) -> None:
        save_model(self.model, self.vocabulary, folder)
