"""Quality of the pipeline that parses captions: against a larger pipeline's parses, and of the graphs against people's.

``python tools/evaluate_scene_graphs.py --parsed FILE ...`` takes the captions of the files that are held out from
training; ``--factual dev.csv`` takes FACTUAL's. docs/scene-graphs.md says what the figures mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Optional, Sequence

from ernie_vil import cli
from ernie_vil.errors import UserError


def run(argv: Optional[Sequence[str]]) -> None:
    from ernie_vil.scene_graph.parser import load_pipeline
    from ernie_vil.scene_graph.pipelines import SHIPPED

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spacy-model", default=str(SHIPPED), help="name or folder; default: the one that ships")
    parser.add_argument("--parsed", nargs="+", type=Path, default=[], metavar="FILE", help="reference parses")
    parser.add_argument("--part", choices=("test", "dev", "train", "all"), default="test", help="part of their images")
    parser.add_argument("--factual", type=Path, metavar="CSV", help="captions with graphs made by people")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args(argv)
    if not arguments.parsed and arguments.factual is None:
        raise UserError("give --parsed FILE ... or --factual CSV")
    nlp = load_pipeline(arguments.spacy_model)
    figures: dict[str, Any] = {}
    if arguments.parsed:
        figures.update(against_parses(nlp, arguments.parsed, arguments.part))
    if arguments.factual is not None:
        figures.update(against_people(nlp, arguments.factual))
    for title, values in figures.items():
        print(f"{title}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
    if arguments.json is not None:
        cli.write_json(arguments.json, figures)


def against_parses(nlp: Any, files: Sequence[Path], part: str) -> dict[str, dict[str, float]]:
    from ernie_vil.scene_graph.agreement import graph_agreement, parse_agreement
    from ernie_vil.scene_graph.parsed import part_of, read_parsed

    captions = [row for file in files for row in read_parsed(file) if part in ("all", part_of(row.image_id))]
    if not captions:
        raise UserError(f"no caption of the files is of the part {part}")
    figures = {f"parses, {len(captions)} captions": parse_agreement(nlp, captions)}
    for title, complete in (("sng_parser", False), ("completed", True)):
        figures.update(_flat(f"graphs ({title})", graph_agreement(nlp, captions, complete)))
    return figures


def against_people(nlp: Any, file: Path) -> dict[str, dict[str, float]]:
    from ernie_vil.scene_graph.factual import evaluate, read_factual

    captions = list(read_factual(file))
    figures = {}
    for title, complete in (("sng_parser", False), ("completed", True)):
        figures.update(_flat(f"FACTUAL, {len(captions)} captions ({title})", evaluate(nlp, captions, complete)))
    return figures


def _flat(title: str, values: dict[str, Any]) -> dict[str, dict[str, float]]:
    whole = {name: value for name, value in values.items() if isinstance(value, float)}
    matches = {name: value for name, value in values.items() if name not in whole}
    return {title: whole} | {
        f"{title} {name}": {"precision": match.precision, "recall": match.recall, "f1": match.f1}
        for name, match in matches.items()
    }


if __name__ == "__main__":
    cli.main(run)
