"""Parse captions into scene graphs: ``python tools/parse_scene_graphs.py --captions FILE --out FILE [--processes 2]``.

FILE: captions of COCO, Conceptual Captions, SBU, Visual Genome, VCR, Flickr30k, {"id", "image_id", "caption"} lines or
plain text. Out comes a caption file, which pre-training reads: JSON lines, or parquet by the suffix .parquet. A run
that was killed goes on with --resume. The English pipeline is en_core_web_sm where it is installed (python -m spacy
download en_core_web_sm), else the one that comes with this package.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional, Sequence

from ernie_vil import cli


def parse(argv: Optional[Sequence[str]]) -> None:
    from ernie_vil.data.captions import FORMATS, MAX_SKIP_RATIO
    from ernie_vil.scene_graph.caption_run import Source, parse_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the caption file, .jsonl or .parquet")
    parser.add_argument("--format", default="auto", choices=["auto", *FORMATS])
    parser.add_argument("--image-ids", type=Path, metavar="FILE", help="image id of every record, line by line")
    parser.add_argument("--spacy-model", metavar="NAME_OR_PATH", help="spaCy pipeline, installed or a folder")
    parser.add_argument("--processes", type=int, default=1, help="worker processes")
    parser.add_argument("--resume", action="store_true", help="go on with what an earlier run left")
    parser.add_argument("--seed", type=int, default=0, help="of the names in VCR's texts")
    parser.add_argument("--max-skip-ratio", type=float, default=MAX_SKIP_RATIO, help="share of damaged records allowed")
    parser.add_argument("--no-completion", action="store_true", help="the graphs of sng_parser and no more")
    arguments = parser.parse_args(argv)
    if arguments.processes < 1:
        parser.error("--processes must be at least 1")
    source = Source(
        arguments.captions,
        arguments.format,
        arguments.image_ids,
        arguments.seed,
        arguments.max_skip_ratio,
        arguments.spacy_model,
        complete=not arguments.no_completion,
    )
    summary = parse_file(source, arguments.out, arguments.processes, arguments.resume)
    print("\n".join(summary.lines()))
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    cli.main(parse)
