"""An experiment of the papers in miniature: ``python tools/reproduce.py --experiment sgp [--out DIR] [--seeds 0 1 2]``.

Prints and writes (``DIR/report.md``, ``DIR/results.json``) a table of means and spreads over the seeds. Called again,
it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Optional, Sequence

from ernie_vil import cli


def reproduce(argv: Optional[Sequence[str]]) -> None:
    from ernie_vil.reproduce import EXPERIMENTS, run_experiment

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", required=True, choices=sorted(EXPERIMENTS))
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: output/reproduce-EXPERIMENT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs side by side")
    arguments = parser.parse_args(argv)
    if arguments.processes < 1 or min(arguments.seeds) < 0 or len(set(arguments.seeds)) < len(arguments.seeds):
        parser.error("--processes must be at least 1; --seeds must be different numbers from 0 on")
    out = arguments.out or Path("output") / f"reproduce-{arguments.experiment}"
    out.mkdir(parents=True, exist_ok=True)
    configs = Path(__file__).resolve().parent.parent / "configs"
    run_experiment(arguments.experiment, out, configs, arguments.seeds, arguments.processes)
    print((out / "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    cli.main(reproduce)
