"""Config sections of the task ``vqa``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional

from ernie_vil.engine.config import Contradictions, option
from ernie_vil.tasks.options import DataOptions, ModelOptions

SPLITS = ("train", "val", "test_dev", "test_std")
UNLABELLED = ("test_dev", "test_std")


@dataclass(frozen=True)
class VqaModelOptions(ModelOptions):
    """Section ``model`` of the task ``vqa``."""

    head_hidden_size: int = option(2048, "width of the classifier's hidden layer", minimum=1)


@dataclass(frozen=True)
class VqaDataOptions(DataOptions):
    """Section ``data`` of the task ``vqa``. A split may have several files; they are read one after the other."""

    format: str = option(
        "official",
        "official: question and annotation JSON, regions from stores; tsv: the original's table of nine columns, in "
        "which everything of a question stands on one line",
        choices=("official", "tsv"),
    )
    train: List[str] = option([], "training questions: JSON files, or tables if format is tsv")
    train_annotations: List[str] = option([], "their annotations, in the same order; not used if format is tsv")
    val: List[str] = option([], "validation questions")
    val_annotations: List[str] = option([], "their annotations, in the same order")
    test_dev: List[str] = option([], "test-dev questions, without annotations")
    test_std: List[str] = option([], "test-std questions: all of the test, test-dev among them")
    answers: Optional[str] = option(
        None,
        "the answers by class: JSON list, or the original's pickled one (.pkl); null takes the answers.json that lies "
        "with model.weights. ernie_vil.data.vqa_answers.write_answer_list makes one of annotations",
    )
    held_out_images: Optional[int] = option(
        None,
        "validate on the questions of so many images of val (drawn once, whatever the seed), and keep those out of "
        "training, so that the rest of val can be trained on; null validates on all of val",
        minimum=1,
    )
    features: str = option("data/vqa/features.lmdb", "region features of train and val by COCO image id (LMDB)")
    test_features: Optional[str] = option(None, "region features of the test images; null takes those of `features`")
    visual_genome: List[str] = option(
        [], "additional training questions: question_answers.json of Visual Genome, or tables if format is tsv"
    )
    visual_genome_images: Optional[str] = option(
        None, "image_data.json of Visual Genome, which says which images are COCO's; questions on others are left out"
    )
    visual_genome_epochs: Optional[int] = option(
        2,
        "passes over the training questions that also go over Visual Genome; null goes over it always, as the original "
        "does whatever it is asked for",
        minimum=1,
    )
    max_length: int = option(
        64,
        "tokens of a question, with [CLS] and [SEP]; the end of a longer one is cut off. The original has 512, which "
        "no question comes near",
        minimum=3,
    )
    max_regions: int = option(101, "regions of an image, with the whole-image row", minimum=2)

    @staticmethod
    def contradictions(valid: Mapping[str, Any]) -> Contradictions:
        if valid.get("format") == "tsv":
            if valid.get("held_out_images"):
                yield "held_out_images", "contradictory: a table does not say of which image a question is"
            return
        for split in ("train", "val"):
            questions, annotations = valid.get(split), valid.get(f"{split}_annotations")
            if questions is not None and annotations is not None and len(questions) != len(annotations):
                yield (
                    f"{split}_annotations",
                    f"{len(annotations)} files for the {len(questions)} of data.{split}; give one for each",
                )
        if valid.get("visual_genome") and "visual_genome_images" in valid and not valid["visual_genome_images"]:
            yield "visual_genome_images", "data.visual_genome needs it"
