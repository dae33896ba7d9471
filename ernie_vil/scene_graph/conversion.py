"""From what ``sng_parser`` finds in a spaCy ``Doc`` to nodes with their places in the caption."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterator, Optional, Sequence

from ernie_vil.scene_graph.graph import AttributeNode, ObjectNode, RelationNode, SceneGraph, Spans

ATTRIBUTE_DEPENDENCIES = ("nummod", "amod")


@dataclass
class Draft:
    """A graph in tokens: indices of spaCy's tokens in the place of words.

    Attributes:
        roots: the head noun of every object.
        attributes: (token, object).
        relations: (tokens in order, subject, object).
    """

    roots: list[int]
    attributes: list[tuple[int, int]] = field(default_factory=list)
    relations: list[tuple[tuple[int, ...], int, int]] = field(default_factory=list)


class ReadyDoc:
    """A parsed ``Doc`` as ``sng_parser`` reads it. It asks for the noun chunks twice; here they are found once."""

    def __init__(self, doc: Any) -> None:
        self.doc = doc
        self.noun_chunks = list(doc.noun_chunks)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.doc)

    def __getitem__(self, key: Any) -> Any:
        return self.doc[key]


def draft_graph(ready: ReadyDoc, found: dict[str, Any]) -> Draft:
    """Where the entities and relations of ``sng_parser`` stand.

    Its result holds texts; the tokens are found again by the dependencies from which it took them. Of the modifiers,
    adjectives (with their conjuncts) and numbers are attributes; determiners are not.
    """
    chunks = {(chunk.start, chunk.end): chunk for chunk in ready.noun_chunks}
    own = [chunks[entity["span_bounds"]] for entity in found["entities"]]
    draft = Draft([chunk.root.i for chunk in own])
    for number, chunk in enumerate(own):
        for child in chunk.root.children:
            if child.dep_ in ATTRIBUTE_DEPENDENCIES:
                draft.attributes.append((child.i, number))
            if child.dep_ == "amod":
                draft.attributes.extend((other.i, number) for other in child.children if other.dep_ == "conj")
    roots = {chunk.root.i for chunk in ready.noun_chunks}
    last = -1
    for relation in found["relations"]:
        # Relations come in the order of the chunks they were found at.
        last, tokens = _tokens_of_relation(ready.doc, own[relation["object"]], relation["relation"], roots, last)
        draft.relations.append((tokens, relation["subject"], relation["object"]))
    return draft


def _tokens_of_relation(doc: Any, chunk: Any, words: str, roots: set[int], last: int) -> tuple[int, tuple[int, ...]]:
    # The relation was found at the object itself or at the noun it is joined to by "and".
    places = {chunk.root.i} | {token.head.i for token in chunk if token.dep_ == "conj"}
    matches = []
    for place in sorted(places & roots):
        for tokens, text in _readings(doc, doc[place]):
            if text == words:
                matches.append((place, tokens))
    if not matches:
        raise LookupError(f"the words of the relation {words!r} were not found")
    return next((match for match in matches if match[0] >= last), matches[0])


def _readings(doc: Any, root: Any) -> Iterator[tuple[tuple[int, ...], str]]:
    """The tokens that ``sng_parser`` may take for a relation found at this head of a chunk, and how it spells them."""
    head = root.head
    if root.dep_ in ("dobj", "attr", "nsubjpass"):
        yield (head.i,), head.text
    elif root.dep_ == "pobj":
        yield (head.i,), head.text
        above = head.head
        yield tuple(sorted({above.i, head.i})), f"{above.text} {head.text}"
        if above.dep_ == "pobj":
            yield tuple(range(above.head.i, head.i + 1)), doc[above.head.i : head.i + 1].text


def object_tokens(doc: Any, root: int) -> tuple[int, ...]:
    """A head noun with the compounds right before it: "tennis racket", "t-shirt"."""
    first = root
    place = root - 1
    while place >= 0:
        token = doc[place]
        if token.dep_ == "compound" and first <= token.head.i <= root:
            first = place
        elif not (token.text == "-" and not token.whitespace_ and place > 0 and not doc[place - 1].whitespace_):
            break
        place -= 1
    return tuple(range(first, root + 1))


def to_graph(doc: Any, caption: str, draft: Draft) -> SceneGraph:
    """The nodes' words, lemmas and spans.

    A lemma is that of the node's tokens in their order. (For phrasal prepositions ``sng_parser``'s own lacks the last
    word, and it turns the order of several compounds round.)
    """

    def node(tokens: Sequence[int]) -> tuple[str, str, Spans]:
        spans = spans_of(doc, tokens)
        words = " ".join(caption[start:end] for start, end in spans)
        return words, _lemma(doc, tokens), spans

    return SceneGraph(
        caption,
        tuple(ObjectNode(*node(object_tokens(doc, root))) for root in draft.roots),
        tuple(AttributeNode(*node([token]), number) for token, number in draft.attributes),
        tuple(RelationNode(*node(tokens), subject, number) for tokens, subject, number in draft.relations),
    )


def spans_of(doc: Any, tokens: Sequence[int]) -> Spans:
    """Characters of some tokens; neighbours make one span."""
    spans: list[tuple[int, int]] = []
    previous: Optional[int] = None
    for place in tokens:
        token = doc[place]
        end = token.idx + len(token)
        if previous == place - 1:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((token.idx, end))
        previous = place
    return tuple(spans)


def _lemma(doc: Any, tokens: Sequence[int]) -> str:
    text = ""
    for place, following in zip(tokens, (*tokens[1:], -1)):
        apart = bool(doc[place].whitespace_) or following != place + 1
        text += doc[place].lemma_ + (" " if apart else "")
    return " ".join(text.split())
