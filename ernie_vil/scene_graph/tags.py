"""spaCy's attribute ruler for rules on single words, by look-up. Importing it needs spaCy.

The ruler runs a general matcher over every caption, an eighth of the time of parsing; rules such as
"tag NN: noun" and "tag VBZ, word is: auxiliary" are looked up instead.
"""

from __future__ import annotations

from typing import Any, Iterable, Iterator, Optional

from spacy.attrs import LOWER, POS, TAG
from spacy.language import Language
from spacy.parts_of_speech import IDS
from spacy.tokens import Doc
from spacy.vocab import Vocab

NAME = "ernie_vil_attribute_lookup"
COLUMNS = [TAG, LOWER, POS]
CACHED = 100_000
Found = tuple[Optional[int], Optional[str]]


@Language.factory(NAME, default_config={"patterns": []})
def make_attribute_lookup(nlp: Language, name: str, patterns: list) -> AttributeLookup:
    return AttributeLookup(patterns)


class AttributeLookup:
    """Gives tokens the part of speech and morphology that the last fitting rule of each kind has, as the ruler does."""

    def __init__(self, patterns: list[dict[str, Any]]) -> None:
        self.by_tag: dict[str, list[tuple[Optional[list[str]], dict[str, Any]]]] = {}
        for rule in patterns:
            words = rule["patterns"][0][0]
            self.by_tag.setdefault(words["TAG"], []).append((_forms(words.get("LOWER")), rule["attrs"]))
        self._cache: dict[tuple[int, int], Found] = {}

    def __call__(self, doc: Doc) -> Doc:
        # Whole columns at once: to set an attribute of a token takes as long as to match it.
        columns = doc.to_array(COLUMNS)
        found = [self._look_up(doc.vocab, tag, lower) for tag, lower in columns[:, :2].tolist()]
        columns[:, 2] = [old if new is None else new for (new, _), old in zip(found, columns[:, 2].tolist())]
        doc.from_array([POS], columns[:, 2:])
        for place, (_, morphology) in enumerate(found):
            if morphology is not None:
                doc[place].set_morph(morphology)
        return doc

    def pipe(self, stream: Iterable[Doc], batch_size: int = 128) -> Iterator[Doc]:
        return map(self, stream)

    def _look_up(self, vocab: Vocab, tag: int, lower: int) -> Found:
        found = self._cache.get((tag, lower))
        if found is None:
            attributes: dict[str, Any] = {}
            for forms, own in self.by_tag.get(vocab.strings[tag], ()):
                if forms is None or vocab.strings[lower] in forms:
                    attributes.update(own)
            name = attributes.get("POS")
            found = (None if name is None else IDS[name], attributes.get("MORPH"))
            if len(self._cache) < CACHED:
                self._cache[tag, lower] = found
        return found


def _forms(value: Any) -> Optional[list[str]]:
    return None if value is None else [value] if isinstance(value, str) else list(value["IN"])


def _is_forms(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and set(value) == {"IN"})


def fits(patterns: list[dict[str, Any]]) -> bool:
    """Whether all rules are of the kind that is looked up: one word, told by its tag, perhaps its lower-case form."""
    return all(
        len(rule["patterns"]) == 1
        and len(rule["patterns"][0]) == 1
        and rule.get("index", 0) == 0
        and set(rule["patterns"][0][0]) in ({"TAG"}, {"TAG", "LOWER"})
        and isinstance(rule["patterns"][0][0]["TAG"], str)
        and _is_forms(rule["patterns"][0][0].get("LOWER", ""))
        and set(rule["attrs"]) <= {"POS", "MORPH"}
        and all(isinstance(value, str) for value in rule["attrs"].values())
        for rule in patterns
    )
