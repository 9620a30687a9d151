"""Running text as a haystack: RULER's `essay` (arXiv 2404.06654), read from the user's file."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from baklava.errors import DataError, UserError
from baklava.system.files import expand_home
from baklava.tasks.text.rows import check_text, is_local, load_dataset_rows, read_jsonl, read_text

# The language reference of CPython, which stands in for the essays; tasks that use it have this word in their name.
STAND_IN = "standin"

WANTED = (
    "RULER's PaulGrahamEssays.json, a text file, a folder of text files, or a JSONL file or a data set that `datasets` "
    f"loads with the field text; or choose the task from ruler_{STAND_IN}/, which takes the CPython language reference"
)

# RULER puts needles at 40 depths, in percent of the sentences.
DEPTHS = tuple(round(100 * i / 39) for i in range(40))

# RULER splits sentences with NLTK, whose data would have to be downloaded; only abbreviations are split differently.
_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+")


def check_essay(essay: str | None, *, task: str) -> str:
    """Check the essay of a task. Raises `UserError` if there is none, or if the task's name hides the stand-in."""
    if essay is None:
        raise UserError(f"task {task}: essay: no text given; set tasks.{task}.essay to {WANTED}")
    if essay == STAND_IN and STAND_IN not in task:
        raise UserError(
            f"task {task}: essay: {STAND_IN} is not RULER's text, so the name of the task must contain {STAND_IN!r}; "
            f"choose it from ruler_{STAND_IN}/"
        )
    if essay != STAND_IN and is_local(essay):
        path = expand_home(essay)
        if not path.exists():
            raise UserError(f"task {task}: essay: no such file or folder: {essay}; set tasks.{task}.essay to {WANTED}")
        check_text(path)
    return essay


@cache
def read_essay_words(essay: str, split: str, revision: str | None) -> tuple[str, ...]:
    """Read the words of a text, in order. Raises `DataError` if it cannot be read or is empty."""
    words = tuple(_read_text(essay, split, revision).split())
    if not words:
        raise DataError(f"{essay}: no words in this text; give {WANTED}")
    return words


def _read_text(essay: str, split: str, revision: str | None) -> str:
    if essay == STAND_IN:
        from baklava.tasks.text.python_docs import load_english_text

        return load_english_text()
    if not is_local(essay):
        rows = load_dataset_rows(essay, name=None, split=split, revision=revision)
        return "\n".join(row.text("text") for row in rows)
    path = expand_home(essay)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".md"))
        return "\n".join(read_text(file) for file in files)
    if path.suffix == ".jsonl":
        return "\n".join(row.text("text") for row in read_jsonl(path))
    return _read_json_text(path) if path.suffix == ".json" else read_text(path)


def _read_json_text(path: Path) -> str:
    content = read_text(path)
    try:
        text = json.loads(content)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise DataError(f'{path}: text: expected an object with this field, as in RULER: {{"text": "..."}}')
    return text


def split_sentences(words: Sequence[str], n_words: int) -> list[str]:
    """Split the first `n_words` words into sentences; a text that is too short repeats."""
    n_repeats = -(-n_words // len(words))
    text = " ".join((tuple(words) * n_repeats)[:n_words])
    return _END_OF_SENTENCE.split(text) if text else []


def draw_positions_at_depths(n_needles: int, n_pieces: int, rng: random.Random) -> list[int]:
    """Draw positions at different depths of RULER's 40, in rising order."""
    return sorted(n_pieces * depth // 100 for depth in rng.sample(DEPTHS, n_needles))
