"""Seeds derived from what a random draw is for, so that no generator's state has to be carried along."""

from __future__ import annotations

import numpy as np


def derive_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers (seed, step, process, ...), without patterns between neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
