"""Miniature captions: true, without a word that is open, read by the real parser, the same everywhere."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ernie_vil.data import mini, mini_captions, mini_questions, mini_vcr
from ernie_vil.data.mini import COLORS, KINDS, PATTERNS, SIZES
from ernie_vil.data.mini_sentences import WORDINGS, make_sentences
from ernie_vil.data.regions import open_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.errors import UserError
from ernie_vil.scene_graph.files import CaptionFile
from ernie_vil.scene_graph.parser import load_pipeline, parse_all
from ernie_vil.scene_graph.pipelines import SHIPPED

SMALL = {"train_images": 25, "val_images": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mini") / "captions"
    mini_captions.build_mini_captions(path, **SMALL)
    return path


@pytest.fixture(scope="module")
def sentences():
    """(scene, sentence) pairs of more scenes than a test can draw pictures of."""
    return [
        (scene, one)
        for scene, rng in mini_captions.caption_scenes(1, "train", 800)
        for one in make_sentences(scene, rng, 2)
    ]


# ----------------------------------------------------------- a reader of the sentences that knows nothing of the rules
def read(text):
    """(mentions, relation) of a sentence, from its words alone. A mention is (number, attributes, kind)."""
    text = text.replace("golden", "orange").replace("there is ", "").replace(" standing ", " ").replace(" is ", " ")
    match = re.search(rf" ({'|'.join(WORDINGS)}) ", text)
    parts = [text[: match.start()], text[match.end() :]] if match else [text]
    phrases = [phrase.split() for part in parts for phrase in re.split(r", | and ", part)]
    mentions = []
    for number, *attributes, kind in phrases:
        plural = {f"{kind}{'es' if kind == 'cross' else 's'}": kind for kind in KINDS}
        assert (number == "two") == (kind in plural), text
        assert set(attributes) <= {*COLORS, *SIZES, *PATTERNS} and plural.get(kind, kind) in KINDS, text
        mentions.append((2 if number == "two" else 1, attributes, plural.get(kind, kind)))
    return mentions, match and match.group(1)


def holds(text, scene):
    mentions, relation = read(text)
    things = scene.objects
    for chosen in itertools.permutations(things, len(mentions)):
        fits = True
        for (number, attributes, kind), thing in zip(mentions, chosen):
            fits &= thing.kind == kind and set(attributes) <= {thing.color, thing.size, thing.pattern}
            if number == 2:  # all of the kind, so no other phrase means one of them
                fits &= [other.kind for other in things].count(kind) == 2
                fits &= [other.kind for other in chosen].count(kind) == 1
        if fits and all(stands(chosen[0], relation, other) for other in chosen[1:]):
            return True
    return False


def stands(one, relation, other):
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = one.box, other.box
    dx, dy = (bx1 + bx2 - ax1 - ax2) / 2, (by1 + by2 - ay1 - ay2) / 2
    row = abs(dy) <= 12
    cells = [(int((x1 + x2) // 2 // 32), int((y1 + y2) // 2 // 32)) for x1, y1, x2, y2 in (one.box, other.box)]
    touch = max(abs(a - b) for a, b in zip(*cells)) <= 1
    return {
        None: True,
        "above": dy > 12,
        "below": dy < -12,
        "following": row and dx > 12,
        "leading": row and dx < -12,
        "next to": touch,
        "away from": not touch,
        "to the left of": dx > 12,
        "to the right of": dx < -12,
    }[relation]


def other_words(word):
    if word == "crosses" or (word not in KINDS and word[:-1] in KINDS):
        return [f"{kind}{'es' if kind == 'cross' else 's'}" for kind in KINDS]
    if word in WORDINGS:
        return [relation for relation in WORDINGS if len(relation.split()) == len(word.split())]
    colors = [color if color != "orange" else "golden" for color in COLORS]
    return list(next(group for group in (KINDS, colors, SIZES, PATTERNS) if word in group))


def test_every_sentence_is_true_and_no_word_of_it_is_open(sentences):
    assert len(sentences) > 1550
    checked = Counter()
    for scene, one in sentences:
        assert holds(one.text, scene), one.text
        for node in one.nodes:
            word = one.text[node.start : node.end]
            fitting = [
                other
                for other in other_words(word)
                if holds(one.text[: node.start] + other + one.text[node.end :], scene)
            ]
            assert fitting == [word], (one.text, fitting)
            checked[node.part] += 1
    assert checked["object"] > 2000 and checked["attribute"] > 3500 and checked["relation"] > 600


def test_sentences_are_varied(sentences):
    words = Counter(one.text[node.start : node.end] for _, one in sentences for node in one.nodes)
    assert {*WORDINGS, *KINDS, *(set(COLORS) - {"orange"}), "golden", *SIZES, *PATTERNS} <= set(words)
    # No sensible guess without the picture: kinds and colours are about equally frequent.
    for group in (KINDS, [color if color != "orange" else "golden" for color in COLORS], SIZES, PATTERNS):
        counts = [words[word] for word in group]
        assert max(counts) < 1.7 * min(counts), group
    texts = [one.text for _, one in sentences]
    assert len(set(texts)) > 0.75 * len(texts)
    for word in (", ", " two ", " and ", "there is ", " standing ", " is following "):
        assert any(word in f" {text}" for text in texts), word


def test_the_parser_finds_nearly_all_that_the_sentences_say(sentences):
    some = sentences[::3]
    graphs = parse_all([one.text for _, one in some], load_pipeline(SHIPPED))
    found, there = Counter(), Counter()
    for (_, one), graph in zip(some, graphs):
        nodes = {"object": graph.objects, "attribute": graph.attributes, "relation": graph.relations}
        for node in one.nodes:
            word = one.text[node.start : node.end]
            part = "hard" if word.startswith("to the ") else node.part
            there[part] += 1
            found[part] += ((node.start, node.end),) in {own.spans for own in nodes[node.part]}
    shares = {part: found[part] / there[part] for part in there}
    assert shares["object"] > 0.93 and shares["attribute"] > 0.93 and shares["relation"] > 0.9, shares
    assert there["hard"] < 0.1 * there["relation"]


# -------------------------------------------------------------------------------------------------------------- files
def test_the_graphs_are_the_parsers_and_every_picture_has_regions(folder):
    store = open_store(folder / "features.lmdb", 80)
    pipeline = load_pipeline(SHIPPED)
    for split, images in zip(("train", "val"), SMALL.values()):
        file = CaptionFile(folder / f"{split}.jsonl")
        assert not file.skipped and 2 * images - 2 <= len(file) <= 2 * images
        records = list(file)
        assert [record.graph for record in records] == list(parse_all([r.graph.caption for r in records], pipeline))
        assert {record.image_id for record in records} == {f"captions-{split}-{i:05d}" for i in range(images)}
        assert all(record.id.startswith(record.image_id) and record.image_id in store for record in records)
    assert len(store) == sum(SMALL.values())


def test_pictures_of_val_are_those_of_the_features(folder):
    store = open_store(folder / "features.lmdb", 80)
    names = sorted(path.stem for path in (folder / "images").iterdir())
    assert names == [f"captions-val-{number:05d}" for number in range(10)]
    for name in names:
        image = Image.open(folder / "images" / f"{name}.png")
        regions = store[name]
        np.testing.assert_array_equal(regions.features, mini.describe_regions(image, regions.boxes, 80))


def test_detected_classes_are_mostly_right_and_sometimes_unsure():
    right, total, background, empty = 0, 0, [], 0
    for scene, rng in mini_captions.caption_scenes(1, "train", 150):
        boxes = mini.detected_regions(scene, mini.draw(scene), 80, rng).boxes
        shares = mini_captions.detected_classes(scene, boxes, rng)
        assert shares.shape == (len(boxes), 11) and shares.dtype == np.float32 and (shares > 0).all()
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
        for box, share in zip(boxes, shares):
            near = [thing for thing in scene.objects if np.abs(np.array(thing.box) - box).max() <= 2]
            if near:
                total += 1
                right += mini_captions.CLASSES[int(share.argmax())] == near[0].kind
            elif not any(touches(box, thing.box) for thing in scene.objects):
                empty += 1
                background.append(share[0])
    assert 0.9 < right / total < 1
    assert empty > 5 and np.mean(background) > 0.5


def touches(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_the_vocabulary_continues_that_of_the_miniature_vcr_data(folder):
    first, words = mini_questions.vocabulary(), (folder / "vocab.txt").read_text().splitlines()
    assert words == mini_captions.vocabulary()
    assert words[: len(first)] == first and len(first) < len(words) == len(set(words))
    tokenizer = WordPieceTokenizer.from_file(folder / "vocab.txt")
    assert tokenizer.mask_id is not None
    for record in CaptionFile(folder / "train.jsonl"):
        pieces = tokenizer.tokenize(record.graph.caption)
        assert "[UNK]" not in pieces
        assert all(not piece.startswith("##") or piece in ("##s", "##e") for piece in pieces), pieces


def test_pictures_are_others_than_those_of_the_miniature_vcr_data():
    assert mini_captions.MiniCaptionsParameters().seed != mini_vcr.MiniVcrParameters().seed
    own = {scene for scene, _ in mini.scenes(mini_captions.MiniCaptionsParameters().seed, "train", 300)}
    assert not own & {scene for split in ("train", "val") for scene, _ in mini.scenes(0, split, 300)}


def test_the_same_parameters_give_the_same_files(folder, tmp_path):
    mini_captions.build_mini_captions(tmp_path / "again", **SMALL)
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".mdb"}
    assert {"train.jsonl", "val.jsonl", "vocab.txt", "README.txt", "mini.json"} <= {str(name) for name in names}
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    one, other = (open_store(path / "features.lmdb") for path in (folder, tmp_path / "again"))
    assert one.keys() == other.keys() and one.fingerprint == other.fingerprint
    for key in sorted(one.keys()):
        np.testing.assert_array_equal(one[key].features, other[key].features)
        np.testing.assert_array_equal(one[key].class_probs, other[key].class_probs)


def test_a_split_grows_without_changing_and_another_seed_gives_others(folder, tmp_path):
    def first(**parameters):
        path = tmp_path / json.dumps(parameters)
        mini_captions.build_mini_captions(path, **{"train_images": 3, "val_images": 1, **parameters})
        return (path / "train.jsonl").read_text()

    assert (folder / "train.jsonl").read_text().startswith(first())
    assert first(seed=5) != first()


def test_the_cache_folder_is_made_once(tmp_path, monkeypatch):
    parameters = mini_captions.MiniCaptionsParameters(train_images=2, val_images=1)
    path = mini_captions.mini_captions(tmp_path, parameters)
    assert path.parent == tmp_path / "mini" and path.name.startswith("captions-v1-")
    monkeypatch.setattr(mini_captions, "_write", lambda *_: pytest.fail("made twice"))
    # What is there can be used without the parser.
    monkeypatch.setitem(sys.modules, "spacy", None)
    assert mini_captions.mini_captions(tmp_path, parameters) == path


def test_without_the_parser_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match=re.escape("[scene-graph]")):
        mini_captions.build_mini_captions(tmp_path / "captions", train_images=1, val_images=1)
    assert list(tmp_path.iterdir()) == []
