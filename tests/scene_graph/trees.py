"""Dependency trees written by hand, so that tests of rules do not rest on a trained parser."""

from __future__ import annotations

from typing import Any, Optional

TAGS = {"NOUN": "NN", "PROPN": "NNP", "VERB": "VBG", "AUX": "VBZ", "ADJ": "JJ", "DET": "DT", "ADP": "IN"}


def tree(text: str, lemmas: Optional[dict[str, str]] = None) -> Any:
    """A spaCy ``Doc`` of ``word/POS/dependency/head`` items, with heads counted from 0; a tag may follow."""
    from spacy.lang.en.syntax_iterators import SYNTAX_ITERATORS
    from spacy.tokens import Doc
    from spacy.vocab import Vocab

    items = [item.split("/") for item in text.split()]
    words = [item[0] for item in items]
    vocab = Vocab(get_noun_chunks=SYNTAX_ITERATORS["noun_chunks"])
    return Doc(
        vocab,
        words=words,
        pos=[item[1] for item in items],
        tags=[item[4] if len(item) > 4 else TAGS.get(item[1], item[1]) for item in items],
        deps=[item[2] for item in items],
        heads=[int(item[3]) for item in items],
        lemmas=[(lemmas or {}).get(word, word.lower()) for word in words],
    )


TABLE_1 = (
    "A/DET/det/1 woman/NOUN/nsubj/6 in/ADP/prep/1 blue/ADJ/amod/4 dress/NOUN/pobj/2 is/AUX/aux/6 putting/VERB/ROOT/6 "
    "her/PRON/poss/10/PRP$ little/ADJ/amod/10 white/ADJ/amod/10 cat/NOUN/dobj/6 on/ADP/prep/6 top/NOUN/pobj/11 "
    "of/ADP/prep/12 a/DET/det/16 brown/ADJ/amod/16 car/NOUN/pobj/13 in/ADP/prep/16 front/NOUN/pobj/17 of/ADP/prep/18 "
    "her/PRON/poss/21/PRP$ house/NOUN/pobj/19 ./PUNCT/punct/6"
)
