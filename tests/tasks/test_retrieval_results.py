"""Recall against a slow reference and the original's tool, and the files of predictions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_vil.data.retrieval_files import Caption, RetrievalSplit
from ernie_vil.tasks.retrieval_results import retrieval_metrics, write_retrieved

GOLDEN = json.loads((DATA / "readers" / "recall.json").read_text())


def slow_ranks(scores: dict, image_of: dict, ids: dict, ties: str) -> tuple[list[int], list[int]]:
    """Ranks by walking through sorted lists. ``against``: of equal scores the wrong ones come first; ``original``: the
    greater id, as text, comes first."""
    images = sorted(set(image_of.values()))

    def place(candidates: list, score: callable, right: callable, name: callable) -> int:
        def before(candidate: object) -> tuple:
            tie = (right(candidate),) if ties == "against" else tuple(-ord(letter) for letter in name(candidate))
            return (-score(candidate), *tie)

        # Ids of equal length, so that the tuples compare as texts do.
        ranked = sorted(candidates, key=before)
        return 1 + next(index for index, candidate in enumerate(ranked) if right(candidate))

    image_ranks, caption_ranks = [], []
    for c, own in image_of.items():
        table = {i: scores[i, c] for i in images}
        image_ranks.append(place(images, table.get, own.__eq__, lambda i: ids["image", i]))
    for i in images:
        table = {c: scores[i, c] for c in image_of}
        right = {c for c, own in image_of.items() if own == i}
        caption_ranks.append(place(list(image_of), table.get, right.__contains__, lambda c: ids["caption", c]))
    return image_ranks, caption_ranks


def records_of(scores: np.ndarray, image_of: list[int], first: int = 0) -> list[dict]:
    return [
        {"key": (0, 0, index), "caption": index, "image": first + own, "first": first, "scores": scores[index]}
        for index, own in enumerate(image_of)
    ]


def figures(ranks: list[int], name: str) -> dict[str, float]:
    found = {f"{name}_r{cut}": 100.0 * sum(rank <= cut for rank in ranks) / len(ranks) for cut in (1, 5, 10)}
    return {**found, f"{name}_rank": sum(ranks) / len(ranks)}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_recall_is_that_of_the_slow_reference(data):
    images = data.draw(st.integers(1, 14))
    image_of = [image for image in range(images) for _ in range(data.draw(st.integers(1, 3)))]
    # Few different scores: ties everywhere.
    values = st.lists(st.integers(-2, 2), min_size=images * len(image_of), max_size=images * len(image_of))
    scores = np.array(data.draw(values), np.float32).reshape(len(image_of), images) / 2
    table = {(i, c): float(scores[c, i]) for c in range(len(image_of)) for i in range(images)}
    image_ranks, caption_ranks = slow_ranks(table, dict(enumerate(image_of)), {}, "against")
    records = records_of(scores, image_of)
    order = data.draw(st.permutations(records))
    found = retrieval_metrics(order)
    wanted = {**figures(image_ranks, "ir"), **figures(caption_ranks, "tr")}
    assert found.pop("recall_mean") == pytest.approx(
        np.mean([v for k, v in wanted.items() if "_r" in k and "rank" not in k])
    )
    assert found == pytest.approx(wanted)


def golden_scores(case: dict) -> tuple[np.ndarray, list[int]]:
    step = case["captions_of_image_i"]
    image_of = [i for i in range(case["images"]) for _ in range(1 + i % 3 if step == "1 + i % 3" else 1)]
    assert len(image_of) == case["captions"]
    image, caption = np.arange(case["images"])[None, :], np.arange(case["captions"])[:, None]
    a, b = GOLDEN["a"], GOLDEN["b"]
    scores = ((image * a + caption * b + ((image * caption) % 977) * 31) % 65537) / 65537
    bonus = np.array([0, 0.97, 0.6, 0.9, 0.35])[(caption * 7 + image) % 5]
    scores = scores + bonus * (np.array(image_of)[:, None] == image)
    return np.array([[float(f"{value:.{case['decimals']}f}") for value in row] for row in scores]), image_of


@pytest.mark.parametrize("number", range(len(GOLDEN["cases"])))
def test_the_recall_tool_of_the_original(number):
    case = GOLDEN["cases"][number]
    scores, image_of = golden_scores(case)
    found = retrieval_metrics(records_of(scores, image_of))
    names = {"r1": "r1", "r5": "r5", "r10": "r10", "avg_rank": "rank"}
    for way, theirs in (("ir", case["image_retrieval"]), ("tr", case["text_retrieval"])):
        for golden, ours in names.items():
            value = found[f"{way}_{ours}"] / (1 if ours == "rank" else 100)
            if number == 0:
                assert value == pytest.approx(theirs[golden], abs=6e-5), (way, golden)
            else:
                # Some scores are equal here (one decimal; a million pairs). Ours count against the model.
                slack = 6e-5 + (0.04 if ours == "rank" else 0.002) * (number == 2)
                better = theirs[golden] - value if ours == "rank" else value - theirs[golden]
                assert better <= 6e-5 and (number == 1 or better >= -slack), (way, golden)


@pytest.mark.parametrize("number", [0, 1])
def test_where_the_original_differs_it_is_the_ties(number):
    case = GOLDEN["cases"][number]
    scores, image_of = golden_scores(case)
    table = {(i, c): scores[c, i] for c in range(len(image_of)) for i in range(case["images"])}
    ids = {("image", i): str(5000 + i) for i in range(case["images"])}
    ids.update({("caption", c): str(c).ljust(2, "\0") for c in range(len(image_of))})
    image_ranks, caption_ranks = slow_ranks(table, dict(enumerate(image_of)), ids, "original")
    for ranks, theirs in ((image_ranks, case["image_retrieval"]), (caption_ranks, case["text_retrieval"])):
        wanted = figures(ranks, "x")
        assert [wanted[f"x_r{cut}"] / 100 for cut in (1, 5, 10)] == pytest.approx(
            [theirs[f"r{cut}"] for cut in (1, 5, 10)], abs=6e-5
        )
        assert wanted["x_rank"] == pytest.approx(theirs["avg_rank"], abs=6e-5)


def test_one_score_for_all_pairs_finds_nothing():
    found = retrieval_metrics(records_of(np.zeros([20, 20], np.float32), list(range(20))))
    assert found["recall_mean"] == 0.0 and found["ir_rank"] == found["tr_rank"] == 20


def test_folds_are_averaged():
    rng = np.random.default_rng(0)
    parts = [rng.random([12, 6]), rng.random([12, 6])]
    image_of = [image for image in range(6) for _ in range(2)]
    whole = []
    for number, scores in enumerate(parts):
        for record in records_of(scores, image_of, first=6 * number):
            whole.append({**record, "caption": record["caption"] + 12 * number})
    each = [retrieval_metrics(records_of(scores, image_of)) for scores in parts]
    wanted = {name: (each[0][name] + each[1][name]) / 2 for name in each[0]}
    assert retrieval_metrics(whole[::-1]) == pytest.approx(wanted)


def test_files_of_predictions(tmp_path):
    names = [f"i{number}" for number in range(12)]
    captions = [Caption(f"c{number}", f"text {number}", number, "") for number in range(12)]
    split = RetrievalSplit(captions, names)
    scores = np.arange(144, dtype=np.float32).reshape(12, 12) % 5
    records = records_of(scores, list(range(12)))[::-1]
    write_retrieved(records, split, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    assert lines[3]["caption_id"] == "c3" and lines[3]["caption"] == "text 3" and lines[3]["image_id"] == "i3"
    # Row 3 is 1 2 3 4 0 1 2 3 4 0 1 2: the highest first, equal ones in their order.
    assert [(entry["image_id"], entry["score"]) for entry in lines[3]["images"]] == [
        *[("i3", 4.0), ("i8", 4.0), ("i2", 3.0), ("i7", 3.0), ("i1", 2.0)],
        *[("i6", 2.0), ("i11", 2.0), ("i0", 1.0), ("i5", 1.0), ("i10", 1.0)],
    ]
    column = lines[12 + 2]
    assert column["image_id"] == "i2" and column["caption_ids"] == ["c2"] and len(column["captions"]) == 10
    assert [entry["score"] for entry in column["captions"]] == sorted(scores[:, 2].tolist(), reverse=True)[:10]
    write_retrieved(records, split, tmp_path / "out.tsv")
    lines = (tmp_path / "out.tsv").read_text().splitlines()
    assert len(lines) == 144 and lines[12 + 5] == f"{scores[1, 5]:.8g}\ti5\tc1"
