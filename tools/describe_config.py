"""All keys of a config as Markdown: ``python tools/describe_config.py > docs/config.md``."""

from __future__ import annotations

import argparse
from typing import Optional, Sequence

from ernie_vil import cli


def describe_config(argv: Optional[Sequence[str]]) -> None:
    from ernie_vil.engine.config import RunOptions, describe
    from ernie_vil.tasks import TASKS

    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    print("# Keys of a config\n")
    print("Durations are `{epochs: 6}`, `{steps: 100}`, `{examples: 1000}` or `{percent: 10}` (of the training).\n")
    print("The sections `model` and `data` are those of the task, below.\n")
    print(describe(RunOptions))
    for name, task in TASKS.items():
        print(f"## `task: {name}`\n")
        for section, schema in task.sections.items():
            print(describe(schema, f"{section}."))


if __name__ == "__main__":
    cli.main(describe_config)
