"""Config sections of the task ``refcoco``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional

from ernie_vil.data.refcoco import TRACKS
from ernie_vil.engine.config import Contradictions, option
from ernie_vil.tasks.options import DataOptions, ModelOptions

_TABLES = "the original's table or tables of {}, for format tsv; a .gz file is unpacked into a temporary one"


@dataclass(frozen=True)
class RefcocoModelOptions(ModelOptions):
    """Section ``model`` of the task ``refcoco``."""

    region_dropout: float = option(
        0.0, "dropout of the regions' last states before the head (seq_dropout of the original)", minimum=0, below=1
    )
    loss_factor: Optional[float] = option(
        None,
        "factor on the mean loss of a region; null takes train.batch_size. The original takes its batch-size argument, "
        "the batch of one device. It decides how often gradients are clipped",
        above=0,
    )


@dataclass(frozen=True)
class RefcocoDataOptions(DataOptions):
    """Section ``data`` of the task ``refcoco``."""

    format: str = option(
        "refer", "files of the refer package with region stores, or the original's tables", choices=("refer", "tsv")
    )
    refs: str = option("data/refcoco_plus/refs(unc).p", "format refer: pickled references; umd's for RefCOCOg")
    instances: str = option("data/refcoco_plus/instances.json", "format refer: boxes and images in COCO's layout")
    features: Optional[str] = option(
        "data/refcoco_plus/features.lmdb",
        "format refer: region features of detected boxes; null trains and evaluates on annotated boxes alone",
    )
    gt_features: Optional[str] = option(
        "data/refcoco_plus/gt_features.lmdb",
        "format refer: region features of all annotated boxes of the images, which join the detected ones in training; "
        "null goes without",
    )
    detections: Optional[str] = option(
        None,
        "format refer: MAttNet's JSON file of detections; at evaluation only these of the detected boxes may be the "
        "answer, the others are context. null lets every box of features be the answer",
    )
    candidates: str = option(
        "detected",
        "boxes that may be the answer at evaluation: detected ones, annotated ones, or all, as the original does with "
        "whatever its table holds",
        choices=TRACKS,
    )
    train: List[str] = option([], _TABLES.format("training"))
    val: List[str] = option([], _TABLES.format("validation"))
    testA: List[str] = option([], _TABLES.format("test A"))
    testB: List[str] = option([], _TABLES.format("test B"))
    test: List[str] = option([], _TABLES.format("test"))
    max_length: int = option(512, "tokens of a sequence; the original has this limit whatever MAX_LEN says", minimum=3)
    max_regions: int = option(200, "regions of an image, with the whole-image row; the last are cut off", minimum=2)

    @staticmethod
    def contradictions(valid: Mapping[str, Any]) -> Contradictions:
        if valid.get("format") != "refer":
            return
        for key, track in (("features", "detected"), ("gt_features", "ground_truth")):
            if valid.get("candidates") in (track, "all") and key in valid and not valid[key]:
                yield key, f"null, but candidates is {valid['candidates']}"
