"""The pipeline that ships: it loads anywhere, reads captions as its teacher does, and treats pronouns as it must."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("spacy")
pytest.importorskip("sng_parser")

from ernie_vil.scene_graph.agreement import graph_agreement, parse_agreement
from ernie_vil.scene_graph.parsed import ParsedCaption, part_of, read_parsed
from ernie_vil.scene_graph.pipelines import SHIPPED, load_pipeline

PARSED = Path(__file__).parents[1] / "data" / "scene_graph" / "parsed_captions.jsonl.gz"
PAPER = "A woman in blue dress is putting her little white cat on top of a brown car in front of her house."


@pytest.fixture(scope="module")
def nlp():
    import spacy

    return spacy.load(SHIPPED)


@pytest.fixture(scope="module")
def captions() -> list[ParsedCaption]:
    return list(read_parsed(PARSED))


def test_loads_without_a_warning_or_the_training_tables():
    program = (
        "import sys; sys.modules['spacy_lookups_data'] = None; import spacy; "
        f"doc = spacy.load({str(SHIPPED)!r})('Two dogs are running.'); print([token.lemma_ for token in doc])"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-W", "error::FutureWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['two', 'dog', 'be', 'run', '.']"
    assert done.stderr == ""


def test_is_small_and_says_which_spacy_it_needs_and_its_licence():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    meta = json.loads((SHIPPED / "meta.json").read_text(encoding="utf-8"))
    assert meta["spacy_version"] == ">=3.7.0,<3.9.0"
    assert meta["license"] == "CC-BY-4.0"
    assert "COCO" in (SHIPPED / "LICENSE.md").read_text(encoding="utf-8")
    assert not [path for path in files if re.search(rb"/(work|tmp|home)/", path.read_bytes())]


def test_reads_the_papers_sentence(nlp):
    doc = nlp(PAPER)
    chunks = [chunk.text for chunk in doc.noun_chunks]
    assert [chunk for chunk in chunks if chunk not in ("top", "front")] == [
        *("A woman", "blue dress", "her little white cat", "a brown car", "her house")
    ]
    relations = {(token.text, token.dep_, token.head.text) for token in doc}
    assert relations >= {
        *(("woman", "nsubj", "putting"), ("cat", "dobj", "putting"), ("dress", "pobj", "in"), ("in", "prep", "woman")),
        *(("blue", "amod", "dress"), ("little", "amod", "cat"), ("white", "amod", "cat"), ("brown", "amod", "car")),
        *(("top", "pobj", "on"), ("of", "prep", "top"), ("car", "pobj", "of"), ("house", "pobj", "of")),
    }
    assert {token.lemma_ for token in doc if token.text == "her"} == {"-PRON-"}


@pytest.mark.parametrize("word", ["I", "me", "It", "them", "his", "herself", "hers"])
def test_personal_pronouns_have_the_lemma_that_the_parser_looks_for(nlp, word):
    lemmatizer = nlp.get_pipe("lemmatizer")
    for part in ("PRON", "DET"):
        doc = nlp.make_doc(word)
        doc[0].pos_ = part
        assert lemmatizer(doc)[0].lemma_ == "-PRON-"
    assert nlp("It is under a table, and something red is on it.")[0].lemma_ == "-PRON-"


@pytest.mark.parametrize(
    ("caption", "lemmas"),
    [
        ("Three zebras grazed near the buses", "three zebra graze near the bus"),
        ("Men carrying knives and boxes", "man carry knife and box"),
        ("The children were riding near gargoyles", "the child be ride near gargoyle"),
        ("THE walrus has two tusks", "the walrus have two tusk"),
    ],
)
def test_lemmas_hold_beyond_the_words_of_the_training_captions(nlp, caption, lemmas):
    assert " ".join(token.lemma_ for token in nlp(caption)) == lemmas


def test_agrees_with_the_larger_pipeline_on_captions_that_it_was_not_trained_on(nlp, captions):
    assert len(captions) == 200
    assert {part_of(caption.image_id) for caption in captions} == {"test"}
    figures = parse_agreement(nlp, captions)
    assert figures["uas"] > 0.93
    assert figures["las"] > 0.92
    assert min(figures["tag"], figures["pos"]) > 0.97
    assert figures["lemma"] > 0.98
    nodes = graph_agreement(nlp, captions)
    assert nodes["object"].f1 > 0.95
    assert nodes["attribute"].f1 > 0.9
    assert nodes["relation"].f1 > 0.8


def test_case_and_full_stop_hardly_change_the_tree(nlp, captions):
    plain = [caption for caption in captions if caption.tokens[-1] == "." and len(caption.tokens) > 3]

    def heads(words):
        return [[token.head.i for token in doc][: len(text) - 1] for text, doc in words]

    def parse(changed):
        from spacy.tokens import Doc

        return heads(zip([caption.tokens for caption in plain], nlp.pipe(Doc(nlp.vocab, words=row) for row in changed)))

    usual = parse([caption.tokens for caption in plain])
    lower = parse([[word.lower() for word in caption.tokens] for caption in plain])
    open_ended = parse([caption.tokens[:-1] for caption in plain])
    total = sum(map(len, usual))
    for other in (lower, open_ended):
        same = sum(a == b for ours, theirs in zip(usual, other) for a, b in zip(ours, theirs))
        assert same / total > 0.97


def test_a_caption_is_read_the_same_alone_and_in_a_batch(nlp, captions):
    texts = [caption.text for caption in captions[:60]]
    together = [doc.to_array(["HEAD", "DEP", "TAG", "LEMMA"]).tolist() for doc in nlp.pipe(texts, batch_size=60)]
    assert together == [nlp(text).to_array(["HEAD", "DEP", "TAG", "LEMMA"]).tolist() for text in texts]


def test_agreement_notices_a_wrong_reference(nlp, captions):
    wrong = [replace(caption, heads=(0,) * len(caption.tokens)) for caption in captions[:50]]
    assert parse_agreement(nlp, wrong)["uas"] < 0.3


def test_tags_are_looked_up_as_the_attribute_ruler_does(nlp, captions):
    from ernie_vil.scene_graph import tags

    ours = load_pipeline(SHIPPED)
    assert isinstance(ours.get_pipe("attribute_ruler"), tags.AttributeLookup)
    texts = [
        PAPER,
        "It is a man who isn't near his dogs; everyone does so because of the SMALL cat's bed.",
        "",
        " 2 xyzzy",
    ]
    texts += [" ".join(caption.tokens) for caption in captions]
    for one, other in zip(ours.pipe(texts), nlp.pipe(texts)):
        assert [(t.pos_, str(t.morph), t.lemma_) for t in one] == [(t.pos_, str(t.morph), t.lemma_) for t in other]


def test_rules_that_cannot_be_looked_up_keep_the_ruler():
    from ernie_vil.scene_graph import tags

    simple = {"patterns": [[{"TAG": "NN"}]], "attrs": {"POS": "NOUN"}, "index": 0}
    assert tags.fits([simple])
    for change in ({"index": 1}, {"patterns": [[{"TAG": "NN"}, {"TAG": "NN"}]]}, {"patterns": [[{"TEXT": "a"}]]}):
        assert not tags.fits([simple, {**simple, **change}])
    assert not tags.fits([{**simple, "attrs": {"LEMMA": "x"}}])
