"""Answers of VQA: how they are compared, what a prediction earns, and the list of answers that a classifier knows.

The rules are those of the public evaluation code of VQA (GT-Vision-Lab/VQA, ``vqaEval.py``), with its peculiarities, on
which every published figure rests. The list and the training targets follow the usual recipe (Teney et al., CVPR 2018,
and the public code of bottom-up attention for VQA): the most common answers of train and val as classes, and for each
question a score per class.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Sequence, Union

from ernie_vil import pickles
from ernie_vil.data.json_stream import json_items
from ernie_vil.errors import BadRecord, UserError

MINIMUM_COUNT = 9
"""An answer is a class if it is the most common one of so many questions of train and val: 3,129 answers of VQA v2."""
SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
"""Training target of an answer by the number of annotators who gave it, the last one for all higher numbers.

That is ``min(1, 0.3 * count)``, what such an answer earns when ten annotators are averaged over nine at a time.
"""

_ENOUGH = 3  # annotators who agree with an answer make it fully right
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMBERS.update({"seven": "7", "eight": "8", "nine": "9", "ten": "10"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile("[0-9],[0-9]")
# A period goes unless a digit follows; the public code means to look at what stands before it too, but does not.
_PERIOD = re.compile("[.](?![0-9])")
_MOST_PERIODS = 32  # the public code hands a flag (of this value) over in the place of the number of replacements
# A word that lacks one of these apostrophes gets it back.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _with_apostrophes(words: Sequence[str]) -> dict[str, str]:
    table = {word[:i] + word[i + 1 :]: word for word in words for i in range(len(word)) if word[i] == "'"}
    return {**table, "somebody'd": "somebodyd"}  # the wrong way round in the public code


CONTRACTIONS = _with_apostrophes(_CONTRACTIONS.split())


def clean_answer(text: str) -> str:
    """What is done to every answer: line ends and tabs become blanks, white space goes from both ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@functools.lru_cache(maxsize=1 << 18)
def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and articles, number words as digits, contractions with their apostrophes."""
    # A mark between two words becomes a blank, but goes where it stands beside a blank anywhere in the text, or if
    # there is a number like 1,000 somewhere.
    number = _COMMA_IN_NUMBER.search(text) is not None
    marks = {
        ord(mark): None if number or f"{mark} " in text or f" {mark}" in text else " "
        for mark in _PUNCTUATION
        if mark in text
    }
    words = _PERIOD.sub("", text.translate(marks), count=_MOST_PERIODS).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """What ``prediction`` earns for a question with these ``answers`` of its annotators, from 0 to 1.

    Each annotator is left out in turn; among the others, three equal answers make the prediction right and fewer a
    third each. All are averaged. **Answers are normalised only where the annotators do not all agree**, letter by
    letter: a prediction ``1`` earns nothing if all ten wrote ``one``. Fewer than ten annotators are averaged all the
        same.

    In files without ``answer_id`` the public code takes annotators with equal answers for one; here each counts.
    """
    given = [clean_answer(answer) for answer in answers]
    prediction = clean_answer(prediction)
    if len(set(given)) > 1:
        given = [normalize_answer(answer) for answer in given]
        prediction = normalize_answer(prediction)
    return _leave_one_out(tuple(answer == prediction for answer in given))


@functools.lru_cache(maxsize=1 << 16)
def _leave_one_out(matches: tuple[bool, ...]) -> float:
    total = sum(matches)
    return sum(min(1.0, (total - own) / _ENOUGH) for own in matches) / len(matches)


class AnswerList:
    """The answers that a classifier knows; the place of an answer is its class.

    Args:
        answers: different texts. The empty one may be among them: it is what remains of an answer like "the".
        source: named in messages.

    Raises:
        UserError: no answer, or one that stands twice.
    """

    def __init__(self, answers: Iterable[str], source: str = "the answers") -> None:
        self.answers = tuple(answers)
        self.source = source
        self._labels = {answer: label for label, answer in enumerate(self.answers)}
        if not self.answers:
            raise UserError(f"{source}: holds no answer")
        if len(self._labels) != len(self.answers):
            twice = next(answer for answer, count in Counter(self.answers).items() if count > 1)
            raise UserError(f"{source}: the answer {twice!r} stands more than once")
        self._cleaned = _labels_by(clean_answer, self.answers)
        self._normalized = _labels_by(lambda answer: normalize_answer(clean_answer(answer)), self.answers)

    @classmethod
    def read(cls, path: Union[str, Path]) -> AnswerList:
        """A JSON list of texts, or a pickled one (``.pkl``: the original's label-to-answer file).

        Raises:
            UserError: the file is missing, damaged or something else.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such list of answers")
        try:
            found: Any = pickles.load(path) if path.suffix == ".pkl" else json.loads(path.read_bytes())
        except (BadRecord, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not a readable list of answers ({error})") from None
        if not isinstance(found, list) or not all(isinstance(answer, str) for answer in found):
            raise UserError(f"{path}: not a list of texts; entry n is to be the answer of class n")
        return cls(found, str(path))

    def write(self, path: Union[str, Path]) -> None:
        """Write the list as JSON, an answer a line."""
        Path(path).write_text(json.dumps(self.answers, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self.answers)

    def label(self, answer: str) -> Optional[int]:
        """Class of an answer that stands in the list letter by letter."""
        return self._labels.get(answer)

    def targets(self, answers: Sequence[str]) -> dict[int, float]:
        """Training targets of a question: class -> score, for the classes that some annotator gave letter by letter."""
        counts = Counter(self._labels[answer] for answer in answers if answer in self._labels)
        return {label: SOFT_SCORES[min(count, len(SOFT_SCORES) - 1)] for label, count in counts.items()}

    def accuracies(self, answers: Sequence[str]) -> dict[int, float]:
        """:func:`answer_accuracy` of every class that earns something for a question with these ``answers``."""
        given = [clean_answer(answer) for answer in answers]
        labels = self._cleaned
        if len(set(given)) > 1:
            given = [normalize_answer(answer) for answer in given]
            labels = self._normalized
        found = {}
        for answer in dict.fromkeys(given):
            for label in labels.get(answer, ()):
                found[label] = _leave_one_out(tuple(other == answer for other in given))
        return {label: accuracy for label, accuracy in found.items() if accuracy}


def _labels_by(change: Any, answers: Sequence[str]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for label, answer in enumerate(answers):
        table.setdefault(change(answer), []).append(label)
    return table


def annotated_answers(annotation: Mapping[str, Any]) -> list[str]:
    """The texts of ``annotation["answers"]``. Raises :class:`BadRecord` if there is none, or one is not a text."""
    answers = annotation.get("answers")
    if not isinstance(answers, list) or not answers:
        raise BadRecord("it has no `answers`")
    texts = [answer.get("answer") if isinstance(answer, dict) else None for answer in answers]
    if not all(isinstance(text, str) for text in texts):
        raise BadRecord("one of its `answers` has no text `answer`")
    return texts


def frequent_answers(annotations: Sequence[Union[str, Path]], minimum: int = MINIMUM_COUNT) -> AnswerList:
    """The answers that are the most common one (``multiple_choice_answer``, normalised) of ``minimum`` questions.

    The most frequent one comes first, of equally frequent ones the one that is first in the alphabet. From the
    annotations of train and val of VQA v2 the public recipe gets 3,129 answers with a minimum of 9. **Their order in
    the original is that of a Python 2 dictionary**, which nothing tells: weights that were trained elsewhere need the
    list that came with them.

    Raises:
        UserError: a file is missing or damaged, an entry lacks ``question_id`` or ``multiple_choice_answer``, or no
            answer is frequent enough.
    """
    counts: Counter[str] = Counter()
    seen: set[Any] = set()
    for path in annotations:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file of annotations")
        for number, item in enumerate(json_items(path, "annotations")):
            answer = item.get("multiple_choice_answer") if isinstance(item, dict) else None
            if not isinstance(answer, str) or not isinstance(item.get("question_id"), int):
                raise UserError(f"{path}: annotation {number} has no `question_id` or no `multiple_choice_answer`")
            if item["question_id"] not in seen:
                seen.add(item["question_id"])
                counts[normalize_answer(answer)] += 1
    chosen = sorted((-count, answer) for answer, count in counts.items() if count >= minimum)
    if not chosen:
        raise UserError(f"{', '.join(map(str, annotations))}: no answer is that of {minimum} questions")
    return AnswerList((answer for _, answer in chosen), ", ".join(map(str, annotations)))


def write_answer_list(
    annotations: Sequence[Union[str, Path]], path: Union[str, Path], minimum: int = MINIMUM_COUNT
) -> int:
    """Write :func:`frequent_answers` to a JSON file and return their number.

    From the command line, for ``data.answers`` of ``configs/vqa.yaml``::

        python -c "from ernie_vil.data.vqa_answers import write_answer_list as write; print(write(
            ['v2_mscoco_train2014_annotations.json', 'v2_mscoco_val2014_annotations.json'], 'answers.json'))"
    """
    answers = frequent_answers(annotations, minimum)
    answers.write(path)
    return len(answers)
