"""Names for the persons of a picture.

VCR's texts point at persons by number; the models were trained on texts in which a gender-neutral name stands instead.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Optional, Sequence, Union

from ernie_vil.errors import UserError

PathLike = Union[str, Path]

PERSON = "person"
NEUTRAL_NAMES = Path(__file__).with_name("neutral_names.csv")


class NameDraws:
    """The name that every object of an entry is called by.

    An object of class ``person`` gets a name from the table, with replacement, so two persons of a picture can share
    one; every other object keeps its class. The draw of an entry depends only on the seed, the part (Q→A or QA→R), the
    split and the entry's line, not on the order in which entries are read nor on the process that reads them. It is
    therefore the same in every epoch and differs between the parts, both as in the original. (On the test split the
    original drew anew for each answer that a rationale is conditioned on; here a question keeps its names.)

    Args:
        names: the table.
        seed: seed of the draws.
        recorded: draws to use instead: ``recorded[part][entry]`` holds the names of all objects of that entry.
    """

    def __init__(
        self,
        names: Sequence[str],
        seed: int = 0,
        recorded: Optional[Sequence[Sequence[Sequence[str]]]] = None,
    ) -> None:
        self.names = list(names)
        self.seed = seed
        self.recorded = recorded
        if not self.names and recorded is None:
            raise UserError("the table of names is empty")

    @classmethod
    def from_table(cls, path: Optional[PathLike] = None, seed: int = 0) -> NameDraws:
        """Seeded draws from a CSV table, by default the neutral English first names that come with this package."""
        return cls(read_names(path or NEUTRAL_NAMES), seed)

    @classmethod
    def from_recorded(cls, path: PathLike, split: Optional[str] = None) -> NameDraws:
        """Draws recorded in a JSON file: a list per part, in it a list per entry, in it the name of every object.

        A file for several splits is an object with such a list for each, of which ``split`` is taken.
        """
        path = Path(path)
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file of recorded names") from None
        except ValueError as error:
            raise UserError(f"{path}: not a JSON file ({error})") from None
        if isinstance(recorded, dict):
            if split not in recorded:
                raise UserError(f"{path}: holds no names for the split {split}; it has {', '.join(recorded) or 'none'}")
            recorded = recorded[split]
        if not _is_recorded_draws(recorded):
            raise UserError(f"{path}: expected a list per part, in it a list per entry, in it the name of every object")
        return cls([], recorded=recorded)

    def check(self, sizes: Sequence[int]) -> None:
        """Refuse recorded draws that were made for other data.

        Args:
            sizes: number of entries of every part. A part without recorded draws is let pass: it may not be asked for.

        Raises:
            UserError: a part has recorded draws, but for another number of entries.
        """
        for part, (entries, size) in enumerate(zip(self.recorded or (), sizes)):
            if entries and len(entries) != size:
                raise UserError(
                    f"the recorded names of part {part} are for {len(entries)} entries, but the data has {size}"
                )

    def draw(self, part: int, split: str, line: int, entry: int, objects: Sequence[str]) -> list[str]:
        """Names of all objects of one entry.

        Args:
            part: 0 for Q→A, 1 for QA→R.
            split: ``train``, ``val`` or ``test``.
            line: line of the entry in its file; seeds the draw.
            entry: number of the entry within its part; finds a recorded draw.
            objects: class of every object.

        Raises:
            UserError: there is no recorded draw for this entry, or it is for another number of objects.
        """
        if self.recorded is not None:
            if part >= len(self.recorded) or entry >= len(self.recorded[part]):
                raise UserError(f"no names were recorded for part {part}, entry {entry} (line {line} of split {split})")
            names = list(self.recorded[part][entry])
            if len(names) != len(objects):
                raise UserError(
                    f"the recorded names of part {part}, entry {entry}, are {len(names)}, "
                    f"but line {line} of split {split} has {len(objects)} objects"
                )
            return names
        # random() of a generator seeded by text is the same in every version of Python; choice() is not.
        generator = random.Random(f"{self.seed}/{part}/{split}/{line}")
        return [self.names[int(generator.random() * len(self.names))] if o == PERSON else o for o in objects]


def read_names(path: PathLike) -> list[str]:
    """The second column of a CSV table; the header row is known by its text ``name``.

    Raises:
        UserError: the file is missing or not text, a row has no name in its second column, or there is no row.
    """
    path = Path(path)
    names = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                if not row:
                    continue
                if len(row) < 2 or not row[1].strip():
                    raise UserError(f"{path}:{reader.line_num}: no name in the second column")
                name = row[1].strip()
                if not any(character.isalpha() for character in name):
                    raise UserError(f"{path}:{reader.line_num}: the second column holds {name!r}, which is no name")
                if name != "name":
                    names.append(name)
    except OSError as error:
        raise UserError(f"{path}: cannot read the table of names: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV table in UTF-8 ({error})") from None
    if not names:
        raise UserError(f"{path}: the table holds no name")
    return names


def _is_recorded_draws(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, list)
        and all(isinstance(entry, list) and all(isinstance(name, str) for name in entry) for entry in part)
        for part in value
    )
