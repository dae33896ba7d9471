"""The task of referring expressions: its loss is the original's, its answers are boxes, and a run works by command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import paddle
import pytest
from conftest import ROOT, forward, measured_model, run_tool

from ernie_vil.cli import load_config, run_parser
from ernie_vil.data.mini_refcoco import build_mini_refcoco
from ernie_vil.errors import UserError
from ernie_vil.tasks.refcoco import RefcocoTask, refcoco_metrics
from ernie_vil.tasks.refcoco_options import RefcocoModelOptions

SMALL = (
    "{feature_size: 80, hidden_size: 16, num_attention_heads: 2, max_position_embeddings: 96, v_hidden_size: 16, "
    "v_num_attention_heads: 2, v_intermediate_size: 16, co_hidden_size: 16, co_num_attention_heads: 2, "
    "t_biattention_id: [1], v_biattention_id: [0]}"
)
SHORT = (
    "train={batch_size: 8, workers: 0, duration: {steps: 3}, log_every: {steps: 1}, eval_every: null}",
    "optimizer.warmup={steps: 1}",
    "optimizer.decay_steps=[]",
)


def bare_task(model: Any, factor: Optional[float] = None, batch_size: int = 3, dropout: float = 0.0) -> RefcocoTask:
    task = RefcocoTask.__new__(RefcocoTask)
    task.model = model
    task.options = RefcocoModelOptions(loss_factor=factor, region_dropout=dropout)
    task.config = SimpleNamespace(train=SimpleNamespace(batch_size=batch_size))
    return task


def measured_batch(inputs: dict[str, np.ndarray], rows: slice = slice(None)) -> dict[str, paddle.Tensor]:
    names = {
        "src_ids": "input_ids",
        "sent_ids": "token_type_ids",
        "pos_ids": "position_ids",
        "input_mask": "attention_mask",
        "image_embeddings": "region_features",
        "image_loc": "region_locations",
        "image_mask": "region_mask",
        "labels": "labels",
    }
    batch = {}
    for theirs, ours in names.items():
        array = inputs[f"refcoco_plus/{theirs}"][rows]
        batch[ours] = paddle.to_tensor(array.squeeze(-1) if array.shape[-1] == 1 else array)
    return batch


@pytest.mark.parametrize(("case", "factor", "batch_size"), [("train", None, 3), ("train_batch_size_arg_32", 32.0, 3)])
def test_the_loss_of_the_original(weights, inputs, outputs, case, factor, batch_size):
    task = bare_task(measured_model(weights, ("region",)), factor, batch_size)
    want = float(outputs[f"refcoco_plus/{case}/loss"][0])
    batch = measured_batch(inputs)
    assert float(task.losses(batch)["region"]) / task.counts(batch)["region"] == pytest.approx(want, abs=2e-5)
    # Pieces of the batch add up to the same, whatever their sizes.
    pieces = [measured_batch(inputs, rows) for rows in (slice(0, 1), slice(1, 3))]
    total = sum(float(task.losses(piece)["region"]) for piece in pieces)
    assert total / sum(task.counts(piece)["region"] for piece in pieces) == pytest.approx(want, abs=2e-5)


def test_the_logits_of_the_original(weights, inputs, outputs):
    model = measured_model(weights, ("region",))
    model.eval()
    mask = inputs["refcoco_plus/image_mask"][..., 0]
    logits = bare_task(model, dropout=0.5).logits(measured_batch(inputs)).numpy()
    np.testing.assert_allclose(logits * mask, outputs["refcoco_plus/predict/logits"][..., 0] * mask, atol=2e-5)
    head = model.heads["region"]
    hidden = forward(model, inputs, "refcoco_plus").region_hidden
    np.testing.assert_allclose(logits, (hidden @ head.weight + head.bias).numpy()[..., 0], atol=1e-6)
    model.train()
    dropped = bare_task(model, dropout=0.5).logits(measured_batch(inputs)).numpy()
    assert np.abs(dropped - logits).max() > 1e-3


def predicted(logits: list, candidates: list, ious: list) -> dict:
    task = bare_task(None)
    task.logits = lambda batch: paddle.to_tensor([logits])
    arrays = {
        "index": np.array([4]),
        "candidates": np.array([candidates], np.float32),
        "labels": np.array([ious], np.float32),
        "boxes": np.arange(4 * len(logits), dtype=np.float32).reshape(1, -1, 4),
        "target": np.array([[1, 2, 3, 4]], np.float32),
    }
    (record,) = task.predict({name: paddle.to_tensor(array) for name, array in arrays.items()})
    return record


def test_the_answer_is_the_candidate_with_the_highest_logit():
    # The whole image, padding and boxes that are no candidates have higher ones.
    record = predicted([9.0, -1.0, -0.5, -0.25, 8.0], [0, 1, 1, 0, 0], [0.9, 0.6, 0.25, 0.8, 0.0])
    assert record == {
        "key": (0, 0, 4),
        "box": [8.0, 9.0, 10.0, 11.0],
        "score": -0.5,
        "iou": 0.25,
        "best_iou": pytest.approx(0.6),
        "target": [1.0, 2.0, 3.0, 4.0],
    }
    # Of equal ones the first, as in the original.
    assert predicted([0.0, -1.0, -1.0], [0, 1, 1], [0.0, 0.0, 1.0])["iou"] == 0.0
    nothing = predicted([1.0, 2.0], [0, 0], [0.0, 1.0])
    assert (nothing["box"], nothing["score"], nothing["iou"], nothing["best_iou"]) == (None, None, 0.0, 0.0)


def test_metrics():
    ious = [(0.5, 0.5), (0.51, 0.9), (0.0, 0.7), (1.0, 1.0), (0.0, 0.0)]
    records = [{"iou": iou, "best_iou": best} for iou, best in ious]
    assert refcoco_metrics(records) == {
        "accuracy": pytest.approx(40.0),  # an overlap of exactly one half is not enough
        "mean_iou": pytest.approx(2.01 / 5),
        "upper_bound": pytest.approx(60.0),
    }
    assert all(np.isnan(value) for value in refcoco_metrics([]).values())


# --------------------------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "refcoco"
    build_mini_refcoco(folder, seed=3, train_images=4, val_images=3, test_images=4)
    return folder


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    names = {
        "refs": "refs(unc).p",
        "instances": "instances.json",
        "features": "features.lmdb",
        "gt_features": "gt_features.lmdb",
        "detections": "detections.json",
        "vocab": "vocab.txt",
    }
    paths = [f"data.{key}={folder / name}" for key, name in names.items()]
    config = str(ROOT / "configs" / "refcoco_plus.yaml")
    return ["-c", config, "-o", *paths, f"output={output}", f"model.overrides={SMALL}", *SHORT, *more]


def test_train_evaluate_and_predict_by_command(small, tmp_path):
    result = run_tool("train", *arguments(small, tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    out = tmp_path / "answers.json"
    result = run_tool("predict", *arguments(small, tmp_path / "out"), "--split", "testB", "--out", str(out))
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())
    result = run_tool(
        "eval", *arguments(small, tmp_path / "out"), "--split", "testB", "--json", str(tmp_path / "metrics.json")
    )
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["examples"] == len(rows) > 10
    assert metrics["accuracy"] == pytest.approx(100 * np.mean([row["iou"] > 0.5 for row in rows]))
    assert metrics["mean_iou"] == pytest.approx(np.mean([row["iou"] for row in rows]))
    assert metrics["upper_bound"] == 100.0
    for row in rows:
        assert set(row) == {"ref_id", "sent_id", "image_id", "expression", "box", "score", "iou", "target"}
        assert plain_iou(row["box"], row["target"]) == pytest.approx(row["iou"], abs=1e-5)
    assert len({row["sent_id"] for row in rows}) == len(rows)


def plain_iou(first: list, second: list) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0]) + 1
    height = min(first[3], second[3]) - max(first[1], second[1]) + 1
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (first, second)]
    return both / (sum(areas) - both)


def task_for(small: Path, output: Path, *more: str, splits: tuple[str, ...] = ("train", "val")) -> RefcocoTask:
    config, task = load_config(run_parser("").parse_args(arguments(small, output, *more)))
    return task(config, splits)


def test_both_tracks(small, tmp_path):
    from ernie_vil.engine.evaluation import evaluate

    found = {}
    for track in ("detected", "ground_truth", "all"):
        task = task_for(small, tmp_path, f"data.candidates={track}")
        metrics, records = evaluate(task.config, task, "val")
        found[track] = {record["key"]: record["box"] for record in records}
        assert metrics["upper_bound"] == 100.0
        regions = [len(task.dataset("val")[0, 0, index]["labels"]) for index in range(len(records))]
        training = [len(task.dataset("train", training=True)[0, 0, index]["labels"]) for index in range(3)]
        found[track + " regions"] = (regions, training)
    boxes = {tuple(item["bbox"][:2]) for item in json.loads((small / "instances.json").read_text())["annotations"]}
    assert {tuple(box[:2]) for box in found["ground_truth"].values()} <= boxes
    assert not {tuple(box[:2]) for box in found["detected"].values()} <= boxes
    # The whole image stands before each list; training sees both kinds whatever the track.
    detected, annotated, both = (found[f"{track} regions"][0] for track in ("detected", "ground_truth", "all"))
    assert both == [a + b - 1 for a, b in zip(detected, annotated)]
    assert len({tuple(found[f"{track} regions"][1]) for track in ("detected", "ground_truth", "all")}) == 1


def test_images_in_which_nothing_was_detected_are_wrong_answers(small, tmp_path):
    folder = Path(shutil.copytree(small, tmp_path / "refcoco"))
    items = json.loads((folder / "detections.json").read_text())
    lost = max(item["image_id"] for item in items if 1_000_000 < item["image_id"] < 2_000_000)
    (folder / "detections.json").write_text(json.dumps([item for item in items if item["image_id"] != lost]))
    result = run_tool("train", *arguments(folder, tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    out = tmp_path / "answers.json"
    result = run_tool("predict", *arguments(folder, tmp_path / "out"), "--split", "val", "--out", str(out))
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())
    assert {row["image_id"] for row in rows if row["box"] is None} == {lost}
    assert {row["iou"] for row in rows if row["image_id"] == lost} == {0.0}


def test_missing_files_are_listed_at_once_with_their_keys(small, tmp_path):
    wrong = ["data.refs=nowhere.p", "data.features=nowhere.lmdb", "data.detections=nowhere.json", "data.vocab=nowhere"]
    result = run_tool("train", *arguments(small, tmp_path / "out", *wrong))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for key in ("data.refs: nowhere.p", "data.features: nowhere.lmdb", "data.detections: nowhere", "data.vocab: now"):
        assert key in result.stderr
    with pytest.raises(UserError) as error:
        task_for(small, tmp_path, "data.format=tsv", "data.train=[nowhere.tsv]")
    assert "data.train: nowhere.tsv: no such file" in str(error.value)
    assert "data.val: no table is given" in str(error.value)
    with pytest.raises(UserError, match=r"data.gt_features: null, but candidates is all"):
        task_for(small, tmp_path, "data.candidates=all", "data.gt_features=null")
    with pytest.raises(UserError, match=r"data.features: null, but candidates is detected"):
        task_for(small, tmp_path, "data.features=null")


def test_bad_references_are_skipped_within_the_budget(small, tmp_path):
    folder = Path(shutil.copytree(small, tmp_path / "refcoco"))
    instances = json.loads((folder / "instances.json").read_text())
    del instances["annotations"][0]
    (folder / "instances.json").write_text(json.dumps(instances))
    result = run_tool("train", *arguments(folder, tmp_path / "out"))
    assert result.returncode == 2
    assert "refs(unc).p, ref 0: " in result.stderr and "has no annotation 1" in result.stderr
    assert "data.max_skip_ratio" in result.stderr
    shutil.rmtree(tmp_path / "out")
    result = run_tool("train", *arguments(folder, tmp_path / "out", "data.max_skip_ratio=0.1"))
    assert result.returncode == 0, result.stderr
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert "ref 0: " in json.loads(line)["record"]


@pytest.mark.parametrize("name", ["refcoco_plus", "refcoco_plus_large", "refcoco", "refcocog"])
def test_configs(name):
    config, task = load_config(run_parser("").parse_args(["-c", str(ROOT / "configs" / f"{name}.yaml")]))
    assert task is RefcocoTask
    assert config.data.refs == f"data/{name.replace('_large', '')}/refs({'umd' if name == 'refcocog' else 'unc'}).p"
    # At the size of RefCOCO+ these are the steps of the original's file.
    steps = 120_191 / config.train.batch_size
    assert round(steps) == 939
    assert [round(step.value * 940) for step in config.optimizer.decay_steps] == [3290, 4700, 7050]
