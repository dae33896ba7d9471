"""Sequences of one or two texts for a BERT-like model, and their padding to a batch."""

from __future__ import annotations

from typing import Sequence

import numpy as np


def truncate_pair(a: list[int], b: list[int], max_length: int) -> None:
    """Shorten the two lists **in place** until they hold ``max_length`` items together.

    The last item of the longer list goes, of ``b`` when both are equally long. The original works in place too, and
    with several candidates for ``b`` that is felt: what a long candidate took from ``a`` is missing for the next ones.
    """
    while len(a) + len(b) > max_length:
        (a if len(a) > len(b) else b).pop()


def pair_sequence(a: Sequence[int], b: Sequence[int], cls_id: int, sep_id: int) -> tuple[list[int], list[int]]:
    """``[CLS] a [SEP] b [SEP]`` and its segments: 0 up to and including the first closing ``[SEP]``, then 1."""
    input_ids = [cls_id, *a, sep_id, *b, sep_id]
    return input_ids, [0] * (len(a) + 2) + [1] * (len(b) + 1)


def pad_sequences(
    input_ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]], pad_id: int = 0
) -> dict[str, np.ndarray]:
    """Pad sequences to the longest of them.

    As in the original, positions and segments are padded with the pad id too.

    Returns:
        ``input_ids``, ``token_type_ids`` and ``position_ids`` (0, 1, 2, ...), int64 ``[rows, L]``, and
        ``attention_mask``, float32 ``[rows, L]``, 1 where there is a token.
    """
    lengths = [len(sequence) for sequence in input_ids]
    shape = (len(lengths), max(lengths))
    words, segments, positions = (np.full(shape, pad_id, dtype=np.int64) for _ in range(3))
    mask = np.zeros(shape, dtype=np.float32)
    for row, length in enumerate(lengths):
        words[row, :length] = input_ids[row]
        segments[row, :length] = token_type_ids[row]
        positions[row, :length] = np.arange(length)
        mask[row, :length] = 1
    return {"input_ids": words, "token_type_ids": segments, "position_ids": positions, "attention_mask": mask}
