"""The official question and annotation files: real ones against plain reading, and files with faults."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from ernie_vil.data.vqa_answers import AnswerList, answer_accuracy, frequent_answers
from ernie_vil.data.vqa_questions import QuestionRow, QuestionTable, read_official
from ernie_vil.errors import UserError

SAMPLE = Path(__file__).parent / "vqa_v2"
QUESTIONS = json.loads((SAMPLE / "questions.json").read_text())
ANNOTATIONS = json.loads((SAMPLE / "annotations.json").read_text())


@pytest.fixture(scope="module")
def answers() -> AnswerList:
    return frequent_answers([SAMPLE / "annotations.json"], 1)


def test_real_files(answers):
    table = read_official(SAMPLE / "questions.json", SAMPLE / "annotations.json", answers)
    assert not table.skipped
    assert table.question_ids.tolist() == [item["question_id"] for item in QUESTIONS["questions"]]
    assert table.image_ids.tolist() == [item["image_id"] for item in QUESTIONS["questions"]]
    annotations = {item["question_id"]: item for item in ANNOTATIONS["annotations"]}
    # The files are not in the same order, so that this is not for nothing.
    assert list(annotations) != table.question_ids.tolist()
    for index, item in enumerate(QUESTIONS["questions"]):
        found, annotation = table[index], annotations[item["question_id"]]
        given = [answer["answer"] for answer in annotation["answers"]]
        assert (found.question_id, found.text) == (item["question_id"], item["question"])
        assert (found.question_type, found.answer_type) == (annotation["question_type"], annotation["answer_type"])
        targets = {answers.label(text): min(1.0, 0.3 * given.count(text)) for text in given if text in answers.answers}
        assert dict(zip(*found.targets)) == pytest.approx(targets)
        accuracies = dict(zip(*found.accuracies))
        for label, text in enumerate(answers.answers):
            assert accuracies.get(label, 0.0) == answer_accuracy(text, given)
        assert table.where(index) == f"{SAMPLE / 'questions.json'}, question {item['question_id']}"


def test_questions_without_annotations(answers):
    table = read_official(SAMPLE / "questions.json", None, answers)
    assert len(table) == len(QUESTIONS["questions"])
    assert table[3].accuracies is None
    assert len(table[3].targets[0]) == 0
    assert table[3].text == QUESTIONS["questions"][3]["question"]


def test_a_part_of_a_table(answers):
    table = read_official(SAMPLE / "questions.json", SAMPLE / "annotations.json", answers)
    kept = np.arange(len(table)) % 3 == 1
    part = table.select(kept).select(np.arange(kept.sum()) > 4)
    places = np.flatnonzero(kept)[5:]
    assert part.question_ids.tolist() == table.question_ids[places].tolist()
    for index, place in enumerate(places):
        assert (part[index].text, part.where(index)) == (table[place].text, table.where(place))
        assert np.array_equal(part[index].targets[0], table[place].targets[0])
        assert np.array_equal(part[index].accuracies[1], table[place].accuracies[1])
    assert len(table) == len(QUESTIONS["questions"])


def test_a_table_can_go_to_another_process(answers):
    table = pickle.loads(pickle.dumps(read_official(SAMPLE / "questions.json", SAMPLE / "annotations.json", answers)))
    assert table[0].text == QUESTIONS["questions"][0]["question"]


def test_texts_of_all_alphabets():
    texts = ["", "中国?", "a\ud800b", "naïve ☃"]
    rows = [QuestionRow(place, 10 + place, 3, text, {place: 0.5}) for place, text in enumerate(texts)]
    random.Random(0).shuffle(rows)
    table = QuestionTable("table", rows, [], None)
    assert [table[i].text for i in range(4)] == texts
    assert [table[i].targets[0].tolist() for i in range(4)] == [[0], [1], [2], [3]]
    assert table.question_ids.tolist() == [10, 11, 12, 13]


Change = Callable[[list, list], Any]


def written(folder: Path, change: Change) -> tuple[Path, Path]:
    questions, annotations = copy.deepcopy(QUESTIONS), copy.deepcopy(ANNOTATIONS)
    order = {item["question_id"]: place for place, item in enumerate(questions["questions"])}
    annotations["annotations"].sort(key=lambda item: order[item["question_id"]])
    change(questions["questions"], annotations["annotations"])
    (folder / "questions.json").write_text(json.dumps(questions))
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return folder / "questions.json", folder / "annotations.json"


def put(which: int, place: int, name: str, value: Any) -> Change:
    return lambda *lists: lists[which][place].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "lost", "message"),
    [
        (lambda questions, _: questions.pop(4), [4], "annotation of question {4}: there is no such question in"),
        (lambda _, annotations: annotations.pop(4), [4], "question {4}: it has no annotation in"),
        (lambda questions, _: questions.append(questions[4]), [], "question {4}: its id stands for the second time"),
        (lambda _, found: found.append(found[4]), [], "annotation of question {4}: its id stands for the second time"),
        (put(0, 4, "question", "  "), [4], "question {4}: `question` is '  ', not a text"),
        (put(0, 4, "question", None), [4], "question {4}: `question` is None"),
        (put(0, 4, "image_id", "12"), [4], "question {4}: `image_id` is '12', not a whole number"),
        (put(0, 4, "question_id", True), [4], "question True: `question_id` is True"),
        (put(0, 4, "question_id", [1]), [4], "question, entry 4: `question_id` is [1]"),
        (put(1, 4, "image_id", 7), [4], "annotation of question {4}: it is of image 7, the question in"),
        (put(1, 4, "answers", []), [4], "annotation of question {4}: it has no `answers`"),
        (put(1, 4, "answers", [{"answer": 3}]), [4], "annotation of question {4}: one of its `answers` has no text"),
        (
            put(1, 4, "answer_type", 3),
            [4],
            "annotation of question {4}: its `question_type` or `answer_type` is no text",
        ),
        (
            lambda questions, _: questions.__setitem__(4, "x"),
            [4],
            "question, entry 4: expected a JSON object, found str",
        ),
        (lambda _, found: found.__setitem__(4, 3), [4], "annotation of question, entry 4: expected a JSON object"),
    ],
)
def test_unusable_records_are_left_out_and_named(tmp_path, answers, change, lost, message):
    paths = written(tmp_path, change)
    table = read_official(*paths, answers)
    ids = [item["question_id"] for item in QUESTIONS["questions"]]
    assert table.question_ids.tolist() == [number for place, number in enumerate(ids) if place not in lost]
    assert any(message.replace("{4}", str(ids[4])) in text for text in table.skipped), table.skipped
    assert all(str(tmp_path) in text for text in table.skipped)
    # A fault of the question shows in its annotation too, and the other way round.
    assert 1 <= len(table.skipped) <= 2


def test_fewer_than_ten_answers_are_averaged(tmp_path, answers):
    paths = written(tmp_path, lambda _, found: found[4].__setitem__("answers", [{"answer": answers.answers[0]}] * 2))
    found = read_official(*paths, answers)[4]
    assert (found.targets[0].tolist(), found.targets[1].tolist()) == ([0], [0.6])
    assert dict(zip(*found.accuracies))[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("questions.json", '{"questions": [{"image_id": 1,', "not JSON of the expected form"),
        ("questions.json", "[1, 2]", "not JSON of the expected form"),
        ("questions.json", '{"annotations": []}', "has no `questions`"),
        ("questions.json", '{"questions": []}', "no usable question"),
        ("annotations.json", '{"annotations": [}', "not JSON of the expected form"),
        ("annotations.json", '{"questions": []}', "has no `annotations`"),
        ("annotations.json", '{"annotations": []}', "are both of the same split"),
        ("annotations.json", '{"annotations": [{"question_id": 1, "image_id": 1}]}', "are both of the same split"),
        ("questions.json", None, "no such file"),
        ("annotations.json", None, "no such file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, answers, name, content, message):
    paths = written(tmp_path, lambda *lists: None)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_official(*paths, answers)
    assert str(tmp_path / name) in str(caught.value)
