"""Graphs of captions: the paper's example, equality with ``sng_parser``, spans, odd input, many captions at once."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import TABLE_1, tree

from ernie_vil.errors import UserError
from ernie_vil.scene_graph import SceneGraph, parser, pipelines
from ernie_vil.scene_graph.conversion import ReadyDoc, draft_graph, object_tokens
from ernie_vil.scene_graph.parser import load_pipeline, parse, parse_all, parse_records

CAPTIONS = Path(__file__).parents[1] / "data" / "captions" / "captions_val2017_first60.json"
SENTENCE = "A woman in blue dress is putting her little white cat on top of a brown car in front of her house."


@pytest.fixture(scope="module")
def nlp() -> Any:
    return load_pipeline(pipelines.SHIPPED)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return [item["caption"] for item in json.loads(CAPTIONS.read_text())["annotations"]]


def nodes(graph: SceneGraph) -> tuple[set, set, set]:
    objects = [node.words for node in graph.objects]
    return (
        set(objects),
        {(objects[node.object], node.words) for node in graph.attributes},
        {(objects[node.subject], node.words, objects[node.object]) for node in graph.relations},
    )


TABLE_1_NODES = (
    {"woman", "dress", "cat", "car", "house"},
    {("dress", "blue"), ("cat", "little"), ("cat", "white"), ("car", "brown")},
    {
        ("woman", "in", "dress"),
        ("woman", "putting", "cat"),
        ("cat", "on top of", "car"),
        ("car", "in front of", "house"),
    },
)


def test_table_1_of_the_paper(nlp: Any) -> None:
    graph = parse(SENTENCE, nlp)
    graph.check()
    assert nodes(graph) == TABLE_1_NODES
    by_words = {node.words: node for node in (*graph.objects, *graph.attributes, *graph.relations)}
    assert by_words["cat"].spans == ((50, 53),)
    assert by_words["white"].spans == ((44, 49),)
    assert by_words["on top of"].spans == ((54, 63),)
    assert by_words["putting"].lemma == "put"
    assert by_words["in front of"].lemma == "in front of"


def test_table_1_with_an_official_style_tree() -> None:
    doc = tree(TABLE_1, {"her": "-PRON-"})
    assert nodes(parser.graph_of_doc(doc, doc.text).graph) == TABLE_1_NODES


def test_same_graphs_as_sng_parser_in_a_loop(nlp: Any, captions: list[str]) -> None:
    loop = pipelines.import_sng_parser()(model=str(pipelines.SHIPPED))
    docs = nlp.pipe(captions, batch_size=len(captions))
    for caption, doc in zip(captions, docs):
        expected = loop.parse(caption)
        ready = ReadyDoc(doc)
        assert parser.sng_graph(ready) == expected
        graph = parser.graph_of_doc(doc, caption, complete=False).graph
        # Ours has the compounds of compounds too: "home office space", where sng_parser has "office space".
        assert len(graph.objects) == len(expected["entities"])
        for node, entity in zip(graph.objects, expected["entities"]):
            assert node.words.split()[-1] == entity["head"].split()[-1]
            assert set(entity["head"].split()) <= set(node.words.split())
            assert set(node.words.split()) <= set(entity["span"].split())
        modifiers = [
            (number, modifier["span"], modifier["lemma_span"])
            for number, entity in enumerate(expected["entities"])
            for modifier in entity["modifiers"]
            if modifier["dep"] != "det"
        ]
        assert [(node.object, node.words, node.lemma) for node in graph.attributes] == modifiers
        assert [(node.subject, node.object, node.words) for node in graph.relations] == [
            (relation["subject"], relation["object"], relation["relation"]) for relation in expected["relations"]
        ]
        whole = parse(caption, nlp)
        assert whole.objects == graph.objects
        assert whole.attributes[: len(graph.attributes)] == graph.attributes
        assert whole.relations[: len(graph.relations)] == graph.relations


def test_sng_parser_with_the_same_language_gives_the_same_graphs(nlp: Any, captions: list[str]) -> None:
    backend = pipelines.import_sng_parser()
    loop = backend.__new__(backend)
    loop.nlp = nlp
    for caption in captions[:20]:
        assert parser.sng_graph(ReadyDoc(nlp(caption))) == loop.parse(caption)


def test_spans_of_relations_in_pieces() -> None:
    doc = tree(
        "A/DET/det/1 lamp/NOUN/ROOT/1 standing/VERB/acl/1 next/ADV/advmod/2 right/ADV/advmod/5 to/ADP/prep/3 "
        "a/DET/det/7 sofa/NOUN/pobj/5"
    )
    graph = parser.graph_of_doc(doc, doc.text, complete=False).graph
    (relation,) = graph.relations
    assert (relation.words, relation.lemma, len(relation.spans)) == ("next to", "next to", 2)
    graph.check()


def test_one_relation_word_joins_several_objects() -> None:
    doc = tree(
        "A/DET/det/1 cat/NOUN/ROOT/1 and/CCONJ/cc/1 a/DET/det/4 dog/NOUN/conj/1 on/ADP/prep/1 "
        "a/DET/det/7 mat/NOUN/pobj/5"
    )
    graph = parser.graph_of_doc(doc, doc.text).graph
    assert nodes(graph)[2] == {("cat", "on", "mat"), ("dog", "on", "mat")}
    assert graph.relations[0].spans == graph.relations[1].spans


def test_equal_words_are_told_apart() -> None:
    doc = tree(
        "A/DET/det/1 cup/NOUN/ROOT/1 on/ADP/prep/1 a/DET/det/4 book/NOUN/pobj/2 on/ADP/prep/4 "
        "a/DET/det/7 table/NOUN/pobj/5"
    )
    draft = draft_graph(ReadyDoc(doc), parser.sng_graph(ReadyDoc(doc)))
    assert draft.relations == [((2,), 0, 1), ((5,), 1, 2)]


@pytest.mark.parametrize(
    ("text", "root", "expected"),
    [
        ("tennis/NOUN/compound/1 racket/NOUN/ROOT/1", 1, (0, 1)),
        ("big/ADJ/amod/2 fire/NOUN/compound/2 hydrant/NOUN/ROOT/2", 2, (1, 2)),
        ("city/NOUN/compound/1 street/NOUN/compound/2 sign/NOUN/ROOT/2", 2, (0, 1, 2)),
        ("kitchen/NOUN/compound/2 white/ADJ/amod/2 table/NOUN/ROOT/2", 2, (2,)),
    ],
)
def test_compounds_belong_to_their_noun(text: str, root: int, expected: tuple[int, ...]) -> None:
    assert object_tokens(tree(text), root) == expected


@pytest.mark.parametrize("caption", ["", " ", "\n\t  \u00a0", "\u2028"])
def test_white_space_has_an_empty_graph(caption: str, nlp: Any) -> None:
    assert parse(caption, nlp) == SceneGraph(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "A dog \U0001f415\u200d\U0001f9ba on a sofa \U0001f44d\U0001f3fd\U0001f44d",
        "一只白色的猫坐在桌子上",
        "<b>A red dog</b> &amp; a cat <br/> on <a href='x'>a mat</a>",
        "a dog\x00 on\x07 a\x1b[31m mat",
        "  a brown dog\r\n\r\non top   of\na car  ",
        "!!! ... ???",
        "quickly",
        "\ud83d a dog with half a surrogate \udc00 on a mat",
        "a" * 3000,
        "\u202ea dog\u202c on a mat\u0301",
    ],
)
def test_odd_captions_have_graphs_with_spans(caption: str, nlp: Any) -> None:
    graph = parse(caption, nlp)
    assert graph.caption == caption
    graph.check()
    assert SceneGraph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph


def test_nodes_beside_odd_characters(nlp: Any) -> None:
    assert {"dog", "mat"} <= nodes(parse("\ud83d a brown dog is sitting on a mat", nlp))[0]
    assert ("dog", "brown") in nodes(parse("  a\nbrown dog \U0001f415 sits on a  mat", nlp))[1]


def test_a_caption_without_a_node(nlp: Any) -> None:
    graph = parse("Running quickly and happily.", nlp)
    assert (graph.objects, graph.relations) == ((), ())


def test_a_caption_of_500_words(nlp: Any) -> None:
    caption = "A brown dog sits on a red chair. " * 63
    assert len(caption.split()) > 500
    graph = parse(caption, nlp)
    graph.check()
    assert len([node for node in graph.objects if node.words == "dog"]) == 63


def test_a_caption_that_is_too_long_is_named(nlp: Any) -> None:
    caption = "a dog " * (parser.MAX_CHARACTERS // 6 + 1)
    with pytest.warns(UserWarning, match=f"caption 0 has no scene graph: .*at most {parser.MAX_CHARACTERS}"):
        assert parse(caption, nlp) == SceneGraph(caption)
    named: list[tuple[int, str]] = []
    graphs = list(parse_all(["a dog", caption, "a cat"], nlp, report=lambda *fault: named.append(fault)))
    assert [len(graph.objects) for graph in graphs] == [1, 0, 1]
    assert [number for number, _ in named] == [1]


def test_a_tree_that_breaks_sng_parser_ends_no_run(nlp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = parser.sng_graph

    def breaking(ready: ReadyDoc) -> dict[str, Any]:
        if "odd" in ready.doc.text:
            raise IndexError("no such token\nsecond line")
        return real(ready)

    monkeypatch.setattr(parser, "sng_graph", breaking)
    named: list[tuple[int, str]] = []
    graphs = list(parse_all(["a dog", "an odd dog", "a cat"], nlp, report=lambda *fault: named.append(fault)))
    assert [len(graph.objects) for graph in graphs] == [1, 0, 1]
    assert named == [(1, "IndexError: no such token")]


def test_a_caption_that_breaks_the_pipeline_ends_no_run(nlp: Any) -> None:
    class Breaking:
        """A pipeline that fails on a batch with an odd text."""

        vocab = nlp.vocab

        def pipe(self, texts: list[str], batch_size: int) -> Iterator[Any]:
            return (self(text) for text in texts)

        def __call__(self, text: str) -> Any:
            if "odd" in text:
                raise ValueError("odd text")
            return nlp(text)

    results = parser.parse_batch(Breaking(), ["a dog", "an odd dog", "a cat"])
    assert [result.fault for result in results] == [None, "ValueError: odd text", None]
    assert [len(result.graph.objects) for result in results] == [1, 0, 1]


WORDS = ["a", "the", "dog", "cat", "her", "on", "top", "of", "in", "front", "is", "sits", "putting", "red", "and", ",",
         "who", "two", "t-shirt", "<b>", "\U0001f415", "next", "to", "by", "猫", "\n", "\x00", "\ud800"]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)))
def test_any_text_has_a_graph_of_its_own(caption: str) -> None:
    (parsed,) = parser.parse_batch(pipeline_of_fuzzing(), [caption])
    assert parsed.fault is None
    assert parsed.graph.caption == caption
    parsed.graph.check()


def pipeline_of_fuzzing() -> Any:
    if not hasattr(pipeline_of_fuzzing, "nlp"):
        pipeline_of_fuzzing.nlp = load_pipeline(pipelines.SHIPPED)
    return pipeline_of_fuzzing.nlp


def test_workers_change_nothing(nlp: Any, captions: list[str]) -> None:
    texts = [*captions, "", "\ud800 a dog", *captions[::-1]]
    alone = list(parse_all(texts, nlp, batch_size=16))
    assert [graph.caption for graph in alone] == texts
    assert list(parse_all(texts, nlp, processes=2, batch_size=16)) == alone


def test_captions_are_drawn_a_few_batches_ahead(nlp: Any) -> None:
    drawn = 0

    def endless() -> Iterator[str]:
        nonlocal drawn
        for number in itertools.count():
            drawn += 1
            yield f"a dog with number {number}"

    for processes in (1, 2):
        drawn = 0
        graphs = parse_all(endless(), nlp, processes=processes, batch_size=8)
        for _ in range(40):
            next(graphs)
        graphs.close()
        assert drawn <= 40 + 8 * (processes * 2 + 1)


@pytest.mark.skipif(not hasattr(spacy.Language, "memory_zone"), reason="needs spaCy 3.8")
def test_memory_does_not_grow_with_new_words(nlp: Any) -> None:
    def texts(start: int, count: int) -> Iterator[str]:
        return (f"a dogword{number}x on a mat{number}y" for number in range(start, start + count))

    for _ in parse_all(texts(0, 64), nlp, batch_size=32):
        pass
    strings = len(nlp.vocab.strings)
    for _ in parse_all(texts(1000, 128), nlp, batch_size=32):
        pass
    assert len(nlp.vocab.strings) == strings


def test_a_killed_worker_is_named(nlp: Any) -> None:
    others = {child.pid for child in multiprocessing.active_children()}
    graphs = parse_all((f"a dog {number}" for number in itertools.count()), nlp, processes=2, batch_size=4)
    next(graphs)
    workers = [child.pid for child in multiprocessing.active_children() if child.pid not in others]
    os.kill(workers[0], signal.SIGKILL)
    with pytest.raises(UserError, match="worker process was killed"):
        for _ in itertools.islice(graphs, 1000):
            pass


def test_batches_of_an_engine(nlp: Any, captions: list[str]) -> None:
    batch = {"id": np.arange(3), "caption": np.array([*captions[:2], ""], dtype=object)}
    result = parse_records(batch, nlp)
    assert list(result) == ["id", "caption", "objects", "attributes", "relations", "fault"]
    assert all(isinstance(column, np.ndarray) and len(column) == 3 for column in result.values())
    for place, caption in enumerate(batch["caption"]):
        kinds = {kind: json.loads(result[kind][place]) for kind in ("objects", "attributes", "relations")}
        assert SceneGraph.from_dict({"caption": caption, **kinds}) == parse(caption, nlp)
    assert result["fault"].tolist() == ["", "", ""]
    assert list(batch) == ["id", "caption"]


def test_a_pipeline_without_the_pronoun_lemma_gets_it(tmp_path: Path) -> None:
    @spacy.Language.component("test_plain_pronouns")
    def plain(doc: Any) -> Any:
        for token in doc:
            if token.lemma_ == pipelines.PRONOUN:
                token.lemma_ = token.lower_
        return doc

    other = spacy.load(pipelines.SHIPPED)
    other.add_pipe("test_plain_pronouns", last=True)
    other.to_disk(tmp_path / "other")
    assert nodes_of(spacy.load(tmp_path / "other")) == {"She", "ball"}
    restored = load_pipeline(tmp_path / "other")
    assert restored.pipe_names[-1] == "ernie_vil_pronouns"
    assert nodes_of(restored) == {"ball"}
    assert "ernie_vil_pronouns" not in load_pipeline(pipelines.SHIPPED).pipe_names


def nodes_of(nlp: Any) -> set[str]:
    return nodes(parse("She is holding a ball.", nlp))[0]


def test_mistakes_about_pipelines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no_such_pipeline.*python -m spacy download en_core_web_sm"):
        load_pipeline("no_such_pipeline")
    blank = spacy.blank("en")
    blank.to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="does not annotate TAG, POS, DEP, LEMMA"):
        load_pipeline(tmp_path / "blank")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_pipeline(tmp_path / "empty")
    with pytest.raises(ValueError, match="processes is 0"):
        list(parse_all(["a dog"], object(), processes=0))


def test_default_pipeline(monkeypatch: pytest.MonkeyPatch, nlp: Any) -> None:
    monkeypatch.setattr(spacy.util, "is_package", lambda name: False)
    assert pipelines.default_pipeline() == str(pipelines.SHIPPED)
    assert pipelines.DOWNLOAD in pipelines.describe_pipeline(nlp)
    monkeypatch.setattr(spacy.util, "is_package", lambda name: name == "en_core_web_sm")
    assert pipelines.default_pipeline() == "en_core_web_sm"
    assert str(pipelines.SHIPPED) in pipelines.describe_pipeline(nlp)
    assert "\n" not in pipelines.describe_pipeline(nlp, "given")


def test_identity_of_a_pipeline_follows_its_files(tmp_path: Path, nlp: Any) -> None:
    first = pipelines.pipeline_identity(nlp)
    nlp.to_disk(tmp_path / "copy")
    meta = tmp_path / "copy" / "meta.json"
    meta.write_text(meta.read_text() + " ")
    assert pipelines.pipeline_identity(load_pipeline(pipelines.SHIPPED)) == first
    assert pipelines.pipeline_identity(load_pipeline(tmp_path / "copy"))["files"] != first["files"]
