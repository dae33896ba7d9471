"""Each completion rule on a tree written by hand, and that nothing of sng_parser's own is lost."""

from __future__ import annotations

import pytest
from trees import TABLE_1, tree

from ernie_vil.scene_graph.parser import graph_of_doc

CASES = {
    "phrasal preposition on the verb, said of what is put": (
        TABLE_1,
        [],
        [("cat", "on top of", "car")],
    ),
    "phrasal preposition on a verb without an object": (
        "A/DET/det/1 dog/NOUN/nsubj/2 sits/VERB/ROOT/2 in/ADP/prep/2 front/NOUN/pobj/3 of/ADP/prep/4 a/DET/det/7 "
        "house/NOUN/pobj/5",
        [],
        [("dog", "in front of", "house")],
    ),
    "predicate adjective": ("The/DET/det/1 dog/NOUN/nsubj/2 is/AUX/ROOT/2 brown/ADJ/acomp/2", [("dog", "brown")], []),
    "joined predicate adjectives": (
        "The/DET/det/1 dog/NOUN/nsubj/2 is/AUX/ROOT/2 big/ADJ/acomp/2 and/CCONJ/cc/3 brown/ADJ/conj/3",
        [("dog", "big"), ("dog", "brown")],
        [],
    ),
    "resultative adjective": (
        "A/DET/det/1 bench/NOUN/ROOT/1 painted/VERB/acl/1 blue/ADJ/oprd/2",
        [("bench", "blue")],
        [],
    ),
    "third adjective of a list": (
        "A/DET/det/5 black/ADJ/amod/5 white/ADJ/conj/1 and/CCONJ/cc/2 brown/ADJ/conj/2 dog/NOUN/ROOT/5",
        [("dog", "brown")],
        [],
    ),
    "auxiliary": (
        "The/DET/det/1 cat/NOUN/nsubj/2 is/AUX/ROOT/2 on/ADP/prep/2 the/DET/det/5 mat/NOUN/pobj/3",
        [],
        [("cat", "on", "mat")],
    ),
    "passive": (
        "A/DET/det/1 clock/NOUN/nsubjpass/3 is/AUX/auxpass/3 mounted/VERB/ROOT/3 to/ADP/prep/3 the/DET/det/6 "
        "wall/NOUN/pobj/4",
        [],
        [("clock", "to", "wall")],
    ),
    "verb joined to another": (
        "A/DET/det/1 man/NOUN/ROOT/1 sitting/VERB/acl/1 and/CCONJ/cc/2 holding/VERB/conj/2 a/DET/det/6 dog/NOUN/dobj/4",
        [],
        [("man", "holding", "dog")],
    ),
    "verb below another": (
        "A/DET/det/1 man/NOUN/nsubj/2 stands/VERB/ROOT/2 holding/VERB/advcl/2 a/DET/det/5 bat/NOUN/dobj/3",
        [],
        [("man", "holding", "bat")],
    ),
    "agent of a participle": (
        "A/DET/det/1 house/NOUN/ROOT/1 surrounded/VERB/acl/1 by/ADP/agent/2 trees/NOUN/pobj/3",
        [],
        [("trees", "surrounded", "house")],
    ),
    "two prepositions": (
        "A/DET/det/1 cat/NOUN/ROOT/1 jumping/VERB/acl/1 out/ADP/prep/2 of/ADP/prep/3 a/DET/det/6 box/NOUN/pobj/4",
        [],
        [("cat", "out of", "box")],
    ),
    "adjective with a preposition": (
        "A/DET/det/1 plate/NOUN/nsubj/2 is/AUX/ROOT/2 full/ADJ/acomp/2 of/ADP/prep/3 rice/NOUN/pobj/4",
        [("plate", "full")],
        [("plate", "of", "rice")],
    ),
    "relative clause": (
        "A/DET/det/1 man/NOUN/ROOT/1 who/PRON/nsubj/4/WP is/AUX/aux/4 riding/VERB/relcl/1 a/DET/det/6 "
        "horse/NOUN/dobj/4",
        [],
        [("man", "riding", "horse")],
    ),
    "third noun of a list": (
        "A/DET/det/1 man/NOUN/ROOT/1 with/ADP/prep/1 a/DET/det/4 cat/NOUN/pobj/2 a/DET/det/6 dog/NOUN/conj/4 "
        "and/CCONJ/cc/6 a/DET/det/9 bird/NOUN/conj/6",
        [],
        [("man", "with", "bird")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rules_add_these_nodes_and_no_others(name: str) -> None:
    text, attributes, relations = CASES[name]
    doc = tree(text)
    own, whole = (graph_of_doc(doc, doc.text, complete).graph for complete in (False, True))
    whole.check()
    assert whole.objects == own.objects
    assert whole.attributes[: len(own.attributes)] == own.attributes
    assert whole.relations[: len(own.relations)] == own.relations
    objects = [node.words for node in whole.objects]
    added = whole.attributes[len(own.attributes) :]
    assert [(objects[node.object], node.words) for node in added] == attributes
    added = whole.relations[len(own.relations) :]
    assert [(objects[node.subject], node.words, objects[node.object]) for node in added] == relations


def test_counts_of_what_was_added() -> None:
    doc = tree(CASES["adjective with a preposition"][0])
    parsed = graph_of_doc(doc, doc.text)
    assert (parsed.added_attributes, parsed.added_relations) == (1, 1)
    assert graph_of_doc(doc, doc.text, complete=False).added_relations == 0


def test_a_pronoun_has_no_attributes_or_relations() -> None:
    text = "She/PRON/nsubj/1/PRP is/AUX/ROOT/1 happy/ADJ/acomp/1 on/ADP/prep/1 a/DET/det/5 mat/NOUN/pobj/3"
    doc = tree(text, {"She": "-PRON-"})
    graph = graph_of_doc(doc, doc.text).graph
    assert [node.words for node in graph.objects] == ["mat"]
    assert graph.attributes == () and graph.relations == ()
