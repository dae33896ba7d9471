"""Masking of captions: alignment and probabilities against slow references, invariants on random graphs, rates."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_vil.data.sampling import systematic_sample
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.scene_graph.graph import AttributeNode, ObjectNode, RelationNode, SceneGraph
from ernie_vil.scene_graph.masking import (
    ATTRIBUTE,
    KIND_NAMES,
    NODE_KINDS,
    OBJECT,
    RELATION,
    TOKEN,
    MaskedCaption,
    Unit,
    mask_caption,
    mask_node,
    maskable_units,
    ordinary_token_ids,
    stay_probability,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
NOUNS = ["woman", "dress", "cat", "car", "house", "tennis", "racket", "dog", "mat"]
WORDS = ["a", "in", "of", "on", "and", "top", "is", "her", "blue", "brown", "little", "white", *NOUNS]
TOKENS = [*SPECIAL, *WORDS, "motor", "##cycle", "un", "##lit", ".", ",", "-", "[", "]", "put", "##ting", "m", "##o"]
TOKENIZER = WordPieceTokenizer({token: i for i, token in enumerate(TOKENS)})
MASK = TOKENS.index("[MASK]")
ORDINARY = ordinary_token_ids(TOKENIZER.vocabulary)
PAPER = (0.15, 0.3, 0.3, 0.3)


def node(kind: type, caption: str, *texts: str, **ties: int) -> Any:
    """A node whose words stand in the caption: each text once, in order."""
    spans, start = [], 0
    for text in texts:
        start = re.search(rf"(?<!\w){re.escape(text)}(?!\w)", caption[start:]).start() + start
        spans.append((start, start + len(text)))
        start += len(text)
    return kind(" ".join(texts), " ".join(texts), tuple(spans), **ties)


def units_of(graph: SceneGraph, length: int = 99) -> tuple[list[int], dict[int, list[Unit]]]:
    graph.check()
    ids, spans = TOKENIZER.encode_with_spans(graph.caption)
    ids = ids[:length]
    return ids, maskable_units(graph, spans, len(ids))


def mask(graph: SceneGraph, seed: int, rates: tuple = PAPER, length: int = 99) -> MaskedCaption:
    ids, units = units_of(graph, length)
    return mask_caption(ids, units, rates, MASK, ORDINARY, np.random.default_rng(seed))


def read(ids: list[int], pieces: tuple[int, ...]) -> str:
    return " ".join(TOKENS[ids[piece]] for piece in pieces)


PAPER_CAPTION = "A woman in blue dress is putting her little white cat on top of a brown car in front of her house."
PAPER_GRAPH = SceneGraph(
    PAPER_CAPTION,
    tuple(node(ObjectNode, PAPER_CAPTION, word) for word in ("woman", "dress", "cat", "car", "house")),
    (
        node(AttributeNode, PAPER_CAPTION, "blue", object=1),
        node(AttributeNode, PAPER_CAPTION, "little", object=2),
        node(AttributeNode, PAPER_CAPTION, "white", object=2),
        node(AttributeNode, PAPER_CAPTION, "brown", object=3),
    ),
    (
        node(RelationNode, PAPER_CAPTION, "in", subject=0, object=1),
        node(RelationNode, PAPER_CAPTION, "putting", subject=0, object=2),
        node(RelationNode, PAPER_CAPTION, "on top of", subject=2, object=3),
    ),
)
MAT = "a cat, a dog and a woman on a mat."
# One relation word for three pairs of four objects.
MAT_GRAPH = SceneGraph(
    MAT,
    tuple(node(ObjectNode, MAT, word) for word in ("cat", "dog", "woman", "mat")),
    (),
    tuple(node(RelationNode, MAT, "on", subject=subject, object=3) for subject in range(3)),
)


# --- which nodes can be masked ----------------------------------------------------------------------------------------


def test_sentence_of_the_paper() -> None:
    ids, units = units_of(PAPER_GRAPH)
    read_units = {kind: [read(ids, unit.pieces) for unit in units[kind]] for kind in NODE_KINDS}
    assert read_units[OBJECT] == ["woman", "dress", "cat", "car", "house"]
    assert read_units[ATTRIBUTE] == ["blue", "little", "white", "brown"]
    assert read_units[RELATION] == ["in", "put ##ting", "on top of"]
    assert [unit.objects for unit in units[RELATION]] == [(0, 1), (0, 2), (2, 3)]
    assert [read(ids, unit.needs) for unit in units[RELATION]] == ["woman dress", "woman cat", "cat car"]


def test_triplets_with_the_same_words_are_one_unit() -> None:
    ids, units = units_of(MAT_GRAPH)
    (unit,) = units[RELATION]
    assert unit.objects == (0, 1, 2, 3) and read(ids, unit.needs) == "cat dog woman mat"


@pytest.mark.parametrize(
    ("words", "length", "expected"),
    [
        ("motorcycle", 99, "motor ##cycle"),
        ("motorcycle", 3, "motor ##cycle"),
        ("motorcycle", 2, None),  # half of it was cut off
        ("motor", 99, "motor"),
        ("moto", 99, None),  # the tokenizer cuts elsewhere
        ("otor", 99, None),
        ("cycle,", 99, "##cycle ,"),
        ("motorcycle, unlit", 99, "motor ##cycle , un ##lit"),
        ("é", 99, "[UNK]"),
        ("\u200b", 99, None),  # nothing is left of it
    ],
)
def test_what_the_tokenizer_cut(words: str, length: int, expected: Any) -> None:
    caption = "a motorcycle, unlit é \u200b"
    start = caption.index(words)
    graph = SceneGraph(caption, (ObjectNode(words, words, ((start, start + len(words)),)),))
    ids, units = units_of(graph, length)
    assert [read(ids, unit.pieces) for unit in units[OBJECT]] == ([] if expected is None else [expected])


def test_a_node_in_two_places_and_what_lies_between() -> None:
    caption = "a woman is putting a cat on a mat"
    relation = node(RelationNode, caption, "putting", "on", subject=0, object=1)
    objects = tuple(node(ObjectNode, caption, word) for word in ("woman", "mat", "cat"))
    ids, units = units_of(SceneGraph(caption, objects, (), (relation,)))
    assert [read(ids, unit.pieces) for unit in units[RELATION]] == ["put ##ting on"]


def test_objects_must_be_there_to_be_seen() -> None:
    caption = "a white cat on a moto"
    graph = SceneGraph(
        caption,
        (
            node(ObjectNode, caption, "cat"),
            ObjectNode("mot", "mot", ((17, 20),)),  # cut by the tokenizer: cannot be masked, but is seen
        ),
        (node(AttributeNode, caption, "white", object=0),),
        (node(RelationNode, caption, "on", subject=0, object=1),),
    )
    ids, units = units_of(graph)
    assert [len(units[kind]) for kind in NODE_KINDS] == [1, 1, 1]
    assert units[RELATION][0].objects == (0,) and read(ids, units[RELATION][0].needs) == "cat [UNK]"
    assert [len(units_of(graph, 5)[1][kind]) for kind in NODE_KINDS] == [1, 1, 0]  # the relation's object was cut off
    assert [len(units_of(graph, 2)[1][kind]) for kind in NODE_KINDS] == [0, 0, 0]  # the attribute's as well


def test_a_node_within_its_own_object_cannot_be_masked() -> None:
    caption = "a tennis racket"
    graph = SceneGraph(
        caption, (node(ObjectNode, caption, "tennis racket"),), (node(AttributeNode, caption, "tennis", object=0),)
    )
    units = units_of(graph)[1]
    assert [len(units[kind]) for kind in NODE_KINDS] == [1, 0, 0]


captions = st.lists(st.sampled_from([*WORDS, "motorcycle", "unlit", "putting", "é", "[", "moto-cat."]), max_size=14)


@st.composite
def graphs(draw: st.DrawFn) -> SceneGraph:
    """Any graph that its caption allows: nodes may overlap, cut words, or be all of the caption."""
    caption = " ".join(draw(captions))

    def spans() -> tuple:
        ends = draw(st.lists(st.integers(0, len(caption)), min_size=2, max_size=4, unique=True).map(sorted))
        return tuple(zip(ends[::2], ends[1::2]))

    def values() -> tuple:
        found = spans()
        words = " ".join(caption[start:end] for start, end in found)
        return words, words, found

    def count(limit: int) -> int:
        return draw(st.integers(0, limit)) if len(caption) > 1 else 0

    objects = tuple(ObjectNode(*values()) for _ in range(count(6)))
    tie = st.integers(0, max(len(objects) - 1, 0))
    attributes = tuple(AttributeNode(*values(), draw(tie)) for _ in range(count(4) if objects else 0))
    relations = tuple(RelationNode(*values(), draw(tie), draw(tie)) for _ in range(count(4) if objects else 0))
    return SceneGraph(caption, objects, attributes, relations)


def slow_units(graph: SceneGraph, spans: list[tuple[int, int]], length: int) -> dict[int, dict[tuple, tuple]]:
    """By kind: pieces -> (needs, pieces of the maskable ones of its objects), character by character."""

    def characters(found: Any) -> set[int]:
        return {place for start, end in found.spans for place in range(start, end)}

    def pieces(found: Any) -> tuple:
        return tuple(i for i, (start, end) in enumerate(spans) if set(range(start, end)) & characters(found))

    def fits(found: Any) -> bool:
        own = pieces(found)
        inside = all(set(range(*spans[i])) <= characters(found) for i in own)
        return bool(own) and inside and all(i < length for i in own)

    maskable = [pieces(found) for found in graph.objects if fits(found)]
    units: dict[int, dict[tuple, tuple]] = {OBJECT: {own: ((), set()) for own in maskable}}
    for kind, nodes in ((ATTRIBUTE, graph.attributes), (RELATION, graph.relations)):
        units[kind] = {}
        for own in {pieces(found) for found in nodes if fits(found)}:
            numbers = set()
            for found in nodes:
                if fits(found) and pieces(found) == own:
                    numbers |= {found.object} | ({found.subject} if kind == RELATION else set())
            tied = [pieces(graph.objects[number]) for number in numbers]
            needs = {i for found in tied for i in found}
            if all(found and max(found) < length for found in tied) and not needs & set(own):
                units[kind][own] = (tuple(sorted(needs)), {found for found in tied if found in maskable})
    return units


@settings(max_examples=300, deadline=None)
@given(graphs(), st.integers(0, 20))
def test_alignment_against_slow_reference(graph: SceneGraph, length: int) -> None:
    ids, spans = TOKENIZER.encode_with_spans(graph.caption)
    units = maskable_units(graph, spans, min(length, len(ids)))
    found = {}
    for kind in NODE_KINDS:
        named = [
            (unit.pieces, (unit.needs, {units[OBJECT][number].pieces for number in unit.objects}))
            for unit in units[kind]
        ]
        found[kind] = dict(named)
        assert len(named) == len(found[kind]) and all(unit.kind == kind for unit in units[kind])
    assert found == slow_units(graph, spans, min(length, len(ids)))


# --- probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("count", range(1, 8))
def test_probability_that_objects_stay(count: int, rate: float) -> None:
    """Over all subsets that the draw can give; u moves in steps that hit its jump exactly."""
    for needed in range(count + 1):
        steps = [int(np.floor(rate * count + u / 1000 + 1e-9)) for u in range(1000)]
        total = 0.0
        for taken, often in Counter(steps).items():
            subsets = list(itertools.combinations(range(count), taken))
            total += often / 1000 * sum(not set(range(needed)) & set(subset) for subset in subsets) / len(subsets)
        assert stay_probability(count, needed, rate) == pytest.approx(total, abs=1e-9)
        assert stay_probability(count, needed, rate, even=False) == pytest.approx((1 - rate) ** needed)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 2**32))
def test_sample_is_as_even_as_can_be(probabilities: list[float], seed: int) -> None:
    taken = systematic_sample(probabilities, np.random.default_rng(seed)).tolist()
    assert len(set(taken)) == len(taken)
    assert all(probabilities[item] > 0 for item in taken)
    assert abs(len(taken) - sum(probabilities)) < 1 + 1e-9


def test_sample_keeps_every_probability() -> None:
    probabilities = [0.05, 0.3, 0.9, 0.0, 1.0, 0.3, 0.65]
    rng = np.random.default_rng(0)
    counts = np.zeros(len(probabilities))
    for _ in range(20_000):
        counts[systematic_sample(probabilities, rng)] += 1
    # Four standard deviations of 20,000 independent draws.
    np.testing.assert_allclose(counts / 20_000, probabilities, atol=4 * 0.5 / np.sqrt(20_000))


def shares(graph: SceneGraph, rates: tuple, draws: int = 6000) -> tuple[dict[tuple, float], float]:
    """How often each unit is masked, and the share of pieces masked at random."""
    ids, units = units_of(graph)
    rng = np.random.default_rng(7)
    counts, tokens = Counter(), 0
    for _ in range(draws):
        masked = mask_caption(ids, units, rates, MASK, ORDINARY, rng)
        assert not masked.left_out
        counts.update((unit.kind, unit.pieces) for unit in masked.units)
        tokens += int((masked.kinds == TOKEN).sum())
    every = [unit for kind in NODE_KINDS for unit in units[kind]]
    return {(u.kind, u.pieces): counts[u.kind, u.pieces] / draws for u in every}, tokens / draws / len(ids)


def test_every_node_and_the_tokens_have_their_rate() -> None:
    nodes, tokens = shares(PAPER_GRAPH, PAPER)
    assert len(nodes) == 12
    assert all(share == pytest.approx(0.3, abs=0.024) for share in nodes.values())  # four standard deviations
    assert tokens == pytest.approx(0.15, abs=0.003)


def test_kinds_may_have_rates_of_their_own() -> None:
    nodes, tokens = shares(PAPER_GRAPH, (0.0, 0.2, 0.5, 0.0))
    expected = {OBJECT: 0.2, ATTRIBUTE: 0.5, RELATION: 0.0}
    assert all(share == pytest.approx(expected[kind], abs=0.026) for (kind, _), share in nodes.items())
    assert tokens == 0


def test_relation_of_three_objects_keeps_its_rate() -> None:
    caption = "a cat and a dog on a mat."
    graph = SceneGraph(
        caption,
        tuple(node(ObjectNode, caption, word) for word in ("cat", "dog", "mat")),
        (),
        tuple(node(RelationNode, caption, "on", subject=subject, object=2) for subject in range(2)),
    )
    nodes, tokens = shares(graph, PAPER)
    assert len(nodes) == 4 and all(share == pytest.approx(0.3, abs=0.024) for share in nodes.values())
    assert tokens == pytest.approx(0.15, abs=0.006)


def test_relation_of_four_objects_is_rarer() -> None:
    nodes, _ = shares(MAT_GRAPH, PAPER)
    for (kind, _), share in nodes.items():
        assert share == pytest.approx(0.3 if kind == OBJECT else 0.7**4, abs=0.024)


def test_without_nodes_it_is_the_masking_of_bert() -> None:
    ids, units = units_of(PAPER_GRAPH)
    rng = np.random.default_rng(3)
    counts = np.zeros(len(ids))
    fates = Counter()
    for _ in range(8000):
        masked = mask_caption(ids, units, (0.15, 0, 0, 0), MASK, ORDINARY, rng)
        assert not masked.units and set(masked.kinds.tolist()) <= {TOKEN}
        assert len(masked.positions) in (3, 4)  # 15 % of 23 are 3.45
        counts[masked.positions] += 1
        for position, label in zip(masked.positions, masked.labels):
            new = masked.token_ids[position]
            fates["mask" if new == MASK else "same" if new == label else "random"] += 1
    np.testing.assert_allclose(counts / 8000, 0.15, atol=4 * 0.36 / np.sqrt(8000))
    total = sum(fates.values())
    lucky = 0.1 / len(ORDINARY)  # a random piece may be the same one
    assert fates["mask"] / total == pytest.approx(0.8, abs=0.01)
    assert fates["same"] / total == pytest.approx(0.1 + lucky, abs=0.01)
    assert fates["random"] / total == pytest.approx(0.1 - lucky, abs=0.01)


def test_a_node_is_replaced_as_a_whole() -> None:
    caption = "motorcycle, unlit motorcycle"
    graph = SceneGraph(caption, (ObjectNode(caption, caption, ((0, len(caption)),)),))
    ids, units = units_of(graph)
    assert len(ids) == 7
    rng = np.random.default_rng(5)
    fates, replaced = Counter(), Counter()
    for _ in range(6000):
        masked = mask_caption(ids, units, (0, 0.5, 0, 0), MASK, ORDINARY, rng)
        if masked.units:
            new = masked.token_ids.tolist()
            fate = "mask" if new == [MASK] * 7 else "same" if new == ids else "random"
            fates[fate] += 1
            if fate == "random":
                assert MASK not in new
                replaced.update(new)
    total = sum(fates.values())
    assert total / 6000 == pytest.approx(0.5, abs=0.026)
    assert [fates[name] / total for name in ("mask", "same", "random")] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
    # All ordinary entries, and about equally often.
    assert set(replaced) == set(ORDINARY.tolist())
    mean = sum(replaced.values()) / len(ORDINARY)
    assert max(replaced.values()) < 2 * mean and min(replaced.values()) > mean / 2


# --- every mask -------------------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(
    graphs(),
    st.integers(0, 20),
    st.tuples(st.sampled_from([0.0, 0.15, 0.9]), *[st.sampled_from([0.0, 0.3, 0.5])] * 3),
    st.integers(0, 2**32),
)
def test_what_holds_of_every_mask(graph: SceneGraph, length: int, rates: tuple, seed: int) -> None:
    check_mask(graph, length, rates, seed)


@pytest.mark.parametrize("rates", [PAPER, (0.9, 0.3, 0.5, 0.5)])
@pytest.mark.parametrize("graph", [PAPER_GRAPH, MAT_GRAPH], ids=["paper", "mat"])
def test_what_holds_of_masks_of_sentences(graph: SceneGraph, rates: tuple) -> None:
    assert {kind for seed in range(200) for kind in check_mask(graph, 99, rates, seed)} >= {OBJECT, RELATION}


def check_mask(graph: SceneGraph, length: int, rates: tuple, seed: int) -> set[int]:
    """Draw a mask and check it; returns the kinds of the masked units."""
    ids, units = units_of(graph, length)
    masked = mask_caption(ids, units, rates, MASK, ORDINARY, np.random.default_rng(seed))
    assert (masked.token_ids.dtype, masked.positions.dtype, masked.labels.dtype) == (np.int64,) * 3
    positions = masked.positions.tolist()
    assert positions == sorted(set(positions))
    assert masked.labels.tolist() == [ids[position] for position in positions]
    new = masked.token_ids.tolist()
    assert len(new) == len(ids)
    assert all(new[i] == ids[i] for i in range(len(ids)) if i not in positions)
    kinds = dict(zip(positions, masked.kinds.tolist()))

    for unit in masked.units:
        assert unit in units[unit.kind] and rates[unit.kind] > 0
        assert all(kinds[piece] == unit.kind for piece in unit.pieces)  # also: no two units share a piece
        assert not set(unit.needs) & set(positions), "what it is tied to must be seen"
        before, after = [ids[piece] for piece in unit.pieces], [new[piece] for piece in unit.pieces]
        assert after == before or set(after) == {MASK} or set(after) <= set(ORDINARY.tolist())
    in_units = [piece for unit in masked.units for piece in unit.pieces]
    assert len(in_units) == len(set(in_units))
    assert sorted(in_units) == [i for i in positions if kinds[i] != TOKEN]
    drawn_tokens = len(positions) - len(in_units)
    assert drawn_tokens <= rates[TOKEN] * len(ids) + 1
    assert len(masked.units) + masked.left_out <= sum(map(len, units.values()))
    again = mask_caption(ids, units, rates, MASK, ORDINARY, np.random.default_rng(seed))
    np.testing.assert_array_equal(again.token_ids, masked.token_ids)
    return {unit.kind for unit in masked.units}


def test_overlapping_nodes_are_counted() -> None:
    caption = "a tennis racket"
    graph = SceneGraph(
        caption, tuple(node(ObjectNode, caption, words) for words in ("tennis racket", "racket", "tennis"))
    )
    results = [mask(graph, seed, (0, 0.5, 0, 0)) for seed in range(200)]
    assert {(len(result.units), result.left_out) for result in results} == {(1, 0), (1, 1), (2, 0)}


def test_an_object_that_another_one_covers_is_not_seen() -> None:
    """ "white" needs "cat", which is hidden with "cat house" though it was not drawn itself."""
    caption = "white cat house"
    objects = tuple(node(ObjectNode, caption, words) for words in ("cat", "cat house"))
    graph = SceneGraph(caption, objects, (node(AttributeNode, caption, "white", object=0),))
    results = [mask(graph, seed, (0, 0.3, 0.5, 0)) for seed in range(300)]
    outcomes = {(tuple(unit.pieces for unit in result.units), result.left_out) for result in results}
    assert outcomes == {((), 0), (((0,),), 0), (((1,),), 0), (((1, 2),), 0), (((1, 2),), 1)}


def test_a_node_in_an_object_that_another_one_needs_is_not_masked() -> None:
    caption = "white tennis racket dog"
    objects = tuple(node(ObjectNode, caption, words) for words in ("tennis racket", "dog"))
    attributes = (node(AttributeNode, caption, "white", object=0), node(AttributeNode, caption, "tennis", object=1))
    graph = SceneGraph(caption, objects, attributes)
    results = [mask(graph, seed, (0, 0.0, 0.5, 0)) for seed in range(100)]
    # One of the two is drawn each time, never both; with higher rates both are, and one has to go.
    assert {(len(result.units), result.left_out) for result in results} == {(1, 0)}
    results = [mask(graph, seed, (0, 0.3, 0.5, 0)) for seed in range(400)]
    assert {result.left_out for result in results if len(result.units) == 1} == {0, 1}
    for result in results:
        pieces = {unit.pieces for unit in result.units if unit.kind == ATTRIBUTE}
        assert pieces != {(0,), (1,)}


@pytest.mark.parametrize(
    ("graph", "length"),
    [
        (SceneGraph(""), 99),
        (SceneGraph("a cat on a mat"), 99),  # no node
        (PAPER_GRAPH, 0),  # all of it was cut off
        (PAPER_GRAPH, 1),
        (SceneGraph("cat", (ObjectNode("cat", "cat", ((0, 3),)),)), 99),  # one piece
        (SceneGraph("motorcycle " * 500, (ObjectNode("motorcycle", "motorcycle", ((0, 10),)),)), 9999),
        (SceneGraph("中文 <b>☃</b> 😀 [MASK]", (ObjectNode("😀", "😀", ((12, 13),)),)), 99),
    ],
)
def test_odd_captions(graph: SceneGraph, length: int) -> None:
    ids, units = units_of(graph, length)
    seen = set()
    for seed in range(60):
        masked = mask(graph, seed, length=length)
        assert len(masked.token_ids) == len(ids)
        seen.update(masked.positions.tolist())
        assert abs((masked.kinds == TOKEN).sum() - 0.15 * len(ids)) <= 1
    assert seen == set(range(len(ids))) if len(ids) < 50 else len(seen) > 900
    assert (len(ids) > 0) == (len(seen) > 0)


def test_ordinary_tokens() -> None:
    kept = [TOKENS[number] for number in ORDINARY]
    assert not set(kept) & set(SPECIAL)
    assert set(TOKENS) - set(kept) == set(SPECIAL) and "##cycle" in kept and "[" in kept


def test_mask_of_one_node() -> None:
    ids, units = units_of(PAPER_GRAPH)
    relation = units[RELATION][1]
    masked = mask_node(ids, relation.pieces, MASK)
    assert [i for i in range(len(ids)) if masked[i] != ids[i]] == list(relation.pieces)
    assert {masked[piece] for piece in relation.pieces} == {MASK}
    assert ids == units_of(PAPER_GRAPH)[0]


def test_names_of_kinds() -> None:
    assert [KIND_NAMES[kind] for kind in (TOKEN, *NODE_KINDS)] == ["token", "object", "attribute", "relation"]
