"""Convert published weights: ``python tools/convert_weights.py --from ernie-vil-fluid --src PATH --out DIR``.

Writes a folder that ``from_pretrained`` and ``-o model.weights=DIR`` open, and prints what became of every key.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional, Sequence

from ernie_vil import cli


def convert(argv: Optional[Sequence[str]]) -> None:
    from ernie_vil.weights import FORMATS, fluid

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="format", required=True, choices=sorted(FORMATS))
    parser.add_argument("--src", type=Path, required=True, help="the published folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--config", type=Path, help="the model's JSON file, where it does not lie in the folder")
    arguments = parser.parse_args(argv)
    converted = FORMATS[arguments.format](arguments.src, arguments.config)
    fluid.write_model_folder(converted, arguments.out)
    print(converted.summary())
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    cli.main(convert)
