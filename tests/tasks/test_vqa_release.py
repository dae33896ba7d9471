"""A folder as the original's authors release it: converted by the command line, it gives the original's results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import DATA, ROOT, run_tool

from ernie_vil.cli import load_config, run_parser
from ernie_vil.tasks.vqa import VqaTask

TABLES = DATA / "samples" / "vqa"
WANTED = json.loads((DATA / "tiny_release" / "expected_cli_results.json").read_text())["vqa_val"]


def arguments(*more: str) -> list[str]:
    """The sample tables through the ordinary config."""
    return [
        "-c",
        str(ROOT / "configs" / "vqa.yaml"),
        "-o",
        "data.format=tsv",
        f"data.train=[{TABLES / 'train_part'}]",
        f"data.val=[{TABLES / 'val_part'}]",
        f"data.visual_genome=[{TABLES / 'vg_part'}]",
        "data.held_out_images=null",
        f"data.answers={TABLES / 'label2ans.pkl'}",
        f"data.vocab={DATA / 'samples' / 'vocab.txt'}",
        "model.head_hidden_size=8",
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


def open_task(converted: Path, output: Path) -> VqaTask:
    config, _ = load_config(run_parser("").parse_args(arguments(f"model.weights={converted}", f"output={output}")))
    task = VqaTask(config, ("val",), trained=True)
    task.model.eval()
    return task


def test_logits_loss_and_answers_of_the_original_program(converted, tmp_path):
    task = open_task(converted, tmp_path)
    examples = task.eval_set("val")
    batch = examples.collate([examples.dataset[key] for key in examples.keys])
    batch = {name: value if isinstance(value, list) else paddle.to_tensor(value) for name, value in batch.items()}
    with np.load(DATA / "tiny_release" / "expected_outputs.npz") as arrays:
        expected = {name.split("/")[-1]: arrays[name] for name in arrays.files if name.startswith("vqa/val/")}
    logits = task.logits(batch).numpy()
    highest = np.argsort(-logits, axis=1)[:, :8]
    assert highest.tolist() == expected["top8_ids"].tolist()
    np.testing.assert_allclose(np.take_along_axis(logits, highest, 1), expected["top8_logits"], atol=2e-5)
    records = task.predict(batch)
    assert [record["label"] for record in records] == expected["pred"].tolist()
    loss, accuracy = expected["loss_acc"].tolist()
    metrics = task.metrics(records)
    # A sum over 3,129 classes, of which float32 has seven digits.
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["accuracy"] == pytest.approx(100 * accuracy, abs=1e-5)
    total = float(task.losses(batch)["vqa"]) / task.counts(batch)["vqa"]
    assert total == pytest.approx(loss, rel=1e-6)


def test_the_tools_evaluate_and_predict_the_release(converted, tmp_path):
    common = arguments(f"output={tmp_path / 'out'}")
    result = run_tool("eval", *common, "-w", str(converted), "--json", str(tmp_path / "metrics.json"))
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["accuracy"] == pytest.approx(100 * WANTED["average_acc"], abs=1e-5)
    assert metrics["examples"] == 3
    out = tmp_path / "answers.json"
    # The weights as released, without converting them first.
    released = f"ernie-vil-fluid:{DATA / 'tiny_release'}"
    result = run_tool("predict", *common, "-w", released, "--split", "val", "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert json.loads(out.read_text()) == WANTED["result"]


def test_the_samples_train_from_the_release(converted, tmp_path):
    more = (
        f"output={tmp_path / 'out'}",
        f"model.weights={converted}",
        "train={batch_size: 2, duration: {epochs: 4}, workers: 0, log_every: {steps: 1}}",
        "optimizer={warmup: {steps: 1}, decay_steps: [], learning_rate: 0.001, schedule: manual, layer_decay: 0.9, "
        "multipliers: {heads.vqa.*: 2.5}}",
    )
    result = run_tool("train", *arguments(*more))
    assert result.returncode == 0, result.stderr
    entries = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    # Epochs of the two questions of VQA: those of Visual Genome among them make no more steps.
    assert [entry["step"] for entry in entries if entry["split"] == "train"] == [1, 2, 3, 4]
    folder = tmp_path / "out" / "checkpoints" / "step-00000004"
    assert json.loads((folder / "answers.json").read_text())[2869] == "ans_2869"
    # What was trained brings its answers along.
    result = run_tool("eval", *arguments(f"output={tmp_path / 'out'}", "data.answers=null", "data.vocab=null"))
    assert result.returncode == 0, result.stderr
    assert "examples 3" in result.stdout
