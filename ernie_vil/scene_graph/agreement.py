"""How far a pipeline agrees with reference parses: tags, trees, lemmas, and the scene graphs that follow from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Iterable, Sequence

from ernie_vil.scene_graph.graph import KINDS, SceneGraph
from ernie_vil.scene_graph.parsed import ParsedCaption, to_doc

BATCH_SIZE = 256


@dataclass(frozen=True)
class Match:
    """Counts of nodes or facts, from which precision, recall and F1 follow; 0 where there is nothing to divide by."""

    matched: int = 0
    predicted: int = 0
    reference: int = 0

    def __add__(self, other: Match) -> Match:
        return Match(self.matched + other.matched, self.predicted + other.predicted, self.reference + other.reference)

    @property
    def precision(self) -> float:
        return self.matched / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.matched / self.reference if self.reference else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.matched / (self.predicted + self.reference) if self.predicted + self.reference else 0.0


def match_sets(predicted: Iterable[Any], reference: Iterable[Any]) -> Match:
    """Count what two collections have in common; an item that stands twice must be found twice."""
    ours, theirs = Counter(predicted), Counter(reference)
    return Match(sum((ours & theirs).values()), sum(ours.values()), sum(theirs.values()))


def parse_agreement(nlp: Any, captions: Sequence[ParsedCaption]) -> dict[str, float]:
    """Shares of tokens on which a pipeline agrees with the reference, on the reference's tokens.

    Returns:
        ``uas`` (head) and ``las`` (head and label) over tokens that are not punctuation in the reference, as usual;
        ``tag``, ``pos`` and ``lemma`` over all tokens; and ``tokens``, how many there are.
    """
    right: Counter = Counter()
    total = counted = 0
    for caption, doc in zip(captions, _parse_tokens(nlp, captions)):
        for token, head, dep, tag, pos, lemma in zip(
            doc, caption.heads, caption.deps, caption.tags, caption.pos, caption.lemmas
        ):
            total += 1
            right["tag"] += token.tag_ == tag
            right["pos"] += token.pos_ == pos
            right["lemma"] += token.lemma_ == lemma
            if dep != "punct":
                counted += 1
                right["uas"] += token.head.i == head
                right["las"] += token.head.i == head and token.dep_ == dep
    shares = {name: right[name] / max(counted, 1) for name in ("uas", "las")}
    return {**shares, **{name: right[name] / max(total, 1) for name in ("tag", "pos", "lemma")}, "tokens": total}


def graph_agreement(nlp: Any, captions: Sequence[ParsedCaption], complete: bool = False) -> dict[str, Any]:
    """Agreement of the graphs that the parser's rules make of a pipeline's parses and of the reference parses.

    Nodes are equal if they have the same kind, place and lemma, and the objects that they are tied to stand at the same
    places.

    Args:
        complete: as for :func:`ernie_vil.scene_graph.parser.parse`; ``False`` are the rules of ``sng_parser``.

    Returns:
        a :class:`Match` for each kind of node, and ``identical``, the share of captions whose nodes are all equal.
    """
    from ernie_vil.scene_graph.parser import parse_all

    texts = [caption.text for caption in captions]
    reference = _Parses(to_doc(nlp.vocab, caption) for caption in captions)
    counts = {kind: Match() for kind in KINDS}
    identical = 0
    for ours, theirs in zip(
        parse_all(texts, _Parses(_parse_tokens(nlp, captions)), complete=complete),
        parse_all(texts, reference, complete=complete),
    ):
        pairs = {kind: (node_keys(ours, kind), node_keys(theirs, kind)) for kind in KINDS}
        counts = {kind: counts[kind] + match_sets(*pairs[kind]) for kind in KINDS}
        identical += all(Counter(mine) == Counter(other) for mine, other in pairs.values())
    return {**counts, "identical": identical / max(len(captions), 1)}


def node_keys(graph: SceneGraph, kind: str) -> list[tuple]:
    """What makes a node of this kind the same as another graph's."""
    places = [node.spans for node in graph.objects]
    if kind == "object":
        return [(node.lemma, node.spans) for node in graph.objects]
    if kind == "attribute":
        return [(node.lemma, node.spans, places[node.object]) for node in graph.attributes]
    return [(node.lemma, node.spans, places[node.subject], places[node.object]) for node in graph.relations]


def _parse_tokens(nlp: Any, captions: Iterable[ParsedCaption]) -> Iterable[Any]:
    from spacy.tokens import Doc

    def unparsed(caption: ParsedCaption) -> Any:
        return Doc(nlp.vocab, [*caption.tokens], [True] * (len(caption.tokens) - 1) + [False])

    return nlp.pipe((unparsed(caption) for caption in captions), batch_size=BATCH_SIZE)


class _Parses:
    """Stands for a pipeline: hands out finished parses in order, one for each text."""

    def __init__(self, docs: Iterable[Any]) -> None:
        self.docs = iter(docs)

    def pipe(self, texts: Sequence[str], batch_size: int = BATCH_SIZE) -> list[Any]:
        return [next(self.docs) for _ in texts]
