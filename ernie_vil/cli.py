"""What the tools share: arguments, opening a run, exit codes (0 done, 2 user error, 1 bug)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional, Sequence

from ernie_vil.errors import UserError


def run_parser(description: str) -> argparse.ArgumentParser:
    """Arguments of every tool that works on a run's config."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-c", "--config", required=True, metavar="YAML", help="the run, such as configs/vcr.yaml")
    parser.add_argument(
        "-o", "--override", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="such as train.workers=4"
    )
    parser.add_argument(
        "--mini", action="store_true", help="small model, miniature data made on first use, no download"
    )
    return parser


def load_config(arguments: argparse.Namespace, extra: Sequence[str] = ()) -> tuple[Any, type]:
    """The validated config of a run and the class of its task. Raises :class:`UserError` with all faults."""
    from ernie_vil.engine.config import load, read_yaml
    from ernie_vil.tasks import TASKS

    def sections(raw: dict) -> dict[str, type]:
        return find_task(raw, TASKS).sections

    overrides = list(extra)
    if arguments.mini:
        task = find_task(read_yaml(arguments.config), TASKS)
        print("MINIATURE RUN: a small model on made-up pictures; its figures say nothing about the paper's.")
        overrides += [f"data.{key}={json.dumps(value)}" for key, value in task.mini_data().items()]
    config = load(arguments.config, [*overrides, *arguments.override], sections, mini=arguments.mini)
    return with_weights(config, config.model.weights), TASKS[config.task]


def with_weights(config: Any, weights: Optional[str]) -> Any:
    """The config with these initial weights; of a run's output folder, those of its best checkpoint."""
    from ernie_vil.engine.checkpoint import find_model

    if weights is not None and (":" not in weights or Path(weights).exists()):
        weights = str(find_model(Path(weights)))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, weights=weights))


def load_trained(arguments: argparse.Namespace) -> tuple[Any, type]:
    """Like :func:`load_config`, with the weights that ``-w`` names (by default the run's own best checkpoint)."""
    config, task = load_config(arguments)
    check_splits([arguments.split], task)

    weights = arguments.weights or config.output
    if arguments.weights is None and not Path(weights, "checkpoints").is_dir():
        raise UserError(f"{weights}: this run has no checkpoint yet; train it first or name weights with -w")
    return with_weights(config, weights), task


def check_splits(splits: Sequence[str], task: type) -> None:
    for split in splits:
        if split not in task.splits:
            raise UserError(f"split {split}: this task has the splits {', '.join(task.splits)}")


def check_writable(path: Path) -> None:
    """Raise :class:`UserError` before the work is done, not after it."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    existed = path.exists()
    with path.open("a"):
        pass
    if not existed:
        path.unlink()


def find_task(raw: dict, tasks: dict[str, type]) -> type:
    name = raw.get("task")
    if name not in tasks:
        raise UserError(f"task: {name!r} is unknown; known are: {', '.join(sorted(tasks))}")
    return tasks[name]


def main(program: Callable[[Optional[Sequence[str]]], Any]) -> NoReturn:
    """Run a tool's ``program`` and leave with its exit code."""
    # Paddle speaks of optional parts of the machine (a compiler cache, flags); that is no news of a run.
    os.environ.setdefault("GLOG_minloglevel", "2")
    warnings.filterwarnings("ignore", message="No ccache found")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:No ccache found")  # for processes that this one starts
    try:
        program(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # A place that cannot be read or written, a full disk: the user's to mend. Without a file it is a fault of ours.
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; training continues with --resume auto, parsing with --resume", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
