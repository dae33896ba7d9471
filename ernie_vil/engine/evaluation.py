"""Evaluation: every example of a split exactly once, over any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle

from ernie_vil.engine.config import RunConfig
from ernie_vil.engine.data import GuardedDataset, SkipLog, guarded_collate, make_loader
from ernie_vil.engine.distributed import Processes, gather_objects
from ernie_vil.engine.task import Task
from ernie_vil.errors import UserError


def evaluate(
    config: RunConfig, task: Task, split: str, processes: Processes = Processes()
) -> tuple[dict[str, float], list[dict]]:
    """Metrics and records of a split, in the order of its keys, the same in every process.

    Records that could not be read are named in ``skipped.jsonl`` and counted in the metric ``skipped``; more than
    ``data.max_skip_ratio`` of them, or no usable example at all, raise :class:`UserError`.
    """
    check_precision(config)
    examples = task.eval_set(split)
    keys, size = list(examples.keys), config.eval.batch_size
    share = keys[processes.rank :: processes.world]
    batches = [share[first : first + size] for first in range(0, len(share), size)]
    loader = make_loader(
        GuardedDataset(examples.dataset), guarded_collate(examples.collate), batches, config.train.workers
    )
    records: list[dict] = []
    skipped: list[str] = []
    was_training = task.model.training
    task.model.eval()
    with paddle.no_grad(), autocast(config):
        for batch in loader:
            skipped += batch["skipped"]
            if batch["size"]:
                records += task.predict(batch)
    if was_training:
        task.model.train()
    gathered = gather_objects((records, skipped), processes)
    records = [record for part, _ in gathered for record in part]
    skipped = [message for _, part in gathered for message in part]
    skip_log(config, split, examples.records, processes, recount=False).add([*examples.unreadable, *skipped])
    position = {key: index for index, key in enumerate(keys)}
    records.sort(key=lambda record: position[record["key"]])
    if len({record["key"] for record in records}) != len(records) or len(records) + len(skipped) != len(keys):
        raise RuntimeError(f"{split}: {len(records)} records and {len(skipped)} skipped for {len(keys)} examples")
    if not records:
        raise UserError(f"{split}: no example could be used: {'; '.join(skipped[:3]) or 'the split is empty'}")
    return {
        **task.metrics(records),
        "examples": len(records),
        "skipped": len(skipped) + len(examples.unreadable),
    }, records


def check_precision(config: RunConfig) -> None:
    if config.train.precision != "fp32" and paddle.get_device() == "cpu":
        raise UserError(f"train.precision: {config.train.precision} needs an accelerator; on the CPU use fp32")


def autocast(config: RunConfig) -> Any:
    """Mixed precision as ``train.precision`` says (Paddle's level O1: parameters stay in float32)."""
    precision = {"bf16": "bfloat16", "fp16": "float16"}.get(config.train.precision)
    return paddle.amp.auto_cast(enable=precision is not None, dtype=precision or "bfloat16", level="O1")


def skip_log(config: RunConfig, split: str, size: int, processes: Processes, recount: bool = True) -> SkipLog:
    """The log of a split's unusable records in ``skipped.jsonl``, with the config's budget."""
    path = Path(config.output) / "skipped.jsonl" if processes.main else None
    return SkipLog(path, config.data.max_skip_ratio, size, split, recount)
