"""Pre-training heads of ERNIE-ViL and their losses (paper, section 3.3).

The paper gives the objectives, not the heads; these are the usual ones of BERT and ViLBERT. As in
:mod:`ernie_vil.models.heads`, a loss is a sum over its elements.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ernie_vil.models.ernie_vil import LAYER_NORM_EPSILON, ErnieViLConfig, ErnieViLModel, linear


class HiddenTransform(nn.Layer):
    """Linear, gelu, layer norm: ``[m, size] -> [m, size]``."""

    def __init__(self, size: int, std: float) -> None:
        super().__init__()
        self.dense = linear(size, size, std)
        self.norm = nn.LayerNorm(size, LAYER_NORM_EPSILON)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden)))


class TokenHead(nn.Layer):
    """Scores of the whole vocabulary, tied with the word embedding; serves masked words of every kind."""

    def __init__(self, config: ErnieViLConfig) -> None:
        super().__init__()
        self.transform = HiddenTransform(config.hidden_size, config.initializer_range)
        self.bias = self.create_parameter([config.vocab_size], is_bias=True)

    def forward(self, hidden: Tensor, word_embedding: Tensor) -> Tensor:
        """``hidden [m, H]``, ``word_embedding [vocab, H]`` -> ``[m, vocab]``."""
        return paddle.matmul(self.transform(hidden), word_embedding, transpose_y=True) + self.bias


class RegionTargetHead(nn.Layer):
    """What a masked region was: logits of the detector's classes, or its features; ``[k, V] -> [k, size]``."""

    def __init__(self, config: ErnieViLConfig, size: int) -> None:
        super().__init__()
        self.transform = HiddenTransform(config.v_hidden_size, config.initializer_range)
        self.output = linear(config.v_hidden_size, size, config.initializer_range)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.output(self.transform(hidden))


def at_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Rows of ``hidden [B, L, H]`` at flat positions ``row * L + column [m]``: ``[m, H]``."""
    return paddle.gather(hidden.reshape([-1, hidden.shape[-1]]), positions)


def token_logits(model: ErnieViLModel, text_hidden: Tensor, positions: Tensor) -> Tensor:
    """Scores by the head ``mlm`` at flat positions of ``text_hidden [B, L, H]``: ``[m, vocab]``."""
    return model.heads["mlm"](at_positions(text_hidden, positions), model.text_embeddings.word.weight)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each masked token, in float32: ``logits [m, vocab]``, ``labels [m]`` -> ``[m]``."""
    return F.cross_entropy(logits.astype("float32"), labels, reduction="none").reshape([-1])


def region_class_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Divergence KL(detector || model) of each masked region, as in ViLBERT: ``[k, classes]`` twice -> ``[k]``.

    ``targets`` are probabilities.
    """
    log_predicted = F.log_softmax(logits.astype("float32"))
    log_target = paddle.log(paddle.clip(targets, min=1e-12))
    return (targets * (log_target - log_predicted)).sum(axis=-1)


def region_feature_losses(predicted: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each masked region's features: both ``[k, F]`` -> ``[k]``."""
    return ((predicted.astype("float32") - targets) ** 2).mean(axis=-1)


def match_losses(scores: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid cross entropy of each (text, image) pair: ``scores [B, 1]``, ``labels [B]`` (1: they belong together)."""
    return F.binary_cross_entropy_with_logits(scores.astype("float32").reshape([-1]), labels, reduction="none")
