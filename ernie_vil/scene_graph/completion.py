"""What ``sng_parser`` leaves out of a caption's graph, read off the same dependency tree.

The rules only add attributes and relations between the objects that it found; they change and remove nothing. Examples
have the words of the new node in brackets.
"""

from __future__ import annotations

from typing import Any

from sng_parser import database

from ernie_vil.scene_graph.conversion import Draft

RELATIVE_PRONOUNS = ("WDT", "WP")
VERBAL = ("VERB", "AUX")
Relation = tuple[tuple[int, ...], int, int]


def complete(doc: Any, draft: Draft) -> Draft:
    """The draft with what the rules add, in the order of the rules and of the caption."""
    number = {root: index for index, root in enumerate(draft.roots)}
    attributes = [*draft.attributes]
    for rule in (listed_adjectives, predicate_adjectives):
        attributes += [found for found in rule(doc, number) if found not in attributes]
    relations = [*draft.relations]
    for rule in (verbs, agents, prepositions):
        earlier = [*relations]
        for relation in rule(doc, number):
            if relation not in relations and not _is_known(doc, draft, earlier, relation):
                relations.append(relation)
    return Draft(draft.roots, attributes, relations)


def listed_adjectives(doc: Any, number: dict[int, int]) -> list[tuple[int, int]]:
    """ "A black, white and [brown] dog": each hangs on the one before, and only the first two are followed."""
    found = []
    for root, target in number.items():
        for child in doc[root].children:
            if child.dep_ == "amod":
                found += [(token.i, target) for token in _chain(child)]
    return found


def predicate_adjectives(doc: Any, number: dict[int, int]) -> list[tuple[int, int]]:
    """ "The dog is [brown]", "a bench painted [blue]": only adjectives before the noun are read as attributes."""
    found = []
    for token in doc:
        if token.dep_ in ("acomp", "oprd") and token.pos_ == "ADJ":
            for subject in _subjects(token.head, number):
                found += [(adjective.i, subject) for adjective in _chain(token) if adjective.pos_ == "ADJ"]
    return found


def verbs(doc: Any, number: dict[int, int]) -> list[Relation]:
    """ "A man sitting and [holding] a dog", "a man who is [riding] a horse": a verb of its own with no own subject."""
    found = []
    for root in number:
        token = doc[root]
        if token.dep_ in ("dobj", "attr"):
            found += _pairs((token.head.i,), _subjects(token.head, number), _joined(token, number))
    return found


def agents(doc: Any, number: dict[int, int]) -> list[Relation]:
    """ "A house [surrounded] by trees" is (trees, surrounded, house), as "the house is surrounded by trees" is."""
    found = []
    for root in number:
        token = doc[root]
        if token.dep_ == "pobj" and token.head.dep_ == "agent":
            verb = token.head.head
            found += _pairs((verb.i,), _joined(token, number), _subjects(verb, number))
    return found


def prepositions(doc: Any, number: dict[int, int]) -> list[Relation]:
    """Prepositional phrases that hang on something else than a noun or a full verb with an active subject.

    "The cat is [on] the mat" (auxiliary), "a clock is mounted [to] the wall" (passive), "putting her cat [on top of] a
    car" (phrasal preposition on a verb: said of the noun right before it), "jumping [out of] a box" (two prepositions),
    "a plate is full [of] rice" (adjective).
    """
    found = []
    for root in number:
        if doc[root].dep_ != "pobj" or doc[root].head.dep_ == "agent":
            continue
        tokens, anchor, phrasal = _climb(doc, root, number)
        if anchor.i in number:
            subjects = [number[anchor.i]]
        elif anchor.pos_ in VERBAL or anchor.dep_ == "acl":
            # Where a phrasal preposition follows a noun, parsers hang it on the verb or on the noun almost at random.
            before = number.get(tokens[0] - 1) if phrasal else None
            subjects = _subjects(anchor, number) if before is None else [before]
        elif anchor.dep_ in ("acomp", "oprd"):
            subjects = _subjects(anchor.head, number)
        else:
            subjects = []
        found += _pairs(tokens, subjects, _joined(doc[root], number))
    return found


def _climb(doc: Any, root: int, number: dict[int, int]) -> tuple[tuple[int, ...], Any, bool]:
    """The words of the preposition that governs an object, what they hang on, and whether they are a fixed phrase."""
    preposition = doc[root].head
    tokens, anchor, phrasal = [preposition.i], preposition.head, False
    while anchor.i != anchor.head.i and anchor.i not in number:
        first = anchor.head.i
        if anchor.dep_ == "pobj" and database.is_phrasal_prep(doc[first : preposition.i + 1].text.lower()):
            tokens, anchor, phrasal = list(range(first, preposition.i + 1)), anchor.head.head, True
        elif anchor.dep_ in ("prep", "advmod", "prt") and anchor.i == tokens[0] - 1:
            tokens, anchor = [anchor.i, *tokens], anchor.head
        else:
            break
    return tuple(tokens), anchor, phrasal


def _subjects(verb: Any, number: dict[int, int]) -> list[int]:
    """The objects that do what a verb says, or suffer it in the passive."""
    while True:
        own = [child for child in verb.children if child.dep_ in ("nsubj", "nsubjpass")]
        if own and not (own[0].tag_ in RELATIVE_PRONOUNS and verb.dep_ == "relcl"):
            return _joined(own[0], number)
        if verb.dep_ in ("acl", "relcl"):
            return [number[verb.head.i]] if verb.head.i in number else []
        if verb.dep_ not in ("conj", "xcomp", "advcl") or verb.head.i == verb.i:
            return []
        verb = verb.head


def _pairs(tokens: tuple[int, ...], subjects: list[int], targets: list[int]) -> list[Relation]:
    return [(tokens, subject, target) for subject in subjects for target in targets]


def _chain(token: Any) -> list[Any]:
    """A token and all that are joined to it, each to the one before: "a cat, a dog and a bird"."""
    chain = [token]
    for link in chain:
        chain += [child for child in link.children if child.dep_ == "conj"]
    return chain


def _joined(token: Any, number: dict[int, int]) -> list[int]:
    """The objects among a noun and what is joined to it."""
    return [number[link.i] for link in _chain(token) if link.i in number]


def _is_known(doc: Any, draft: Draft, relations: list[Relation], relation: Relation) -> bool:
    """Whether these words already reach the object, other than from a "who" or "that"; or it would reach itself."""
    tokens, source, target = relation
    return source == target or any(
        other == target and set(tokens) & set(words) and doc[draft.roots[subject]].tag_ not in RELATIVE_PRONOUNS
        for words, subject, other in relations
    )
