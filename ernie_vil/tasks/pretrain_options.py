"""Config sections of the task ``pretrain``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional

from ernie_vil.engine.config import option
from ernie_vil.engine.schema import REQUIRED
from ernie_vil.tasks.options import DataOptions, ModelOptions


@dataclass(frozen=True)
class LossWeights:
    """Section ``model.loss_weights``: what each loss counts in the total; 0 leaves it out."""

    token: float = option(1.0, "masked tokens (masked language modelling)", minimum=0)
    object: float = option(1.0, "masked objects of the scene graph", minimum=0)
    attribute: float = option(1.0, "masked attributes of the scene graph", minimum=0)
    relation: float = option(1.0, "masked relations of the scene graph", minimum=0)
    region: float = option(1.0, "masked regions", minimum=0)
    match: float = option(1.0, "whether caption and image belong together", minimum=0)


@dataclass(frozen=True)
class PretrainModelOptions(ModelOptions):
    """Section ``model`` of the task ``pretrain``."""

    fusion: str = option("mul", "how the two pooled outputs are joined for image-text matching", choices=("mul", "sum"))
    region_target: str = option(
        "classes",
        "what a masked region is trained on: the detector's class distribution (the store must have class_probs), the "
        "region's features, or nothing",
        choices=("classes", "features", "none"),
    )
    region_classes: int = option(
        1601,
        "classes of the detector: width of class_probs in the stores, background included if it is there",
        minimum=2,
    )
    loss_weights: LossWeights = option(LossWeights, "what each loss counts in the total")


@dataclass(frozen=True)
class MaskOptions:
    """Section ``data.masks``: shares that are masked (paper, section 3.2 and 3.3). A node is masked as a whole."""

    token: float = option(0.15, "share of a caption's tokens", minimum=0, below=1)
    object: float = option(0.3, "share of objects", minimum=0, maximum=0.5)
    attribute: float = option(0.3, "share of attributes", minimum=0, maximum=0.5)
    relation: float = option(0.3, "share of relations", minimum=0, maximum=0.5)
    region: float = option(0.15, "share of regions", minimum=0, below=1)


@dataclass(frozen=True)
class CaptionSource:
    """An entry of ``data.train`` or ``data.val``: captions and the regions of their images."""

    captions: str = option(REQUIRED, "caption file with scene graphs, written by tools/parse_scene_graphs.py")
    features: str = option(REQUIRED, "region features of the images (LMDB)")
    gt_features: Optional[str] = option(
        None, "region features of annotated boxes, put behind the detected ones (VCR); null for none"
    )


@dataclass(frozen=True)
class PretrainDataOptions(DataOptions):
    """Section ``data`` of the task ``pretrain``."""

    train: List[CaptionSource] = option([], "what is trained on; captions of all sources are shuffled together")
    val: List[CaptionSource] = option([], "what is evaluated on, with masks that stay the same")
    masks: MaskOptions = option(MaskOptions, "shares that are masked")
    negative_share: float = option(
        0.5, "share of captions that are shown with a random other image, for image-text matching", minimum=0, below=1
    )
    max_length: int = option(36, "tokens of a caption, with [CLS] and [SEP]; longer captions are cut", minimum=4)
    max_regions: int = option(37, "regions of an image, with the whole-image row", minimum=2)
