"""Started by the test of data parallelism: trains as tools/train.py does and writes the gradient of every step."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ernie_vil import cli
from ernie_vil.engine import distributed, trainer


class RecordingTrainer(trainer.Trainer):
    folder: Path

    def _update(self) -> None:
        super()._update()
        if self.processes.main:
            np.savez(self.folder / f"step{self.step}.npz", **self.seen)


def main() -> None:
    folder, arguments = Path(sys.argv[1]), cli.run_parser("").parse_args(sys.argv[2:])
    config, task = cli.load_config(arguments)
    run = RecordingTrainer(config, task(config), distributed.start())
    run.folder = folder
    clip = trainer.clip_by_global_norm

    def clip_and_remember(parameters, limit):
        named = zip((name for name, _ in run.task.model.named_parameters()), parameters)
        run.seen = {name: parameter.grad.numpy() for name, parameter in named}
        return clip(parameters, limit)

    trainer.clip_by_global_norm = clip_and_remember
    run.fit()


main()
