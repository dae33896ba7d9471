"""Config sections of the task ``vcr``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ernie_vil.engine.config import option
from ernie_vil.tasks.options import DataOptions, ModelOptions

FEATURES_HINT = "bottom-up region features of the VCR images as LMDB; the README says where they are to be had"


@dataclass(frozen=True)
class VcrModelOptions(ModelOptions):
    """Section ``model`` of the task ``vcr``."""

    fusion: str = option("mul", "how the two pooled outputs are joined", choices=("mul", "sum"))
    match_dropout: bool = option(
        True, "drop out the joined vector in training, at the model's attention_probs_dropout_prob as the original does"
    )
    answer_head: str = option("vcr_qa", "head that scores answers")
    rationale_head: str = option(
        "vcr_qar",
        "head that scores rationales; the original's evaluation file names vcr_qa here although training fills vcr_qar",
    )


@dataclass(frozen=True)
class VcrDataOptions(DataOptions):
    """Section ``data`` of the task ``vcr``."""

    train: str = option("data/vcr/train.jsonl", "training questions (public VCR format)")
    val: str = option("data/vcr/val.jsonl", "validation questions")
    test: str = option("data/vcr/test.jsonl", "test questions, without labels")
    features: str = option("data/vcr/features.lmdb", "region features of detected boxes: " + FEATURES_HINT)
    gt_features: Optional[str] = option(
        "data/vcr/gt_features.lmdb", "region features of the ground-truth boxes; null uses detected boxes alone"
    )
    names: Optional[str] = option(
        None, "table of names for persons (CSV, second column); null takes the neutral names that come with the package"
    )
    recorded_names: Optional[str] = option(
        None, "JSON file with names to use instead of drawing: per split, part and entry the name of every object"
    )
    max_answer_length: int = option(60, "tokens of a Q->A sequence", minimum=8)
    max_rationale_length: int = option(80, "tokens of a QA->R sequence", minimum=8)
    max_regions: int = option(100, "regions of an image, with the whole-image row", minimum=2)
    turn: int = option(1, "batches of Q->A in a row before as many of QA->R (the original: 64 / batch size)", minimum=1)
    drop_incomplete_turns: bool = option(False, "drop what does not fill a turn at the end, as the original does")
