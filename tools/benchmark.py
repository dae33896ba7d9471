"""Benchmark: ``python tools/benchmark.py -c configs/vcr.yaml [--batch-size 16] [--steps 2]``.

Training and evaluation of the config's model on made-up data of real size (100 regions of 2,048 numbers): samples/s,
peak memory, the share of the time that is not the model's, and what sharing an image among its choices saves.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Optional, Sequence

from ernie_vil import cli


def run(argv: Optional[Sequence[str]]) -> None:
    parser = cli.run_parser(__doc__)
    parser.add_argument("--batch-size", type=int, default=16, help="questions of a training step")
    parser.add_argument("--steps", type=int, default=2, help="training steps that are timed, after one that is not")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args(argv)
    if min(arguments.steps, arguments.batch_size, arguments.images) < 1:
        parser.error("--steps, --batch-size and --images must be at least 1")

    from ernie_vil.benchmark import benchmark, write_real_size_vcr
    from ernie_vil.engine import distributed
    from ernie_vil.engine.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output": str(Path(folder) / "out"),
            "train.batch_size": arguments.batch_size,
            "eval.batch_size": arguments.batch_size,
            "train.duration": {"epochs": 100},
        }
        if not arguments.mini:
            data = write_real_size_vcr(Path(folder), arguments.images, regions=100, feature_size=2048)
            settings.update({f"data.{key}": path for key, path in data.items()})
        config, task = cli.load_config(arguments, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
        figures = benchmark(Trainer(config, task(config), distributed.Processes()), arguments.steps)
    if arguments.json:
        cli.write_json(arguments.json, figures)


if __name__ == "__main__":
    cli.main(run)
