"""Drawing items with given probabilities."""

from __future__ import annotations

from typing import Sequence

import numpy as np


def systematic_sample(probabilities: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Draw item i with probability ``probabilities[i]``, and as nearly the expected number of items as can be.

    The items are shuffled and their probabilities laid end to end; an item is taken when one of the points u, u + 1,
    u + 2, ... falls into it, for one u uniform in [0, 1).

    Returns:
        int64 places of the items taken, in the shuffled order.
    """
    if not len(probabilities):
        return np.zeros(0, dtype=np.int64)
    order = rng.permutation(len(probabilities))
    ends = np.floor(np.cumsum(np.asarray(probabilities, dtype=np.float64)[order]) + rng.random())
    return order[ends > np.concatenate([[0.0], ends[:-1]])]
