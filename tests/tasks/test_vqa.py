"""The task VQA: which questions it trains and validates on, its figures, its result file, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA, ROOT, run_tool

from ernie_vil.cli import load_config, run_parser
from ernie_vil.data.mini_vqa import build_mini_vqa
from ernie_vil.data.regions import open_store, write_lmdb_store
from ernie_vil.data.vqa_answers import AnswerList, answer_accuracy
from ernie_vil.engine.evaluation import evaluate
from ernie_vil.engine.yaml_files import ConfigError
from ernie_vil.errors import UserError
from ernie_vil.tasks.vqa import VqaTask
from ernie_vil.tasks.vqa_results import vqa_metrics, write_results

SAMPLE = DATA.parent / "vqa_v2"
TINY = (
    "{feature_size: 80, hidden_size: 16, num_attention_heads: 2, max_position_embeddings: 96, v_hidden_size: 16, "
    "v_num_attention_heads: 2, v_intermediate_size: 16, co_hidden_size: 16, co_num_attention_heads: 2, "
    "t_biattention_id: [1], v_biattention_id: [0]}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mini") / "vqa"
    build_mini_vqa(path, seed=5, train_images=24, val_images=8, test_images=4)
    return path


def questions(folder: Path, subset: str) -> Path:
    return folder / f"v2_OpenEnded_mscoco_{subset}_questions.json"


def annotations(folder: Path, subset: str) -> Path:
    return folder / f"v2_mscoco_{subset}_annotations.json"


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        "-c",
        str(ROOT / "configs" / "vqa.yaml"),
        "-o",
        f"data.train=[{questions(folder, 'train2014')}]",
        f"data.train_annotations=[{annotations(folder, 'train2014')}]",
        f"data.val=[{questions(folder, 'val2014')}]",
        f"data.val_annotations=[{annotations(folder, 'val2014')}]",
        f"data.test_dev=[{questions(folder, 'test-dev2015')}]",
        f"data.test_std=[{questions(folder, 'test2015')}]",
        f"data.visual_genome=[{folder / 'question_answers.json'}]",
        f"data.visual_genome_images={folder / 'image_data.json'}",
        f"data.features={folder / 'features.lmdb'}",
        "data.test_features=null",
        "data.held_out_images=null",
        f"data.answers={folder / 'answers.json'}",
        f"data.vocab={folder / 'vocab.txt'}",
        f"output={output}",
        "model.head_hidden_size=12",
        f"model.overrides={TINY}",
        "train={batch_size: 8, duration: {steps: 3}, workers: 0, log_every: {steps: 1}}",
        "optimizer={learning_rate: 0.001}",
        *more,
    ]


def open_task(folder: Path, output: Path, *more: str, splits: Any = ("train", "val"), **options: Any) -> VqaTask:
    config, _ = load_config(run_parser("").parse_args(arguments(folder, output, *more)))
    return VqaTask(config, splits, **options)


def ids_in(path: Path) -> list[int]:
    return [item["question_id"] for item in json.loads(path.read_text())["questions"]]


def test_sizes_of_the_training_set(folder, tmp_path):
    own = ids_in(questions(folder, "train2014"))
    mixed = open_task(folder, tmp_path).train_set()
    assert mixed.sizes == (len(own),)
    always = open_task(folder, tmp_path, "data.visual_genome_epochs=null").train_set()
    assert always.sizes == (mixed.records,)
    assert mixed.records > len(own)
    alone = open_task(folder, tmp_path, "data.visual_genome=[]").train_set()
    assert alone.sizes == (alone.records,) == (len(own),)
    seen = {mixed.dataset[0, 0, index]["question_id"] for index in range(len(own))}
    assert seen - set(own)


def test_images_held_out_of_val(folder, tmp_path):
    both = (
        f"data.train=[{questions(folder, 'train2014')},{questions(folder, 'val2014')}]",
        f"data.train_annotations=[{annotations(folder, 'train2014')},{annotations(folder, 'val2014')}]",
        "data.visual_genome=[]",
    )
    task = open_task(folder, tmp_path, *both, "data.held_out_images=3")
    train, val = task.train_set(), task.eval_set("val")
    trained = {train.dataset[0, 0, index]["question_id"] for index in range(train.sizes[0])}
    validated = {val.dataset[key]["question_id"] for key in val.keys}
    assert trained.isdisjoint(validated)
    assert trained | validated == {*ids_in(questions(folder, "train2014")), *ids_in(questions(folder, "val2014"))}
    assert len({number // 1000 for number in validated}) == 3
    # They are the same whatever the seed.
    again = open_task(folder, tmp_path, *both, "data.held_out_images=3", "seed=9").eval_set("val")
    assert {again.dataset[key]["question_id"] for key in again.keys} == validated
    with pytest.raises(UserError, match="data.train and data.val share 40 questions .*data.held_out_images"):
        open_task(folder, tmp_path, *both).train_set()
    with pytest.raises(UserError, match="data.held_out_images: 9 of the 8 images"):
        open_task(folder, tmp_path, *both, "data.held_out_images=9").train_set()


def test_visual_genome_on_images_that_are_validated_on_is_left_out(folder, tmp_path):
    val_image = ids_in(questions(folder, "val2014"))[0] // 1000
    images = json.loads((folder / "image_data.json").read_text())
    used = [entry for entry in images if entry["coco_id"] is not None]
    used[0]["coco_id"] = val_image
    path = tmp_path / "image_data.json"
    path.write_text(json.dumps(images))
    whole = open_task(folder, tmp_path).train_set()
    fewer = open_task(folder, tmp_path, f"data.visual_genome_images={path}").train_set()
    assert 0 < whole.records - fewer.records <= 5


def test_figures_of_an_evaluation_against_plain_counting(folder, tmp_path):
    task = open_task(folder, tmp_path)
    metrics, records = evaluate(task.config, task, "val")
    items = {
        item["question_id"]: item for item in json.loads(annotations(folder, "val2014").read_text())["annotations"]
    }
    ids = ids_in(questions(folder, "val2014"))
    values: dict[str, list[float]] = {}
    assert [record["key"][2] for record in records] == list(range(len(ids)))
    for number, record in zip(ids, records):
        given = [answer["answer"] for answer in items[number]["answers"]]
        value = answer_accuracy(task.answers.answers[record["label"]], given)
        assert record["accuracy"] == value
        kinds = (items[number][kind] for kind in ("answer_type", "question_type"))
        for name in ("accuracy", *map("/".join, zip(("answer_type", "question_type"), kinds))):
            values.setdefault(name, []).append(value)
    assert {"answer_type/yes/no", "answer_type/number", "answer_type/other"} < set(values)
    assert set(metrics) == {*values, "loss", "examples", "skipped"}
    for name, found in values.items():
        assert metrics[name] == pytest.approx(100 * float(np.mean(found)))
    assert metrics["examples"] == len(ids)


def test_metrics_are_those_of_the_public_evaluation():
    """On real questions; the figures were measured with the public code."""
    measured = json.loads((SAMPLE / "measured.json").read_text())
    results = {row["question_id"]: row["answer"] for row in json.loads((SAMPLE / "results.json").read_text())}
    records = [
        {
            "accuracy": answer_accuracy(results[item["question_id"]], [answer["answer"] for answer in item["answers"]]),
            "loss": 1.0,
            "question_type": item["question_type"],
            "answer_type": item["answer_type"],
        }
        for item in json.loads((SAMPLE / "annotations.json").read_text())["annotations"]
    ]
    metrics = vqa_metrics(records)
    wanted = {"accuracy": measured["accuracy"]["overall"], "loss": 1.0}
    wanted.update({f"answer_type/{name}": value for name, value in measured["accuracy"]["perAnswerType"].items()})
    wanted.update({f"question_type/{name}": value for name, value in measured["accuracy"]["perQuestionType"].items()})
    assert {name: round(value, 2) for name, value in metrics.items()} == wanted


def test_metrics_of_nothing():
    assert np.isnan(vqa_metrics([])["accuracy"])


def test_result_files_have_every_question(tmp_path):
    write_results([7, 3, 9], {3: "naïve", 9: "2"}, tmp_path / "results.json")
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert rows == [
        {"question_id": 7, "answer": ""},
        {"question_id": 3, "answer": "naïve"},
        {"question_id": 9, "answer": "2"},
    ]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    result = run_tool("train", *arguments(folder, output))
    assert result.returncode == 0, result.stderr
    return output


def test_a_run_predicts_the_test_splits(folder, trained, tmp_path):
    out = tmp_path / "results.json"
    own = arguments(folder, trained, "data.answers=null")
    result = run_tool("predict", *own, "--split", "test_std", "--out", str(out))
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())
    assert [row["question_id"] for row in rows] == ids_in(questions(folder, "test2015"))
    assert {row["answer"] for row in rows} <= set(AnswerList.read(folder / "answers.json").answers)
    refused = run_tool("eval", *own, "--split", "test_std")
    assert refused.returncode == 2
    assert "has no labels to compare with" in refused.stderr
    # test-dev is the first half, and the same questions get the same answers.
    weights = f"model.weights={trained / 'checkpoints' / 'step-00000003'}"
    task = open_task(folder, tmp_path, weights, splits=("test_dev",), trained=True)
    _, records = evaluate(task.config, task, "test_dev")
    task.write_predictions(records, "test_dev", out)
    assert json.loads(out.read_text()) == rows[: len(rows) // 2]


def test_images_without_features_are_skipped_and_counted(folder, trained, tmp_path):
    store = open_store(folder / "features.lmdb")
    names, lost = store.keys(), ids_in(questions(folder, "val2014"))[0] // 1000
    fewer = tmp_path / "features.lmdb"
    write_lmdb_store(fewer, [(key, store[key]) for key in names if key != str(lost)], store.fingerprint)
    out = tmp_path / "results.json"
    own = (f"data.features={fewer}", f"output={tmp_path / 'out'}")
    task = open_task(folder, tmp_path, *own)
    with pytest.raises(UserError, match=f"image {lost}: not in the store") as caught:
        evaluate(task.config, task, "val")
    assert "5 of 40 records cannot be used" in str(caught.value)
    more = (*own, "data.max_skip_ratio=0.2")
    result = run_tool(
        "predict", *arguments(folder, trained, *more), "-w", str(trained), "--split", "val", "--out", str(out)
    )
    assert result.returncode == 0, result.stderr
    assert "35 predictions, 5 skipped" in result.stdout
    rows = json.loads(out.read_text())
    assert [row["question_id"] for row in rows] == ids_in(questions(folder, "val2014"))
    assert [row["answer"] == "" for row in rows] == [row["question_id"] // 1000 == lost for row in rows]


def test_answers_unlike_those_of_the_weights(folder, trained, tmp_path):
    answers = list(AnswerList.read(folder / "answers.json").answers)
    weights = f"model.weights={trained / 'checkpoints' / 'step-00000003'}"
    for changed, message in (
        ([*answers[1::-1], *answers[2:]], f"class 0 is {answers[1]!r} here, {answers[0]!r} there"),
        ([*answers, "more"], f"has {len(answers) + 1} answers"),
    ):
        path = tmp_path / "answers.json"
        AnswerList(changed).write(path)
        with pytest.raises(UserError, match="data.answers: ") as caught:
            open_task(folder, tmp_path, weights, f"data.answers={path}")
        assert message in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_number_of_classes_unlike_that_of_the_weights(folder, trained, tmp_path):
    """Weights from elsewhere have no list beside them."""
    elsewhere = tmp_path / "weights"
    elsewhere.mkdir()
    for name in ("config.json", "model_state.pdparams"):
        (elsewhere / name).write_bytes((trained / "checkpoints" / "step-00000003" / name).read_bytes())
    AnswerList([*AnswerList.read(folder / "answers.json").answers, "more"]).write(tmp_path / "answers.json")
    weights = f"model.weights={elsewhere}"
    with pytest.raises(UserError, match="heads.vqa.output.weight") as caught:
        open_task(folder, tmp_path, weights, f"data.answers={tmp_path / 'answers.json'}", trained=True)
    assert f"{tmp_path / 'answers.json'} has " in str(caught.value)
    assert open_task(folder, tmp_path, weights, trained=True)
    with pytest.raises(UserError, match="data.answers: not given, and there is no answers.json"):
        open_task(folder, tmp_path, weights, "data.answers=null")


def test_missing_files_are_all_named(folder, tmp_path):
    lost = {
        "train": [f"{tmp_path}/a.json"],
        "val_annotations": [f"{tmp_path}/b.json"],
        "visual_genome_images": f"{tmp_path}/c.json",
        "features": f"{tmp_path}/d.lmdb",
        "answers": f"{tmp_path}/e.json",
    }
    with pytest.raises(UserError, match="data are missing") as caught:
        open_task(folder, tmp_path, *(f"data.{key}={json.dumps(value)}" for key, value in lost.items()))
    for key, value in lost.items():
        assert f"data.{key}: {value[0] if isinstance(value, list) else value}: no such" in str(caught.value)
    with pytest.raises(UserError, match="data.test_dev: no file is given"):
        open_task(folder, tmp_path, "data.test_dev=[]", splits=("test_dev",))
    # What a split does not need is not missed.
    assert open_task(folder, tmp_path, "data.train=[]", "data.train_annotations=[]", splits=("val",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["data.train_annotations=[]"], "0 files for the 1 of data.train"),
        (["data.visual_genome_images=null"], "data.visual_genome needs it"),
        (["data.format=tsv", "data.held_out_images=5"], "a table does not say of which image a question is"),
        (["data.format=json"], "'json' is not one of official, tsv"),
    ],
)
def test_contradictory_configs(folder, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        open_task(folder, tmp_path, *change)


def test_stores_of_different_extractors_are_not_mixed(folder, tmp_path):
    store = open_store(folder / "features.lmdb")
    other, names = tmp_path / "test.lmdb", store.keys()
    write_lmdb_store(other, [(key, store[key]) for key in names], {"extractor": "another"})
    task = open_task(folder, tmp_path, f"data.test_features={other}", splits=("val", "test_dev"))
    assert task.eval_set("test_dev")
    with pytest.raises(UserError, match="different extractors"):
        task.eval_set("val")


def test_preflight_reads_every_split(folder, tmp_path):
    result = run_tool("check", *arguments(folder, tmp_path / "out"))
    assert result.returncode == 0, result.stderr + result.stdout
    assert "data.train: 120 examples" in result.stdout
    assert "data.val: 40 examples" in result.stdout
