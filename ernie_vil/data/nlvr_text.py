"""Sentences of NLVR: one spelling of numbers and of frequent words, and the vocabulary made from the training part."""

from __future__ import annotations

import re
from collections import Counter
from typing import Iterable, Mapping

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DIGITS = dict(zip("0123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))
ONE_SPELLING = {"atleast": "at least", "atmost": "at most", "colour": "color", "colours": "colors", "bellow": "below"}
# A word that is this rare in the training part and as good as equal to one so much more frequent is taken for a slip.
RARE, TIMES_AS_FREQUENT = 20, 50
SHORTEST_CORRECTED = 4


def words_of(sentence: str) -> list[str]:
    """Lower-case words, digits written out, punctuation left out but for commas."""
    found = re.findall(r"[a-z']+|[0-9]|,", sentence.lower())
    return [word for token in found for word in ONE_SPELLING.get(token, DIGITS.get(token, token)).split()]


class Speller:
    """Puts a known word in the place of an unknown one that is nearly the same ("yelow", "squere").

    Args:
        words: known words, the more frequent first.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = [word for word in words if len(word) >= SHORTEST_CORRECTED and word.isalpha()]
        self._known = set(words)
        self._corrected: dict[str, str] = {}

    def normalise(self, sentence: str) -> str:
        """The sentence's words (see :func:`words_of`) in the known spelling, separated by blanks."""
        return " ".join(self.correct(word) for word in words_of(sentence))

    def correct(self, word: str) -> str:
        if word in self._known or len(word) < SHORTEST_CORRECTED:
            return word
        if word not in self._corrected:
            near = [(edit_distance(word, known), place) for place, known in enumerate(self._words)]
            distance, place = min(near, default=(len(word), 0))
            self._corrected[word] = self._words[place] if distance <= allowed_distance(word) else word
        return self._corrected[word]


def allowed_distance(word: str) -> int:
    """How many slips a word of this length may hold."""
    return 1 if len(word) < 6 else 2


def vocabulary(sentences: Iterable[str], further: Iterable[str] = ()) -> list[str]:
    """Tokens of a ``vocab.txt``: special ones, then words by frequency, slips of the pen left out.

    ``further``: words that are known whatever their frequency.
    """
    counts = Counter(word for sentence in sentences for word in words_of(sentence))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    kept = [word for word in ordered if counts[word] >= RARE or not _slip(word, counts)]
    return [*SPECIAL, *dict.fromkeys([*kept, *sorted(further)])]


def _slip(word: str, counts: Mapping[str, int]) -> bool:
    """Whether a rare word is a misspelling, or occurs once only."""
    if counts[word] < 4:
        return True
    return len(word) >= SHORTEST_CORRECTED and any(
        count >= TIMES_AS_FREQUENT * counts[word]
        and abs(len(other) - len(word)) <= 2
        and len(other) >= SHORTEST_CORRECTED
        and edit_distance(word, other) <= allowed_distance(word)
        for other, count in counts.items()
    )


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours that turn one word into the other."""
    before, previous = [], list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        row = [i]
        for j, other in enumerate(second, start=1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                row[j] = min(row[j], before[j - 2] + 1)
        before, previous = previous, row
    return previous[-1]
