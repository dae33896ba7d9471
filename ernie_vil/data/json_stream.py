"""Reading a JSON file of gigabytes item by item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterator, Optional, TextIO, Union

from ernie_vil.errors import UserError

CHUNK = 1 << 20
# A fault this far before the end of what is in memory does not come from the cut.
LONGEST_TEXT = 1 << 21
_WHITE = " \t\r\n"


def json_items(path: Union[str, Path], key: Optional[str] = None) -> Iterator[Any]:
    """The items of one array of a JSON file, one after the other.

    Args:
        path: the file.
        key: name of the array in the object that the file holds; ``None``: the file is the array.

    Raises:
        UserError: the file is not JSON (naming the place), is of another form, or has no such key.
    """
    with Path(path).open(encoding="utf-8-sig") as file:
        stream = _Stream(Path(path), file)
        if key is None:
            yield from stream.array()
            return
        for name in stream.members():
            if name == key:
                yield from stream.array()
                return
            stream.value()
    raise UserError(f"{path}: has no `{key}`")


def json_keys(path: Union[str, Path]) -> Optional[Iterator[str]]:
    """Keys of the object that a file holds, in its order; ``None`` if it holds an array."""
    with Path(path).open(encoding="utf-8-sig") as file:
        if _Stream(Path(path), file).peek() == "[":
            return None
    return _keys(Path(path))


def _keys(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        stream = _Stream(path, file)
        for name in stream.members():
            yield name
            stream.value()


class _Stream:
    """A place in a JSON text of which a window is in memory."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self._file = file
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._place = 0
        self._before = 0
        self._ended = False

    def array(self) -> Iterator[Any]:
        """The items of the array that begins here."""
        self._expect("[")
        if self._skip("]"):
            return
        while True:
            yield self.value()
            if self._skip("]"):
                return
            self._expect(",")

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here; the value must be read before the next one is asked for."""
        self._expect("{")
        if self._skip("}"):
            return
        while True:
            name = self.value(":")
            if not isinstance(name, str):
                raise self._fault("a key is not a text")
            self._expect(":")
            yield name
            if self._skip("}"):
                return
            self._expect(",")

    def value(self, ends: str = ",]}") -> Any:
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._place)
            except json.JSONDecodeError as error:
                # Where the text is cut, the fault lies at the cut, or is a string that begins not far before it.
                if self._ended or error.pos < len(self._text) - LONGEST_TEXT:
                    raise self._fault(error.msg, error.pos) from None
            except RecursionError:
                raise self._fault("it is nested too deeply") from None
            else:
                while end < len(self._text) and self._text[end] in _WHITE:
                    end += 1
                # A number at the cut may go on: a value is whole when something stands behind it.
                if self._ended or (end < len(self._text) and self._text[end] in ends):
                    self._place = end
                    return value
                # (After a whole number "." or "e+" can stand there; anything longer is a fault.)
                cut = isinstance(value, (int, float)) and len(self._text) - end <= 2
                if end < len(self._text) and not cut:
                    raise self._fault(f"unexpected {self._text[end]!r}", end)
            # Twice as much each time: a long value is decoded again from its beginning.
            self._more(max(CHUNK, len(self._text) - self._place))

    def peek(self) -> str:
        """The next character that is not white; empty at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in _WHITE:
                self._place += 1
            if self._place < len(self._text) or self._ended:
                return self._text[self._place : self._place + 1]
            self._more(CHUNK)

    def _skip(self, character: str) -> bool:
        if self.peek() != character:
            return False
        self._place += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._skip(character):
            raise self._fault(f"expected {character!r}, found {self.peek()!r}")

    def _more(self, size: int) -> None:
        try:
            chunk = self._file.read(size)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: not a text in UTF-8 ({error.reason})") from None
        self._before += self._place
        self._text, self._place = self._text[self._place :] + chunk, 0
        self._ended = not chunk

    def _fault(self, reason: str, place: Optional[int] = None) -> UserError:
        where = self._before + (self._place if place is None else place)
        return UserError(f"{self.path}: not JSON of the expected form at character {where}: {reason}")
