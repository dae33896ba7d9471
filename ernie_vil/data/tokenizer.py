"""The lower-casing WordPiece tokenizer that ERNIE-ViL v1 was trained with.

PaddleNLP's tokenizers are not used here: their ``BasicTokenizer`` sets symbols such as U+2603 apart as if they were
punctuation, while the original leaves them inside the word, so "snow☃man" would give three tokens where the model
has always seen one ``[UNK]``. The rules below are those of the original (the BERT reference tokenizer).
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Sequence, Union

from ernie_vil.errors import UserError

PathLike = Union[str, Path]
Span = tuple[int, int]

# A longer word is one [UNK]; the original's limit.
MAX_WORD_CHARACTERS = 100
# Words of running text repeat: the pieces of this many distinct words are kept, later ones are split every time.
CACHED_WORDS = 200_000

# First and last code point of the blocks whose characters are words of their own (CJK ideographs; not kana or hangul).
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPieceTokenizer:
    """Text to word pieces and their ids; greedy longest match, ``##`` marks a piece inside a word.

    The text of special tokens has no meaning in the input: ``[MASK]`` is split at its brackets.

    Args:
        vocabulary: token -> id, the ids being 0 .. n-1 and each used once.
        where: what to call the vocabulary in error messages, usually its file.

    Raises:
        UserError: ``[PAD]``, ``[UNK]``, ``[CLS]`` or ``[SEP]`` is missing, the id of ``[PAD]`` is not 0 (it also pads
            positions and segments), or the ids are not 0 .. n-1.
    """

    def __init__(self, vocabulary: dict[str, int], where: str = "the vocabulary") -> None:
        missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in vocabulary]
        if missing:
            raise UserError(f"{where}: no {', '.join(missing)} among its {len(vocabulary)} tokens")
        if vocabulary["[PAD]"] != 0:
            raise UserError(
                f"{where}: [PAD] has id {vocabulary['[PAD]']}; it must be 0, because the same number pads "
                "positions and segments"
            )
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise UserError(f"{where}: the ids of its {len(vocabulary)} tokens are not 0 to {len(vocabulary) - 1}")
        self.vocabulary = vocabulary
        self.where = where
        self._tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        self._longest_token = max(map(len, vocabulary))
        self._cache: dict[str, list[int]] = {}
        self._located_cache: dict[str, list[tuple[int, int, int]]] = {}
        self.pad_id = vocabulary["[PAD]"]
        self.unk_id = vocabulary["[UNK]"]
        self.cls_id = vocabulary["[CLS]"]
        self.sep_id = vocabulary["[SEP]"]
        self.mask_id = vocabulary.get("[MASK]")
        """None if the vocabulary has no ``[MASK]``, which only pre-training needs."""

    @classmethod
    def from_file(cls, path: PathLike) -> WordPieceTokenizer:
        """Read a vocabulary file, see :func:`read_vocabulary`."""
        return cls(read_vocabulary(path), where=str(path))

    def __len__(self) -> int:
        return len(self._tokens)

    def tokenize(self, text: str) -> list[str]:
        """The word pieces of ``text``; a word that cannot be put together from pieces is one ``[UNK]``."""
        return [self._tokens[i] for i in self.encode(text)]

    def encode(self, text: str) -> list[int]:
        """The ids of the word pieces of ``text``, without ``[CLS]`` and ``[SEP]``."""
        # Printable ASCII holds nothing to clean, and most text is printable ASCII.
        cleaned = text if text.isascii() and text.isprintable() else clean_text(text)
        ids: list[int] = []
        for word in cleaned.split():
            pieces = self._cache.get(word)
            if pieces is None:
                pieces = [piece for part in split_word(word) for piece in self._pieces(part)]
                if len(self._cache) < CACHED_WORDS:
                    self._cache[word] = pieces
            ids += pieces
        return ids

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        """The ids of :meth:`encode`, and for each the (start, end) of the characters of ``text`` it was made from.

        An ``[UNK]`` has the span of its whole word. Accents and control characters that were dropped at an edge of a
        piece lie outside its span. A character that decomposes into several (Hangul) may be shared by pieces.
        """
        ids: list[int] = []
        spans: list[Span] = []
        cleaned, places = _clean_with_places(text)
        for match in re.finditer(r"\S+", cleaned):
            word, start = match.group(), match.start()
            located = self._located_cache.get(word)
            if located is None:
                located = self._located_pieces(word)
                if len(self._located_cache) < CACHED_WORDS:
                    self._located_cache[word] = located
            for piece, first, last in located:
                ids.append(piece)
                spans.append((places[start + first], places[start + last] + 1))
        return ids, spans

    def _located_pieces(self, word: str) -> list[tuple[int, int, int]]:
        """The pieces of a cleaned word, each with the first and the last character of the word that it comes from."""
        located = []
        for part, own in _split_word_with_places(word):
            pieces = self._pieces(part)
            start = 0
            for number, piece in enumerate(pieces):
                length = len(self._tokens[piece]) - (2 if number else 0)
                # A single piece is all of the part, also when it is [UNK].
                covered = own[start : start + length] if len(pieces) > 1 else own
                located.append((piece, min(covered), max(covered)))
                start += length
        return located

    def _pieces(self, word: str) -> list[int]:
        if len(word) > MAX_WORD_CHARACTERS:
            return [self.unk_id]
        ids = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            longest_end = min(len(word), start + self._longest_token - len(prefix))
            for end in range(longest_end, start, -1):
                piece = self.vocabulary.get(prefix + word[start:end])
                if piece is not None:
                    ids.append(piece)
                    start = end
                    break
            else:
                return [self.unk_id]
        return ids


def read_vocabulary(path: PathLike) -> dict[str, int]:
    """Read a vocabulary file: one token per line, its line number (from 0) being its id, or ``token<TAB>id``.

    Raises:
        UserError: the file is missing, not UTF-8, holds a token or an id twice, an empty line between tokens, an id
            that is no number, or a line of more than two columns (where the original silently stopped reading).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such vocabulary file; it is the vocab.txt that comes with the weights")
    try:
        # Only the line feed ends a line: other line separators of Unicode may be part of a token.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a vocabulary file, it is no UTF-8 text ({error})") from None
    while lines and not lines[-1].strip():
        lines.pop()
    vocabulary: dict[str, int] = {}
    line_of_id: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        columns = line.strip().split("\t")
        token = columns[0].strip()
        if not token or len(columns) > 2:
            found = f"{len(columns)} columns" if token else "an empty line"
            raise UserError(f"{path}:{number}: {found}; expected a token, or a token, a tab and its id")
        try:
            token_id = int(columns[1]) if len(columns) == 2 else number - 1
        except ValueError:
            raise UserError(f"{path}:{number}: the id {columns[1]!r} is not a whole number") from None
        if token in vocabulary:
            raise UserError(f"{path}:{number}: the token {token!r} was there before, with id {vocabulary[token]}")
        if token_id in line_of_id:
            raise UserError(f"{path}:{number}: id {token_id} was given to line {line_of_id[token_id]} before")
        vocabulary[token] = token_id
        line_of_id[token_id] = number
    return vocabulary


def check_vocabulary(tokenizer: WordPieceTokenizer, rows: int, where: str) -> None:
    """Refuse a vocabulary that the weights were not trained with.

    Args:
        rows: rows of the word embedding.
        where: the weights (or configuration) that ``rows`` comes from, for the message.

    Raises:
        UserError: the number of tokens is not ``rows``.
    """
    if len(tokenizer) != rows:
        raise UserError(
            f"{tokenizer.where} has {len(tokenizer)} tokens, but the word embedding of {where} has {rows} rows; "
            "use the vocabulary file that belongs to these weights"
        )


def check_same_vocabulary(path: PathLike, other: PathLike) -> None:
    """Refuse a vocabulary file that is not the one that lies with the weights; names the first line that differs.

    Raises:
        UserError: the same token has different ids in the two files.
    """
    ids, other_ids = read_vocabulary(path), read_vocabulary(other)
    for token, number in ids.items():
        if other_ids.get(token) != number:
            raise UserError(
                f"{path}: token {token!r} has id {number}, but in {other}, which lies with the weights, "
                f"{other_ids.get(token, 'it is missing')}; leave data.vocab out to use the latter"
            )


def clean_text(text: str) -> str:
    """Drop control characters, turn white space into blanks and put blanks around ideographs."""
    cleaned = []
    for character in text:
        code = ord(character)
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            cleaned.append(" ")
        elif code in (0, 0xFFFD) or category.startswith("C"):
            continue
        elif any(first <= code <= last for first, last in _IDEOGRAPHS):
            cleaned.append(f" {character} ")
        else:
            cleaned.append(character)
    return "".join(cleaned)


def split_word(word: str) -> list[str]:
    """Lower-case a cleaned word, take off its accents and split it before and after every punctuation mark."""
    decomposed = unicodedata.normalize("NFD", word.lower())
    parts: list[str] = []
    inside_part = False
    for character in decomposed:
        if unicodedata.category(character) == "Mn":
            continue
        if is_punctuation(character):
            parts.append(character)
            inside_part = False
        elif inside_part:
            parts[-1] += character
        else:
            parts.append(character)
            inside_part = True
    # Decomposing or lower-casing may bring in white space; the original splits once more, so this does.
    return " ".join(parts).split()


def _clean_with_places(text: str) -> tuple[str, Sequence[int]]:
    """:func:`clean_text`, and of every character its index in ``text``."""
    if text.isascii() and text.isprintable():
        return text, range(len(text))
    cleaned = [clean_text(character) for character in text]
    return "".join(cleaned), [place for place, characters in enumerate(cleaned) for _ in characters]


def _split_word_with_places(word: str) -> list[tuple[str, Sequence[int]]]:
    """:func:`split_word`, and for every character of a part the index in ``word`` of the one that it comes from."""
    places: Sequence[int] = range(len(word))
    if not word.isascii():
        decomposed = [
            (character, place)
            for place, original in enumerate(word)
            for character in unicodedata.normalize("NFD", original.lower())
        ]
        _order_marks(decomposed)
        places = [place for character, place in decomposed if not _is_dropped(character)]
    located = []
    start = 0
    for part in split_word(word):
        located.append((part, places[start : start + len(part)]))
        start += len(part)
    return located


def _is_dropped(character: str) -> bool:
    return unicodedata.category(character) == "Mn" or character.isspace()


def _order_marks(characters: list[tuple[str, int]]) -> None:
    """Sort neighbouring combining marks **in place**, as normalizing the whole word does."""
    start = 0
    while start < len(characters):
        end = start
        while end < len(characters) and unicodedata.combining(characters[end][0]):
            end += 1
        characters[start:end] = sorted(characters[start:end], key=lambda item: unicodedata.combining(item[0]))
        start = end + 1


def is_punctuation(character: str) -> bool:
    """Whether the original takes the character for punctuation: Unicode's P classes and every ASCII symbol."""
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character).startswith("P")
