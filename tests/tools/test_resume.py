"""A training process that is killed with SIGKILL and resumed computes what one that never stopped computes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from conftest import ROOT, run_tool, vcr_arguments

from ernie_vil import pickles
from ernie_vil.engine import checkpoint

STEPS = 60
TIMES = ("examples_per_second", "data_wait_share")


def train_arguments(data: Path, output: Path) -> list[str]:
    # 60 questions in two parts and batches of 8 make 16 steps an epoch: the run ends in the middle of the fourth.
    return vcr_arguments(
        data,
        output,
        f"train={{batch_size: 8, accumulate: 2, workers: 2, duration: {{steps: {STEPS}}}, log_every: {{steps: 3}}, "
        "save_every: {steps: 2}, eval_every: {steps: 8}, keep: 3}",
        "optimizer.warmup={steps: 5}",
        "optimizer.schedule=linear",
        "optimizer.decay_steps=[]",
    )


def entries(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in TIMES} for entry in lines]


def final_arrays(output: Path) -> dict[str, np.ndarray]:
    folder = checkpoint.follow(output, "latest")
    assert checkpoint.read_trainer(folder)["step"] == STEPS
    return {
        f"{file}:{key}": value
        for file in ("model_state.pdparams", "optimizer.pdopt")
        for key, value in pickles.load_state(folder / file).items()
    }


def kill_at(arguments: list[str], output: Path, step: int) -> None:
    """Start training and kill it as soon as its log shows ``step``, wherever it is then."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "train.py"), *arguments, "--resume", "auto"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        log = output / "metrics.jsonl"
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and any(f'"step": {reached},' in log.read_text() for reached in range(step, STEPS)):
                break
            time.sleep(0.002)
        time.sleep(random.random() * 0.1)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_killed_runs_end_with_the_bits_and_metrics_of_one_that_was_not(small_vcr, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_tool("train", *train_arguments(small_vcr, whole))
    assert result.returncode == 0, result.stderr
    first = random.randrange(2, 16)
    second = random.randrange(first + 6, 33)
    for step in (first, second):
        kill_at(train_arguments(small_vcr, killed), killed, step)
    result = run_tool("train", *train_arguments(small_vcr, killed), "--resume", "true")
    assert result.returncode == 0, result.stderr
    assert "resumed from" in result.stdout
    want, got = final_arrays(whole), final_arrays(killed)
    assert want.keys() == got.keys() and len(want) > 100
    different = [key for key in want if not np.array_equal(want[key], got[key])]
    assert not different, f"killed at {first} and {second}: {different[:5]}"
    assert entries(whole) == entries(killed)
