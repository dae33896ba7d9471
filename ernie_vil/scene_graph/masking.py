"""Masking a caption for pre-training: whole nodes of its scene graph, and word pieces at random (paper, section 3.2).

**Nodes.** Of each kind a share is masked (30 % in the paper): objects O(w), attributes K(w), relations E(w). An
attribute is predicted from its object and a relation from both of its objects, so these must stay visible: no node is
masked that another masked node needs. Masking each kind on its own would break that in a third of the cases, and
leaving out whatever conflicts would make attributes and relations rarer than their rate. Therefore objects are drawn
first, at their rate. Attributes and relations are drawn among those whose objects all stayed, with the probability rate
/ P(all its objects stay), so each of them is masked at its rate overall. P is known exactly for the way in which
objects are drawn (see :func:`stay_probability`). Where the quotient exceeds 1 it is 1, and the node is masked less
often than its rate; at 30 % that takes a relation of four different objects.

**Word pieces.** A share of all pieces (15 %) is drawn among those that are in no masked node and in no object that a
masked node needs; the probability is raised so that the share refers to all pieces. Without node masking this is the
masking of BERT. A piece is a target once, of one kind.

**Replacement.** 80 % become [MASK], 10 % random pieces, 10 % stay as they are; it is drawn once for a node, for all its
pieces, and for every other piece by itself.

All draws use systematic sampling, which keeps every probability and makes the numbers drawn as even as can be. There is
one exception: even numbers leave three objects of three hardly ever all visible (1 in 10 at 30 %, where independent
draws give 1 in 3), which a relation between three objects needs ("a cat and a dog on a mat"). In a caption where the
quotient above would exceed 1, the objects are drawn independently of each other.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from ernie_vil.data.sampling import systematic_sample
from ernie_vil.scene_graph.graph import ObjectNode, RelationNode, SceneGraph, Spans

KIND_NAMES = ("token", "object", "attribute", "relation")
TOKEN, OBJECT, ATTRIBUTE, RELATION = range(4)
NODE_KINDS = (OBJECT, ATTRIBUTE, RELATION)
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1

Pieces = tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """A node as far as masking goes. Nodes of one kind with the same pieces are one unit (triplets that share "on").

    Attributes:
        kind: ``OBJECT``, ``ATTRIBUTE`` or ``RELATION``.
        pieces: places of its word pieces in the caption, ascending.
        needs: pieces of the objects that it is tied to, which must stay visible when it is masked.
        objects: those of these objects that are units themselves: places in the list of object units.
    """

    kind: int
    pieces: Pieces
    needs: Pieces = ()
    objects: tuple[int, ...] = ()


@dataclass(frozen=True)
class MaskedCaption:
    """A caption with some of its pieces masked.

    Attributes:
        token_ids: int64 [L], the input.
        positions: int64 [m], places of what is to be predicted, ascending.
        labels: int64 [m], the ids that stood there.
        kinds: int64 [m], for each ``TOKEN``, ``OBJECT``, ``ATTRIBUTE`` or ``RELATION``.
        units: the masked nodes.
        left_out: units that were drawn but overlap with others in their pieces, so that one of the two had to go.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    units: tuple[Unit, ...]
    left_out: int


def maskable_units(graph: SceneGraph, spans: Sequence[tuple[int, int]], length: int) -> dict[int, list[Unit]]:
    """The nodes of a caption that can be masked, by kind.

    A node's pieces are those that have characters in common with it. It can be masked if there are any, all of them lie
    inside the node (the tokenizer may cut elsewhere than the parser) and none was cut off at the end of the caption.
    The objects of an attribute or a relation need not be maskable, but they must be there to be seen: uncut, and
    without pieces of the node itself.

    Args:
        graph: of the caption.
        spans: (start, end) in characters of all pieces of the caption, as
            :meth:`ernie_vil.data.tokenizer.WordPieceTokenizer.encode_with_spans` gives them.
        length: pieces that are kept.

    Returns:
        A list for each of ``OBJECT``, ``ATTRIBUTE`` and ``RELATION``, in the order of the nodes.
    """
    shown = [_pieces_of(node.spans, spans) for node in graph.objects]
    numbers: dict[Pieces, int] = {}
    for node, pieces in zip(graph.objects, shown):
        if _can_be_masked(node.spans, pieces, spans, length):
            numbers.setdefault(pieces, len(numbers))
    units = {OBJECT: [Unit(OBJECT, pieces) for pieces in numbers]}
    for kind, nodes in ((ATTRIBUTE, graph.attributes), (RELATION, graph.relations)):
        ties: dict[Pieces, set[int]] = {}
        for node in nodes:
            pieces = _pieces_of(node.spans, spans)
            if _can_be_masked(node.spans, pieces, spans, length):
                ties.setdefault(pieces, set()).update(_tied_to(node))
        units[kind] = []
        for pieces, tied in ties.items():
            needs = {piece for number in tied for piece in shown[number]}
            seen = all(shown[number] and shown[number][-1] < length for number in tied)
            if seen and needs.isdisjoint(pieces):
                objects = {numbers[shown[number]] for number in tied if shown[number] in numbers}
                units[kind].append(Unit(kind, pieces, tuple(sorted(needs)), tuple(sorted(objects))))
    return units


def mask_caption(
    token_ids: Sequence[int],
    units: dict[int, list[Unit]],
    rates: Sequence[float],
    mask_id: int,
    ordinary_ids: np.ndarray,
    rng: np.random.Generator,
) -> MaskedCaption:
    """Draw a mask for one caption; the module's description has the rule.

    Args:
        token_ids: the caption's pieces, without [CLS] and [SEP]; may be empty.
        units: from :func:`maskable_units`.
        rates: of tokens, objects, attributes and relations; 0 to 0.5 for nodes, below 1 for tokens.
        mask_id: of [MASK].
        ordinary_ids: [n] ids that a random piece is drawn from.
        rng: source of all randomness.
    """
    chosen = _Chosen()
    objects = units[OBJECT]
    count, rate = len(objects), rates[OBJECT]
    tied = [(unit.kind, len(unit.objects)) for kind in (ATTRIBUTE, RELATION) for unit in units[kind]]
    even = all(stay_probability(count, needed, rate) >= rates[kind] for kind, needed in tied)
    for number in systematic_sample([rate] * count, rng) if even else np.flatnonzero(rng.random(count) < rate):
        chosen.add(objects[number])
    drawn = {number for number, unit in enumerate(objects) if unit in chosen.units}
    for kind in (ATTRIBUTE, RELATION):
        candidates = [unit for unit in units[kind] if rates[kind] and drawn.isdisjoint(unit.objects)]
        stay = [stay_probability(count, len(unit.objects), rate, even) for unit in candidates]
        for number in systematic_sample([min(1.0, rates[kind] / probability) for probability in stay], rng):
            chosen.add(candidates[number])
    free = [piece for piece in range(len(token_ids)) if piece not in chosen.hidden and piece not in chosen.needed]
    share = min(1.0, rates[TOKEN] * len(token_ids) / len(free)) if free else 0.0
    targets = [(unit.kind, unit.pieces) for unit in chosen.units]
    targets += [(TOKEN, (free[number],)) for number in systematic_sample([share] * len(free), rng)]

    original = np.array(token_ids, dtype=np.int64)
    masked = original.copy()
    kinds = np.full(len(original), -1, dtype=np.int64)
    for kind, pieces in targets:
        places = list(pieces)
        kinds[places] = kind
        fate = rng.random()
        if fate < MASK_SHARE:
            masked[places] = mask_id
        elif fate < MASK_SHARE + RANDOM_SHARE:
            masked[places] = ordinary_ids[rng.integers(len(ordinary_ids), size=len(places))]
    positions = np.flatnonzero(kinds >= 0)
    return MaskedCaption(masked, positions, original[positions], kinds[positions], tuple(chosen.units), chosen.left_out)


def mask_node(token_ids: Sequence[int], pieces: Sequence[int], mask_id: int) -> list[int]:
    """The caption with the pieces of one node replaced by [MASK], as the cloze test asks for it."""
    masked = list(token_ids)
    for piece in pieces:
        masked[piece] = mask_id
    return masked


def ordinary_token_ids(vocabulary: dict[str, int]) -> np.ndarray:
    """int64 ids of what a random piece is drawn from: every entry but those in brackets ([CLS], [unused7], ...)."""
    kept = [number for token, number in vocabulary.items() if not re.fullmatch(r"\[.+\]", token)]
    return np.array(sorted(kept), dtype=np.int64)


@functools.lru_cache(maxsize=4096)
def stay_probability(count: int, needed: int, rate: float, even: bool = True) -> float:
    """The probability that ``needed`` given ones of ``count`` objects all stay when they are drawn at ``rate``.

    Independent draws (``even=False``) leave them with (1 - rate) ** needed. Systematic sampling takes
    k = floor(rate * count + u) objects, u uniform in [0, 1), and all subsets of k with the same probability; so it is
    the mean over k of C(count - needed, k) / C(count, k).
    """
    if not even:
        return (1 - rate) ** needed
    fewer = math.floor(rate * count)
    more_often = rate * count - fewer
    total = 0.0
    for taken, weight in ((fewer, 1 - more_often), (fewer + 1, more_often)):
        if weight:
            total += weight * math.comb(count - needed, taken) / math.comb(count, taken)
    return total


class _Chosen:
    """The nodes chosen so far, in conflict with none of each other."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.hidden: set[int] = set()
        self.needed: set[int] = set()
        self.left_out = 0

    def add(self, unit: Unit) -> None:
        if any(piece in self.hidden or piece in self.needed for piece in unit.pieces) or any(
            piece in self.hidden for piece in unit.needs
        ):
            self.left_out += 1
            return
        self.units.append(unit)
        self.hidden.update(unit.pieces)
        self.needed.update(unit.needs)


def _pieces_of(node_spans: Spans, spans: Sequence[tuple[int, int]]) -> Pieces:
    return tuple(
        piece
        for piece, (start, end) in enumerate(spans)
        if any(start < node_end and node_start < end for node_start, node_end in node_spans)
    )


def _can_be_masked(node_spans: Spans, pieces: Pieces, spans: Sequence[tuple[int, int]], length: int) -> bool:
    if not pieces or pieces[-1] >= length:
        return False
    return all(any(start <= spans[p][0] and spans[p][1] <= end for start, end in node_spans) for p in pieces)


def _tied_to(node: ObjectNode) -> tuple[int, ...]:
    return (node.subject, node.object) if isinstance(node, RelationNode) else (node.object,)  # type: ignore[attr-defined]
