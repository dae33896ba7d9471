"""Train a run: ``python tools/train.py -c configs/vcr.yaml [--mini] [-o key=value ...] [--resume auto|true|PATH]``."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Sequence

from ernie_vil import cli


def train(argv: Optional[Sequence[str]]) -> None:
    parser = cli.run_parser(__doc__)
    parser.add_argument(
        "--resume", metavar="auto|true|PATH", help="continue if possible | it must be possible | from PATH"
    )
    arguments = parser.parse_args(argv)
    config, task = cli.load_config(arguments)

    from ernie_vil.engine import distributed
    from ernie_vil.engine.trainer import Trainer

    processes = distributed.start()
    run = task(config)
    Path(config.output).mkdir(parents=True, exist_ok=True)
    if processes.main and not arguments.resume:
        print(f"weights: {run.model.account.summary()}")
    metrics = Trainer(config, run, processes).fit(arguments.resume)
    if processes.main:
        print(f"done: {config.output}; " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))


if __name__ == "__main__":
    cli.main(train)
