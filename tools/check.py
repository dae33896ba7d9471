"""Preflight: ``python tools/check.py -c configs/vcr.yaml``.

Looks at config, data samples, weights, memory and disk, and reports all faults at once.
"""

from __future__ import annotations

from typing import Optional, Sequence

from ernie_vil import cli
from ernie_vil.errors import UserError


def check(argv: Optional[Sequence[str]]) -> None:
    parser = cli.run_parser(__doc__)
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="splits to look at")
    arguments = parser.parse_args(argv)
    config, task = cli.load_config(arguments)
    cli.check_splits(arguments.splits, task)

    from ernie_vil.preflight import preflight

    report = preflight(config, task, arguments.splits)
    for fact in report.facts:
        print(f"ok: {fact}")
    if report.faults:
        raise UserError("\n  ".join([f"{len(report.faults)} faults:", *report.faults]))
    print("ready")


if __name__ == "__main__":
    cli.main(check)
