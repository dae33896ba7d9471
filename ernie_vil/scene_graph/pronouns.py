"""A spaCy component that gives personal pronouns the lemma ``-PRON-``, as spaCy 2 did. Importing it needs spaCy."""

from __future__ import annotations

from spacy.language import Language
from spacy.tokens import Doc

from ernie_vil.scene_graph.pipelines import PRONOUN, PRONOUN_TAGS

NAME = "ernie_vil_pronouns"


@Language.component(NAME)
def pronoun_lemmas(doc: Doc) -> Doc:
    """Set the lemma of every token that is tagged as a personal or possessive pronoun."""
    for token in doc:
        if token.tag_ in PRONOUN_TAGS:
            token.lemma_ = PRONOUN
    return doc
