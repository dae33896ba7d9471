"""What comes of scored pairs: recalls both ways, and the files of predictions.

**Ties count against the model**: the rank of the right one is 1 plus the number of wrong ones whose score is not lower.
So a model that gives all pairs one score finds nothing, and the order of a file decides nothing. (The original's tool
sorts equal scores by descending id, as text.)

A record has ``caption`` and ``image`` (places in the split), ``first`` (place of the first image it was scored against)
and ``scores`` against the images from there on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from ernie_vil.data.retrieval_files import RetrievalSplit

CUTS = (1, 5, 10)
LISTED = 10


def image_ranks(scores: np.ndarray, image_of: np.ndarray) -> np.ndarray:
    """For every caption the rank of its image, from 1. ``scores [captions, images]``, ``image_of [captions]``."""
    right = scores[np.arange(len(scores)), image_of]
    # The right one is never lower than itself: it makes the 1.
    return (scores >= right[:, None]).sum(axis=1)


def caption_ranks(scores: np.ndarray, image_of: np.ndarray) -> np.ndarray:
    """For every image that has a caption here, in ascending order, the rank of the best of its captions, from 1."""
    ranks = []
    for image in np.unique(image_of):
        own = image_of == image
        ranks.append(1 + int((scores[~own, image] >= scores[own, image].max()).sum()))
    return np.array(ranks)


def recalls(ranks: np.ndarray, name: str) -> dict[str, float]:
    """Recall at 1, 5 and 10 in per cent, and the mean rank."""
    found = {f"{name}_r{cut}": 100.0 * float(np.mean(ranks <= cut)) for cut in CUTS}
    return {**found, f"{name}_rank": float(np.mean(ranks))}


def retrieval_metrics(records: Sequence[dict]) -> dict[str, float]:
    """Image retrieval (``ir_``: caption to image) and text retrieval (``tr_``: image to caption), means over folds.

    ``recall_mean`` is the mean of the six recalls.
    """
    folds = []
    for _, scores, captions in _tables(records):
        image_of = np.array([record["image"] - record["first"] for record in captions])
        folds.append({**recalls(image_ranks(scores, image_of), "ir"), **recalls(caption_ranks(scores, image_of), "tr")})
    means = {name: float(np.mean([fold[name] for fold in folds])) for name in folds[0]}
    six = [means[f"{way}_r{cut}"] for way in ("ir", "tr") for cut in CUTS]
    return {"recall_mean": float(np.mean(six)), **means}


def write_retrieved(records: Sequence[dict], split: RetrievalSplit, path: Path) -> None:
    """JSON lines: for every caption the ten images of highest score, then for every image the ten captions.

    A file whose name ends in ``.tsv`` gets the original's lines instead, one for every pair:
    ``score<TAB>image id<TAB>caption id``. Equal scores stand in the order of the split.
    """
    lines = _original_lines if path.suffix == ".tsv" else _json_lines
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(line + "\n" for line in lines(records, split))


def _tables(records: Sequence[dict]) -> Iterator[tuple[int, np.ndarray, list[dict]]]:
    """Per fold its first image, the scores ``[captions, images]`` and the captions, in the split's order."""
    folds: dict[int, list[dict]] = {}
    for record in sorted(records, key=lambda record: record["caption"]):
        folds.setdefault(record["first"], []).append(record)
    for first, captions in sorted(folds.items()):
        yield first, np.stack([record["scores"] for record in captions]), captions


def _json_lines(records: Sequence[dict], split: RetrievalSplit) -> Iterator[str]:
    for way in ("captions", "images"):
        for first, scores, captions in _tables(records):
            identities = [split.captions[record["caption"]] for record in captions]
            if way == "captions":
                for caption, row in zip(identities, scores):
                    images = [
                        {"image_id": split.images[first + place], "score": score} for place, score in _highest(row)
                    ]
                    yield json.dumps(
                        {
                            "caption_id": caption.id,
                            "caption": caption.text,
                            "image_id": split.images[caption.image],
                            "images": images,
                        }
                    )
                continue
            own: dict[int, list[str]] = {}
            for caption in identities:
                own.setdefault(caption.image, []).append(caption.id)
            for place, column in enumerate(scores.T):
                found = [{"caption_id": identities[row].id, "score": score} for row, score in _highest(column)]
                right = own.get(first + place, [])
                yield json.dumps({"image_id": split.images[first + place], "caption_ids": right, "captions": found})


def _highest(scores: np.ndarray) -> list[tuple[int, Any]]:
    order = np.argsort(-scores, kind="stable")[:LISTED]
    return [(int(place), round(float(scores[place]), 6)) for place in order]


def _original_lines(records: Sequence[dict], split: RetrievalSplit) -> Iterator[str]:
    for first, scores, captions in _tables(records):
        for record, row in zip(captions, scores):
            identity = split.captions[record["caption"]].id
            yield from (f"{score:.8g}\t{split.images[first + place]}\t{identity}" for place, score in enumerate(row))
