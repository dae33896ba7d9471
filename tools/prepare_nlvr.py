"""Prepare NLVR v1 for training: ``python tools/prepare_nlvr.py --data NLVR_FOLDER [--out data/nlvr]``.

``NLVR_FOLDER`` holds train.json and dev.json of the corpus and its images: train_images.zip and dev_images.zip, or
folders train_images and dev_images. Of the six images of an example the first is enough. Writes into ``--out``: the
annotation files; the region stores train.lmdb and dev.lmdb; vocab.txt, made from the training part without validation;
and train_captions.jsonl and val_captions.jsonl, the true sentences, which ``tools/parse_scene_graphs.py`` takes.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Optional, Sequence

from ernie_vil import cli


def prepare(argv: Optional[Sequence[str]]) -> None:
    from ernie_vil.data import nlvr_prepare

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="annotations and images of the corpus")
    parser.add_argument("--out", type=Path, default=Path("data/nlvr"), metavar="DIR")
    parser.add_argument("--parts", nargs="+", default=["train", "dev"], choices=["train", "dev"])
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        annotations = arguments.data / f"{part}.json"
        images = nlvr_prepare.find_images(arguments.data, part)
        examples, written, skipped = nlvr_prepare.write_store(annotations, images, part, arguments.out / f"{part}.lmdb")
        shutil.copyfile(annotations, arguments.out / f"{part}.json")
        if part == "train":
            nlvr_prepare.write_texts(examples, arguments.out)
        for message in skipped[:20]:
            print(f"left out: {message}")
        print(f"{part}: {len(examples)} examples, {written} images, {len(skipped)} left out")


if __name__ == "__main__":
    cli.main(prepare)
