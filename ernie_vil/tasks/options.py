"""Config sections that the tasks of ERNIE-ViL v1 share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional

from ernie_vil.engine.config import option
from ernie_vil.zoo import list_models


@dataclass(frozen=True)
class ModelOptions:
    """Section ``model``."""

    name: str = option(
        "ernie-vil-base",
        "named model; weights that hold a whole model bring their own sizes",
        choices=tuple(list_models()),
    )
    weights: Optional[str] = option(
        None,
        "initial weights: a model folder, a checkpoint, a run's output folder (its best checkpoint), "
        "ernie-vil-fluid:PATH (released folder), ernie:PATH or bert:PATH (PaddleNLP encoder for the text stream); null "
        "starts from scratch",
    )
    overrides: Dict[str, Any] = option(
        {}, "values that replace those of the model's configuration, such as hidden_dropout_prob or feature_size"
    )


@dataclass(frozen=True)
class DataOptions:
    """What every ``data`` section has."""

    vocab: Optional[str] = option(None, "WordPiece vocabulary; null takes the vocab.txt that lies with model.weights")
    max_skip_ratio: float = option(
        0.001, "share of a split's records that may be unreadable before the run stops", minimum=0, maximum=1
    )
