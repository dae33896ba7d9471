"""Config sections of the task ``nlvr``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional

from ernie_vil.data.nlvr_changes import CHANGES
from ernie_vil.engine.config import Contradictions, option
from ernie_vil.tasks.options import DataOptions, ModelOptions

FEATURES_HINT = "tools/prepare_nlvr.py writes it from the images"


@dataclass(frozen=True)
class NlvrModelOptions(ModelOptions):
    """Section ``model`` of the task ``nlvr``."""

    fusion: str = option("mul", "how the two pooled outputs are joined", choices=("mul", "sum"))
    region_weight: float = option(
        1.0,
        "weight of the loss on regions: whether a region is one that a generated statement speaks of; human sentences "
        "have no such labels",
        minimum=0,
    )
    match_dropout: float = option(0.0, "dropout of the joined vector in training", minimum=0, below=1)


@dataclass(frozen=True)
class NlvrDataOptions(DataOptions):
    """Section ``data`` of the task ``nlvr``."""

    train: str = option("data/nlvr/train.json", "training examples (JSON lines of the corpus)")
    dev: Optional[str] = option("data/nlvr/dev.json", "development examples; only opened to evaluate on split dev")
    features: str = option("data/nlvr/train.lmdb", "regions of the training images; " + FEATURES_HINT)
    dev_features: Optional[str] = option("data/nlvr/dev.lmdb", "regions of the development images")
    validation_directories: List[int] = option(
        list(range(8)), "training examples with these values of `directory` make the split val and are not trained on"
    )
    changes: List[str] = option(
        list(CHANGES),
        "changes of image and sentence together that keep the truth, made at random in training: "
        + ", ".join(CHANGES)
        + " (see ernie_vil/data/nlvr_changes.py)",
    )
    statement_share: float = option(
        0.0,
        "share of training samples whose sentence is replaced by a generated statement about the image, whose truth "
        "follows from the measured regions (see ernie_vil/data/nlvr_statements.py)",
        minimum=0,
        maximum=1,
    )
    simple_share: float = option(
        0.0, "share of statements with one property at most among the generated ones", minimum=0, maximum=1
    )
    max_length: int = option(32, "tokens of a sequence", minimum=4)

    @staticmethod
    def contradictions(valid: Mapping[str, Any]) -> Contradictions:
        unknown = sorted(set(valid.get("changes", ())) - set(CHANGES))
        if unknown:
            yield "changes", f"{', '.join(unknown)}: not among {', '.join(CHANGES)}"
