"""Preflight: everything that could stop a run, found before it starts and reported at once."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import paddle

from ernie_vil.engine.config import RunConfig
from ernie_vil.engine.data import GuardedDataset, Skipped
from ernie_vil.errors import UserError
from ernie_vil.models.ernie_vil import activation_bytes

GIGA = 1e9
SAMPLES = 16


@dataclass
class Report:
    """What was found: facts, and faults that would stop the run."""

    facts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def look(self, check: Callable[[], Optional[str]]) -> None:
        """Note what ``check`` says, or the mistake that it finds."""
        try:
            fact = check()
            if fact:
                self.facts.append(fact)
        except UserError as error:
            # A missing file was named already, with its key.
            if not any(str(error).split(":")[0] in fault for fault in self.faults):
                self.faults.append(str(error))


def preflight(config: RunConfig, task: type, splits: Sequence[str] = ("train", "val")) -> Report:
    """Check files, vocabulary, weights, samples of the data, memory and disk of a run."""
    report = Report()
    report.faults += task.missing_files(config.data, splits)
    best = config.train.best_metric
    if best and best not in task.metric_names:
        report.faults.append(f"train.best_metric: {best} is not among {', '.join(task.metric_names)}")
    run: Any = None

    def open_model() -> str:
        nonlocal run
        run = task(config, None)
        parameters = sum(tensor.size for tensor in run.model.parameters())
        return f"model: {parameters / 1e6:.1f} M parameters; {run.model.account.summary()}"

    report.look(open_model)
    if run is not None:
        for split in splits:
            if not task.missing_files(config.data, (split,)):
                report.look(lambda split=split: read_samples(run, split))
        report.look(lambda: check_memory(config, run))
    report.look(lambda: check_disk(config, run))
    return report


def read_samples(run: Any, split: str) -> str:
    """Read examples spread over a split. Raises :class:`UserError` naming those that cannot be read."""
    examples = run.eval_set(split)
    step = max(len(examples.keys) // SAMPLES, 1)
    dataset = GuardedDataset(examples.dataset)
    samples = [dataset[key] for key in examples.keys[::step]]
    bad = [*examples.unreadable, *(sample.message for sample in samples if isinstance(sample, Skipped))]
    failed = [sample for sample in samples if hasattr(sample, "reraise")]
    if failed:
        failed[0].reraise()
    if bad:
        raise UserError("\n  ".join([f"data.{split}: {len(bad)} unreadable records among those looked at:", *bad[:20]]))
    examples.collate(samples)
    return f"data.{split}: {len(examples.keys)} examples; {len(samples)} of them read"


def check_memory(config: RunConfig, run: Any) -> str:
    """Compare a rough need of training with what the device has. Raises :class:`UserError` if it is far too little."""
    parameters = sum(tensor.size for tensor in run.model.parameters())
    examples = -(-config.train.batch_size // config.train.accumulate)
    activations = activation_bytes(run.model.config, *run.largest_batch(examples))
    if config.train.recompute:
        activations //= max(run.model.config.text_layers, 1)
    if config.train.precision != "fp32":
        activations //= 2
    need, have = 16 * parameters + activations, device_memory()
    text = f"memory: about {need / GIGA:.1f} of {have / GIGA:.1f} GB for {examples} examples at once on a device"
    if need > 1.2 * have:
        raise UserError(f"{text}: raise train.accumulate, lower train.batch_size or set train.recompute")
    return text


def check_disk(config: RunConfig, run: Any) -> str:
    """Compare the size of the checkpoints with the free space. Raises :class:`UserError` if it is too little."""
    folder = Path(config.output).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"output: {config.output}: {folder} is a file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"output: {config.output}: {folder} cannot be written to")
    free = shutil.disk_usage(folder).free
    if run is None:
        return f"disk: {free / GIGA:.1f} GB free"
    # Weights and two moments each; the newest, the best and the one being written.
    need = 12 * sum(tensor.size for tensor in run.model.parameters()) * (config.train.keep + 2)
    text = f"disk: {need / GIGA:.1f} GB for checkpoints, {free / GIGA:.1f} GB free"
    if need > free:
        raise UserError(f"{text}: lower train.keep or give another output")
    return text


def device_memory() -> int:
    """Bytes of memory of the device that a run uses."""
    if paddle.get_device().startswith("gpu"):
        return paddle.device.cuda.get_device_properties().total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
