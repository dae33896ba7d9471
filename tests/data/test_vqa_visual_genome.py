"""Visual Genome's questions in training: what is taken of them, and when they have their turn."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_vil.data.vqa_answers import AnswerList
from ernie_vil.data.vqa_visual_genome import Mix, read_visual_genome
from ernie_vil.errors import UserError

ANSWERS = AnswerList(["red", "2", "on street"])
IMAGES = [{"image_id": 1, "coco_id": 77}, {"image_id": 2, "coco_id": None}, {"image_id": 3, "coco_id": 88}]


def question(image: int, number: int, text: str, answer: Any) -> dict:
    return {"qa_id": number, "image_id": image, "question": text, "answer": answer, "a_objects": [], "q_objects": []}


QUESTIONS = [
    {"id": 1, "qas": [question(1, 10, "What color?", "Red."), question(1, 11, "Where is it?", "On the street.")]},
    {"id": 2, "qas": [question(2, 20, "What color?", "Red.")]},
    {"id": 3, "qas": [question(3, 30, "How many?", "Two."), question(3, 31, "Who?", "A man.")]},
]


def written(folder: Path, questions: Any = QUESTIONS, images: Any = IMAGES) -> tuple[Path, Path]:
    paths = (folder / "question_answers.json", folder / "image_data.json")
    for path, value in zip(paths, (questions, images)):
        path.write_text(json.dumps(value))
    return paths


def test_what_is_taken(tmp_path):
    table = read_visual_genome(*written(tmp_path), ANSWERS, None)
    assert table.question_ids.tolist() == [10, 11, 30]
    assert table.image_ids.tolist() == [77, 77, 88]
    assert [table[i].text for i in range(3)] == ["What color?", "Where is it?", "How many?"]
    assert [dict(zip(*table[i].targets)) for i in range(3)] == [{0: 1.0}, {2: 1.0}, {1: 1.0}]
    assert table[0].accuracies is None
    assert not table.skipped
    assert read_visual_genome(*written(tmp_path), ANSWERS, None, {77}).question_ids.tolist() == [30]


def test_names_of_older_releases(tmp_path):
    old = [{"id": 5, "qas": [{"id": 50, "image_id": 5, "question": "What color?", "answer": "Red"}]}]
    table = read_visual_genome(*written(tmp_path, old, [{"id": 5, "coco_id": 9}]), ANSWERS, None)
    assert (table.question_ids.tolist(), table.image_ids.tolist()) == ([50], [9])


def test_unusable_questions_are_left_out_and_named(tmp_path):
    bad = [question(1, 12, "", "Red"), question(1, 13, "What?", 3), {"image_id": None}, "x"]
    bad += [{"image_id": 1, "question": "What color?", "answer": "Red"}]
    table = read_visual_genome(*written(tmp_path, [{"id": 1, "qas": bad}, *QUESTIONS]), ANSWERS, None)
    assert table.question_ids.tolist() == [10, 11, 30]
    messages = ["`question` is ''", "`answer` is 3", "`image_id` is None", "expected a JSON object", "`id` is None"]
    assert len(table.skipped) == len(messages)
    for place, (text, message) in enumerate(zip(table.skipped, messages)):
        assert message in text
        assert f"image entry 0, question {place}" in text


@pytest.mark.parametrize(
    ("questions", "images", "message"),
    [
        ([{"id": 1}], IMAGES, "question_answers.json: entry 0 has no list `qas`"),
        ([3], IMAGES, "question_answers.json: entry 0 has no list `qas`"),
        ({"data": []}, IMAGES, "question_answers.json: not JSON of the expected form"),
        (QUESTIONS, [{"id": 1}], "image_data.json: entry 0 has no `image_id` or no `coco_id`"),
        (QUESTIONS, [{"coco_id": 1}], "image_data.json: entry 0 has no `image_id`"),
        (QUESTIONS, IMAGES[1:2], "question_answers.json: no question on an image of COCO has an answer"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, questions, images, message):
    with pytest.raises(UserError, match=message):
        read_visual_genome(*written(tmp_path, questions, images), ANSWERS, None)


@pytest.mark.parametrize("absent", [0, 1])
def test_files_that_are_not_there(tmp_path, absent):
    paths = written(tmp_path)
    paths[absent].unlink()
    with pytest.raises(UserError, match="no such file"):
        read_visual_genome(*paths, ANSWERS, None)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_every_question_has_its_turn_in_every_pass(size, extra, passes, seed):
    mix = Mix(size, extra, passes, seed)
    epochs = passes * (size + extra) // size + 4
    walk = [mix.question(epoch, index) for epoch in range(epochs) for index in range(size)]
    # The passes with additional questions, one after the other, each with every question once.
    for number in range(passes):
        own = walk[number * (size + extra) : (number + 1) * (size + extra)]
        assert sorted(own) == list(range(size + extra))
    rest = walk[passes * (size + extra) :]
    for start in range(0, len(rest) - size + 1, size):
        assert sorted(rest[start : start + size]) == list(range(size))
    assert max(Counter(rest).values()) - min(Counter(rest).values()) <= 1
    # A place alone gives the same, whatever was asked before.
    assert Mix(size, extra, passes, seed).question(epochs - 1, size - 1) == walk[-1]


def test_the_order_follows_the_seed():
    orders = [[Mix(50, 50, 1, seed).question(0, index) for index in range(50)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    later = [Mix(50, 50, 2, 0).question(2, index) for index in range(50)]
    assert later != orders[0]
