"""Masking of regions: nothing of a masked region is left in what the model sees; rates, fates and targets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_vil.data.region_arrays import Regions, merge_with_ground_truth
from ernie_vil.data.region_masking import APART, SAME_THING, MaskedRegions, intersection_over_union, mask_regions
from ernie_vil.errors import BadRecord

WIDTH, HEIGHT = 60, 40
SIZE = 6


def some_regions(count: int, seed: int, boxes: Optional[np.ndarray] = None) -> Regions:
    rng = np.random.default_rng(seed)
    if boxes is None:
        corners = np.sort(rng.integers(0, [WIDTH, HEIGHT], (count, 2, 2)), axis=1)
        boxes = corners.reshape(count, 4).astype("f4")
    probabilities = rng.uniform(0.1, 1, (count, 5)).astype("f4")
    return Regions(rng.normal(size=(count, SIZE)).astype("f4"), boxes, WIDTH, HEIGHT, probabilities)


def apart(count: int, seed: int = 0) -> Regions:
    """Boxes side by side."""
    left = 5 * np.arange(count, dtype="f4")
    boxes = np.stack([left, np.zeros(count, "f4"), left + 3, np.full(count, 9, "f4")], axis=1)
    return replace(some_regions(count, seed, boxes), width=5 * count)


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


sets = st.builds(some_regions, st.integers(1, 14), st.integers(0, 9_999))
other_sets = st.builds(some_regions, st.integers(1, 14), st.integers(10_000, 20_000))
fates = st.sampled_from([(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.4, 0.3)])


@settings(max_examples=60, deadline=None)
@given(sets, st.none() | other_sets, st.integers(1, 30), st.integers(0, 2**32))
def test_without_mask_the_rows_are_those_of_the_reader(
    detected: Regions, truth: Optional[Regions], most: int, seed: int
) -> None:
    features, locations = merge_with_ground_truth(detected, truth, most)
    for rate, own_fates in (
        (0.0, (0.8, 0.1)),
        (0.5, (0.0, 0.0)),
    ):  # nothing drawn; all that is drawn keeps its features
        masked = mask_regions(detected, truth, most, rate, rng_of(seed), "features", own_fates)
        np.testing.assert_array_equal(masked.features, features)
        np.testing.assert_array_equal(masked.locations, locations)
        assert not masked.hidden.any()
        np.testing.assert_array_equal(masked.targets, features[masked.rows])
    assert masked.features is not detected.features


def slow_overlap(box: np.ndarray, other: np.ndarray) -> float:
    pixels, others = (
        {(x, y) for x in range(int(x1), int(x2) + 1) for y in range(int(y1), int(y2) + 1)}
        for x1, y1, x2, y2 in (box, other)
    )
    return len(pixels & others) / len(pixels | others)


@settings(max_examples=60, deadline=None)
@given(sets, sets)
def test_overlap_against_slow_reference(some: Regions, others: Regions) -> None:
    found = intersection_over_union(some.boxes, others.boxes)
    expected = [[slow_overlap(box, other) for other in others.boxes] for box in some.boxes]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def sources_of(masked: MaskedRegions, features: np.ndarray) -> list[Optional[int]]:
    """For every row but the first, the box whose features it shows; None for zeros."""
    shown: list[Optional[int]] = []
    for row in masked.features[1:]:
        same = np.flatnonzero((features == row).all(axis=1))
        assert len(same) == 1 or not row.any()
        shown.append(int(same[0]) if len(same) else None)
    return shown


@settings(max_examples=250, deadline=None)
@given(
    sets, st.none() | other_sets, st.integers(1, 30), st.sampled_from([0.15, 0.5, 0.9]), fates, st.integers(0, 2**32)
)
def test_nothing_of_a_masked_region_is_left(
    detected: Regions, truth: Optional[Regions], most: int, rate: float, own_fates: tuple, seed: int
) -> None:
    """Seen from the result: the masked regions, and what overlaps with them, may be anything without it changing."""
    masked = mask_regions(detected, truth, most, rate, rng_of(seed), "features", own_fates)
    both = [detected] if truth is None else [detected, truth]
    features = np.concatenate([regions.features for regions in both])
    boxes = np.concatenate([regions.boxes for regions in both])
    kept_truth = 0 if truth is None else min(most - 1, len(truth.boxes))
    kept = min(most - 1 - kept_truth, len(detected.boxes))
    places = [*range(kept), *range(len(detected.boxes), len(detected.boxes) + kept_truth)]
    assert len(masked.features) == len(places) + 1 and masked.rows.tolist() == sorted(set(masked.rows.tolist()))
    assert all(1 <= row <= len(places) for row in masked.rows) and not masked.hidden[0]
    np.testing.assert_array_equal(masked.targets, features[[places[row - 1] for row in masked.rows]])

    sources = sources_of(masked, features)
    predicted = [places[row - 1] for row in masked.rows]
    gone = [place for place in predicted if sources[places.index(place)] != place]
    covered = {b for b in range(len(boxes)) if any(slow_overlap(boxes[b], boxes[g]) >= SAME_THING for g in gone)}
    for index, place in enumerate(places):
        lent = place in gone and sources[index] is not None
        assert sources[index] not in covered
        assert masked.hidden[index + 1] == (sources[index] is None) == (place in covered and not lent)
        if lent:
            assert sources[index] in places and slow_overlap(boxes[sources[index]], boxes[place]) <= APART
        elif place not in covered:
            assert sources[index] == place
    seen = [
        b if b not in gone else sources[places.index(b)]
        for b in range(len(boxes))
        if b not in covered or (b in gone and sources[places.index(b)] is not None)
    ]
    if not seen:
        assert not masked.features[0].any()
    elif truth is None:
        np.testing.assert_allclose(masked.features[0], features[seen].mean(axis=0), atol=1e-5)

    secret = [features.copy(), features.copy()]
    secret[1][sorted(covered)] = 99
    results = []
    for other in secret:
        changed = [
            replace(regions, features=part) for regions, part in zip(both, np.split(other, [len(both[0].boxes)]))
        ]
        results.append(
            mask_regions(changed[0], changed[1] if truth else None, most, rate, rng_of(seed), "none", own_fates)
        )
    np.testing.assert_array_equal(results[0].features, masked.features)
    np.testing.assert_array_equal(results[1].features, masked.features)


def test_rates_and_fates() -> None:
    regions = apart(20)
    counts, fates = np.zeros(21), Counter()
    for seed in range(3000):
        masked = mask_regions(regions, None, 37, 0.15, rng_of(seed), "features")
        assert len(masked.rows) == 3  # 15 % of 20
        counts[masked.rows] += 1
        for row in masked.rows:
            same = (masked.features[row] == regions.features[row - 1]).all()
            fates["zero" if masked.hidden[row] else "same" if same else "other"] += 1
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:] / 3000, 0.15, atol=4 * 0.36 / np.sqrt(3000))
    total = sum(fates.values())
    assert [fates[fate] / total for fate in ("zero", "other", "same")] == pytest.approx([0.8, 0.1, 0.1], abs=0.015)


def test_the_draw_does_not_depend_on_what_was_cut() -> None:
    many = some_regions(30, 1)
    few = Regions(many.features[:9], many.boxes[:9], WIDTH, HEIGHT, many.class_probs[:9])
    for seed in range(50):
        long, short = (mask_regions(r, None, 10, 0.3, rng_of(seed), "features") for r in (many, few))
        np.testing.assert_array_equal(long.rows, short.rows)
        np.testing.assert_array_equal(long.features[1:], short.features[1:])


def test_regions_of_the_annotation_are_masked_too() -> None:
    detected, truth = apart(8), apart(8, seed=1)  # the same boxes, found and annotated
    seen = set()
    for seed in range(40):
        masked = mask_regions(detected, truth, 100, 0.15, rng_of(seed), "classes", (1.0, 0.0))
        seen.update(masked.rows.tolist())
        twins = {row + 8 if row <= 8 else row - 8 for row in masked.rows.tolist()}
        assert set(np.flatnonzero(masked.hidden)) == set(masked.rows.tolist()) | twins
        probabilities = np.concatenate([detected.class_probs, truth.class_probs])[masked.rows - 1]
        np.testing.assert_allclose(masked.targets, probabilities / probabilities.sum(axis=1, keepdims=True), rtol=1e-6)
        assert masked.targets.dtype == np.float32
        visible = ~masked.hidden[1:]
        n, m = visible[:8].sum(), visible[8:].sum()
        mean = detected.features[visible[:8]].mean(axis=0) * (n + 1) + truth.features[visible[8:]].mean(axis=0) * (
            m + 1
        )
        np.testing.assert_allclose(masked.features[0], mean / (n + m + 2), atol=1e-6)
    assert seen == set(range(1, 17))


def test_images_of_other_sizes_are_compared_in_shares() -> None:
    detected = apart(4)
    truth = replace(apart(4, seed=1), boxes=detected.boxes * 2, width=detected.width * 2, height=HEIGHT * 2)
    masked = mask_regions(detected, truth, 100, 0.13, rng_of(0), "none", (1.0, 0.0))
    assert masked.targets is None and len(masked.rows) == 1
    assert masked.hidden.sum() == 2


def test_a_region_that_keeps_its_features_gives_way_to_a_masked_one() -> None:
    """A keeps, B is zeroed and covers A; C overlaps with A alone and must go as well, for A is predicted."""
    boxes = np.array([[10, 0, 19, 9], [14, 0, 23, 9], [6, 0, 15, 9], [40, 0, 49, 9]], "f4")  # A B C D
    overlap = intersection_over_union(boxes, boxes)
    assert overlap[0, 1] >= SAME_THING and overlap[0, 2] >= SAME_THING and overlap[1, 2] < SAME_THING
    regions = some_regions(4, 0, boxes)
    outcomes = set()
    for seed in range(400):
        masked = mask_regions(regions, None, 5, 0.5, rng_of(seed), "features", (0.5, 0.0))
        hidden = tuple(np.flatnonzero(masked.hidden) - 1)
        if masked.rows.tolist() == [1, 2]:
            outcomes.add(hidden)
    # Both keep; both or A are zeroed (B and C overlap with A); B alone would leave C, but A goes with B and C with A.
    assert outcomes == {(), (0, 1, 2)}


def test_scene_boxes_stay_and_equal_points_go() -> None:
    whole, small = [0, 0, WIDTH - 1, HEIGHT - 1], [5, 5, 9, 9]
    points = [[50, 30, 50, 30], [50, 30, 50, 30]]
    regions = some_regions(4, 0, np.array([whole, small, *points], "f4"))
    hidden = set()
    for seed in range(200):
        masked = mask_regions(regions, None, 5, 0.25, rng_of(seed), "none", (1.0, 0.0))
        hidden.add(tuple(np.flatnonzero(masked.hidden)))
    assert hidden == {(1,), (2,), (3, 4)}


def test_everything_hidden_leaves_zeros() -> None:
    boxes = np.array([[0, 0, 19, 9]] * 3, "f4")
    masked = mask_regions(some_regions(3, 0, boxes), None, 4, 0.9, rng_of(0), "none", (0.0, 1.0))
    assert len(masked.rows) and masked.hidden.tolist() == [False, True, True, True]  # nobody can lend features
    assert not masked.features.any()


def test_bad_class_distributions() -> None:
    for bad in (0.0, -0.5):
        regions = replace(apart(3), class_probs=np.full((3, 5), bad, "f4"))
        with pytest.raises(BadRecord, match="class_probs"):
            mask_regions(regions, None, 4, 0.9, rng_of(0), "classes")
        mask_regions(regions, None, 4, 0.9, rng_of(0), "features")
