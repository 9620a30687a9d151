"""Rows of data files: read where they lie, parsed one by one, so that a bad row spoils no other."""

from __future__ import annotations

import codecs
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baklava.errors import DataError, UserError, first_line

WHOLE = -1  # as a number of bytes to read: all
LOOK = 2**24  # bytes of a file that are looked at before the first job


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Row:
    """The fields of one row, and the place that error messages name: a file and a line."""

    place: str
    values: Mapping[str, Any]

    def _value(self, field: str) -> Any:
        if self.values.get(field) is None:
            there = ", ".join(sorted(self.values)) or "none"
            raise UserError(f"{self.place}: {field}: missing; the row has {there}; add the field {field}")
        return self.values[field]

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(field) is not None

    def text(self, field: str) -> str:
        value = self._value(field)
        if not isinstance(value, str):
            raise UserError(f"{self.place}: {field}: expected a text, got {_shown(value)}; put it in quotes")
        return self._whole(field, value)

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of at least one text."""
        value = self._value(field)
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        if not listed or not value or not all(isinstance(one, str) for one in value):
            raise UserError(
                f'{self.place}: {field}: expected a list of texts, got {_shown(value)}; write it as ["one", "another"]'
            )
        return tuple(self._whole(field, one) for one in value)

    def _whole(self, field: str, text: str) -> str:
        """JSON can write half of a character, as in "\\ud83d" alone, which no tokenizer takes."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise UserError(
                f"{self.place}: {field}: {half} is half of a character; remove it or add the rest"
            ) from None
        return text

    def count(self, field: str) -> int:
        value = self._value(field)
        if type(value) is not int or value < 1:
            raise UserError(f"{self.place}: {field}: expected a whole number from 1, got {_shown(value)}")
        return value

    def name(self, field: str) -> str:
        """A text or a whole number, as text."""
        value = self._value(field)
        if not isinstance(value, str) and type(value) is not int:
            raise UserError(f"{self.place}: {field}: expected a text or a whole number, got {_shown(value)}")
        return str(value)


class Rows(ABC):
    """A sequence of rows. Taking one raises `UserError` where it is malformed."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Row: ...

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


class JsonLines(Rows):
    """The lines of a JSONL file that are not blank. Raises `DataError` at once where the file is not in UTF-8."""

    def __init__(self, file: str, content: bytes, *, whole: bool = True):
        decoded(file, content, whole=whole)
        self._file = file
        self._lines = [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Row:
        number, line = self._lines[index]
        place = f"{self._file}, line {number}"
        try:
            values = json.loads(line.decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{place}: not JSON ({error.msg} at column {error.colno}); each line is one object"
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not JSON ({type(error).__name__}); each line is one object") from None
        if not isinstance(values, dict):
            raise UserError(f"{place}: expected an object with named fields, got {_shown(values)}")
        return Row(place, values)


class DatasetRows(Rows):
    """The rows of a data set of the `datasets` library."""

    def __init__(self, name: str, dataset: Any):
        self._name = name
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        return Row(f"{self._name}, row {index}", self._dataset[index])


def read_bytes(path: Path, most: int = WHOLE) -> bytes:
    """The content of a file, or its first bytes. Raises `DataError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a readable file") from None


def decoded(file: str, content: bytes, *, whole: bool = True) -> str:
    """The text of a file, or of its beginning. Raises `DataError` that names the line where it is not in UTF-8."""
    try:
        return codecs.utf_8_decode(content, "strict", whole)[0]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}, line {line}: not in UTF-8 (byte {error.start} of the file); convert it") from None


def read_text(path: Path) -> str:
    """The text of a file. Raises `DataError` where it cannot be read or is not in UTF-8."""
    return decoded(str(path), read_bytes(path))


def check_text(path: Path) -> None:
    """The same errors as far as the beginning of a file shows them; nothing for a folder."""
    if not path.is_dir():
        decoded(str(path), read_bytes(path, LOOK), whole=False)


def read_jsonl(path: Path, most: int = WHOLE) -> Rows:
    """The rows of a file. With `most` only that many bytes are read, and the last row may be cut."""
    return JsonLines(str(path), read_bytes(path, most), whole=most == WHOLE)


def read_zipped(path: Path, file: str, most: int = WHOLE) -> Rows:
    """The same of the JSONL `file` in an archive, in whichever folder. Raises `DataError` where it is not there."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if name.rpartition("/")[2] == file]
            if not inside:
                raise DataError(f"{path}: no {file} in this archive; give the one that holds it")
            with archive.open(inside[0]) as lines:
                return JsonLines(f"{path}/{inside[0]}", lines.read(most), whole=most == WHOLE)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable zip archive ({error}); download it again") from None


def load_dataset_rows(path: str, *, name: str | None, split: str, revision: str | None) -> Rows:
    """Rows of `datasets.load_dataset`: a hub id or a local folder. Raises `DataError` where it cannot be loaded."""
    from datasets import load_dataset

    try:
        dataset = load_dataset(path, name, split=split, revision=revision)
        len(dataset)
    except Exception as error:  # each builder and each failure of the network has an exception of its own
        raise DataError(
            f"data set {path} (name {name}, split {split}, revision {revision}) cannot be loaded: {first_line(error)}; "
            "give a local file, or a data set that `datasets.load_dataset` loads"
        ) from None
    return DatasetRows(f"data set {path} {name or ''}".strip(), dataset)


def is_local(path: str) -> bool:
    """Whether this must be a file or a folder here: it is one, or it does not look like a hub id."""
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") > 1 or Path(path).suffix in _SUFFIXES
    return looks_local or Path(path).exists()


_SUFFIXES = (".jsonl", ".json", ".zip", ".txt", ".md")
