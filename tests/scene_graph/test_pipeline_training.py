"""Training of the pipeline that ships: what is trained on, the forms of a caption, and that a seed decides it all."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vil.errors import UserError
from ernie_vil.scene_graph.lemmas import PERSONAL_PRONOUNS, PRONOUN, by_first_rule, lemma_tables
from ernie_vil.scene_graph.parsed import ParsedCaption, annotate, part_of, read_captions, read_parsed
from ernie_vil.scene_graph.training import train, training_part, vary

PARSED = Path(__file__).parents[1] / "data" / "scene_graph" / "parsed_captions.jsonl.gz"


@pytest.fixture(scope="module")
def captions() -> list[ParsedCaption]:
    return list(read_parsed(PARSED))


def test_an_image_is_in_one_part_and_the_parts_have_their_shares():
    parts = [part_of(str(image)) for image in range(20_000)]
    assert abs(parts.count("test") / 20_000 - 0.10) < 0.01
    assert abs(parts.count("dev") / 20_000 - 0.03) < 0.005
    assert parts == [part_of(str(image)) for image in range(20_000)]


def test_held_out_images_and_captions_evaluated_elsewhere_are_not_trained_on(captions):
    images = [str(image) for image in range(60) if part_of(str(image)) == "train"]
    ours = [replace(caption, image_id=image) for caption, image in zip(captions, images)]
    assert training_part(ours) == ours
    assert training_part(captions) == []
    spelled = ours[3].text.upper().replace(" .", ".")
    assert training_part(ours, [("another", spelled), (ours[5].image_id, "another")]) == [*ours[:3], ours[4], *ours[6:]]


def test_every_form_of_a_caption_keeps_its_tree(captions):
    generator = random.Random(0)
    seen = set()
    for caption in captions:
        for _ in range(8):
            other = vary(caption, generator)
            size = min(len(caption.tokens), len(other.tokens))
            assert [token.lower() for token in other.tokens[:size]] == [t.lower() for t in caption.tokens[:size]]
            assert (other.heads[:size], other.deps[:size]) == (caption.heads[:size], caption.deps[:size])
            assert all(0 <= head < len(other.tokens) for head in other.heads)
            assert len(other.tokens) - len(caption.tokens) in (-1, 0, 1)
            if len(other.tokens) != size:
                assert (other.tokens[-1], other.deps[-1]) == (".", "punct")
            seen.add((len(other.tokens) - len(caption.tokens), other.text.islower(), other.tokens[0][0].isupper()))
    assert {(-1, True, False), (-1, False, True), (0, True, False), (1, False, True), (1, True, False)} <= seen


def test_a_seed_decides_the_weights(captions):
    pytest.importorskip("spacy")
    pytest.importorskip("spacy_lookups_data")
    small = {"epochs": 2, "width": 16, "depth": 1}
    first, second, third = (train(captions[:100], seed=seed, **small) for seed in (1, 1, 2))
    assert first.get_pipe("tok2vec").to_bytes() == second.get_pipe("tok2vec").to_bytes()
    assert first.get_pipe("parser").to_bytes() == second.get_pipe("parser").to_bytes()
    assert first.get_pipe("tok2vec").to_bytes() != third.get_pipe("tok2vec").to_bytes()


def test_training_learns_and_the_result_is_saved_whole(captions, tmp_path):
    spacy = pytest.importorskip("spacy")
    pytest.importorskip("spacy_lookups_data")
    reports = []
    nlp = train(captions[:8], epochs=200, width=32, depth=1, report=lambda *values: reports.append(values))
    assert [(step, steps) for step, steps, _ in reports] == [(100, 200), (200, 200)]
    nlp.to_disk(tmp_path / "pipeline")
    opened = spacy.load(tmp_path / "pipeline")
    learned = captions[0]
    docs = [pipeline(spacy.tokens.Doc(pipeline.vocab, words=[*learned.tokens])) for pipeline in (nlp, opened)]
    for doc in docs:
        assert tuple(token.tag_ for token in doc) == learned.tags
        assert tuple(token.head.i for token in doc) == learned.heads
        assert tuple(token.pos_ for token in doc) == learned.pos
    assert docs[0].to_array(["DEP", "LEMMA"]).tolist() == docs[1].to_array(["DEP", "LEMMA"]).tolist()


def test_lemma_tables_settle_what_the_rules_leave_open(captions):
    pytest.importorskip("spacy_lookups_data")
    rules, exceptions = lemma_tables(captions)

    def lemma(part, word):
        return exceptions[part].get(word, [by_first_rule(word, rules[part])])[0]

    words = ["rides", "hoped", "singing", "singed", "watches", "goes", "carries", "lying", "wearing", "installed"]
    expected = ["ride", "hope", "sing", "singe", "watch", "go", "carry", "lie", "wear", "install"]
    assert [lemma("verb", word) for word in words] == expected
    words = ["men", "buses", "boxes", "houses", "wolves", "parties", "dishes", "glasses", "umbrellas", "ponies"]
    expected = ["man", "bus", "box", "house", "wolf", "party", "dish", "glass", "umbrella", "pony"]
    assert [lemma("noun", word) for word in words] == expected
    assert [lemma("adj", word) for word in ["larger", "taller", "biggest"]] == ["large", "tall", "big"]
    assert [lemma("aux", word) for word in ("is", "has", "did")] == ["be", "have", "do"]
    assert {lemma(part, word) for part in ("pron", "det") for word in PERSONAL_PRONOUNS} == {PRONOUN}
    assert lemma("det", "a") == "a"
    # A word with a lemma of its own in the parses.
    frisbees = [replace(captions[0], pos=("NOUN",), tokens=("frisbeez",), lemmas=("frisbee",))] * 5
    assert lemma_tables(frisbees)[1]["noun"]["frisbeez"] == ["frisbee"]
    assert "frisbeez" not in lemma_tables(frisbees[:4])[1]["noun"]


def test_annotated_captions_can_be_read_back(tmp_path):
    spacy = pytest.importorskip("spacy")
    from ernie_vil.scene_graph.pipelines import SHIPPED

    coco = tmp_path / "captions.json"
    rows = [{"id": 1, "image_id": 9, "caption": "A  dog\nruns. "}, {"id": 2, "image_id": 8, "caption": "a dog runs."}]
    coco.write_text(json.dumps({"annotations": rows}))
    regions = tmp_path / "regions.json"
    regions.write_text(json.dumps([{"regions": [{"region_id": 5, "image_id": 1, "phrase": "red bus"}]}]))
    table = tmp_path / "captions.csv"
    table.write_text('image_id,region_id,caption\n3,4,"a cat, asleep"\n')
    found = [row for file in (coco, regions, table) for row in read_captions(file)]
    assert [(row["id"], row["image_id"]) for row in found] == [("1", "9"), ("5", "1"), ("4", "3")]
    file = tmp_path / "parsed.jsonl.gz"
    with gzip.open(file, "wt") as out:
        out.writelines(json.dumps(line) + "\n" for line in annotate(spacy.load(SHIPPED), found))
    assert [caption.text for caption in read_parsed(file)] == ["A dog runs .", "red bus", "a cat , asleep"]
    assert next(read_parsed(file)).heads == (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": [0, 7]}, "outside"),
        ({"tags": ["NN"]}, "differ in length"),
        ({"deps": None}, "TypeError"),
    ],
)
def test_a_faulty_line_is_named(tmp_path, change, message):
    good = {"id": 1, "image_id": 2, "tokens": ["a", "b"], "lemmas": ["a", "b"], "pos": ["X", "X"], "tags": ["X", "X"]}
    good.update(deps=["det", "ROOT"], heads=[1, 1])
    file = tmp_path / "parsed.jsonl"
    file.write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n")
    with pytest.raises(UserError, match=f"parsed.jsonl: line 2: .*{message}"):
        list(read_parsed(file))


def test_files_that_are_something_else_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        next(read_parsed(tmp_path / "none.jsonl"))
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    with pytest.raises(UserError, match="plain.jsonl.gz: line 1"):
        next(read_parsed(tmp_path / "plain.jsonl.gz"))
    (tmp_path / "other.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="neither COCO captions"):
        next(read_captions(tmp_path / "other.json"))
