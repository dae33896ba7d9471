"""What a checkpoint says of the run besides parameters and moments, and whether another run may continue from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

import numpy as np
import paddle
import yaml

from ernie_vil.engine import checkpoint
from ernie_vil.engine.config import to_yaml
from ernie_vil.engine.window import Window
from ernie_vil.errors import UserError

if TYPE_CHECKING:
    from ernie_vil.engine.trainer import Trainer


def write(trainer: Trainer, folder: Path, windows: list[dict]) -> None:
    """Fill a checkpoint's folder; ``windows`` are the sums since the last log entry, of every process."""
    trainer.task.save_pretrained(folder)
    paddle.save(trainer.optimizer.named_state(), str(folder / checkpoint.OPTIMIZER_FILE))
    state = {
        "step": trainer.step,
        "epoch": trainer.epoch(),
        "updates": trainer.optimizer.updates,
        "learning_rate": trainer.schedule(trainer.step),
        "best": trainer.best,
        "metric": trainer.metric,
        "windows": windows,
        "window_start": trainer.window.start,
        "scaler": {key: np.asarray(value).tolist() for key, value in trainer.scaler.state_dict().items()},
        "random": {"seed": trainer.config.seed, "next_step": trainer.step},
        "position": position(trainer),
        "device": paddle.get_device().split(":")[0],
        "paddle": paddle.__version__,
        "git": checkpoint.git_state(Path(__file__).parent),
    }
    (folder / checkpoint.TRAINER_FILE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    (folder / "config.yaml").write_text(to_yaml(trainer.config), encoding="utf-8")


def position(trainer: Trainer) -> dict[str, Any]:
    """What decides which examples a step has; a run continues only with the same."""
    data, options = trainer.data, trainer.config.train
    return {
        "seed": trainer.config.seed,
        "processes": trainer.processes.world,
        "train.batch_size": options.batch_size,
        "train.accumulate": options.accumulate,
        "examples of each part": list(data.sizes),
        "turn": data.turn,
        "drop_last": data.drop_last,
    }


def restore(trainer: Trainer, folder: Path) -> None:
    """Put a trainer, whose plan is made, where a checkpoint was.

    Raises :class:`UserError` for a damaged checkpoint, and for one of a run whose steps have other examples.
    """
    file = folder / checkpoint.TRAINER_FILE
    state = checkpoint.read_trainer(folder)
    try:
        then, now = state["position"], position(trainer)
        changed = [f"{key} was {then.get(key)!r} and is {value!r}" for key, value in now.items() if then[key] != value]
        if changed:
            raise UserError(
                f"{folder}: was written by a run whose steps have other examples: {'; '.join(changed)}. Resume with "
                "the same, or start a new run from its weights with -o model.weights=FOLDER"
            )
        if state["step"] > trainer.total_steps:
            raise UserError(f"train.duration: {trainer.total_steps} steps, but {folder} is at step {state['step']}")
        trainer.task.model.load(folder / checkpoint.MODEL_FILE)
        trainer.optimizer.load_named_state(
            checkpoint.read_optimizer(folder), int(state["updates"]), str(folder / checkpoint.OPTIMIZER_FILE)
        )
        if state["scaler"]:
            trainer.scaler.load_state_dict({**state["scaler"], "scale": np.atleast_1d(state["scaler"]["scale"])})
        trainer.step, trainer.best = int(state["step"]), state["best"]
        trainer.window = Window(int(state["window_start"]), state["windows"][trainer.processes.rank])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{file}: damaged, or of another version ({type(error).__name__}: {error})") from None


def changed_keys(folder: Path, raw: Mapping[str, Any]) -> list[str]:
    """Dotted keys of the config that differ from those of a checkpoint, where it can be read."""
    try:
        before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    flat_before, flat_now = dict(_flatten(before)), dict(_flatten(raw))
    return sorted(
        key for key in {*flat_before, *flat_now} if flat_before.get(key) != flat_now.get(key) and key != "output"
    )


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    return [pair for key, item in value.items() for pair in _flatten(item, f"{prefix}.{key}" if prefix else str(key))]
