"""Rows of data files, each parsed when it is taken, so that a bad row does not affect the others."""

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

ALL_BYTES = -1  # as a number of bytes to read
MAX_CHECKED_BYTES = 2**24  # of a file, before the first job


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Row:
    """The fields of one row, and the location that error messages name: a file and a line."""

    location: str
    values: Mapping[str, Any]

    def require(self, field: str) -> Any:
        """The value of a field. Raises `UserError` if it is missing or null."""
        if self.values.get(field) is None:
            existing = ", ".join(sorted(self.values)) or "none"
            raise UserError(f"{self.location}: {field}: missing; the row has {existing}; add the field {field}")
        return self.values[field]

    def has(self, field: str) -> bool:
        """Whether the field exists and is not null."""
        return self.values.get(field) is not None

    def text(self, field: str) -> str:
        value = self.require(field)
        if not isinstance(value, str):
            raise UserError(f"{self.location}: {field}: expected a text, got {_shorten(value)}; put it in quotes")
        return self._encodable(field, value)

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of at least one text."""
        value = self.require(field)
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list or not value or not all(isinstance(text, str) for text in value):
            raise UserError(
                f"{self.location}: {field}: expected a list of texts, got {_shorten(value)}; "
                'write it as ["one", "another"]'
            )
        return tuple(self._encodable(field, text) for text in value)

    def _encodable(self, field: str, text: str) -> str:
        """The text, unless it holds half of a character: JSON can write "\\ud83d" alone, but no tokenizer takes it."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise UserError(
                f"{self.location}: {field}: {half} is half of a character; remove it or add the rest"
            ) from None
        return text

    def count(self, field: str) -> int:
        value = self.require(field)
        if type(value) is not int or value < 1:
            raise UserError(f"{self.location}: {field}: expected a whole number from 1, got {_shorten(value)}")
        return value

    def name(self, field: str) -> str:
        """A text or an integer, as text."""
        value = self.require(field)
        if not isinstance(value, str) and type(value) is not int:
            raise UserError(f"{self.location}: {field}: expected a text or a whole number, got {_shorten(value)}")
        return str(value)


class Rows(ABC):
    """A sequence of rows. Taking a malformed one raises `UserError`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Row: ...

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def complete(self) -> Iterator[Row]:
        """The rows without one that was cut where reading stopped."""
        return iter(self)


class JsonLines(Rows):
    """The lines of a JSONL file that are not blank. Raises `DataError` at once if the file is not in UTF-8."""

    def __init__(self, file: str, content: bytes, *, complete: bool = True):
        decode(file, content, complete=complete)
        self._file = file
        self._last_is_cut = not complete and not content.endswith(b"\n")
        self._lines = [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]

    def __len__(self) -> int:
        return len(self._lines)

    def complete(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self) - self._last_is_cut))

    def __getitem__(self, index: int) -> Row:
        number, line = self._lines[index]
        location = f"{self._file}, line {number}"
        try:
            values = json.loads(line.decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{location}: not JSON ({error.msg} at column {error.colno}); each line is one object"
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{location}: not JSON ({type(error).__name__}); each line is one object") from None
        if not isinstance(values, dict):
            raise UserError(f"{location}: expected an object with named fields, got {_shorten(values)}")
        return Row(location, values)


class JsonArray(Rows):
    """The objects of a file that is one JSON array. Raises `DataError` at once if it is none."""

    def __init__(self, file: str, content: bytes):
        try:
            values = json.loads(decode(file, content).removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: not JSON ({first_line(error)}); give a list of objects, or one a line") from None
        if not isinstance(values, list):
            raise DataError(f"{file}: expected a list of objects, got {_shorten(values)}")
        self._file, self._values = file, values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> Row:
        location, values = f"{self._file}, row {index}", self._values[index]
        if not isinstance(values, dict):
            raise UserError(f"{location}: expected an object with named fields, got {_shorten(values)}")
        return Row(location, values)


class ParquetRows(Rows):
    """The rows of a Parquet file. Raises `DataError` at once if it is none."""

    def __init__(self, path: Path):
        from pyarrow import ArrowException, parquet

        try:
            self._table = parquet.read_table(path)
        except (ArrowException, OSError) as error:
            raise DataError(f"{path}: not a readable Parquet file ({first_line(error)}); download it again") from None
        self._path = path

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Row:
        return Row(f"{self._path}, row {index}", self._table.slice(index, 1).to_pylist()[0])


class DatasetRows(Rows):
    """The rows of a data set of the `datasets` library."""

    def __init__(self, name: str, dataset: Any):
        self._name = name
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        return Row(f"{self._name}, row {index}", self._dataset[index])


def read_bytes(path: Path, max_bytes: int = ALL_BYTES) -> bytes:
    """Read the content of a file, or its first bytes. Raises `DataError` if that fails."""
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a readable file") from None


def decode(file: str, content: bytes, *, complete: bool = True) -> str:
    """Decode the content of a file, or its beginning. Raises `DataError` with the line if it is not in UTF-8."""
    try:
        return codecs.utf_8_decode(content, "strict", complete)[0]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}, line {line}: not in UTF-8 (byte {error.start} of the file); convert it") from None


def read_text(path: Path) -> str:
    """Read the text of a file. Raises `DataError` if it cannot be read or is not in UTF-8."""
    return decode(str(path), read_bytes(path))


def check_text(path: Path) -> None:
    """Raise the errors of `read_text` that the beginning of a file shows; a folder raises none."""
    if not path.is_dir():
        decode(str(path), read_bytes(path, MAX_CHECKED_BYTES), complete=False)


def read_jsonl(path: Path, max_bytes: int = ALL_BYTES) -> Rows:
    """Read the rows of a file, one object a line. With `max_bytes`, only as many bytes; the last row may be cut."""
    return _json_lines(str(path), read_bytes(path, max_bytes), max_bytes)


def read_rows(path: Path, max_bytes: int = ALL_BYTES) -> Rows | None:
    """Read the rows of a JSONL or Parquet file, or of a JSON array; None for what `max_bytes` would cut elsewhere."""
    if path.suffix == ".parquet":
        return ParquetRows(path)
    if path.suffix != ".json":
        return read_jsonl(path, max_bytes)
    content = read_bytes(path, max_bytes)
    if not content.lstrip().startswith(b"["):
        return _json_lines(str(path), content, max_bytes)
    return None if len(content) == max_bytes else JsonArray(str(path), content)


def _json_lines(file: str, content: bytes, max_bytes: int) -> JsonLines:
    return JsonLines(file, content, complete=max_bytes == ALL_BYTES or len(content) < max_bytes)


def read_zipped(path: Path, file: str, max_bytes: int = ALL_BYTES) -> Rows:
    """Read the rows of the JSONL `file` in any folder of an archive. Raises `DataError` if the archive has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.rpartition("/")[2] == file]
            if not members:
                raise DataError(f"{path}: no {file} in this archive; give the one that holds it")
            with archive.open(members[0]) as lines:
                return _json_lines(f"{path}/{members[0]}", lines.read(max_bytes), max_bytes)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable zip archive ({error}); download it again") from None


def load_dataset_rows(path: str, *, name: str | None, split: str, revision: str | None) -> Rows:
    """Load the rows of a hub id or a local folder with `datasets`. Raises `DataError` if that fails."""
    from datasets import load_dataset

    try:
        dataset = load_dataset(path, name, split=split, revision=revision)
        len(dataset)
    except Exception as error:  # every builder and every network failure raises its own kind
        raise DataError(
            f"data set {path} (name {name}, split {split}, revision {revision}) cannot be loaded: {first_line(error)}; "
            "give a local file, or a data set that `datasets.load_dataset` loads"
        ) from None
    return DatasetRows(f"data set {path} {name or ''}".strip(), dataset)


def is_local(path: str) -> bool:
    """Whether this must be a local file or folder: it is one, or it does not look like a hub id."""
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") > 1 or Path(path).suffix in _SUFFIXES
    return looks_local or Path(path).exists()


_SUFFIXES = (".jsonl", ".json", ".parquet", ".zip", ".txt", ".md")
