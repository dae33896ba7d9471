"""Visual Commonsense Reasoning: four answers to a question on a picture (Q→A), four rationales for the answer (QA→R).

The annotations are JSON lines in the public format. Sequences, names and the order of regions are those of the
original's reader.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Sequence, Union

import numpy as np
import paddle

from ernie_vil.data.json_lines import JsonLines
from ernie_vil.data.names import NameDraws
from ernie_vil.data.region_arrays import pad_regions
from ernie_vil.data.regions import Regions, merge_with_ground_truth
from ernie_vil.data.text_pair import pad_sequences, pair_sequence, truncate_pair
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.errors import BadRecord, UserError

CHOICES = 4
Q_TO_A, QA_TO_R = 0, 1
# The picture `val-7` has the id 1000007 in the feature stores.
IMAGE_ID_OFFSETS = {"train": 0, "val": 1_000_000, "test": 2_000_000}
# What a text is made of: a word, or a list of numbers of objects.
Token = Union[str, list]
Text = list


@dataclass(frozen=True)
class VcrRecord:
    """One question as it stands in the file."""

    objects: list[str]
    """Class of every object."""
    question: Text
    answers: list[Text]
    rationales: list[Text]
    answer_label: int
    """The right answer; 0 on the test split, whose labels are not public. So is ``rationale_label``."""
    rationale_label: int
    image_id: str
    """Key into the feature stores."""
    annot_id: str
    question_id: int
    """Number in ``annot_id``; not unique across splits."""


class VcrFile:
    """The annotations of one split. Keeps the places of the lines, not their contents (the training file is 240 MB).

    Every line is checked once, on construction. A line that cannot be used is left out and named in ``skipped``
    (``FILE:LINE: reason``); lines of white space are passed over.

    Args:
        path: the JSON-lines file.
        split: ``train``, ``val`` or ``test``. On ``test`` no labels are read.

    Raises:
        UserError: unknown split, missing file, or no usable line in it.
    """

    def __init__(self, path: Union[str, Path], split: str) -> None:
        if split not in IMAGE_ID_OFFSETS:
            raise UserError(f"VCR has no split {split!r}; its splits are {', '.join(IMAGE_ID_OFFSETS)}")
        self.path = Path(path)
        self.split = split
        if not self.path.is_file():
            raise UserError(missing_file_message(self.path))
        self.annot_ids: list[str] = []
        """``annot_id`` of every entry."""
        self.image_ids: list[str] = []
        """Key of every entry's picture in the feature stores."""
        self._entries = JsonLines(self.path, self._check)
        self.skipped = self._entries.skipped
        if not len(self):
            raise UserError(f"{self.path}: no usable entry for split {split}; {self._entries.why_empty()}")

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> VcrRecord:
        return parse_record(self._entries[index], self.where(index), labelled=self.split != "test")

    def line(self, index: int) -> int:
        """Line number of an entry, from 1."""
        return self._entries.line(index)

    def where(self, index: int) -> str:
        """``FILE:LINE`` of an entry."""
        return self._entries.where(index)

    def _check(self, line: bytes, where: str) -> None:
        record = parse_record(line, where, labelled=self.split != "test")
        self.annot_ids.append(record.annot_id)
        self.image_ids.append(record.image_id)


class VcrDataset(paddle.io.Dataset):
    """Samples of the two parts, found by the key ``(part, epoch, index)``: part 0 is Q→A, part 1 is QA→R.

    In QA→R the first text is the question and the right answer. Where the right answer is not known, on the test
    split, there is a sample for each of the four answers: sample ``4 * question + answer``. Samples do not change
    from epoch to epoch.

    Args:
        file: annotations.
        tokenizer: of the model.
        detected: store of the detector's boxes.
        ground_truth: store of the annotated boxes, which are put behind the detected ones; ``None`` leaves them out.
        names: names of persons.
        max_lengths: longest sequence of Q→A and of QA→R, with ``[CLS]`` and both ``[SEP]``.
        max_regions: most regions of a picture, the whole picture included.
        every_answer: condition the rationales on each answer; by default on the test split only.

    Raises:
        UserError: recorded names that were drawn for other data.
        BadRecord: on a look-up, a picture that a store lacks or cannot read; names the line and the store.
    """

    def __init__(
        self,
        file: VcrFile,
        tokenizer: WordPieceTokenizer,
        detected: Any,
        ground_truth: Optional[Any],
        names: NameDraws,
        max_lengths: tuple[int, int] = (60, 80),
        max_regions: int = 100,
        every_answer: Optional[bool] = None,
    ) -> None:
        super().__init__()
        self.file = file
        self.tokenizer = tokenizer
        self.detected = detected
        self.ground_truth = ground_truth
        self.names = names
        self.max_lengths = max_lengths
        self.max_regions = max_regions
        self.every_answer = file.split == "test" if every_answer is None else every_answer
        self.sizes = (len(file), len(file) * (CHOICES if self.every_answer else 1))
        """Number of samples of the two parts."""
        names.check(self.sizes)

    def __len__(self) -> int:
        return sum(self.sizes)

    def keys(self, part: int) -> list[tuple[int, int, int]]:
        """The keys of all samples of a part, in the order of the file (epoch 0)."""
        return [(part, 0, index) for index in range(self.sizes[part])]

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        """One question with its four choices.

        Returns:
            ``input_ids`` and ``token_type_ids``: four lists; ``label``; ``part`` and ``index`` of the key;
            ``question_index``: position in ``file``; ``answer_index``: the answer that the rationales are for, -1 in
            Q→A; ``question_id``; ``region_features`` float32 ``[n, F]`` and ``region_locations`` ``[n, 5]``.
        """
        part, _, index = key
        question_index, answer_index = index, -1
        if part == QA_TO_R and self.every_answer:
            question_index, answer_index = divmod(index, CHOICES)
        record = self.file[question_index]
        if part == QA_TO_R and not self.every_answer:
            answer_index = record.answer_label
        names = self.names.draw(part, self.file.split, self.file.line(question_index), index, record.objects)
        input_ids, token_type_ids = self._sequences(part, record, answer_index, names)
        features, locations = self._regions(question_index, record.image_id)
        return {
            "part": part,
            "index": index,
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "region_features": features,
            "region_locations": locations,
            "label": record.answer_label if part == Q_TO_A else record.rationale_label,
            "question_index": question_index,
            "answer_index": answer_index,
            "question_id": record.question_id,
        }

    def _sequences(
        self, part: int, record: VcrRecord, answer_index: int, names: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        encode, cls_id, sep_id = self.tokenizer.encode, self.tokenizer.cls_id, self.tokenizer.sep_id
        first = encode(plain_text(record.question, names))
        choices = record.answers
        if part == QA_TO_R:
            first += [sep_id, *encode(plain_text(record.answers[answer_index], names))]
            choices = record.rationales
        input_ids, token_type_ids = [], []
        for choice in choices:
            second = encode(plain_text(choice, names))
            # `first` stays as short as the longest choice so far has made it, as in the original.
            truncate_pair(first, second, self.max_lengths[part] - 3)
            ids, segments = pair_sequence(first, second, cls_id, sep_id)
            input_ids.append(ids)
            token_type_ids.append(segments)
        return input_ids, token_type_ids

    def _regions(self, question_index: int, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            detected: Regions = self.detected[image_id]
            ground_truth: Optional[Regions] = None if self.ground_truth is None else self.ground_truth[image_id]
            return merge_with_ground_truth(detected, ground_truth, self.max_regions)
        except BadRecord as error:
            raise BadRecord(f"{self.file.where(question_index)}: {error}") from error


def collate_vcr(samples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Put n samples together.

    The regions are padded to the largest number in the batch and are not repeated for the four choices.

    Returns:
        ``input_ids``, ``token_type_ids``, ``position_ids`` int64 and ``attention_mask`` float32 ``[4 n, L]``;
        ``region_features`` ``[n, N, F]``, ``region_locations`` ``[n, N, 5]`` and ``region_mask`` ``[n, N]`` float32;
        ``part``, ``index``, ``labels``, ``question_index``, ``answer_index`` and ``question_id`` int64 ``[n]``.
    """
    batch = pad_sequences(
        [ids for sample in samples for ids in sample["input_ids"]],
        [segments for sample in samples for segments in sample["token_type_ids"]],
    )
    batch.update(pad_regions([(sample["region_features"], sample["region_locations"]) for sample in samples]))
    for name, key in (
        ("part", "part"),
        ("index", "index"),
        ("labels", "label"),
        ("question_index", "question_index"),
        ("answer_index", "answer_index"),
        ("question_id", "question_id"),
    ):
        batch[name] = np.array([sample[key] for sample in samples], dtype=np.int64)
    return batch


def plain_text(text: Text, names: Sequence[str]) -> str:
    """The words of a text separated by blanks, with names in the place of object numbers."""
    return " ".join(token if isinstance(token, str) else " ".join(names[i] for i in token) for token in text)


def parse_record(line: bytes, where: str, labelled: bool) -> VcrRecord:
    """Read and check one line of an annotation file.

    Args:
        line: the line.
        where: ``FILE:LINE`` for messages.
        labelled: whether the labels are read.

    Raises:
        BadRecord: not JSON, a field is missing or of the wrong kind, not four choices, a label or an object's number
            out of range, or an ``img_id`` or ``annot_id`` of unknown form.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{where}: not a line of JSON ({error})") from None
    try:
        if not isinstance(fields, dict):
            raise BadRecord(f"expected a JSON object, found {type(fields).__name__}")
        objects = _field(fields, "objects")
        if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
            raise BadRecord("`objects` is not a list of class names")
        image_split, image_number = _split_and_number(fields, "img_id")
        return VcrRecord(
            objects=objects,
            question=_text(_field(fields, "question"), "question", len(objects)),
            answers=_choices(fields, "answer_choices", len(objects)),
            rationales=_choices(fields, "rationale_choices", len(objects)),
            answer_label=_label(fields, "answer_label") if labelled else 0,
            rationale_label=_label(fields, "rationale_label") if labelled else 0,
            image_id=str(IMAGE_ID_OFFSETS[image_split] + image_number),
            annot_id=_field(fields, "annot_id"),
            question_id=_split_and_number(fields, "annot_id")[1],
        )
    except BadRecord as error:
        raise BadRecord(f"{where}: {error}") from None


def missing_file_message(path: Path) -> str:
    """What to say to someone whose VCR annotations are not where the configuration looks for them."""
    folder = path.parent
    if path.is_dir():
        found = "that is a folder, not a JSON-lines file"
    elif folder.is_dir():
        names = sorted(entry.name for entry in folder.iterdir())
        found = f"{folder} holds {', '.join(names[:20]) + (', ...' if names[20:] else '') if names else 'nothing'}"
    else:
        found = f"there is no folder {folder} either"
    return (
        f"{path}: no such VCR annotation file; {found}. Download `vcr1annots.zip` from visualcommonsense.com and "
        f'unpack train.jsonl, val.jsonl and test.jsonl into {folder} (README, section "VCR"), '
        "or try the miniature data with `--mini`."
    )


def _field(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise BadRecord(f"no field `{name}`")
    return fields[name]


def _text(tokens: Any, name: str, n_objects: int) -> Text:
    if not isinstance(tokens, list):
        raise BadRecord(f"`{name}` is not a list of tokens")
    for token in tokens:
        if isinstance(token, str):
            continue
        # bool is an int to Python, but `true` is no number of an object
        if not isinstance(token, list) or any(type(i) is not int for i in token):
            raise BadRecord(f"`{name}` has the token {token!r}, neither a word nor a list of object numbers")
        for i in token:
            if not 0 <= i < n_objects:
                raise BadRecord(f"`{name}` points at object {i}, but there are {n_objects} objects (from 0)")
    return tokens


def _choices(fields: dict[str, Any], name: str, n_objects: int) -> list[Text]:
    choices = _field(fields, name)
    if not isinstance(choices, list) or len(choices) != CHOICES:
        found = f"{len(choices)} of them" if isinstance(choices, list) else type(choices).__name__
        raise BadRecord(f"`{name}` must be a list of {CHOICES} choices, found {found}")
    return [_text(choice, f"{name}[{i}]", n_objects) for i, choice in enumerate(choices)]


def _label(fields: dict[str, Any], name: str) -> int:
    label = _field(fields, name)
    if type(label) is not int or not 0 <= label < CHOICES:
        raise BadRecord(f"`{name}` is {label!r}, not a number from 0 to {CHOICES - 1}")
    return label


def _split_and_number(fields: dict[str, Any], name: str) -> tuple[str, int]:
    value = _field(fields, name)
    split, _, number = value.partition("-") if isinstance(value, str) else ("", "", "")
    if split not in IMAGE_ID_OFFSETS or not (number.isascii() and number.isdigit() and len(number) < 16):
        raise BadRecord(f"`{name}` is {repr(value)[:40]}; expected something like 'val-7'")
    return split, int(number)
