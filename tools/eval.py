"""Evaluate: ``python tools/eval.py -c configs/vcr.yaml -w OUTPUT_OR_WEIGHTS [--split val] [--json FILE]``."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Sequence

from ernie_vil import cli
from ernie_vil.errors import UserError


def evaluate(argv: Optional[Sequence[str]]) -> None:
    parser = cli.run_parser(__doc__)
    parser.add_argument(
        "-w", "--weights", help="output folder, checkpoint or model folder; default: the config's output"
    )
    parser.add_argument("--split", default="val")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there")
    arguments = parser.parse_args(argv)
    if arguments.json:
        cli.check_writable(arguments.json)
    config, task = cli.load_trained(arguments)
    if arguments.split in task.unlabelled:
        raise UserError(f"--split {arguments.split}: has no labels to compare with; tools/predict.py writes its file")

    from ernie_vil.engine import distributed, evaluation
    from ernie_vil.engine.logging import show

    processes = distributed.start()
    metrics, _ = evaluation.evaluate(config, task(config, (arguments.split,), trained=True), arguments.split, processes)
    if processes.main:
        print("  ".join(f"{name} {show(value)}" for name, value in metrics.items()))
        if config.target is not None and not arguments.mini:
            print(f"published: {config.target.metric} {config.target.value} ({config.target.source})")
        if arguments.json:
            cli.write_json(arguments.json, metrics)


if __name__ == "__main__":
    cli.main(evaluate)
