"""A folder as the original's authors release it: converted by the command line, it gives the original's results."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, run_tool

from ernie_vil.cli import load_config, run_parser
from ernie_vil.engine.evaluation import evaluate
from ernie_vil.models.ernie_vil import ErnieViLModel
from ernie_vil.tasks.vcr import VcrTask
from ernie_vil.tasks.vcr_results import softmax

ROOT = Path(__file__).parents[2]
SAMPLES = DATA / "samples"
WANTED = json.loads((DATA / "tiny_release" / "expected_cli_results.json").read_text())


def arguments(*more: str) -> list[str]:
    """The real-format samples through the ordinary config; only paths differ from a real run."""
    return [
        "-c",
        str(ROOT / "configs" / "vcr.yaml"),
        "-o",
        *(f"data.{split}={SAMPLES / 'vcr' / split}.jsonl" for split in ("train", "val", "test")),
        f"data.features={SAMPLES / 'vcr' / 'feat.lmdb'}",
        f"data.gt_features={SAMPLES / 'vcr' / 'gt_feat.lmdb'}",
        f"data.vocab={SAMPLES / 'vocab.txt'}",
        f"data.names={SAMPLES / 'vcr' / 'one_name_table.csv'}",
        *more,
    ]


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """The converted folder. The original scores rationales with the Q->A head, so that is in the place of both."""
    folder = tmp_path_factory.mktemp("release") / "converted"
    result = run_tool(
        "convert_weights", "--from", "ernie-vil-fluid", "--src", str(DATA / "tiny_release"), "--out", str(folder)
    )
    assert result.returncode == 0, result.stderr
    assert "heads" in result.stdout
    return folder


def records(weights: Path, output: Path, split: str) -> tuple[dict, list[dict]]:
    parsed = run_parser("").parse_args(
        arguments(f"model.weights={weights}", "model.rationale_head=vcr_qa", f"output={output}")
    )
    config, _ = load_config(parsed)
    return evaluate(config, VcrTask(config, (split,), trained=True), split)


def lines(found: list[dict], part: int, file: list[dict]) -> list[str]:
    """The original's result lines: question id, prediction, label, four probabilities."""
    return sorted(
        f"{file[record['question']]['annot_id'].split('-')[1]}\t{int(np.argmax(record['scores']))}\t{record['label']}\t"
        + " ".join(f"{value:.5f}" for value in softmax(record["scores"]))
        for record in found
        if record["key"][0] == part
    )


@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_and_results_of_the_original_program(converted, tmp_path, split):
    _, found = records(converted, tmp_path, split)
    file = [json.loads(line) for line in (SAMPLES / "vcr" / f"{split}.jsonl").read_text().splitlines()]
    with np.load(DATA / "tiny_release" / "expected_outputs.npz") as arrays:
        expected = dict(arrays)
    for part, name in enumerate(("qa", "qar")):
        mine = [record for record in found if record["key"][0] == part]
        want = WANTED[f"vcr_{name}_{split}"]["rows_sorted"]
        got = lines(found, part, file)
        assert len(got) == len(want)
        for left, right in zip(got, want):
            left_words, right_words = left.split("\t"), right.split("\t")
            assert left_words[:3] == right_words[:3]
            np.testing.assert_allclose(
                [float(value) for value in left_words[3].split()],
                [float(value) for value in right_words[3].split()],
                atol=2e-5,
            )
        if f"vcr/{name}_{split}/score" in expected:
            # The stored rows stand in the order of a shuffled run: compared as sets of rows.
            scores = np.array(sorted(record["scores"].tolist() for record in mine))
            np.testing.assert_allclose(
                scores, np.array(sorted(expected[f"vcr/{name}_{split}/score"].tolist())), atol=2e-5
            )


def test_metrics_are_those_of_the_whole_split(converted, tmp_path):
    metrics, found = records(converted, tmp_path, "val")
    assert metrics["q_a"] == 100 * WANTED["vcr_qa_val"]["average_acc"]
    assert metrics["qa_r"] == 100 * WANTED["vcr_qar_val"]["average_acc"]
    assert metrics["q_ar"] == 0.0
    assert metrics["examples"] == len(found) == 4
    with np.load(DATA / "tiny_release" / "expected_outputs.npz") as arrays:
        # Both questions are in one batch there, so its mean loss is the split's.
        assert metrics["q_a_loss"] == pytest.approx(float(arrays["vcr/qa_val/loss_acc"][0]), abs=2e-5)
        assert metrics["qa_r_loss"] == pytest.approx(float(arrays["vcr/qar_val/loss_acc"][0]), abs=2e-5)


def test_the_tools_evaluate_and_predict_the_release(converted, tmp_path):
    common = arguments(f"output={tmp_path / 'out'}", "model.rationale_head=vcr_qa")
    result = run_tool("eval", *common, "-w", str(converted), "--json", str(tmp_path / "metrics.json"))
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["qa_r"] == 50.0
    out = tmp_path / "leaderboard.csv"
    # The weights as released, without converting them first.
    result = run_tool("predict", *common, "-w", f"ernie-vil-fluid:{DATA / 'tiny_release'}", "--out", str(out))
    assert result.returncode == 0, result.stderr
    with out.open() as stream:
        header, row = csv.reader(stream)
    rationales = [f"rationale_conditioned_on_a{answer}_{choice}" for answer in range(4) for choice in range(4)]
    assert header == ["annot_id", "answer_0", "answer_1", "answer_2", "answer_3", *rationales]
    assert row[0] == "test-10"
    values = np.array([float(value) for value in row[1:]]).reshape(5, 4)
    np.testing.assert_allclose(values.sum(1), 1, atol=4e-6)
    np.testing.assert_allclose(values[0], [0.37630, 0.21028, 0.18507, 0.22834], atol=2e-5)
    want = sorted(
        [float(value) for value in line.split("\t")[3].split()] for line in WANTED["vcr_qar_test"]["rows_sorted"]
    )
    np.testing.assert_allclose(sorted(values[1:].tolist()), want, atol=2e-5)


def test_the_samples_train_from_the_release_and_evaluate_again(converted, tmp_path):
    more = (
        f"output={tmp_path / 'out'}",
        f"model.weights={converted}",
        "train={batch_size: 2, duration: {steps: 4}, workers: 0, log_every: {steps: 1}}",
        "optimizer.warmup={steps: 1}",
    )
    result = run_tool("train", *arguments(*more))
    assert result.returncode == 0, result.stderr
    first = ErnieViLModel.from_pretrained(converted)
    trained = ErnieViLModel.from_pretrained(tmp_path / "out" / "checkpoints" / "step-00000004")
    assert trained.config == first.config
    moved = [
        name
        for (name, tensor), (_, other) in zip(trained.named_parameters(), first.named_parameters())
        if not np.array_equal(tensor.numpy(), other.numpy())
    ]
    assert len(moved) > 50
    result = run_tool("eval", *arguments(*more))
    assert result.returncode == 0, result.stderr
    assert "examples 4" in result.stdout
