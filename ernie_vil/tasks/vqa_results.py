"""What comes of answered questions: the official evaluation's figures and the official result file.

A record has ``key``, ``label`` (the class predicted) and, where answers are known, ``accuracy`` (0 to 1), ``loss``,
``question_type`` and ``answer_type``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np


def vqa_metrics(records: Sequence[dict]) -> dict[str, float]:
    """``accuracy`` over all questions, ``answer_type/NAME`` and ``question_type/NAME`` over those of a type, in per
    cent; and ``loss``, the mean over questions of the training loss.

    They are the public evaluation's, which rounds them to two decimals. Types are there only as far as they are
    annotated.
    """
    groups: dict[str, list[float]] = {"accuracy": [record["accuracy"] for record in records]}
    for kind in ("answer_type", "question_type"):
        for name in sorted({record[kind] for record in records} - {""}):
            groups[f"{kind}/{name}"] = [record["accuracy"] for record in records if record[kind] == name]
    metrics = {name: 100.0 * sum(values) / len(values) if values else float("nan") for name, values in groups.items()}
    return {**metrics, "loss": float(np.mean([record["loss"] for record in records])) if records else float("nan")}


def write_results(question_ids: Sequence[int], answers: Mapping[int, str], path: Path) -> None:
    """The official result file: ``[{"question_id": ..., "answer": ...}, ...]``.

    The evaluation refuses a file without all questions of a split; those without an answer, whose picture could not be
    read, get an empty one.
    """
    rows = [{"question_id": int(number), "answer": answers.get(int(number), "")} for number in question_ids]
    path.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")
