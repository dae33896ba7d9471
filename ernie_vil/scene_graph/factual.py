"""Our graphs against people's: the FACTUAL set (Li et al., Findings of ACL 2023), set match and a SPICE-style F1.

A FACTUAL graph is ``( subject , predicate , object ) , ...``; the predicate "is" gives an attribute, and an object
without facts stands alone. Objects and attributes have the caption's own forms, verbs are lemmas, numbers are digits.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence, Union

from ernie_vil.errors import UserError
from ernie_vil.scene_graph.agreement import match_sets
from ernie_vil.scene_graph.graph import SceneGraph

Fact = tuple[str, ...]
"""(object,), (object, attribute) or (subject, relation, object)."""
FACT = re.compile(r"\(([^()]*)\)")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)}


@dataclass(frozen=True)
class FactualCaption:
    """A region's caption and the facts that people read off it."""

    image_id: str
    text: str
    facts: frozenset[Fact]


def read_factual(path: Union[str, Path]) -> Iterator[FactualCaption]:
    """The rows of a CSV of FACTUAL (``image_id,region_id,caption,scene_graph``).

    Raises:
        UserError: naming file and line: the file is missing, lacks a column, or a graph cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such FACTUAL file")
    with path.open(encoding="utf-8", newline="", errors="replace") as file:
        rows = csv.DictReader(file)
        missing = {"image_id", "caption", "scene_graph"} - set(rows.fieldnames or ())
        if missing:
            raise UserError(f"{path}: lacks the column {', '.join(sorted(missing))}; is it a CSV of FACTUAL?")
        for row in rows:
            try:
                facts = read_facts(row["scene_graph"])
                if not row["caption"]:
                    raise ValueError("no caption")
            except ValueError as error:
                raise UserError(f"{path}: line {rows.line_num}: {error}") from None
            yield FactualCaption(row["image_id"], row["caption"], facts)


def read_facts(text: str) -> frozenset[Fact]:
    """The facts of a graph in FACTUAL's notation. Raises ValueError if there is none, or one has two members."""
    facts = set()
    for inner in FACT.findall(text or ""):
        members = [" ".join(member.lower().split()) for member in inner.split(",")]
        if len(members) == 3:
            subject, predicate, target = members
            facts.add((subject, target) if predicate == "is" else (subject, predicate, target))
        elif len(members) == 1:
            facts.add((members[0],))
        else:
            raise ValueError(f"not a fact: ({inner})")
    if not facts:
        raise ValueError(f"no fact in {text!r}")
    return frozenset(facts)


def to_facts(graph: SceneGraph) -> frozenset[Fact]:
    """Our graph in FACTUAL's notation: the caption's own forms in lower case, lemmas for relations, digits for numbers.

    Nothing but the notation is changed: a relation "on" between a man who sits and his chair does not become "sit on".
    """
    names = [node.words.lower() for node in graph.objects]
    attributes = {(names[node.object], _number(node.words.lower())) for node in graph.attributes}
    relations = {(names[node.subject], node.lemma.lower(), names[node.object]) for node in graph.relations}
    told = {fact[0] for fact in attributes} | {name for fact in relations for name in (fact[0], fact[2])}
    return frozenset(attributes | relations | {(name,) for name in names if name not in told})


def with_objects(facts: Iterable[Fact]) -> set[Fact]:
    """The tuples that SPICE compares: attributes, relations, and every object of them once."""
    facts = set(facts)
    return facts | {(fact[0],) for fact in facts} | {(fact[2],) for fact in facts if len(fact) == 3}


def lemmatise(facts: Iterable[Fact], lemmas: Mapping[str, str]) -> set[Fact]:
    """Facts with the lemma of every word that has one in ``lemmas``."""
    return {tuple(" ".join(lemmas.get(word, word) for word in member.split()) for member in fact) for fact in facts}


def evaluate(nlp: Any, captions: Sequence[FactualCaption], complete: bool = True) -> dict[str, Any]:
    """Quality of the parser's graphs with this pipeline, over captions.

    Returns:
        ``set_match``: share of captions whose set of facts is exactly people's.
        ``spice_f1``: mean over captions of the F1 of two sets of tuples: objects, (object, attribute) and (subject,
        relation, object), each word lemmatised as in the parse of the caption, equal only as a whole. The SPICE of
        the published figures also takes WordNet synonyms for equal; this does not.
        ``objects``, ``attributes``, ``relations``: the same tuples by kind, as a
        :class:`~ernie_vil.scene_graph.agreement.Match` summed over captions.
    """
    from ernie_vil.scene_graph.agreement import Match
    from ernie_vil.scene_graph.parser import parse_all

    texts = [caption.text for caption in captions]
    exact, f1 = 0, 0.0
    kinds = {1: Match(), 2: Match(), 3: Match()}
    graphs = parse_all(texts, nlp, complete=complete)
    for caption, graph, doc in zip(captions, graphs, nlp.pipe(texts, batch_size=256)):
        facts = to_facts(graph)
        exact += facts == caption.facts
        lemmas = {token.lower_: token.lemma_.lower() for token in doc}
        ours, theirs = (with_objects(lemmatise(some, lemmas)) for some in (facts, caption.facts))
        f1 += match_sets(ours, theirs).f1
        for size in kinds:
            kinds[size] += match_sets(*([fact for fact in some if len(fact) == size] for some in (ours, theirs)))
    count = max(len(captions), 1)
    names = {1: "objects", 2: "attributes", 3: "relations"}
    return {"set_match": exact / count, "spice_f1": f1 / count, **{names[size]: kinds[size] for size in kinds}}


def _number(word: str) -> str:
    return DIGITS.get(word, word)
