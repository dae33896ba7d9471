"""Whether an id stood before, among millions."""

from __future__ import annotations

import numpy as np


class SeenIds:
    """Remembers ids by their 64-bit hash: 8 bytes an id, where a set of texts takes 100.

    That two ids of ten million share a hash has a probability of 3 in a million; they would be taken for one.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.empty(0, dtype=np.int64)

    def add(self, identity: str) -> bool:
        """Remember an id; ``False`` if it was there."""
        value = hash(identity)
        place = int(np.searchsorted(self._sorted, np.int64(value)))
        if value in self._recent or (place < len(self._sorted) and int(self._sorted[place]) == value):
            return False
        self._recent.add(value)
        # Merging at a growing size keeps the work in proportion to the number of ids.
        if len(self._recent) >= max(65536, len(self._sorted) // 8):
            recent = np.fromiter(self._recent, dtype=np.int64, count=len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()
        return True
