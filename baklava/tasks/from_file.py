"""Tasks whose samples are the rows of a file, unchanged and in order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from baklava.errors import DataError, UserError
from baklava.system.files import expand_home
from baklava.tasks.base import SPLITS, Task
from baklava.tasks.text.rows import (
    ALL_BYTES,
    MAX_CHECKED_BYTES,
    Row,
    Rows,
    is_local,
    load_dataset_rows,
    read_rows,
    read_zipped,
)

# How the names of one data set's files begin, by which `datasets` tells its parts.
PARTS = ("train", "test", "valid", "val", "dev", "eval")


@dataclass(frozen=True, kw_only=True)
class FileTask(Task):
    """A task over the rows of a file.

    `data` is a JSONL or Parquet file, or a JSON array; a folder or a zip archive that holds the file named by
    `file_name`; or a path for `datasets.load_dataset`, with `data_name`, `data_split` and `data_revision` as its name,
    split and revision.

    Row `index` is sample `index` of the evaluation for every seed; other splits take the rows from the end, so that
    calibration uses other rows if there are enough. Samples have the lengths of their rows.
    """

    data: str | None = None
    data_name: str | None = None
    data_split: str = "test"
    data_revision: str | None = None

    def file_name(self) -> str | None:
        """The file to look for in a folder or an archive; None if `data` must be the file itself."""
        return None

    def _wanted(self) -> str:
        """What to set `data` to, for messages."""
        raise NotImplementedError

    def _required_data(self) -> str:
        if self.data is None:
            raise UserError(f"task {self.name}: data: none given; set tasks.{self.name}.data to {self._wanted()}")
        if is_local(self.data) and not expand_home(self.data).exists():
            raise UserError(
                f"task {self.name}: data: no such file or folder: {self.data}; "
                f"set tasks.{self.name}.data to {self._wanted()}"
            )
        return self.data

    def check(self) -> None:
        super().check()
        data = self._required_data()
        if is_local(data):
            self._local_rows(expand_home(data), max_bytes=MAX_CHECKED_BYTES)

    def required_fields(self) -> tuple[str, ...]:
        """The fields that every row must have."""
        return ()

    def check_rows(self) -> None:
        data = self._required_data()
        if not self.required_fields() or not is_local(data):
            return
        rows = self._local_rows(expand_home(data), max_bytes=MAX_CHECKED_BYTES)
        for row in () if rows is None else rows.complete():
            for field in self.required_fields():
                row.require(field)

    @cached_property
    def rows(self) -> Rows:
        """All rows, each parsed when it is taken. Raises `UserError` if there is no data."""
        data = self._required_data()
        local = is_local(data)
        rows = self._local_rows(expand_home(data)) if local else None
        if rows is None:
            hub_name = None if local else (self.file_name() or "").removesuffix(".jsonl") or None
            name = self.data_name or hub_name
            rows = load_dataset_rows(data, name=name, split=self.data_split, revision=self.data_revision)
        if len(rows) == 0:
            raise DataError(f"task {self.name}: {data} has no rows; set tasks.{self.name}.data to {self._wanted()}")
        return rows

    def _local_rows(self, path: Path, max_bytes: int = ALL_BYTES) -> Rows | None:
        """Read the rows of a local file, at most `max_bytes` of it; None for a folder that `datasets` must load."""
        file = self.file_name()
        if path.suffix == ".zip":
            if file is None:
                raise UserError(f"task {self.name}: data: {path} is an archive; unpack it and name its file")
            return read_zipped(path, file, max_bytes)
        if not path.is_dir():
            return read_rows(path, max_bytes)
        if file is None:
            return None
        for member in (path / file, path / "data" / file):
            if member.is_file():
                return read_rows(member, max_bytes)
        archive = path / "data.zip"
        if archive.is_file():
            return read_zipped(archive, file, max_bytes)
        files = chain(path.glob("*.jsonl"), path.glob("data/*.jsonl"))
        other = next((one for one in files if not one.name.startswith(PARTS)), None)
        if file.endswith(".jsonl") and other:  # `datasets` would read all such files as one set
            raise DataError(
                f"task {self.name}: data: no {file} in {path}, but {other.name}; "
                f"set tasks.{self.name}.data to {self._wanted()}, or to a file"
            )
        return None

    def n_available(self) -> int:
        return len(self.rows)

    def number(self, *, split: str, index: int) -> int:
        """The number of the row that a sample is. Raises `UserError` if there are too few rows."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        n = self.n_available()
        if not 0 <= index < n:
            raise UserError(f"task {self.name}: sample {index} asked for, but {self.data} has {n}; ask for at most {n}")
        return index if split == "evaluation" else n - 1 - index

    def row(self, *, split: str, index: int) -> Row:
        """The row of a sample. Raises `UserError` if it is malformed or there are too few."""
        return self.rows[self.number(split=split, index=index)]
