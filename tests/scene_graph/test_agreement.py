"""Agreement of parses and of graphs, against counts made by hand and graphs made by ``sng_parser`` itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vil.scene_graph.agreement import Match, graph_agreement, match_sets, parse_agreement
from ernie_vil.scene_graph.parsed import ParsedCaption, read_parsed, to_doc
from ernie_vil.scene_graph.pipelines import import_sng_parser

spacy = pytest.importorskip("spacy")
pytest.importorskip("sng_parser")
PARSED = Path(__file__).parents[1] / "data" / "scene_graph" / "parsed_captions.jsonl.gz"


@pytest.fixture(scope="module")
def captions() -> list[ParsedCaption]:
    return list(read_parsed(PARSED))


class Teacher:
    """A pipeline that gives these parses for these tokens."""

    def __init__(self, captions):
        self.vocab = spacy.blank("en").vocab
        self.parses = {caption.tokens: caption for caption in captions}

    def pipe(self, docs, batch_size):
        return (to_doc(self.vocab, self.parses[tuple(token.text for token in doc)]) for doc in docs)


CAPTION = ParsedCaption(
    *("1", "2"),
    tokens=("A", "man", "rides", "a", "brown", "horse", "."),
    lemmas=("a", "man", "ride", "a", "brown", "horse", "."),
    pos=("DET", "NOUN", "VERB", "DET", "ADJ", "NOUN", "PUNCT"),
    tags=("DT", "NN", "VBZ", "DT", "JJ", "NN", "."),
    deps=("det", "nsubj", "ROOT", "det", "amod", "dobj", "punct"),
    heads=(1, 2, 2, 5, 5, 2, 2),
)


def test_shares_of_tokens_by_hand():
    same = parse_agreement(Teacher([CAPTION]), [CAPTION])
    assert same == {"uas": 1, "las": 1, "tag": 1, "pos": 1, "lemma": 1, "tokens": 7}
    # A wrong label; a wrong head; a wrong head of punctuation, which does not count; two wrong tags; a wrong lemma.
    other = replace(
        CAPTION,
        deps=("det", "nsubj", "ROOT", "det", "amod", "attr", "punct"),
        heads=(2, 2, 2, 5, 5, 2, 5),
        tags=("DT", "NN", "VBP", "DT", "NN", "NN", "."),
        lemmas=("a", "man", "rid", "a", "brown", "horse", "."),
    )
    figures = parse_agreement(Teacher([other]), [CAPTION])
    assert figures == pytest.approx({"uas": 5 / 6, "las": 4 / 6, "tag": 5 / 7, "pos": 1, "lemma": 6 / 7, "tokens": 7})


def test_nodes_by_hand():
    same = graph_agreement(Teacher([CAPTION]), [CAPTION])
    assert same == {"object": Match(2, 2, 2), "attribute": Match(1, 1, 1), "relation": Match(1, 1, 1), "identical": 1}
    lost = replace(CAPTION, deps=("det", "nsubj", "ROOT", "det", "det", "npadvmod", "punct"))
    figures = graph_agreement(Teacher([lost]), [CAPTION])
    assert figures["relation"] == Match(0, 0, 1)
    assert figures["attribute"] == Match(0, 0, 1)
    assert figures["identical"] == 0


def test_graphs_of_the_reference_are_those_of_sng_parser(captions):
    backend = object.__new__(import_sng_parser())  # its constructor would load a pipeline
    vocab = spacy.blank("en").vocab
    objects = relations = 0
    for caption in captions:
        backend.nlp = lambda text, caption=caption: to_doc(vocab, caption)
        graph = backend.parse(caption.text)
        objects += len(graph["entities"])
        relations += len(graph["relations"])
    figures = graph_agreement(Teacher(captions), captions)
    assert figures["object"] == Match(objects, objects, objects)
    assert figures["relation"] == Match(relations, relations, relations)
    assert figures["identical"] == 1


def test_counts_of_matches():
    match = match_sets(["a", "a", "b"], ["a", "b", "b", "c"])
    assert match == Match(2, 3, 4)
    assert (match.precision, match.recall, match.f1) == pytest.approx((2 / 3, 2 / 4, 4 / 7))
    assert match + Match(1, 1, 0) == Match(3, 4, 4)
    assert (Match().precision, Match().recall, Match().f1) == (0, 0, 0)
