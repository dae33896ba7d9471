"""Heads and losses of pre-training against slow, obvious references in NumPy."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from ernie_vil.models.ernie_vil import ErnieViLConfig, ErnieViLModel
from ernie_vil.models.pretraining_heads import (
    RegionTargetHead,
    TokenHead,
    at_positions,
    match_losses,
    region_class_losses,
    region_feature_losses,
    token_logits,
    token_losses,
)

CONFIG = ErnieViLConfig(
    vocab_size=23,
    hidden_size=8,
    num_attention_heads=2,
    max_position_embeddings=12,
    v_hidden_size=12,
    v_num_attention_heads=2,
    v_intermediate_size=16,
    co_hidden_size=8,
    co_num_attention_heads=2,
    t_biattention_id=[0],
    v_biattention_id=[0],
    feature_size=5,
)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def transform(head, hidden):
    dense, norm = head.transform.dense, head.transform.norm
    inner = hidden @ dense.weight.numpy() + dense.bias.numpy()
    inner = np.array([[0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in row] for row in inner])
    centred = inner - inner.mean(1, keepdims=True)
    return centred / np.sqrt(inner.var(1, keepdims=True) + 1e-5) * norm.weight.numpy() + norm.bias.numpy()


def log_softmax(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def test_positions_are_row_times_length_plus_column(rng):
    hidden = rng.normal(size=(3, 4, 5)).astype("float32")
    picked = at_positions(paddle.to_tensor(hidden), paddle.to_tensor([0, 7, 11])).numpy()
    np.testing.assert_array_equal(picked, [hidden[0, 0], hidden[1, 3], hidden[2, 3]])


def test_token_scores_are_tied_with_the_word_embedding(rng):
    paddle.seed(1)
    model = ErnieViLModel(CONFIG, {"mlm": TokenHead(CONFIG)})
    head = model.heads["mlm"]
    head.bias.set_value(rng.normal(size=23).astype("float32"))
    hidden = rng.normal(size=(2, 3, 8)).astype("float32")
    logits = token_logits(model, paddle.to_tensor(hidden), paddle.to_tensor([1, 5]))
    words = model.text_embeddings.word.weight
    wanted = transform(head, hidden.reshape(6, 8)[[1, 5]]) @ words.numpy().T + head.bias.numpy()
    np.testing.assert_allclose(logits.numpy(), wanted, atol=1e-5)
    # The embedding also learns as the output layer: entries that are no input get a gradient.
    token_losses(logits, paddle.to_tensor([4, 9])).sum().backward()
    assert (np.abs(words.grad.numpy()).sum(1) > 0).all()


def test_weight_decay_leaves_out_biases_and_norms_of_the_heads():
    model = ErnieViLModel(CONFIG, {"mlm": TokenHead(CONFIG), "region_classes": RegionTargetHead(CONFIG, 4)})
    decayed = {name for name, _ in model.named_parameters() if name.startswith("heads.")} - model.decay_excluded()
    assert decayed == {
        "heads.mlm.transform.dense.weight",
        "heads.region_classes.transform.dense.weight",
        "heads.region_classes.output.weight",
    }


def test_token_losses_are_the_cross_entropy_of_each(rng):
    logits, labels = rng.normal(size=(4, 23)) * 5, np.array([0, 22, 3, 3])
    found = token_losses(paddle.to_tensor(logits.astype("float32")), paddle.to_tensor(labels))
    assert found.shape == [4]
    np.testing.assert_allclose(found.numpy(), -log_softmax(logits)[np.arange(4), labels], rtol=1e-5)


def test_region_class_losses_are_the_divergence_from_the_detector(rng):
    logits = rng.normal(size=(3, 4))
    targets = np.array([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25], [0, 0, 1, 0]])
    found = region_class_losses(paddle.to_tensor(logits.astype("float32")), paddle.to_tensor(targets.astype("float32")))
    logs = log_softmax(logits)
    wanted = [sum(t * (math.log(t) - logs[i, j]) for j, t in enumerate(row) if t > 0) for i, row in enumerate(targets)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)
    exact = region_class_losses(
        paddle.log(paddle.to_tensor(targets[:2].astype("float32")) + 1e-12),
        paddle.to_tensor(targets[:2].astype("float32")),
    )
    np.testing.assert_allclose(exact.numpy(), 0, atol=1e-5)


def test_region_feature_losses_are_mean_squares(rng):
    predicted, targets = rng.normal(size=(2, 3, 5)).astype("float32")
    found = region_feature_losses(paddle.to_tensor(predicted), paddle.to_tensor(targets)).numpy()
    np.testing.assert_allclose(found, [np.mean((p - t) ** 2) for p, t in zip(predicted, targets)], rtol=1e-5)


def test_match_losses_are_the_sigmoid_cross_entropy_of_each_pair():
    scores, labels = np.array([[2.0], [-1.0], [0.5]], "float32"), np.array([1, 1, 0], "float32")
    found = match_losses(paddle.to_tensor(scores), paddle.to_tensor(labels)).numpy()
    chances = 1 / (1 + np.exp(-scores[:, 0]))
    np.testing.assert_allclose(found, -np.log(np.where(labels == 1, chances, 1 - chances)), rtol=1e-5)
