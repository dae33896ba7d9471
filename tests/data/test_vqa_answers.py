"""Answers of VQA: against measurements of the public evaluation code, cases counted by hand, and a slow reference."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_vil.data.vqa_answers import (
    CONTRACTIONS,
    SOFT_SCORES,
    AnswerList,
    annotated_answers,
    answer_accuracy,
    clean_answer,
    frequent_answers,
    normalize_answer,
    write_answer_list,
)
from ernie_vil.errors import BadRecord, UserError

SAMPLE = Path(__file__).parent / "vqa_v2"
MEASURED = json.loads((SAMPLE / "measured.json").read_text(encoding="utf-8"))
LABELS = Path(__file__).parent / "ernie_vil" / "samples" / "vqa" / "label2ans.pkl"


def test_normalization_is_that_of_the_public_code():
    assert len(MEASURED["normalized"]) > 300
    assert {word for text, _ in MEASURED["normalized"] for word in [text]} >= set(CONTRACTIONS)
    for text, wanted in MEASURED["normalized"]:
        assert normalize_answer(text) == wanted, text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Red Dogs", "red dogs"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("a", ""),
        ("dont", "don't"),
        ("im", "im"),  # the table says "Im", which no lower-case word is
        ("somebody'd", "somebodyd"),
        ("black/white", "black white"),
        ("black/ white", "black white"),
        ("black/white or red/ blue", "blackwhite or red blue"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("one, two", "1 2"),
        ("5.30 p.m.", "5.30 pm"),
        ("end.", "end"),
        (".5", ".5"),
        ("a." * 40, "a" * 32 + "a." * 8),
        ("it's: 3", "it's: 3"),
    ],
)
def test_normalization_by_hand(text, wanted):
    assert normalize_answer(text) == wanted


@pytest.mark.parametrize(("count", "wanted"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)])
def test_ten_annotators(count, wanted):
    answers = ["red"] * count + [f"other {i}" for i in range(10 - count)]
    assert answer_accuracy("red", answers) == pytest.approx(wanted, abs=1e-12)
    assert SOFT_SCORES[min(count, 4)] == pytest.approx(min(1, 0.3 * count)) == pytest.approx(wanted)
    assert AnswerList(["blue", "red"]).targets(answers) == ({1: wanted} if count else {})


def test_answers_are_normalized_only_without_agreement():
    assert answer_accuracy("1", ["one"] * 10) == 0
    assert answer_accuracy("One", ["one"] * 10) == 0
    assert answer_accuracy("one\n", ["one\t"] * 10) == 1
    assert answer_accuracy("1", ["one"] * 9 + ["two"]) == 1
    assert answer_accuracy("The one.", ["one", "1", "a one", "uno"] + ["two"] * 6) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [(["a b"], 0.0), (["a b"] * 2, 1 / 3), (["a b", "c"], 1 / 6), (["a b"] * 3 + ["c"], 3 / 4), (["a b"] * 5, 1.0)],
)
def test_fewer_than_ten_annotators(answers, wanted):
    assert answer_accuracy("a b", answers) == pytest.approx(wanted)


words = st.sampled_from(
    ["red", "Red", "red.", "a red", "two", "2", "two dogs", "2 dogs", "the 2 dogs", "dont", "don't"]
)


@given(words, st.lists(words, min_size=1, max_size=10))
@settings(max_examples=300, deadline=None)
def test_accuracy_is_the_mean_over_all_annotators_but_one(prediction, answers):
    given_, predicted = answers, prediction
    if len(set(answers)) > 1:
        given_, predicted = [normalize_answer(answer) for answer in answers], normalize_answer(prediction)
    subsets = list(itertools.combinations(range(len(answers)), len(answers) - 1))
    slow = sum(min(1.0, sum(given_[i] == predicted for i in subset) / 3) for subset in subsets) / len(subsets)
    assert answer_accuracy(prediction, answers) == pytest.approx(slow, abs=1e-12)


@given(st.lists(words, min_size=1, max_size=8, unique=True), st.lists(words, min_size=1, max_size=10))
@settings(max_examples=300, deadline=None)
def test_what_each_class_earns(classes, answers):
    answer_list = AnswerList(classes)
    wanted = {label: answer_accuracy(answer, answers) for label, answer in enumerate(classes)}
    assert answer_list.accuracies(answers) == {label: value for label, value in wanted.items() if value}
    counts = {label: answers.count(answer) for label, answer in enumerate(classes) if answer in answers}
    assert answer_list.targets(answers) == pytest.approx({label: min(1, 0.3 * n) for label, n in counts.items()})


def test_real_questions_as_the_public_code_scores_them():
    annotations = json.loads((SAMPLE / "annotations.json").read_text())["annotations"]
    results = {row["question_id"]: row["answer"] for row in json.loads((SAMPLE / "results.json").read_text())}
    assert len(annotations) == len(MEASURED["per_question"]) == len(results) > 90
    total = 0.0
    for item in annotations:
        accuracy = answer_accuracy(results[item["question_id"]], annotated_answers(item))
        assert round(100 * accuracy, 2) == MEASURED["per_question"][str(item["question_id"])]
        total += accuracy
    assert round(100 * total / len(annotations), 2) == MEASURED["accuracy"]["overall"]


def test_white_space_goes_from_answers():
    assert clean_answer(" two\ndogs\there\n") == "two dogs here"


def annotation_file(path: Path, answers: list[Any], first_id: int = 0) -> Path:
    items = [{"question_id": first_id + i, "multiple_choice_answer": answer} for i, answer in enumerate(answers)]
    path.write_text(json.dumps({"info": {}, "annotations": items}))
    return path


def test_the_list_holds_the_frequent_answers(tmp_path):
    train = annotation_file(tmp_path / "train.json", ["yes"] * 5 + ["Two"] * 8 + ["no"] * 9 + ["dog"] * 8 + ["the"] * 9)
    val = annotation_file(tmp_path / "val.json", ["2"] * 1 + ["yes."] * 5 + ["cat"], 1000)
    assert frequent_answers([train, val]).answers == ("yes", "", "2", "no")
    assert frequent_answers([train, val], 8).answers == ("yes", "", "2", "no", "dog")
    # A question that stands in both files counts once.
    again = annotation_file(tmp_path / "again.json", ["yes"] * 5 + ["dog"] * 9)
    assert frequent_answers([train, again]).answers == ("", "no")
    assert write_answer_list([train, val], tmp_path / "answers.json", 1) == 6
    assert AnswerList.read(tmp_path / "answers.json").answers == ("yes", "", "2", "no", "dog", "cat")


def test_the_list_of_the_real_questions(tmp_path):
    items = json.loads((SAMPLE / "annotations.json").read_text())["annotations"]
    normalized = [normalize_answer(item["multiple_choice_answer"]) for item in items]
    wanted = {answer for answer in normalized if normalized.count(answer) >= 3}
    found = frequent_answers([SAMPLE / "annotations.json"], 3).answers
    assert set(found) == wanted
    assert [normalized.count(answer) for answer in found] == sorted(map(normalized.count, wanted), reverse=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"annotations": [{"question_id": 1}]}', "annotation 0 has no"),
        ('{"annotations": [{"multiple_choice_answer": "x", "question_id": null}]}', "annotation 0 has no"),
        ('{"annotations": [3]}', "annotation 0 has no"),
        ('{"annotations": []}', "no answer is that of 9 questions"),
        ('{"questions": []}', "has no `annotations`"),
        ('{"annotations": [{"question_id"', "not JSON"),
    ],
)
def test_bad_annotations_for_the_list(tmp_path, content, message):
    path = tmp_path / "annotations.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        frequent_answers([path])
    assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        frequent_answers([tmp_path / "absent.json"])


def test_the_pickled_list_of_the_original():
    answers = AnswerList.read(LABELS)
    assert len(answers) == 3129
    assert answers.answers[:2] == ("ans_0000", "ans_0001")
    assert answers.label("ans_2869") == 2869
    assert answers.label("ans_") is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.json", b'["yes", "no"', "not a readable list"),
        ("list.json", b"\xff", "not a readable list"),
        ("list.json", b"[" * 100000, "not a readable list"),
        ("list.json", b'{"yes": 0}', "not a list of texts"),
        ("list.json", b'["yes", 1]', "not a list of texts"),
        ("list.json", b"[]", "holds no answer"),
        ("list.json", b'["yes", "no", "yes"]', "'yes' stands more than once"),
        ("list.pkl", b'["yes", "no"]', "not a readable list"),
        ("list.pkl", pickle.dumps(Path("x")), "the pickle asks for"),
    ],
)
def test_bad_lists(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        AnswerList.read(path)
    assert str(path) in str(caught.value)


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such list"):
        AnswerList.read(tmp_path / "answers.json")


@pytest.mark.parametrize("answers", [None, [], "red", [{"answer": 3}], ["red"], [{"answer": "red"}, {}]])
def test_annotations_without_answers(answers):
    with pytest.raises(BadRecord, match="answer"):
        annotated_answers({"answers": answers})
