"""Train the small spaCy pipeline that parses captions: ``train_scene_graph_pipeline.py --parsed FILE ... --out DIR``.

The parses to learn from are made by a larger pipeline (``--annotate``), if need be in an environment of its own, which
needs nothing of this package's dependencies but spaCy. docs/scene-graphs.md has the commands.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Optional, Sequence

sys.path.insert(0, str(Path(__file__).parent.parent))  # to run where the package is not installed

from ernie_vil import cli
from ernie_vil.errors import UserError


def run(argv: Optional[Sequence[str]]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parsed", nargs="+", type=Path, default=[], metavar="FILE", help="parsed captions")
    parser.add_argument("--leave-out", nargs="+", type=Path, default=[], metavar="FILE", help="captions to avoid")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline; with --annotate a .jsonl.gz")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--annotate", type=Path, metavar="CAPTIONS", help="only parse these, with --spacy-model")
    parser.add_argument("--spacy-model", metavar="NAME_OR_PATH", help="the pipeline that --annotate uses")
    arguments = parser.parse_args(argv)
    if arguments.annotate is not None:
        annotate_file(arguments)
    elif arguments.parsed:
        train_pipeline(arguments)
    else:
        raise UserError("give --parsed FILE ... to train, or --annotate CAPTIONS to make such a file")


def annotate_file(arguments: argparse.Namespace) -> None:
    from ernie_vil.scene_graph.parsed import annotate, read_captions
    from ernie_vil.scene_graph.pipelines import import_spacy

    if not arguments.spacy_model:
        raise UserError("--annotate needs --spacy-model NAME_OR_PATH")
    try:
        nlp = import_spacy().load(arguments.spacy_model, disable=["ner"])
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--spacy-model {arguments.spacy_model}: cannot be loaded ({reason})") from None
    with gzip.open(arguments.out, "wt", encoding="utf-8") as file:
        for line in annotate(nlp, read_captions(arguments.annotate)):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def train_pipeline(arguments: argparse.Namespace) -> None:
    from ernie_vil.scene_graph.parsed import read_captions, read_parsed
    from ernie_vil.scene_graph.training import train, training_part

    def report(step: int, steps: int, losses: dict) -> None:
        print(
            f"step {step} of {steps}: " + ", ".join(f"{name} {loss:.1f}" for name, loss in losses.items()), flush=True
        )

    left_out = [(row["image_id"], row["caption"]) for path in arguments.leave_out for row in read_captions(path)]
    captions = training_part((caption for path in arguments.parsed for caption in read_parsed(path)), left_out)
    if not captions:
        raise UserError("none of the captions is of the training part")
    print(f"{len(captions)} captions, {sum(len(caption.tokens) for caption in captions)} words")
    train(captions, arguments.epochs, arguments.seed, report=report).to_disk(arguments.out)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    cli.main(run)
