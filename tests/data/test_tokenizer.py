"""The tokenizer against the original's output and against a slow reference; vocabulary files with faults."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ernie_vil.data.text_pair import pad_sequences, pair_sequence, truncate_pair
from ernie_vil.data.tokenizer import WordPieceTokenizer, check_vocabulary, read_vocabulary
from ernie_vil.errors import UserError

ORIGINAL = Path(__file__).parent / "ernie_vil"
VOCABULARY = ORIGINAL / "samples" / "vocab.txt"
READERS = json.loads((ORIGINAL / "readers" / "readers.json").read_text(encoding="utf-8"))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer.from_file(VOCABULARY)


@pytest.mark.parametrize("case", READERS["tokenizer"], ids=lambda case: ascii(case["text"][:20]))
def test_original_tokens(tokenizer: WordPieceTokenizer, case: dict) -> None:
    for _ in range(2):  # the second time from the cache
        assert tokenizer.tokenize(case["text"]) == case["tokens"]
        assert tokenizer.encode(case["text"]) == case["ids"]


def slow_tokens(text: str, vocabulary: dict[str, int]) -> list[str]:
    """The rules one after the other over the whole text, without shortcuts."""
    spaced = ""
    for character in text:
        category = unicodedata.category(character)
        if character in " \t\n\r" or category == "Zs":
            spaced += " "
        elif character != "\ufffd" and category[0] != "C":
            name = unicodedata.name(character, "")
            ideograph = name.startswith(("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH"))
            # Extension F and everything later is not in the original's table
            ideograph = ideograph and not 0x2CEB0 <= ord(character) <= 0x2F7FF and ord(character) <= 0x2FA1F
            spaced += f" {character} " if ideograph else character
    words = []
    for word in spaced.split():
        bare = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        marks = {c for c in bare if unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~"}
        words += "".join(f" {c} " if c in marks else c for c in bare).split()
    tokens = []
    for word in words:
        pieces, rest = [], word
        while rest and len(word) <= 100:
            fitting = [rest[:n] for n in range(1, len(rest) + 1) if ("##" if pieces else "") + rest[:n] in vocabulary]
            if not fitting:
                break
            pieces.append(("##" if pieces else "") + fitting[-1])
            rest = rest[len(fitting[-1]) :]
        tokens += ["[UNK]"] if rest else pieces
    return tokens


letters = st.sampled_from("aabcABC.,-'^$~ \t\n  éÉñİß#[]中文〇豈カ한☃—…“\u200b\u00ad\u0301\u2028\x07\ufffd😀𠀀")
pieces = st.text(alphabet="abc#.é中", min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=letters, max_size=40) | st.text(max_size=30), st.lists(pieces, max_size=12, unique=True))
@example("a" * 101 + " " + "ab" * 50, ["a", "##a", "ab", "##b", "##ab"])
@example("abca", ["ab", "abc", "a", "##ca"])  # greedy: "abc" is taken and then nothing fits
def test_against_slow_reference(text: str, extra: list[str]) -> None:
    tokens = dict.fromkeys([*SPECIAL, "a", "##a", "b", "##b", ".", "e", *extra, *(f"##{piece}" for piece in extra)])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = WordPieceTokenizer(vocabulary)
    expected = slow_tokens(text, vocabulary)
    assert tokenizer.tokenize(text) == expected
    assert tokenizer.encode(text) == [vocabulary[token] for token in expected]


def plain(text: str) -> str:
    """Lower-cased, without accents and dropped characters, and with one sigma."""
    decomposed = unicodedata.normalize("NFD", text.lower().replace("ς", "\u03c3"))
    return "".join(c for c in decomposed if unicodedata.category(c)[0] != "C" and unicodedata.category(c) != "Mn")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.text(alphabet=letters, max_size=40), st.lists(pieces, max_size=12, unique=True))
@example("\u302e\u0301\u0323\u1d165a", [])  # marks that normalizing puts into another order
@example("ΑΣ ΑΣ", [])  # sigma at the end of a word
@example("İİİ\u0307b", ["i"])  # two characters in lower case
def test_spans_of_any_text(text: str, extra: list[str]) -> None:
    tokens = dict.fromkeys([*SPECIAL, "a", "##a", "b", "##b", ".", "e", *extra, *(f"##{piece}" for piece in extra)])
    tokenizer = WordPieceTokenizer({token: i for i, token in enumerate(tokens)})
    for _ in range(2):  # the second time from the cache
        ids, spans = tokenizer.encode_with_spans(text)
        assert ids == tokenizer.encode(text) and len(spans) == len(ids)
        for start, end in spans:
            assert 0 <= start < end <= len(text)
            assert not any(c in "\t\n\r" or unicodedata.category(c) == "Zs" for c in text[start:end])


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=letters, max_size=40))
def test_spans_read_as_their_pieces(text: str) -> None:
    tokens = [*SPECIAL, *"abceinso.,-'^$~#[]中文〇豈σ한", "##a", "##b", "##c", "##i", "##n", "##s", "##☃"]
    tokenizer = WordPieceTokenizer({token: i for i, token in enumerate(dict.fromkeys(tokens))})
    ids, spans = tokenizer.encode_with_spans(text)
    ends = [0]
    for piece, (start, end) in zip(ids, spans):
        assert start >= ends[-1]  # in order and apart: nothing here decomposes into several pieces
        ends.append(end)
        if piece != tokenizer.unk_id:
            assert plain(text[start:end]) == plain(tokens[piece].removeprefix("##"))
    # What no piece covers means nothing.
    between = [text[end:start] for end, start in zip(ends, [start for start, _ in spans] + [len(text)])]
    assert tokenizer.encode("".join(between)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ab  ba.", ["A", "b", "b", "a", "."]),
        ("áb\u00ada\u0301 \x07a", ["á", "b", "a", "a"]),  # an accent of its own and dropped characters at an edge
        ("a\u00ad\u00adb", ["a", "b"]),
        ("中a文", ["中", "a", "文"]),
        ("a ☃snowman☃ b", ["a", "☃snowman☃", "b"]),  # [UNK]
        ("한a", ["한a"]),  # [UNK] of a word that decomposes
        ("a" * 101 + " b", ["a" * 101, "b"]),  # too long a word
        ("[MASK] a", ["[", "MASK", "]", "a"]),
        ("", []),
        (" \n\u200b ", []),
    ],
)
def test_spans(text: str, expected: list[str]) -> None:
    tokens = [*SPECIAL, "[MASK]", "a", "##a", "b", "##b", ".", "[", "]", "中", "文"]
    tokenizer = WordPieceTokenizer({token: i for i, token in enumerate(tokens)})
    ids, spans = tokenizer.encode_with_spans(text)
    assert [text[start:end] for start, end in spans] == expected and ids == tokenizer.encode(text)


def test_spans_of_marks_that_change_places() -> None:
    text = "a\u302e\U0001d165"
    assert unicodedata.normalize("NFD", text) == "a\U0001d165\u302e"
    tokens = [*SPECIAL, "a", "##\U0001d165", "##\u302e"]
    tokenizer = WordPieceTokenizer({token: i for i, token in enumerate(tokens)})
    assert tokenizer.encode_with_spans(text) == ([4, 5, 6], [(0, 1), (2, 3), (1, 2)])


def test_pieces_of_one_character_share_it() -> None:
    jamo = unicodedata.normalize("NFD", "한")
    tokens = [*SPECIAL, jamo[0], *(f"##{character}" for character in jamo[1:])]
    tokenizer = WordPieceTokenizer({token: i for i, token in enumerate(tokens)})
    assert tokenizer.encode_with_spans("x 한") == ([1, 4, 5, 6], [(0, 1), (2, 3), (2, 3), (2, 3)])


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8"))
    return path


def test_vocabulary_with_ids_and_windows_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "vocab.txt", "[UNK]\t1\r\n[CLS]\t3\r\n[SEP]\t2\r\n[PAD]\t0\r\na\t4\r\n\r\n")
    tokenizer = WordPieceTokenizer.from_file(path)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.sep_id, tokenizer.cls_id) == (0, 1, 2, 3)
    assert tokenizer.mask_id is None
    assert len(tokenizer) == 5
    assert tokenizer.tokenize("a b") == ["a", "[UNK]"]


def test_special_ids_of_the_sample(tokenizer: WordPieceTokenizer) -> None:
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 3, 4)
    assert len(tokenizer) == 158


@pytest.mark.parametrize("missing", SPECIAL)
def test_missing_special_token(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path / "vocab.txt", "\n".join(token for token in [*SPECIAL, "a"] if token != missing))
    with pytest.raises(UserError) as error:
        WordPieceTokenizer.from_file(path)
    assert missing in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[UNK]\n[PAD]\n[CLS]\n[SEP]", r"\[PAD\] has id 1; it must be 0"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n[CLS]", r":6: the token '\[CLS\]' was there before, with id 2"),
        ("[PAD]\t0\n[UNK]\t1\n[CLS]\t1\n[SEP]\t2", r":3: id 1 was given to line 2 before"),
        ("[PAD]\t0\n[UNK]\t1\n[CLS]\tx\n[SEP]\t2", r":3: the id 'x' is not a whole number"),
        ("[PAD]\t0\n[UNK]\t1\n[CLS]\t2\n[SEP]\t9", r"ids of its 4 tokens are not 0 to 3"),
        ("[PAD]\n[UNK]\n\n[CLS]\n[SEP]", r":3: an empty line"),
        ("[PAD]\n[UNK]\n[CLS]\t2\tmore\n[SEP]", r":3: 3 columns"),
        ("", r"no \[PAD\], \[UNK\], \[CLS\], \[SEP\] among its 0 tokens"),
    ],
)
def test_vocabulary_faults(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path / "vocab.txt", text)
    with pytest.raises(UserError, match=expected) as error:
        WordPieceTokenizer.from_file(path)
    assert str(path) in str(error.value)


def test_vocabulary_file_missing_or_binary(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such vocabulary file"):
        read_vocabulary(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe[PAD]")
    with pytest.raises(UserError, match="no UTF-8 text"):
        read_vocabulary(tmp_path / "vocab.txt")


def test_vocabulary_unlike_the_weights(tokenizer: WordPieceTokenizer) -> None:
    check_vocabulary(tokenizer, 158, "weights")
    with pytest.raises(
        UserError, match=r"vocab.txt has 158 tokens, but the word embedding of model_dir has 30522 rows"
    ):
        check_vocabulary(tokenizer, 30522, "model_dir")


@pytest.mark.parametrize("case", READERS["truncate_pair_examples"])
def test_original_truncation(case: dict) -> None:
    a, b = list(range(case["len_a"])), list(range(100, 100 + case["len_b"]))
    truncate_pair(a, b, case["max_length"])
    assert (a, b) == (case["out_a"], case["out_b"])


def test_pair_and_padding() -> None:
    assert pair_sequence([7, 8], [9], cls_id=2, sep_id=3) == ([2, 7, 8, 3, 9, 3], [0, 0, 0, 0, 1, 1])
    batch = pad_sequences([[2, 7, 3], [2]], [[0, 0, 1], [0]], pad_id=0)
    assert batch["input_ids"].tolist() == [[2, 7, 3], [2, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert [batch[name].dtype.name for name in sorted(batch)] == ["float32", "int64", "int64", "int64"]
