"""All keys of a task's config as Markdown: ``python tools/describe_config.py vcr > docs/config.md``."""

from __future__ import annotations

import argparse
from typing import Optional, Sequence

from ernie_vil import cli


def describe_config(argv: Optional[Sequence[str]]) -> None:
    from ernie_vil.engine.config import describe, run_schema
    from ernie_vil.tasks import TASKS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(TASKS))
    task = parser.parse_args(argv).task
    print(f"# Keys of a config with `task: {task}`\n")
    print("Durations are `{epochs: 6}`, `{steps: 100}`, `{examples: 1000}` or `{percent: 10}` (of the training).\n")
    print(describe(run_schema(TASKS[task].sections)).strip())


if __name__ == "__main__":
    cli.main(describe_config)
