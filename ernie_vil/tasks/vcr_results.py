"""What comes of scored VCR questions: metrics, and the leaderboard's file.

A record has ``key`` (its first entry is the part), ``question`` (position in the file), ``answer`` (the one that the
rationales are for), ``label`` and ``scores`` of the four choices.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Callable, Iterable, Sequence

import numpy as np

from ernie_vil.data.vcr import CHOICES, Q_TO_A, QA_TO_R


def vcr_metrics(records: Sequence[dict]) -> dict[str, float]:
    """Accuracies ``q_a``, ``qa_r`` and ``q_ar`` (both right) in per cent, and the mean softmax cross entropies.

    They are over whole splits, per question; the original prints the mean of batch accuracies and no Q->AR.
    """
    right: list[dict[int, bool]] = [{}, {}]
    losses: list[list[float]] = [[], []]
    for record in records:
        part = record["key"][0]
        right[part][record["question"]] = int(np.argmax(record["scores"])) == record["label"]
        losses[part].append(-float(np.log(softmax(record["scores"])[record["label"]])))
    both = sorted(set(right[Q_TO_A]) & set(right[QA_TO_R]))
    return {
        "q_a": percent(right[Q_TO_A].values()),
        "qa_r": percent(right[QA_TO_R].values()),
        "q_ar": percent([right[Q_TO_A][question] and right[QA_TO_R][question] for question in both]),
        "q_a_loss": float(np.mean(losses[Q_TO_A])) if losses[Q_TO_A] else float("nan"),
        "qa_r_loss": float(np.mean(losses[QA_TO_R])) if losses[QA_TO_R] else float("nan"),
    }


def write_leaderboard(records: Sequence[dict], annot_id: Callable[[int], str], path: Path) -> None:
    """The leaderboard's CSV: ``annot_id``, four answer probabilities, four times four rationale probabilities.

    On train and val, where rationales are scored for the right answer alone, the other columns are zero.
    """
    rows: dict[int, np.ndarray] = {}
    for record in records:
        row = rows.setdefault(record["question"], np.zeros(CHOICES + CHOICES * CHOICES))
        start = 0 if record["key"][0] == Q_TO_A else CHOICES * (1 + record["answer"])
        row[start : start + CHOICES] = softmax(record["scores"])
    rationale_columns = [
        f"rationale_conditioned_on_a{answer}_{choice}" for answer in range(CHOICES) for choice in range(CHOICES)
    ]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["annot_id", *(f"answer_{choice}" for choice in range(CHOICES)), *rationale_columns])
        for question in sorted(rows):
            writer.writerow([annot_id(question), *(f"{value:.6f}" for value in rows[question])])


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return powers / powers.sum()


def percent(values: Iterable[bool]) -> float:
    listed = list(values)
    return 100.0 * sum(listed) / len(listed) if listed else float("nan")
