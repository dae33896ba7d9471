"""Predict: ``python tools/predict.py -c configs/vcr.yaml -w OUTPUT_OR_WEIGHTS --split test --out FILE``.

Writes the task's result format: VCR the leaderboard's CSV, RefCOCO+ boxes as JSON, the cloze test a page (.html) or
all nodes (.jsonl).
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Sequence

from ernie_vil import cli
from ernie_vil.errors import UserError


def predict(argv: Optional[Sequence[str]]) -> None:
    parser = cli.run_parser(__doc__)
    parser.add_argument(
        "-w", "--weights", help="output folder, checkpoint or model folder; default: the config's output"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args(argv)
    cli.check_writable(arguments.out)
    config, task = cli.load_trained(arguments)
    suffixes = getattr(task, "prediction_suffixes", None)
    if suffixes and arguments.out.suffix not in suffixes:
        raise UserError(f"--out {arguments.out}: give a name that ends in {' or '.join(suffixes)}")

    from ernie_vil.engine import distributed, evaluation

    processes = distributed.start()
    run = task(config, (arguments.split,), trained=True)
    metrics, records = evaluation.evaluate(config, run, arguments.split, processes)
    if processes.main:
        run.write_predictions(records, arguments.split, arguments.out)
        print(f"{arguments.out}: {metrics['examples']} predictions, {metrics['skipped']} skipped")


if __name__ == "__main__":
    cli.main(predict)
