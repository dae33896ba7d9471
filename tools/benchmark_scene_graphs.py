"""Speed of parsing captions: ``python tools/benchmark_scene_graphs.py --captions FILE [--count 2000] [--processes 2]``.

Beside a loop of sng_parser.parse with the same pipeline, and whether the graphs are the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional, Sequence

from ernie_vil import cli


def run(argv: Optional[Sequence[str]]) -> None:
    from ernie_vil.data.captions import FORMATS
    from ernie_vil.scene_graph.benchmark import benchmark

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=Path, required=True, metavar="FILE", help="real captions")
    parser.add_argument("--format", default="auto", choices=["auto", *FORMATS])
    parser.add_argument("--spacy-model", metavar="NAME_OR_PATH", help="spaCy pipeline, installed or a folder")
    parser.add_argument("--count", type=int, default=2000, help="captions, the first of the file")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args(argv)
    if min(arguments.count, arguments.processes) < 1:
        parser.error("--count and --processes must be at least 1")
    figures = benchmark(
        arguments.captions, arguments.format, arguments.spacy_model, arguments.count, arguments.processes
    )
    if arguments.json:
        cli.write_json(arguments.json, figures)


if __name__ == "__main__":
    cli.main(run)
