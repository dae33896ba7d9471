"""A folder as the original's authors release it: converted by the command line, it gives the original's results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, ROOT, run_tool

from ernie_vil.cli import load_config, run_parser
from ernie_vil.tasks.refcoco import RefcocoTask

SAMPLES = DATA / "samples"
WANTED = json.loads((DATA / "tiny_release" / "expected_cli_results.json").read_text())["refcoco_plus_val"]


def arguments(*more: str) -> list[str]:
    """The sample tables through the ordinary config. The original lets every box of a table be the answer."""
    return [
        "-c",
        str(ROOT / "configs" / "refcoco_plus.yaml"),
        "-o",
        "data.format=tsv",
        "data.candidates=all",
        f"data.train=[{SAMPLES / 'refcoco_plus' / 'train_part'}]",
        f"data.val=[{SAMPLES / 'refcoco_plus' / 'val_part'}]",
        f"data.vocab={SAMPLES / 'vocab.txt'}",
        "data.max_length=60",
        *more,
    ]


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "converted"
    result = run_tool(
        "convert_weights", "--from", "ernie-vil-fluid", "--src", str(DATA / "tiny_release"), "--out", str(folder)
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_logits_and_answers_of_the_original_program(converted, tmp_path):
    import paddle

    config, _ = load_config(run_parser("").parse_args(arguments(f"model.weights={converted}", f"output={tmp_path}")))
    task = RefcocoTask(config, ("val",), trained=True)
    task.model.eval()
    examples = task.eval_set("val")
    batch = examples.collate([examples.dataset[key] for key in examples.keys])
    batch = {name: paddle.to_tensor(array) for name, array in batch.items()}
    with np.load(DATA / "tiny_release" / "expected_outputs.npz") as arrays:
        expected = {name: arrays[name] for name in arrays.files if name.startswith("refcoco_plus/val/")}
    mask = batch["region_mask"].numpy()
    logits = task.logits(batch).numpy()
    np.testing.assert_allclose(logits * mask, expected["refcoco_plus/val/logits"][..., 0] * mask, atol=2e-5)
    records = task.predict(batch)
    boxes = batch["boxes"].numpy()
    for row, record in enumerate(records):
        # Boxes are counted without the whole image there.
        assert record["box"] == boxes[row, 1 + int(expected["refcoco_plus/val/pred_box"][row])].tolist()
    assert [float(record["iou"] > 0.5) for record in records] == expected["refcoco_plus/val/hit"].tolist()


def test_the_tools_evaluate_and_predict_the_release(converted, tmp_path):
    common = arguments(f"output={tmp_path / 'out'}")
    result = run_tool("eval", *common, "-w", str(converted), "--json", str(tmp_path / "metrics.json"))
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["accuracy"] == pytest.approx(100 * WANTED["accuracy"], abs=1e-9)
    assert metrics["examples"] == WANTED["samples"]
    out = tmp_path / "answers.json"
    # The weights as released, without converting them first.
    released = f"ernie-vil-fluid:{DATA / 'tiny_release'}"
    result = run_tool("predict", *common, "-w", released, "--split", "val", "--out", str(out))
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())
    assert [row["line"] for row in rows] == [f"{SAMPLES / 'refcoco_plus' / 'val_part'}:{line}" for line in (1, 2, 3)]
    assert [row["iou"] for row in rows] == pytest.approx([0.4999, 0.31, 0.9], abs=1e-6)


def test_the_samples_train_from_the_release(converted, tmp_path):
    more = (
        f"output={tmp_path / 'out'}",
        f"model.weights={converted}",
        "train={batch_size: 2, duration: {steps: 3}, workers: 0, log_every: {steps: 1}}",
        "optimizer.warmup={steps: 1}",
    )
    result = run_tool("train", *arguments(*more))
    assert result.returncode == 0, result.stderr
    entries = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert any("accuracy" in json.dumps(entry) for entry in entries)
