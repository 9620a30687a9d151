"""InfiniteBench's scores of the sets that need no judge (arXiv 2402.13718)."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from baklava.errors import UserError
from baklava.tasks.metrics.base import Metric
from baklava.tasks.metrics.chinese import MARKS as CHINESE_MARKS
from baklava.tasks.metrics.qa_f1 import qa_f1, token_f1

_MARKS = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))
_CODE_MARKS = str.maketrans(dict.fromkeys("\n.`'\":", " "))
_CHOICE_MARKS = str.maketrans(dict.fromkeys("\n\"'.,?!{}", " "))
_BUG_MARKS = str.maketrans(dict.fromkeys("\n`'\"-*", " "))

Score = Callable[[str, Sequence[str]], float]  # of a prediction and the answers


def find_word(prediction: str, answers: Sequence[str]) -> float:
    """Whether the first answer is a word of the prediction."""
    return float(answers[0] in prediction.translate(_MARKS).split())


def find_name(prediction: str, answers: Sequence[str]) -> float:
    """The same in upper case, for names of speakers."""
    return float(answers[0] in prediction.translate(_MARKS).upper().split())


def first_integer(prediction: str, answers: Sequence[str]) -> float:
    """Whether the first run of digits is the answer."""
    found = re.search(r"[0-9]+", prediction)
    return float(found is not None and found[0] == answers[0])


def first_number(prediction: str, answers: Sequence[str]) -> float:
    """Whether the first number is the answer, an integer or a decimal fraction."""
    right = _number(answers[0])
    found = re.search(r"\d+\.\d+|\d+", prediction)
    return float(found is not None and float(found[0]) == right)


def last_integer(prediction: str, answers: Sequence[str]) -> float:
    """Whether the last word is an integer, the answer."""
    right = _number(answers[0])
    words = prediction.strip().translate(_CODE_MARKS).split()
    return float(bool(words) and re.fullmatch(r"[+-]?[0-9]+", words[-1]) is not None and int(words[-1]) == right)


def leading_values(prediction: str, answers: Sequence[str]) -> float:
    """Fraction of the values that come in the right order before the first other one; signs are not read."""
    found = [int(digits) for digits in re.findall(r"[0-9]+", prediction)]
    n_right = 0
    for value, right in zip(found, list(map(_number, answers)), strict=False):
        if value != right:
            break
        n_right += 1
    return n_right / len(answers)


def choose(prediction: str, answers: Sequence[str]) -> float:
    """Whether the right option is chosen, by its text or its letter: `answers` are both."""
    text = prediction.strip()
    if not text:
        return 0.0
    if text[0] in "ABCD":
        return float(text[0] in answers)
    if text in answers:
        return 1.0
    text = re.sub(" +", " ", text.translate(_CHOICE_MARKS))
    after = _after_first(text, ("answer is:", "answer:", "answer is", "option is"))
    if after is not None:
        return float(any(after.startswith(answer) for answer in answers))
    letter = next((word for word in text.split() if word in "ABCD"), None)
    return float(letter is not None and letter in answers)


def find_bug(prediction: str, answers: Sequence[str]) -> float:
    """Whether the function with the error is named, or its letter: `answers` are both."""
    if len(answers) != 2:
        raise UserError(
            f"answers: expected the name of a function and the letter of its option, got {len(answers)} texts"
        )
    text, (name, letter) = prediction.strip(), answers
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    text = re.sub(" +", " ", text.translate(_BUG_MARKS).replace("Option", " ").replace("option", " "))
    after = _after_first(text, ("answer is:", "is:", "answer:"))
    return float(after is not None and after.startswith((letter, name)))


def _number(answer: str) -> float:
    try:
        return float(answer)
    except ValueError:
        raise UserError(f"answers: expected a number, got {answer!r}") from None


def _after_first(text: str, announcements: Sequence[str]) -> str | None:
    """What comes after the first of the announcements that occurs, and a space; None where none does."""
    for announcement in announcements:
        if announcement in text:
            return text.partition(announcement)[2][1:]
    return None


def best_f1(prediction: str, answers: Sequence[str]) -> float:
    return max(qa_f1(prediction, answer) for answer in answers)


def best_f1_of_characters(prediction: str, answers: Sequence[str]) -> float:
    """F1 over characters, without punctuation, white space and case."""
    return max(token_f1(_characters(prediction), _characters(answer)) for answer in answers)


def _characters(text: str) -> list[str]:
    removed = {*string.punctuation, *CHINESE_MARKS}
    return [character for character in text.lower() if character not in removed and not character.isspace()]


def _metric(score: Score) -> Metric:
    def metric(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
        return score(prediction, answers)

    metric.__doc__ = score.__doc__
    return metric


_SCORES: tuple[Score, ...] = (
    find_word,
    find_name,
    first_integer,
    first_number,
    last_integer,
    leading_values,
    choose,
    find_bug,
    best_f1,
    best_f1_of_characters,
)
METRICS: dict[str, Metric] = {f"infinitebench_{score.__name__}": _metric(score) for score in _SCORES}
