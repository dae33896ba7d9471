"""Task heads of ERNIE-ViL and their losses, as the released fine-tuning program computes them.

A loss here is a *sum* over the elements of its batch; whoever trains divides by the number of elements in the whole
global batch, so that micro-batches and devices of unequal size still give the gradient of one large batch.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ernie_vil.models.ernie_vil import ErnieViLConfig, ErnieViLOutput, truncated_normal

HEAD_STD = 0.02


class ChoiceHead(nn.Linear):
    """VCR: one score per (text, image) row, ``[B, C] -> [B, 1]``."""

    def __init__(self, config: ErnieViLConfig) -> None:
        super().__init__(config.co_hidden_size, 1, weight_attr=truncated_normal(HEAD_STD))


class AnswerHead(nn.Layer):
    """VQA: linear, ReLU, dropout 0.5, linear, ``[B, C] -> [B, classes]``."""

    def __init__(self, config: ErnieViLConfig, classes: int = 3129, hidden_size: int = 2048) -> None:
        super().__init__()
        # Paddle's Xavier-uniform bound is sqrt(6 / (in + out)); the original's is sqrt(3 / (in + out)).
        self.hidden = half_xavier(config.co_hidden_size, hidden_size)
        self.dropout = nn.Dropout(0.5)
        self.output = half_xavier(hidden_size, classes)

    def forward(self, match: Tensor) -> Tensor:
        return self.output(self.dropout(F.relu(self.hidden(match))))


class RegionHead(nn.Linear):
    """Referring expressions: one logit per region, ``[B, N, V] -> [B, N, 1]`` (position 0 is the whole image)."""

    def __init__(self, config: ErnieViLConfig) -> None:
        super().__init__(config.v_hidden_size, 1, weight_attr=truncated_normal(HEAD_STD))


class MatchHead(nn.Linear):
    """Retrieval: one score per (text, image) pair, ``[B, C] -> [B, 1]``."""

    def __init__(self, config: ErnieViLConfig) -> None:
        super().__init__(
            config.co_hidden_size,
            1,
            weight_attr=paddle.ParamAttr(initializer=nn.initializer.XavierUniform()),
            bias_attr=paddle.ParamAttr(initializer=nn.initializer.Uniform(-1.0, 1.0)),
        )


def half_xavier(inputs: int, outputs: int) -> nn.Linear:
    bound = (3.0 / (inputs + outputs)) ** 0.5
    return nn.Linear(inputs, outputs, weight_attr=paddle.ParamAttr(initializer=nn.initializer.Uniform(-bound, bound)))


def match_vector(output: ErnieViLOutput, fusion: str = "mul", dropout: float = 0.0, training: bool = False) -> Tensor:
    """Join the two pooled outputs: product (``mul``) or ``sum``, then dropout, ``[B, C]``. Raises ``ValueError``.

    The original applies the model's ``attention_probs_dropout_prob`` here whatever rate the task asks for (a rate above
    0 only switches it on, and only VCR does); callers pass that rate.
    """
    if fusion not in ("mul", "sum"):
        raise ValueError(f"fusion {fusion!r} is neither 'mul' nor 'sum'")
    text, region = output.text_pooled, output.region_pooled
    return F.dropout(text * region if fusion == "mul" else text + region, dropout, training=training)


def choice_loss(scores: Tensor, labels: Tensor, choices: int = 4) -> Tensor:
    """VCR: sigmoid cross entropy of every score, summed. ``scores [n * choices, 1]``, ``labels [n]`` -> ``[]``.

    Trained with the sigmoid and evaluated with the softmax over the choices, as the original does.
    """
    targets = F.one_hot(labels, choices).reshape([-1, 1]).astype("float32")
    # In float32 also under mixed precision: a sum over a batch does not fit half precision.
    return F.binary_cross_entropy_with_logits(scores.astype("float32"), targets, reduction="sum")


def answer_loss(logits: Tensor, soft_targets: Tensor) -> Tensor:
    """VQA: sigmoid cross entropy with soft targets, summed over classes and rows. Both ``[B, classes]``."""
    return F.binary_cross_entropy_with_logits(logits.astype("float32"), soft_targets, reduction="sum")


def region_loss(logits: Tensor, targets: Tensor, region_mask: Tensor) -> Tensor:
    """Referring expressions: masked sigmoid cross entropy, summed. ``[B, N]`` each.

    The original divides by the number of valid regions and multiplies by its batch-size argument.
    """
    return (F.binary_cross_entropy_with_logits(logits.astype("float32"), targets, reduction="none") * region_mask).sum()


def circle_loss(positive: Tensor, negative: Tensor, margin: float, scale: float) -> Tensor:
    """Circle loss (Sun et al., CVPR 2020) per row: ``positive [B, p]``, ``negative [B, q]`` in [0, 1] -> ``[B]``.

    ``log(1 + sum_n exp(scale a_n (s_n - margin)) * sum_p exp(-scale a_p (s_p - 1 + margin)))`` with
    ``a_p = relu(1 + margin - s_p)`` and ``a_n = relu(s_n + margin)`` held constant. Sums and logarithm are in float64,
    as in the original.
    """
    weight_positive = F.relu(1.0 + margin - positive).detach()
    weight_negative = F.relu(negative + margin).detach()
    positive_sum = paddle.exp(-scale * weight_positive * (positive - (1.0 - margin))).astype("float64").sum(axis=1)
    negative_sum = paddle.exp(scale * weight_negative * (negative - margin)).astype("float64").sum(axis=1)
    return paddle.log(1.0 + negative_sum * positive_sum)


def retrieval_loss(scores: Tensor, margin: float, scale: float) -> Tensor:
    """Retrieval: the mean of two circle losses, summed over groups. ``scores [B, 1 + k]`` raw, the positive first.

    The first half of the ``k`` negatives are other images, the second half other captions.
    """
    similarity = F.sigmoid(scores.astype("float32"))
    middle = (scores.shape[1] + 1) // 2
    positive, images, captions = similarity[:, :1], similarity[:, 1:middle], similarity[:, middle:]
    both = circle_loss(positive, captions, margin, scale) + circle_loss(positive, images, margin, scale)
    return both.sum() / 2.0
