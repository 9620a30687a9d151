"""Plain text in pieces of a number of tokens: files, JSONL rows, data sets."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from baklava.config import TextConfig
from baklava.errors import UserError
from baklava.tasks.base import CountTokens
from baklava.tasks.essay import STAND_IN
from baklava.tasks.fitting import largest_fitting
from baklava.tasks.rows import Rows, is_local, load_dataset_rows, read_bytes, read_jsonl

WANTED = "a text or JSONL file, a folder of text files, or a path that `datasets` loads"

# Documents are cut into stretches of this many characters per wanted token, each of which gives one piece or none: so
# only the stretches that are drawn are ever tokenised.
CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True)
class Documents:
    """Texts of which each is read when it is asked for."""

    read: Callable[[int], str]
    count: int


def open_documents(config: TextConfig) -> Documents:
    """The documents of a text. Raises `UserError` where it is missing, empty or unreadable."""
    if config.data == STAND_IN:
        from baklava.training.english import english_text

        return Documents(lambda _: english_text(), 1)
    path = Path(config.data).expanduser()
    if is_local(config.data) and not path.exists():
        raise UserError(f"text {config.name}: data: no such file or folder: {config.data}; give {WANTED}")
    if not is_local(config.data) or (path.is_dir() and not _text_files(path)):
        return _of_rows(
            load_dataset_rows(
                config.data, name=config.data_name, split=config.data_split, revision=config.data_revision
            ),
            config,
        )
    if path.is_dir():
        files = _text_files(path)
        return Documents(lambda i: _decoded(files[i]), len(files))
    if path.suffix in (".jsonl", ".json"):
        return _of_rows(read_jsonl(path), config)
    return Documents(lambda _: _decoded(path), 1)


def _of_rows(rows: Rows, config: TextConfig) -> Documents:
    return Documents(lambda i: rows[i].text(config.field), len(rows))


def _text_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in (".txt", ".md"))


def _decoded(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 (byte {error.start}); convert it") from None


def pieces(documents: Documents, *, length: int, count_tokens: CountTokens, rng: random.Random) -> Iterator[str]:
    """Pieces of more than `length` tokens, none overlapping another: documents by turns, in random order.

    Each begins at a random one of a document's stretches; documents and stretches that are too short are passed over.
    """
    order = rng.sample(range(documents.count), documents.count)
    turns: deque[Iterator[str]] = deque()
    for number in order:
        turns.append(_stretches(documents.read(number), length=length, rng=rng))
        if (piece := _long_enough(turns[-1], length=length, count_tokens=count_tokens)) is None:
            turns.pop()
        else:
            yield piece
    while turns:
        turn = turns.popleft()
        if (piece := _long_enough(turn, length=length, count_tokens=count_tokens)) is not None:
            turns.append(turn)
            yield piece


def _stretches(text: str, *, length: int, rng: random.Random) -> Iterator[str]:
    size = CHARACTERS_PER_TOKEN * length
    n = max(1, len(text) // size)
    bounds = [round(i * len(text) / n) for i in range(n + 1)]
    for i in rng.sample(range(n), n):
        yield text[bounds[i] : bounds[i + 1]]


def _long_enough(stretches: Iterator[str], *, length: int, count_tokens: CountTokens) -> str | None:
    return next((text for text in stretches if len(text) > length // 4 and count_tokens(text) > length), None)


def split_tokens(text: str, sizes: Sequence[int], counters: Sequence[CountTokens]) -> list[str]:
    """Parts of `text`, one after another, each as long as its number of tokens allows.

    `counters` say how many tokens each part takes. A part ends before a space where there is one nearby, so that a
    tokenizer cuts the next as it would cut the whole.
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
    return parts
