"""Scores of all pairs against the plain forward pass of each pair."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_vil.data.region_arrays import pad_regions
from ernie_vil.data.text_pair import pad_sequences
from ernie_vil.models import pairwise
from ernie_vil.models.ernie_vil import ErnieViLConfig, ErnieViLModel
from ernie_vil.models.heads import MatchHead, match_vector
from ernie_vil.models.pairwise import PairScorer

SCHEDULES = [((0,), (0,)), ((2, 3, 5), (0, 1, 2)), ((1, 1), (1, 1)), ((2,), (2,)), ((0, 2), (0, 0))]


def make_model(schedule: tuple = SCHEDULES[1], heads: tuple = (2, 3, 4)) -> ErnieViLModel:
    text, region, joined = heads
    config = ErnieViLConfig(
        vocab_size=50,
        hidden_size=12,
        num_attention_heads=text,
        max_position_embeddings=40,
        v_hidden_size=18,
        v_num_attention_heads=region,
        v_intermediate_size=20,
        co_hidden_size=16,
        co_num_attention_heads=joined,
        t_biattention_id=schedule[0],
        v_biattention_id=schedule[1],
        feature_size=7,
        initializer_range=0.3,
    )
    paddle.seed(1)
    model = ErnieViLModel(config, {"match_fc": MatchHead(config)})
    for tensor in model.parameters():  # biases start as zeros, which would hide that one is forgotten
        if tensor.ndim == 1:
            tensor.set_value(tensor + 0.3 * paddle.randn(tensor.shape))
    model.eval()
    return model


def make_inputs(lengths: Sequence[int], counts: Sequence[int], seed: int = 0) -> tuple[list, list]:
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 50, length).tolist() for length in lengths]
    regions = [
        (rng.standard_normal([count, 7]).astype(np.float32), rng.random([count, 5]).astype(np.float32))
        for count in counts
    ]
    return texts, regions


def plain_scores(model: ErnieViLModel, texts: list, regions: list) -> np.ndarray:
    """All pairs as one padded batch, as the original has them: every pair is computed from its start."""
    pairs = [(text, image) for text in texts for image in regions]
    batch = pad_sequences([text for text, _ in pairs], [[0] * len(text) for text, _ in pairs])
    batch.update(pad_regions([image for _, image in pairs]))
    tensors = [paddle.to_tensor(array) for array in batch.values()]
    with paddle.no_grad():
        scores = model.heads["match_fc"](match_vector(model(*tensors)))
    return scores.numpy().reshape(len(texts), len(regions))


def fast_scores(model: ErnieViLModel, texts: list, regions: list, **options: int) -> np.ndarray:
    scorer = PairScorer(model, lambda text, region: model.heads["match_fc"](text * region), **options)
    scorer.add_images(regions)
    return scorer.scores(texts)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_equal_to_the_plain_forward(schedule):
    model = make_model(schedule)
    texts, regions = make_inputs([3, 9, 3, 6, 9, 30], [2, 40, 5, 40, 1, 5, 2, 40, 40])
    wanted = plain_scores(model, texts, regions)
    assert wanted.std() > 0.05
    np.testing.assert_allclose(fast_scores(model, texts, regions), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", ["always", "never"])
def test_both_ways_of_projecting_are_equal_to_the_plain_forward(way, monkeypatch):
    monkeypatch.setattr(pairwise, "_pays", lambda *arguments: way == "always")
    model = make_model()
    texts, regions = make_inputs([4, 7, 7, 12], [3, 30, 11])
    wanted = plain_scores(model, texts, regions)
    np.testing.assert_allclose(fast_scores(model, texts, regions), wanted, atol=1e-5, rtol=1e-5)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(2, 12), min_size=1, max_size=6),
    st.lists(st.integers(1, 9), min_size=1, max_size=7),
    st.integers(1, 40),
    st.sampled_from([(1, 1, 1), (2, 3, 4), (4, 9, 8)]),
    st.integers(0, 99),
)
def test_any_lengths_and_numbers_of_regions(lengths, counts, pairs, heads, seed):
    model = make_model(SCHEDULES[1], heads)
    texts, regions = make_inputs(lengths, counts, seed)
    found = fast_scores(model, texts, regions, pairs=pairs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain_scores(model, texts, regions), atol=1e-5, rtol=1e-5)


def test_some_images_in_any_order():
    model = make_model()
    texts, regions = make_inputs([5, 8], [3, 4, 3, 6])
    scorer = PairScorer(model, lambda text, region: model.heads["match_fc"](text * region))
    scorer.add_images(regions[:2])
    scorer.add_images(regions[2:])
    assert scorer.count == 4
    every = scorer.scores(texts)
    np.testing.assert_array_equal(every, fast_scores(model, texts, regions))
    # Pairs are computed in other company there, so the last digits may differ.
    np.testing.assert_allclose(scorer.scores(texts, [3, 0, 2]), every[:, [3, 0, 2]], atol=1e-6)


def test_rows_of_regions_name_the_image_of_each_text():
    model = make_model()
    texts, regions = make_inputs([5, 8, 6, 4], [3, 6])
    batch = pad_sequences(texts, [[0] * len(text) for text in texts])
    rows = [1, 0, 0, 1]
    shared = {**batch, **pad_regions(regions)}
    full = {**batch, **pad_regions([regions[row] for row in rows])}
    with paddle.no_grad():
        found = model(*map(paddle.to_tensor, shared.values()), region_rows=paddle.to_tensor(rows))
        wanted = model(*map(paddle.to_tensor, full.values()))
    for name in ("text_pooled", "region_pooled"):
        np.testing.assert_allclose(getattr(found, name).numpy(), getattr(wanted, name).numpy(), atol=1e-6)
