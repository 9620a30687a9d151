"""Cuts plain text (files, JSONL rows, data sets) into pieces of a number of tokens."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from baklava.errors import UserError
from baklava.system.files import expand_home
from baklava.tasks.base import CountTokens
from baklava.tasks.text.essay import STAND_IN
from baklava.tasks.text.fit_length import largest_fitting
from baklava.tasks.text.python_docs import load_docstrings, load_english_text
from baklava.tasks.text.rows import Rows, check_text, is_local, load_dataset_rows, read_jsonl, read_text

WANTED = "a text or JSONL file, a folder of text files, or a path that `datasets` loads"

# Texts that every Python brings along, by the word that stands for them in `data`.
BUILT_IN: dict[str, Callable[[], str]] = {STAND_IN: load_english_text, "docstrings": load_docstrings}

# Documents are cut into stretches of this many characters per token of a piece. Each stretch gives one piece or none,
# so only the stretches that are drawn need to be tokenized.
CHARACTERS_PER_TOKEN = 8


class Source(Protocol):
    """Where to read a text: `data` is as `WANTED` says, the others are for data sets; `field` is a row's text."""

    @property
    def data(self) -> str | None: ...
    @property
    def data_name(self) -> str | None: ...
    @property
    def data_split(self) -> str: ...
    @property
    def data_revision(self) -> str | None: ...
    @property
    def field(self) -> str: ...


@dataclass(frozen=True)
class Documents:
    """Texts that are read one at a time."""

    read: Callable[[int], str]
    count: int


def check_source(source: Source, *, who: str, key: str) -> str:
    """Check the `data` of a source. Raises `UserError` that names the setting `key` if it is missing or not a text."""
    if source.data is None:
        raise UserError(f"{who}: data: none given; set {key} to {WANTED}")
    if source.data not in BUILT_IN and is_local(source.data):
        path = expand_home(source.data)
        if not path.exists():
            raise UserError(f"{who}: data: no such file or folder: {source.data}; set {key} to {WANTED}")
        check_text(path)
    return source.data


def open_documents(source: Source, *, who: str, key: str) -> Documents:
    """Open the documents of a text. Raises `UserError` if it is missing, empty or unreadable."""
    data = check_source(source, who=who, key=key)
    if data in BUILT_IN:
        return Documents(lambda _: BUILT_IN[data](), 1)
    path = expand_home(data)
    if not is_local(data) or (path.is_dir() and not _text_files(path)):
        name, split, revision = source.data_name, source.data_split, source.data_revision
        return _from_rows(load_dataset_rows(data, name=name, split=split, revision=revision), source.field)
    if path.is_dir():
        files = _text_files(path)
        return Documents(lambda i: read_text(files[i]), len(files))
    if path.suffix in (".jsonl", ".json"):
        return _from_rows(read_jsonl(path), source.field)
    return Documents(lambda _: read_text(path), 1)


def _from_rows(rows: Rows, field: str) -> Documents:
    return Documents(lambda i: rows[i].text(field), len(rows))


def _text_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in (".txt", ".md"))


def cut_pieces(documents: Documents, *, length: int, count_tokens: CountTokens, rng: random.Random) -> Iterator[str]:
    """Cut pieces of more than `length` tokens that do not overlap, from the documents in turn, in random order.

    Each piece is one of a document's stretches, at random; documents and stretches that are too short are skipped. A
    document is read again for each of its pieces, so that memory does not grow with their number.
    """
    order = rng.sample(range(documents.count), documents.count)
    turns: deque[Iterator[str]] = deque()
    for number in order:
        turns.append(_draw_stretches(documents, number, length=length, rng=rng))
        if (piece := _next_piece(turns[-1], length=length, count_tokens=count_tokens)) is None:
            turns.pop()
        else:
            yield piece
    while turns:
        turn = turns.popleft()
        if (piece := _next_piece(turn, length=length, count_tokens=count_tokens)) is not None:
            turns.append(turn)
            yield piece


def _draw_stretches(documents: Documents, number: int, *, length: int, rng: random.Random) -> Iterator[str]:
    size = len(documents.read(number))
    n = max(1, size // (CHARACTERS_PER_TOKEN * length))
    bounds = [round(i * size / n) for i in range(n + 1)]
    for i in rng.sample(range(n), n):
        yield documents.read(number)[bounds[i] : bounds[i + 1]]


def _next_piece(stretches: Iterator[str], *, length: int, count_tokens: CountTokens) -> str | None:
    return next((text for text in stretches if len(text) > length // 4 and count_tokens(text) > length), None)


def split_tokens(text: str, sizes: Sequence[int], counters: Sequence[CountTokens]) -> list[str]:
    """Split `text` into consecutive sections, each as long as its number of tokens allows.

    `counters` count the tokens of each section. A section ends before a space if there is one nearby, because then a
    tokenizer usually splits the next section as it splits the complete text; otherwise the last section is shortened to
    the total.
    """
    sections, start = [], 0
    for size, count_tokens in zip(sizes, counters, strict=True):
        section = text[start:]
        if count_tokens(section) > size:
            n = largest_fitting(lambda n, rest=section: rest[:n], room=size, count_tokens=count_tokens)  # type: ignore[misc]
            space = max(section.rfind(" ", 0, n + 1), section.rfind("\n", 0, n + 1))
            section = section[: space if space > 0.9 * n else max(0, n)]
        sections.append(section)
        start += len(section)
    room, count_tokens, last = sum(sizes), counters[0], sections.pop()
    if count_tokens("".join([*sections, last])) > room:
        n = largest_fitting(lambda n: "".join([*sections, last[:n]]), room=room, count_tokens=count_tokens)
        last = last[: max(0, n)]
    return [*sections, last]
