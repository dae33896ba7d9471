"""FACTUAL's notation and the two figures, on captions of our own with graphs written by hand."""

from __future__ import annotations

import pytest

from ernie_vil.errors import UserError
from ernie_vil.scene_graph.factual import (
    FactualCaption,
    evaluate,
    lemmatise,
    read_facts,
    read_factual,
    to_facts,
    with_objects,
)
from ernie_vil.scene_graph.graph import AttributeNode, ObjectNode, RelationNode, SceneGraph

CAPTION = "Two Cats sitting on a bench"
GRAPH = SceneGraph(
    CAPTION,
    (ObjectNode("Cats", "cat", ((4, 8),)), ObjectNode("bench", "bench", ((22, 27),))),
    (AttributeNode("Two", "two", ((0, 3),), 0),),
    (RelationNode("sitting on", "sit on", ((9, 19),), 0, 1),),
)
FACTS = {("cats", "2"), ("cats", "sit on", "bench")}


def test_a_graph_in_factuals_notation():
    assert to_facts(GRAPH) == FACTS
    assert to_facts(SceneGraph(CAPTION, GRAPH.objects)) == {("cats",), ("bench",)}
    assert to_facts(SceneGraph(CAPTION, GRAPH.objects, GRAPH.attributes)) == {("cats", "2"), ("bench",)}
    assert to_facts(SceneGraph(CAPTION)) == frozenset()


def test_reading_facts():
    assert read_facts("( cats , is , 2 ) , ( Cats , sit  on , bench )") == FACTS
    assert read_facts("( living room )") == {("living room",)}
    for faulty in ("", "cats", "( cats , bench )", "( a , b , c , d )"):
        with pytest.raises(ValueError):
            read_facts(faulty)


def test_the_tuples_of_spice():
    assert with_objects(FACTS) == FACTS | {("cats",), ("bench",)}
    assert with_objects([("park",)]) == {("park",)}
    assert lemmatise(FACTS, {"cats": "cat", "sit": "sit"}) == {("cat", "2"), ("cat", "sit on", "bench")}


def test_figures_by_hand():
    spacy = pytest.importorskip("spacy")
    pytest.importorskip("sng_parser")
    from ernie_vil.scene_graph.pipelines import SHIPPED

    captions = [
        FactualCaption("1", "a red bus", read_facts("( bus , is , red )")),
        # Ours is the same in other forms of the words: no set match, but the same lemmas.
        FactualCaption("2", "a black cat", read_facts("( cats , is , black )")),
        # Ours: man, horse, brown horse, man ride horse. People's: no brown horse, and a hat.
        FactualCaption("3", "the man rides a brown horse", read_facts("( man , ride , horse ) , ( hat )")),
    ]
    figures = evaluate(spacy.load(SHIPPED), captions, complete=False)
    assert figures["set_match"] == pytest.approx(1 / 3)
    assert figures["spice_f1"] == pytest.approx((1 + 0 + 2 * 3 / (4 + 4)) / 3)
    assert (figures["objects"].matched, figures["objects"].predicted, figures["objects"].reference) == (3, 4, 5)
    assert (figures["attributes"].matched, figures["attributes"].predicted) == (1, 3)
    assert figures["relations"].f1 == 1


def test_faulty_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such FACTUAL file"):
        next(read_factual(tmp_path / "dev.csv"))
    file = tmp_path / "dev.csv"
    file.write_text("image_id,caption\n1,a dog\n")
    with pytest.raises(UserError, match="lacks the column scene_graph"):
        next(read_factual(file))
    file.write_text('image_id,region_id,caption,scene_graph\n1,2,a dog,( dog )\n3,4,a cat,"( cat , on )"\n')
    with pytest.raises(UserError, match="dev.csv: line 3: not a fact"):
        list(read_factual(file))
    file.write_text('image_id,region_id,caption,scene_graph\n1,2,a dog,"( dog , is , old )"\n')
    assert list(read_factual(file)) == [FactualCaption("1", "a dog", frozenset({("dog", "old")}))]
