"""Config sections of the task ``retrieval``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional

from ernie_vil.data.retrieval_files import IMAGE_KEYS
from ernie_vil.engine.config import Contradictions, option
from ernie_vil.tasks.options import DataOptions, ModelOptions

_CAPTIONS = "captions: Karpathy's JSON file, which holds all splits, or a table (image id, caption id, caption)"


@dataclass(frozen=True)
class RetrievalModelOptions(ModelOptions):
    """Section ``model`` of the task ``retrieval``."""

    fusion: str = option("mul", "how the two pooled outputs are joined", choices=("mul", "sum"))
    margin: float = option(0.3, "margin of the circle loss", minimum=0, maximum=1)
    scale: float = option(
        32.0, "scale of the circle loss; the original's launch script does not pass it on, its runs have 1", above=0
    )
    pairs: int = option(64, "pairs of caption and image that evaluation works on at once", minimum=1)


@dataclass(frozen=True)
class RetrievalDataOptions(DataOptions):
    """Section ``data`` of the task ``retrieval``."""

    train: str = option("data/flickr30k/dataset_flickr30k.json", f"training {_CAPTIONS}")
    val: str = option("data/flickr30k/dataset_flickr30k.json", f"validation {_CAPTIONS}")
    test: str = option("data/flickr30k/dataset_flickr30k.json", f"test {_CAPTIONS}")
    features: List[str] = option(
        ["data/flickr30k/features.lmdb"], "region features of the images: LMDB folders or the original's tables"
    )
    image_key: str = option(
        "stem", "what of Karpathy's entries is the key into features; stem: filename without suffix", choices=IMAGE_KEYS
    )
    random_images: int = option(10, "negatives of a training example: the caption with a random image", minimum=0)
    hard_images: int = option(0, "negatives: the caption with one of the image's hard negatives", minimum=0)
    random_captions: int = option(10, "negatives: the image with a caption of a random image", minimum=0)
    hard_captions: int = option(0, "negatives: the image with a caption of one of its hard negatives", minimum=0)
    hard_negatives: Optional[str] = option(
        None, "the original's pickle of mined negatives: train_image_list and train_hard_pool"
    )
    max_length: int = option(128, "tokens of a caption, with [CLS] and [SEP]; longer captions are cut", minimum=3)
    max_regions: int = option(101, "regions of an image, with the whole-image row", minimum=2)
    val_images: Optional[int] = option(
        None, "evaluate val on its first so many images; the pairs grow with the square. null takes all", minimum=2
    )
    eval_folds: int = option(
        1, "cut the images into so many equal folds and average over them (5 on MSCOCO: the 1K test)", minimum=1
    )

    @staticmethod
    def contradictions(valid: Mapping[str, Any]) -> Contradictions:
        names = ("random_images", "hard_images", "random_captions", "hard_captions")
        if not all(name in valid for name in names):
            return
        images = valid["random_images"] + valid["hard_images"]
        captions = valid["random_captions"] + valid["hard_captions"]
        if not images + captions or (images + captions) % 2 or (images != captions and images and captions):
            yield (
                "random_captions",
                f"{images} image and {captions} caption negatives: the loss takes the first half of the negatives for "
                "images and the second for captions; give as many of each, or an even number of one kind",
            )
        if valid["hard_images"] + valid["hard_captions"] and not valid.get("hard_negatives"):
            yield "hard_negatives", "hard negatives are asked for, but there is no file of them"
