"""Plain text in pieces of a number of tokens: files, JSONL rows, data sets."""

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
from baklava.tasks.text.rows import Rows, check_text, is_local, load_dataset_rows, read_jsonl, read_text

WANTED = "a text or JSONL file, a folder of text files, or a path that `datasets` loads"

# Documents are cut into stretches of this many characters per wanted token, each of which gives one piece or none: so
# only the stretches that are drawn are ever tokenised.
CHARACTERS_PER_TOKEN = 8


class Source(Protocol):
    """Where a text is: `data` as `WANTED` says, the rest for data sets; `field` holds the text of a row."""

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
    """Texts of which each is read when it is asked for."""

    read: Callable[[int], str]
    count: int


def check_source(source: Source, *, who: str, key: str) -> str:
    """Its data. Raises `UserError` where none is given, or none is there or no text; `key` is the setting to name."""
    if source.data is None:
        raise UserError(f"{who}: data: none given; set {key} to {WANTED}")
    if source.data != STAND_IN and is_local(source.data):
        path = expand_home(source.data)
        if not path.exists():
            raise UserError(f"{who}: data: no such file or folder: {source.data}; set {key} to {WANTED}")
        check_text(path)
    return source.data


def open_documents(source: Source, *, who: str, key: str) -> Documents:
    """The documents of a text. Raises `UserError` where it is missing, empty or unreadable."""
    data = check_source(source, who=who, key=key)
    if data == STAND_IN:
        from baklava.tasks.text.python_docs import english_text

        return Documents(lambda _: english_text(), 1)
    path = expand_home(data)
    if not is_local(data) or (path.is_dir() and not _text_files(path)):
        name, split, revision = source.data_name, source.data_split, source.data_revision
        return _of_rows(load_dataset_rows(data, name=name, split=split, revision=revision), source.field)
    if path.is_dir():
        files = _text_files(path)
        return Documents(lambda i: read_text(files[i]), len(files))
    if path.suffix in (".jsonl", ".json"):
        return _of_rows(read_jsonl(path), source.field)
    return Documents(lambda _: read_text(path), 1)


def _of_rows(rows: Rows, field: str) -> Documents:
    return Documents(lambda i: rows[i].text(field), len(rows))


def _text_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in (".txt", ".md"))


def pieces(documents: Documents, *, length: int, count_tokens: CountTokens, rng: random.Random) -> Iterator[str]:
    """Pieces of more than `length` tokens, none overlapping another: documents by turns, in random order.

    Each begins at a random one of a document's stretches; documents and stretches that are too short are passed over.
    A document is read again for each of its pieces, so that memory does not grow with their number.
    """
    order = rng.sample(range(documents.count), documents.count)
    turns: deque[Iterator[str]] = deque()
    for number in order:
        turns.append(_stretches(documents, number, length=length, rng=rng))
        if (piece := _long_enough(turns[-1], length=length, count_tokens=count_tokens)) is None:
            turns.pop()
        else:
            yield piece
    while turns:
        turn = turns.popleft()
        if (piece := _long_enough(turn, length=length, count_tokens=count_tokens)) is not None:
            turns.append(turn)
            yield piece


def _stretches(documents: Documents, number: int, *, length: int, rng: random.Random) -> Iterator[str]:
    size = len(documents.read(number))
    n = max(1, size // (CHARACTERS_PER_TOKEN * length))
    bounds = [round(i * size / n) for i in range(n + 1)]
    for i in rng.sample(range(n), n):
        yield documents.read(number)[bounds[i] : bounds[i + 1]]


def _long_enough(stretches: Iterator[str], *, length: int, count_tokens: CountTokens) -> str | None:
    return next((text for text in stretches if len(text) > length // 4 and count_tokens(text) > length), None)


def split_tokens(text: str, sizes: Sequence[int], counters: Sequence[CountTokens]) -> list[str]:
    """Parts of `text`, one after another, each as long as its number of tokens allows.

    `counters` say how many tokens each part takes. A part ends before a space where there is one nearby, so that a
    tokenizer cuts the next as it would cut the whole; where it does not, the last part loses what is too much.
    """
    parts, start = [], 0
    for size, count_tokens in zip(sizes, counters, strict=True):
        rest = text[start:]
        if count_tokens(rest) > size:
            n = largest_fitting(lambda n, rest=rest: rest[:n], room=size, count_tokens=count_tokens)  # type: ignore[misc]
            space = max(rest.rfind(" ", 0, n + 1), rest.rfind("\n", 0, n + 1))
            rest = rest[: space if space > 0.9 * n else max(0, n)]
        parts.append(rest)
        start += len(rest)
    room, count_tokens, last = sum(sizes), counters[0], parts.pop()
    if count_tokens("".join([*parts, last])) > room:
        n = largest_fitting(lambda n: "".join([*parts, last[:n]]), room=room, count_tokens=count_tokens)
        last = last[: max(0, n)]
    return [*parts, last]
