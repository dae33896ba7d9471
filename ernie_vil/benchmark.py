"""Speed and memory of training and evaluation, on made-up data of real size."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import paddle

from ernie_vil.data.regions import Regions, write_lmdb_store
from ernie_vil.engine.data import GuardedDataset, StepSampler, guarded_collate, make_loader
from ernie_vil.engine.evaluation import evaluate
from ernie_vil.engine.trainer import Trainer
from ernie_vil.models.ernie_vil import repeat_rows

QUESTION, ANSWER, RATIONALE = 11, 9, 18  # words, with which VCR's sequences are about as long as the real ones
VOCABULARY = 30522


def write_real_size_vcr(folder: Path, images: int, regions: int, feature_size: int) -> dict[str, str]:
    """VCR data with random texts and features; a question per image. Returns the ``data`` section's paths."""
    rng = np.random.default_rng(0)
    width, height = 1280, 720
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"w{number}" for number in range(VOCABULARY - len(special))]
    (folder / "vocab.txt").write_text("\n".join([*special, *words]) + "\n")

    def text(length: int) -> list[Any]:
        return [*rng.choice(words, length).tolist(), [0]]

    def record(split: str, number: int) -> dict:
        return {
            "objects": ["person", "person", "dog"],
            "question": text(QUESTION),
            "answer_choices": [text(ANSWER) for _ in range(4)],
            "rationale_choices": [text(RATIONALE) for _ in range(4)],
            "answer_label": number % 4,
            "rationale_label": number // 4 % 4,
            "img_id": f"{split}-{number}",
            "annot_id": f"{split}-{number}",
        }

    def items(count: int) -> Iterator[tuple[str, Regions]]:
        for offset in (0, 1_000_000):
            for number in range(images):
                corners = rng.uniform(0, 1, [count, 2, 2]) * [width, height]
                boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
                features = rng.random([count, feature_size], dtype=np.float32)
                yield str(offset + number), Regions(features, boxes, width, height)

    for split in ("train", "val"):
        lines = [json.dumps(record(split, number)) for number in range(images)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    # Detected and ground-truth boxes together fill the cap, as in VCR: about 6 objects are annotated.
    write_lmdb_store(folder / "features.lmdb", items(regions - 7))
    write_lmdb_store(folder / "gt_features.lmdb", items(6))
    names = {"features": "features.lmdb", "gt_features": "gt_features.lmdb", "vocab": "vocab.txt"}
    return {key: str(folder / name) for key, name in names.items()} | {
        split: str(folder / f"{split}.jsonl") for split in ("train", "val")
    }


def benchmark(trainer: Trainer, steps: int, say: Callable[[str], None] = print) -> dict[str, float]:
    """Time training steps, evaluation and the data path of a run; returns the figures that it says."""
    trainer.plan()
    figures: dict[str, float] = {}
    batch_size = trainer.config.train.batch_size
    parameters = sum(tensor.size for tensor in trainer.parameters)
    say(f"model: {parameters / 1e6:.1f} M parameters on {paddle.get_device()}; batches of {batch_size} questions")

    start = time.perf_counter()
    metrics, _ = evaluate(trainer.config, trainer.task, "val")
    figures["eval_samples_per_second"] = metrics["examples"] / (time.perf_counter() - start)
    say(f"evaluation: {figures['eval_samples_per_second']:.3f} samples/s")
    figures["eval_peak_memory_gb"] = peak_memory() / 1e9
    say(f"evaluation: peak memory {figures['eval_peak_memory_gb']:.2f} GB")

    figures["data_seconds"] = seconds_of_data_path(trainer)
    source = trainer.micro_batches()
    first = next(source)
    trainer.train_step(first)
    wait()
    trainer.waited, start = 0.0, time.perf_counter()
    for _ in range(steps):
        trainer.train_step(next(source))
        wait()
    passed = time.perf_counter() - start
    figures["train_samples_per_second"] = steps * batch_size / passed
    figures["data_wait_share"] = trainer.waited / passed
    figures["peak_memory_gb"] = peak_memory() / 1e9
    say(f"training: {figures['train_samples_per_second']:.3f} samples/s, {passed / steps:.2f} s a step")
    say(f"training: {100 * figures['data_wait_share']:.3f} % of the time spent waiting for data")
    share = 100 * figures["data_seconds"] / (passed / steps)
    say(f"data path alone, one process: {1000 * figures['data_seconds']:.1f} ms a batch, {share:.2f} % of a step")
    say(f"training: peak memory {figures['peak_memory_gb']:.2f} GB")

    figures.update(compare_sharing(trainer, first[0], say))
    return figures


def seconds_of_data_path(trainer: Trainer, batches: int = 8) -> float:
    """Seconds to read, decode, tokenize and put together a batch in the calling process, without the model."""
    count = min(batches, len(trainer.batches))
    loader = make_loader(
        GuardedDataset(trainer.data.dataset),
        guarded_collate(trainer.data.collate),
        StepSampler(trainer.batches, 0, count),
        workers=0,
    )
    start = time.perf_counter()
    for _ in loader:
        pass
    return (time.perf_counter() - start) / count


def compare_sharing(trainer: Trainer, batch: dict, say: Callable[[str], None]) -> dict[str, float]:
    """Time one forward pass with an image's arrays given once for its four choices, and given four times."""
    task = trainer.task
    rows = batch["input_ids"].shape[0] // batch["region_features"].shape[0]
    names = ("region_features", "region_locations", "region_mask")
    repeated = {**batch, **{name: repeat_rows(batch[name], rows) for name in names}}
    task.model.eval()
    timed = {}
    with paddle.no_grad():
        for name, arrays in (("repeated", repeated), ("shared", batch)):
            task.scores(arrays)
            wait()
            start = time.perf_counter()
            task.scores(arrays)
            wait()
            timed[name] = time.perf_counter() - start
    ratio = timed["repeated"] / timed["shared"]
    size = sum(batch[name].numpy().nbytes for name in names) / 1e6
    say(f"image arrays: {size:.1f} MB a batch instead of {size * rows:.1f}; forward pass {ratio:.2f} times as fast")
    return {"sharing_ratio": ratio}


def peak_memory() -> float:
    """Bytes: on a GPU what was allocated there, else the resident memory of this process."""
    if paddle.get_device().startswith("gpu"):
        return float(paddle.device.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def wait() -> None:
    if paddle.get_device().startswith("gpu"):
        paddle.device.synchronize()
