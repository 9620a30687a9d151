"""Exact matches of answers that models write at the end of their reasoning, and of letters of choices."""

from __future__ import annotations

import re
from collections.abc import Sequence

from baklava.errors import UserError

CHOICES = "ABCD"
_IGNORED = re.compile(r"\\text\{ .*|\\?[%$]|\^\{\\circ\}|\^\\circ|(?<!\\)\\[!,;: ]|\\left|\\right|\s", re.DOTALL)
_MARKED = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_SIMPLE_FRACTION = re.compile(r"(-?)(\d+)/(\d+)")


def contains(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 where any of the answers occurs in the prediction, in the same case, else 0 (NoLiMa, arXiv 2502.05167)."""
    return float(any(answer in prediction for answer in answers))


def choice(prediction: str, answer: str) -> float:
    """1 where the prediction says `The correct answer is (A)` of the right letter (LongBench v2, arXiv 2412.15204)."""
    text = prediction.replace("*", "")
    found = re.search(r"The correct answer is \(([A-D])\)", text) or re.search(r"The correct answer is ([A-D])", text)
    return float(found is not None and found[1] == answer)


def final_number(prediction: str, answer: str) -> float:
    """1 where the number of the final answer is the right one.

    It comes after the first `#### `, as for GSM8K (arXiv 2110.14168); else the last `\\boxed{}` holds it, perhaps with
    a word after it; where there is neither, it is the last number. Numbers compare by value.
    """
    try:
        right = _number(answer)
    except ValueError:
        raise UserError(f"answers: expected a number, got {answer!r}") from None
    marked, box = _MARKED.search(prediction), find_boxed(prediction)
    if marked is None and box is not None:
        found = re.fullmatch(rf"({_NUMBER})[a-zA-Z]*", normalise(box))
        text = found[1] if found else ""
    else:
        text = marked[1] if marked else (re.findall(_NUMBER, prediction) or [""])[-1]
    try:
        return float(_number(text) == right)
    except ValueError:
        return 0.0


def boxed(prediction: str, answer: str) -> float:
    """1 where the last `\\boxed{}` is the answer, as the authors of MATH compare them (arXiv 2103.03874).

    Spaces, units, signs of the typesetting and ways to write a fraction do not count. Where they compare texts, numbers
    compare by value here, and `$`, a full stop at the end and `\\text{}` around words do not count either.
    """
    found = find_boxed(prediction)
    if found is None:
        return 0.0
    ours, right = normalise(found), normalise(answer)
    if ours == right:
        return 1.0
    try:
        return float(_value(ours) == _value(right))
    except ValueError:
        return 0.0


def find_boxed(text: str) -> str | None:
    """What the last `\\boxed{}` holds, braces balanced; None where there is none."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if not depth:
            return text[begin:index]
    return None


def normalise(answer: str) -> str:
    """An answer in TeX without what does not change it."""
    text = answer.strip().rstrip(".").replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac")
    text = _IGNORED.sub("", text.replace("{,}", ",")).replace("\\\\", "\\")
    text = re.sub(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"^[a-zA-Z]\w?=(?=[^=]*$)", "", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"(^|[{(,])\.(\d)", r"\g<1>0.\2", text)
    text = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(\w)\{", r"\\frac{\1}{", text)
    text = "\\frac{1}{2}" if text == "0.5" else text
    whole = _SIMPLE_FRACTION.fullmatch(text)
    return f"{whole[1]}\\frac{{{whole[2]}}}{{{whole[3]}}}" if whole else text


def _number(text: str) -> float:
    """A number whose commas do not count."""
    return float(text.replace(",", ""))


def _value(text: str) -> float:
    """A number, perhaps with commas between its thousands; `1,2` is none but two."""
    return _number(text) if _THOUSANDS.fullmatch(text) else float(text)
