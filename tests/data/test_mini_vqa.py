"""The miniature VQA data: answers that are true of the pictures, in files that the reader takes."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ernie_vil.data import mini
from ernie_vil.data.mini import COLORS, KINDS
from ernie_vil.data.mini_questions import vocabulary as question_vocabulary
from ernie_vil.data.mini_vqa import (
    FIRST_IMAGE_ID,
    QUESTION_TYPES,
    MiniVqaParameters,
    annotate,
    build_mini_vqa,
    make_questions,
    mini_vqa,
    vocabulary,
)
from ernie_vil.data.regions import open_store
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.data.vqa_answers import AnswerList, normalize_answer
from ernie_vil.data.vqa_questions import read_official
from ernie_vil.data.vqa_visual_genome import read_visual_genome
from ernie_vil.errors import UserError

SIZES = {"train_images": 40, "val_images": 10, "test_images": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mini") / "vqa"
    build_mini_vqa(path, seed=3, **SIZES)
    return path


def true_answers(scene: mini.Scene, text: str) -> list[str]:
    """What a reader of the text alone, without the code that wrote it, answers when looking at the scene."""
    things = scene.objects
    if match := re.fullmatch(r"How many (?:(\w+) )?things are there\?", text):
        word = match.group(1)
        return [str(sum(word in (None, thing.color, thing.kind) for thing in things))]
    if match := re.fullmatch(r"Is there an? (?:(\w+) )?(\w+)\?", text):
        color, kind = match.groups()
        return ["yes" if any(t.kind == kind and color in (None, t.color) for t in things) else "no"]
    if match := re.fullmatch(r"What color is the (\w+)\?", text):
        (thing,) = (thing for thing in things if thing.kind == match.group(1))
        return [thing.color]
    relation, kind = re.fullmatch(r"What is (left of|right of|above|below) the (\w+)\?", text).groups()
    (anchor,) = (thing for thing in things if thing.kind == kind)
    found = set()
    for thing in things:
        dx, dy = (thing.centre[i] - anchor.centre[i] for i in (0, 1))
        if {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation] >= mini.RELATION_MARGIN:
            found.add(thing.kind)
    return sorted(found - {kind})


def test_right_answers_are_true_and_wrong_ones_are_not():
    types: Counter[str] = Counter()
    for scene, rng in mini.scenes(5, "train", 200):
        questions = make_questions(scene, rng, 5)
        assert len({question.text for question in questions}) == len(questions) == 5
        for question in questions:
            assert question.right == true_answers(scene, question.text), question.text
            assert question.wrong
            assert not set(question.wrong) & set(question.right)
            types[question.question_type] += 1
    assert set(types) == set(QUESTION_TYPES)
    for name, (share, _) in QUESTION_TYPES.items():
        assert types[name] / sum(types.values()) == pytest.approx(share, abs=0.08)


def test_annotators_mostly_give_a_right_answer():
    right = wrong = spelled = 0
    for scene, rng in mini.scenes(6, "train", 100):
        for question in make_questions(scene, rng, 3):
            answers = annotate(question, rng)
            assert sorted(answer["answer_id"] for answer in answers) == list(range(1, 11))
            given = [normalize_answer(answer["answer"]) for answer in answers]
            mistaken = [answer for answer in given if answer not in question.right]
            assert set(mistaken) <= {normalize_answer(answer) for answer in question.wrong}
            assert len(mistaken) <= 2
            right, wrong = right + 10 - len(mistaken), wrong + len(mistaken)
            spelled += sum(answer["answer"] not in (*question.right, *question.wrong) for answer in answers)
    assert 0.02 < wrong / (right + wrong) < 0.07
    assert 0.02 < spelled / (right + wrong) < 0.08


def test_pictures_and_questions_belong_together(folder):
    for split, subset in (("train", "train2014"), ("val", "val2014")):
        questions = json.loads((folder / f"v2_OpenEnded_mscoco_{subset}_questions.json").read_text())["questions"]
        annotations = json.loads((folder / f"v2_mscoco_{subset}_annotations.json").read_text())["annotations"]
        scenes = {
            FIRST_IMAGE_ID[split] + number: scene
            for number, (scene, _) in enumerate(mini.scenes(3, split, SIZES[f"{split}_images"]))
        }
        assert {item["image_id"] for item in questions} == set(scenes)
        for question, annotation in zip(questions, annotations):
            assert question["question_id"] == annotation["question_id"]
            assert question["question_id"] // 1000 == question["image_id"] == annotation["image_id"]
            true = true_answers(scenes[question["image_id"]], question["question"])
            given = [normalize_answer(answer["answer"]) for answer in annotation["answers"]]
            assert sum(answer in true for answer in given) >= 8
            assert annotation["answer_type"] == QUESTION_TYPES[annotation["question_type"]][1]
            assert question["question"].lower().startswith(annotation["question_type"])
    image = folder / "images" / "COCO_train2014_000000000001.png"
    assert image.is_file()


def test_the_files_are_read_without_a_fault(folder):
    answers = AnswerList.read(folder / "answers.json")
    assert {"yes", "no", "1"} < set(answers.answers)
    assert set(COLORS) & set(answers.answers)
    store = open_store(folder / "features.lmdb", 80)
    counts = {"train2014": 200, "val2014": 50, "test2015": 30, "test-dev2015": 15}
    tokenizer = WordPieceTokenizer.from_file(folder / "vocab.txt")
    for subset, count in counts.items():
        annotations = folder / f"v2_mscoco_{subset}_annotations.json"
        assert annotations.exists() == ("test" not in subset)
        paths = (folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", annotations if annotations.exists() else None)
        table = read_official(*paths, answers, store)
        assert len(table) == count
        assert not table.skipped
        for index in range(count):
            assert tokenizer.unk_id not in tokenizer.encode(table[index].text)
            assert len(table.regions(index).boxes) >= 4
        if annotations.exists():
            solved = [table[index].accuracies[1].max(initial=0) for index in range(count)]
            assert np.mean(solved) > 0.7
    genome = read_visual_genome(folder / "question_answers.json", folder / "image_data.json", answers, store)
    assert len(genome) > 60
    assert not genome.skipped
    for index, image in enumerate(genome.image_ids.tolist()):
        scene = mini.make_scene(mini.scene_rng(3, "train", image - FIRST_IMAGE_ID["train"]))
        right = {answers.label(answer) for answer in true_answers(scene, genome[index].text)}
        assert genome[index].targets[0].tolist()[0] in right


def test_the_vocabulary_begins_with_that_of_the_miniature_vcr_data():
    assert vocabulary()[: len(question_vocabulary())] == question_vocabulary()
    assert {"many", "things", *KINDS} <= set(vocabulary())


def test_the_same_arguments_give_the_same_files(folder, tmp_path):
    build_mini_vqa(tmp_path / "again", seed=3, **SIZES)
    build_mini_vqa(tmp_path / "other", seed=4, **SIZES)
    same, other = Counter(), Counter()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".png", ".txt"):
            name = path.relative_to(folder)
            assert (tmp_path / "again" / name).read_bytes() == path.read_bytes(), name
            same[path.suffix] += 1
            other[path.suffix] += (tmp_path / "other" / name).read_bytes() == path.read_bytes()
    assert same[".png"] == sum(SIZES.values())
    assert other[".png"] == 0
    store, again = (open_store(root / "features.lmdb") for root in (folder, tmp_path / "again"))
    assert store.keys() == again.keys()
    assert all(np.array_equal(store[key].features, again[key].features) for key in store.keys()[:5])


def test_the_cache(tmp_path, monkeypatch):
    parameters = MiniVqaParameters(train_images=20, val_images=2, test_images=2)
    monkeypatch.setenv("ERNIE_VIL_HOME", str(tmp_path))
    path = mini_vqa(parameters=parameters)
    assert path == mini_vqa(tmp_path, parameters)
    assert path.parent == tmp_path / "mini"
    written = (path / "answers.json").stat().st_mtime_ns
    assert (mini_vqa(parameters=parameters) / "answers.json").stat().st_mtime_ns == written


def test_too_few_pictures_for_a_list_of_answers(tmp_path):
    with pytest.raises(UserError, match="no answer is that of 9 questions"):
        build_mini_vqa(tmp_path / "vqa", train_images=1, val_images=1, test_images=1)
    assert not (tmp_path / "vqa").exists()
