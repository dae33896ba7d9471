"""Miniature NLVR: drawn images of three boxes with generated statements, in the files of the corpus.

:func:`build_mini_nlvr` writes annotations, images, region stores and a vocabulary; :func:`mini_nlvr` keeps such a
folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ernie_vil.data.mini_cache import mini_folder, write_whole
from ernie_vil.data.nlvr_prepare import write_store
from ernie_vil.data.nlvr_regions import (
    BACKGROUND,
    BOX_STEP,
    BOX_WIDTH,
    BOXES,
    COLOURS,
    HEIGHT,
    SHAPES,
    SIZES,
    WIDTH,
    nlvr_regions,
)
from ernie_vil.data.nlvr_statements import WORDS, Scene, draw_statement
from ernie_vil.data.nlvr_text import SPECIAL

FORMAT_VERSION = 1
DIRECTORIES = 80
SEPARATOR = (128, 128, 128)
_FINER = 4  # drawn so many times as large, then made smaller: smooth outlines

README = """Miniature NLVR data, made by ernie_vil.data.mini_nlvr; not the real corpus.

{counts}
The images show three boxes with a tower each, or with scattered squares, circles and triangles in three sizes. The
sentences are generated statements (ernie_vil.data.nlvr_statements), half of them true. Files as in the corpus:
train.json and dev.json, and the first image of every example in train_images and dev_images; train.lmdb and dev.lmdb
are what tools/prepare_nlvr.py makes of them.

Parameters: {parameters}
"""


@dataclass(frozen=True)
class MiniNlvrParameters:
    """Everything that decides the contents of the folder; the defaults are the standard set of :func:`mini_nlvr`."""

    seed: int = 0
    train_examples: int = 3000
    dev_examples: int = 100

    def as_dict(self) -> dict:
        """The parameters with the version of the format and a digest of the vocabulary, as files record them."""
        words = hashlib.sha256("\n".join(WORDS).encode()).hexdigest()[:10]
        return {**vars(self), "format_version": FORMAT_VERSION, "vocabulary": words}


def build_mini_nlvr(folder: str | Path, **parameters: int) -> None:
    """Writes the miniature NLVR data into ``folder``, all or nothing; the same arguments give the same contents.

    A folder that holds them already is left alone. Raises :class:`UserError` if the folder is taken or cannot be
    written to.
    """
    chosen = MiniNlvrParameters(**parameters)
    write_whole(Path(folder), chosen.as_dict(), lambda target: _write(target, chosen))


def mini_nlvr(home: Path | None = None, parameters: MiniNlvrParameters = MiniNlvrParameters()) -> Path:
    """The folder of the miniature NLVR data, made on first use (about a minute for the standard set).

    It lies at ``mini/nlvr-v1-<hash of the parameters>``; see :func:`ernie_vil.data.mini_cache.mini_folder`.
    """
    digest = hashlib.sha256(json.dumps(parameters.as_dict(), sort_keys=True).encode()).hexdigest()[:10]
    folder = mini_folder(f"nlvr-v{FORMAT_VERSION}-{digest}", home)
    write_whole(folder, parameters.as_dict(), lambda target: _write(target, parameters))
    return folder


def _write(folder: Path, parameters: MiniNlvrParameters) -> None:
    counts = {"train": parameters.train_examples, "dev": parameters.dev_examples}
    for number, (part, examples) in enumerate(counts.items()):
        images = folder / f"{part}_images"
        images.mkdir()
        draws = [np.random.default_rng([parameters.seed, number, index]) for index in range(examples)]
        pictures = [draw_image(rng) for rng in draws]
        scenes = [Scene.from_features(nlvr_regions(np.array(picture), part).features) for picture in pictures]
        lines = []
        for index, rng in enumerate(draws):
            drawn = draw_statement(index, scenes.__getitem__, examples, rng)
            identifier, directory = f"{index}-0", str(index % DIRECTORIES)
            pictures[drawn.image].save(images / f"{part}-{identifier}-0.png")
            label = "true" if drawn.truth else "false"
            lines.append({"sentence": drawn.text, "label": label, "identifier": identifier, "directory": directory})
        annotations = folder / f"{part}.json"
        annotations.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        write_store(annotations, images, part, folder / f"{part}.lmdb")
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n", encoding="utf-8")
    text = README.format(
        counts="\n".join(f"{part}: {count} examples" for part, count in counts.items()),
        parameters=json.dumps(parameters.as_dict()),
    )
    (folder / "README.txt").write_text(text, encoding="utf-8")


def draw_image(rng: np.random.Generator) -> Image.Image:
    """A random image of towers or of scattered things, as bytes ``[100, 400, 3]``."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), SEPARATOR)
    towers = bool(rng.integers(2))
    for number in range(BOXES):
        box = Image.new("RGB", (BOX_WIDTH * _FINER, HEIGHT * _FINER), BACKGROUND)
        pen = ImageDraw.Draw(box)
        for colour, shape, left, top, size in _tower(rng) if towers else _scatter(rng):
            _draw_thing(pen, COLOURS[colour], shape, left * _FINER, top * _FINER, size * _FINER)
        picture.paste(box.resize((BOX_WIDTH, HEIGHT), Image.BOX), (BOX_STEP * number, 0))
    return picture


def _tower(rng: np.random.Generator) -> list[tuple]:
    size = SIZES["medium"]
    blocks = []
    for level in range(int(rng.integers(1, 5))):
        top = HEIGHT - size - level * (size + 1)
        blocks.append((str(rng.choice(list(COLOURS))), "square", (BOX_WIDTH - size) // 2, top, size))
    return blocks


def _scatter(rng: np.random.Generator) -> list[tuple]:
    things: list[tuple] = []
    for _ in range(int(rng.integers(1, 9))):
        size = int(rng.choice(list(SIZES.values())))
        places = [int(rng.integers(0, BOX_WIDTH - size + 1)), int(rng.integers(0, HEIGHT - size + 1))]
        if rng.random() < 0.3:
            places[int(rng.integers(2))] = int(rng.choice((0, BOX_WIDTH - size)))
        # Two pixels of ground between things: patches of one colour must not run together.
        if all(
            max(abs(2 * a + size - 2 * b - other) - size - other for a, b in zip(places, (left, top))) > 4
            for _, _, left, top, other in things
        ):
            things.append((str(rng.choice(list(COLOURS))), str(rng.choice(list(SHAPES))), *places, size))
    return things


def _draw_thing(
    pen: ImageDraw.ImageDraw, colour: tuple[int, int, int], shape: str, left: int, top: int, size: int
) -> None:
    right, bottom = left + size - 1, top + size - 1
    if shape == "square":
        pen.rectangle((left, top, right, bottom), fill=colour)
    elif shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=colour)
    else:
        pen.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=colour)
