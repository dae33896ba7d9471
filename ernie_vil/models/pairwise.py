"""Scores of every pair of many texts and many images, equal to those of the plain forward pass.

What is computed once, and not for each pair:

* per text: the text layers before the first co-attention, and the text's half of the first co-attention (keys, values
  and their way through the output projection);
* per image: its embedding, the region layers before the first co-attention, and its half of that co-attention.

What is not computed at all:

* padding. Texts of equal length meet images of equal number of regions, so there are no masks either;
* in the last layer of each stream, everything but position 0, the only one that the poolers read;
* projections of all regions in the other co-attentions. A text is short, its image has a hundred regions: instead of
  projecting the regions to keys, ``q (x W_k)^T`` is computed as ``(q W_k^T) x^T``, and likewise for values
  (``(a x) W_v``), for the regions' queries and for what they get back. Biases of keys drop out of a softmax.

All of this is exact; only the order of additions differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ernie_vil.models.ernie_vil import Attention, CoLayer, ErnieViLModel, TransformerLayer

# Products with small matrices run slower than those with large ones: below this share of the additions they pay.
WORTHWHILE = 0.8

Score = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _TextHalf:
    """Texts ``[T, L, H]`` before the first co-attention, and their half of it.

    ``query`` (scaled) and ``key`` are ``[heads, T * L, d]``; ``returned [T, heads * L, V]`` is what each token's value
    gives to a region that attends to nothing else, by head.
    """

    hidden: Tensor
    query: Tensor
    key: Tensor
    returned: Tensor


@dataclass(frozen=True)
class _ImageHalf:
    """Images ``[I, N, V]`` before the first co-attention; their half of it, ``[heads, I * N, d]`` (queries scaled)."""

    hidden: Tensor
    key: Tensor
    value: Tensor
    query: Tensor


class PairScorer:
    """Scores texts against a fixed set of images. Works on the model's parameters as they are when it is made.

    Args:
        model: in evaluation mode; nothing is dropped out here.
        score: two pooled outputs ``[P, C]`` -> ``[P]`` or ``[P, 1]``.
        pairs: how many pairs are worked on at once.
    """

    def __init__(self, model: ErnieViLModel, score: Score, pairs: int = 64) -> None:
        self.model, self.score, self.pairs = model, score, pairs
        self._images: dict[int, list[tuple[int, Tensor]]] = {}  # by number of regions: place, states [1, N, V]
        self.count = 0

    @paddle.no_grad()
    def add_images(self, regions: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Take in images, in this order: features ``[n, F]`` and locations ``[n, 5]``, row 0 for the whole image."""
        for features, locations in regions:
            states = self.model.region_embeddings(
                paddle.to_tensor(np.asarray(features, np.float32))[None],
                paddle.to_tensor(np.asarray(locations, np.float32))[None],
            )
            for index in range(self.model.config.v_biattention_id[0]):
                states = self.model.region_layers[index](states, states, None)
            self._images.setdefault(len(features), []).append((self.count, states))
            self.count += 1

    @paddle.no_grad()
    def scores(self, texts: Sequence[Sequence[int]], places: Sequence[int] | None = None) -> np.ndarray:
        """Scores ``[texts, images]`` float32 of texts (token ids with ``[CLS]`` and ``[SEP]``, all of segment 0).

        ``places`` selects images; by default all, in the order in which they were added.
        """
        wanted = range(self.count) if places is None else places
        column = {place: index for index, place in enumerate(wanted)}
        found = np.full([len(texts), len(column)], np.nan, np.float32)
        rows_of_length: dict[int, list[int]] = {}
        for row, text in enumerate(texts):
            rows_of_length.setdefault(len(text), []).append(row)
        # Few images at a time, since their projections take more room than anything else, but with many texts.
        together = max(1, min(8, self.pairs // 4))
        halves = [(rows, self._text_half([texts[row] for row in rows])) for _, rows in sorted(rows_of_length.items())]
        for _, images in sorted(self._images.items()):
            chosen = [(column[place], states) for place, states in images if place in column]
            for first in range(0, len(chosen), together):
                part = chosen[first : first + together]
                seen = self._image_half(paddle.concat([states for _, states in part]))
                for rows, half in halves:
                    found[np.ix_(rows, [place for place, _ in part])] = self._tile(half, seen)
        return found

    def _text_half(self, texts: list[Sequence[int]]) -> _TextHalf:
        model, ids = self.model, paddle.to_tensor(np.array(texts, np.int64))
        positions = paddle.arange(ids.shape[1]).expand(ids.shape)
        hidden = model.text_embeddings(ids, paddle.zeros_like(ids), positions)
        for index in range(model.config.t_biattention_id[0]):
            hidden = model.text_layers[index](hidden, hidden, None)
        layer = model.co_layers[0]
        own, other = layer.text.attention, layer.region.attention
        query = _rows_by_head(own, own.query(hidden) * own.head_size**-0.5)
        key, value = (_rows_by_head(other, projection(hidden)) for projection in (other.key, other.value))
        returned = _by_pair(paddle.matmul(value, _output_by_head(other)), len(texts))
        return _TextHalf(hidden, query, key, returned)

    def _image_half(self, region: Tensor) -> _ImageHalf:
        layer: CoLayer = self.model.co_layers[0]
        own, other = layer.text.attention, layer.region.attention
        key, value = (_rows_by_head(own, projection(region)) for projection in (own.key, own.value))
        return _ImageHalf(region, key, value, _rows_by_head(other, other.query(region) * other.head_size**-0.5))

    def _tile(self, half: _TextHalf, seen: _ImageHalf) -> np.ndarray:
        """Scores ``[T, I]`` of all texts of a length with a few images."""
        images, (texts, length, _) = seen.hidden.shape[0], half.hidden.shape
        at_once = max(1, self.pairs // images)
        found = []
        for first in range(0, texts, at_once):
            stop = min(first + at_once, texts)
            rows = slice(first * length, stop * length)
            part = _TextHalf(half.hidden[first:stop], half.query[:, rows], half.key[:, rows], half.returned[first:stop])
            text, regions = _first_meeting(self.model.co_layers[0], part, seen)
            found.append(self._rest(text, regions).reshape([-1, images]))
        return paddle.concat(found).astype("float32").numpy()

    def _rest(self, text: Tensor, region: Tensor) -> Tensor:
        """From after the first co-attention to the score; texts ``[P, L, H]``, regions ``[P, N, V]``."""
        model, config = self.model, self.model.config
        text_done, region_done = config.t_biattention_id[0], config.v_biattention_id[0]
        for number in range(1, len(model.co_layers)):
            text_stop, region_stop = config.t_biattention_id[number], config.v_biattention_id[number]
            for index in range(text_done, text_stop):
                text = model.text_layers[index](text, text, None)
            for index in range(region_done, region_stop):
                region = model.region_layers[index](region, region, None)
            text, region = _meeting(model.co_layers[number], text, region)
            text_done, region_done = text_stop, region_stop
        return self.score(
            F.relu(model.text_pooler(_first_position(model.text_layers[text_done], text))),
            F.relu(model.region_pooler(_first_position(model.region_layers[region_done], region))),
        )


def _first_meeting(layer: CoLayer, half: _TextHalf, seen: _ImageHalf) -> tuple[Tensor, Tensor]:
    """The first co-attention of T texts with I images, as ``T * I`` pairs."""
    own, other = layer.text.attention, layer.region.attention
    (texts, length, width), (images, regions, _) = half.hidden.shape, seen.hidden.shape
    heads, pairs = own.heads, texts * images

    scores = paddle.matmul(half.query, seen.key, transpose_y=True).reshape([heads, texts, length, images, regions])
    weights = F.softmax(scores).transpose([0, 3, 1, 2, 4]).reshape([heads, images, texts * length, regions])
    context = paddle.matmul(weights, seen.value.reshape([heads, images, regions, -1]))
    context = context.reshape([heads, images, texts, length, -1]).transpose([2, 1, 3, 0, 4])
    attended = own.output(context.reshape([pairs, length, -1]))
    text = half.hidden.unsqueeze(1).expand([texts, images, length, width]).reshape([pairs, length, width])

    scores = paddle.matmul(seen.query, half.key, transpose_y=True).reshape([heads, images, regions, texts, length])
    weights = F.softmax(scores).transpose([3, 1, 2, 0, 4]).reshape([texts, images * regions, heads * length])
    back = paddle.matmul(weights, half.returned).reshape([pairs, regions, -1]) + other.output.bias
    region = seen.hidden.unsqueeze(0).expand([texts, *seen.hidden.shape]).reshape(back.shape)
    return layer.text.after_attention(text, attended), layer.region.after_attention(region, back)


def _meeting(layer: CoLayer, text: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """A co-attention of pairs."""
    length, regions = text.shape[1], region.shape[1]
    if not _pays(length, regions, layer.text.attention):
        return layer(text, region, None, None)
    return (
        layer.text.after_attention(text, _attend_with_few(layer.text.attention, text, region)),
        layer.region.after_attention(region, _attend_to_few(layer.region.attention, region, text)),
    )


def _pays(few: int, many: int, attention: Attention) -> bool:
    """Whether taking the projection of ``many`` positions over to ``few`` saves work: see the module's text."""
    return few * (1 / many + 1 / attention.head_size) < WORTHWHILE


def _attend_with_few(attention: Attention, hidden: Tensor, memory: Tensor) -> Tensor:
    """``attention(hidden, memory, None)`` for few queries ``[P, Q, S]`` and many keys ``[P, K, M]``."""
    pairs, queries, heads = hidden.shape[0], hidden.shape[1], attention.heads
    query = _rows_by_head(attention, attention.query(hidden) * attention.head_size**-0.5)
    moved = _by_pair(paddle.matmul(query, _apart(attention.key.weight, heads), transpose_y=True), pairs)
    weights = F.softmax(paddle.matmul(moved, memory, transpose_y=True))
    seen = paddle.matmul(weights, memory).reshape([pairs, heads, queries, -1]).transpose([1, 0, 2, 3])
    context = paddle.matmul(seen.reshape([heads, pairs * queries, -1]), _apart(attention.value.weight, heads))
    context = context.reshape([heads, pairs, queries, -1]).transpose([1, 2, 0, 3]).flatten(2)
    # The weights add up to 1, so each value's bias comes through unchanged.
    return attention.output(context + attention.value.bias)


def _attend_to_few(attention: Attention, hidden: Tensor, memory: Tensor) -> Tensor:
    """``attention(hidden, memory, None)`` for many queries ``[P, Q, S]`` and few keys ``[P, K, M]``."""
    pairs, keys, heads = memory.shape[0], memory.shape[1], attention.heads
    key = _rows_by_head(attention, attention.key(memory) * attention.head_size**-0.5)
    value = _rows_by_head(attention, attention.value(memory))
    moved = _by_pair(paddle.matmul(key, _apart(attention.query.weight, heads), transpose_y=True), pairs)
    bias = _by_pair(paddle.matmul(key, attention.query.bias.reshape([heads, -1, 1])), pairs)
    scores = paddle.matmul(hidden, moved, transpose_y=True) + bias.transpose([0, 2, 1])
    weights = F.softmax(scores.reshape([pairs, -1, heads, keys])).flatten(2)
    returned = _by_pair(paddle.matmul(value, _output_by_head(attention)), pairs)
    return paddle.matmul(weights, returned) + attention.output.bias


def _first_position(layer: TransformerLayer, hidden: Tensor) -> Tensor:
    """Position 0 of ``layer(hidden, hidden, None)``, ``[P, S]``."""
    first = hidden[:, :1]
    return layer.after_attention(first, _attend_with_few(layer.attention, first, hidden)).squeeze(1)


def _apart(weight: Tensor, heads: int) -> Tensor:
    """A projection ``[in, heads * d]`` by head: ``[heads, in, d]``."""
    return weight.reshape([weight.shape[0], heads, -1]).transpose([1, 0, 2])


def _output_by_head(attention: Attention) -> Tensor:
    """The output projection by head, ``[heads, d, out]``."""
    return attention.output.weight.reshape([attention.heads, attention.head_size, -1])


def _rows_by_head(attention: Attention, projected: Tensor) -> Tensor:
    """``[P, L, heads * d] -> [heads, P * L, d]``."""
    return projected.reshape([-1, attention.heads, attention.head_size]).transpose([1, 0, 2])


def _by_pair(rows: Tensor, pairs: int) -> Tensor:
    """``[heads, P * L, S] -> [P, heads * L, S]``."""
    heads, size = rows.shape[0], rows.shape[2]
    return rows.reshape([heads, pairs, -1, size]).transpose([1, 0, 2, 3]).reshape([pairs, -1, size])
