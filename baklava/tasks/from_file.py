"""Tasks whose samples are the rows of a file, as they are, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from baklava.errors import DataError, UserError
from baklava.system.files import expand_home
from baklava.tasks.base import SPLITS, Task
from baklava.tasks.text.rows import LOOK, WHOLE, Row, Rows, is_local, load_dataset_rows, read_jsonl, read_zipped


@dataclass(frozen=True, kw_only=True)
class FileTask(Task):
    """A task over rows.

    `data` is a JSONL file; a folder or a zip archive that holds the file named by `file_name`; or a path for
    `datasets.load_dataset`, with `data_name`, `data_split` and `data_revision` as its name, split and revision.

    Row `index` is sample `index` of the evaluation, whatever the seed; other splits take the rows from the end, so that
    calibration meets other rows as long as there are enough. Samples have the lengths of their rows.
    """

    data: str | None = None
    data_name: str | None = None
    data_split: str = "test"
    data_revision: str | None = None

    def file_name(self) -> str | None:
        """The file to look for in a folder or an archive; None: `data` must be the file itself."""
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
            self._local_rows(expand_home(data), most=LOOK)

    @cached_property
    def rows(self) -> Rows:
        """Every row, parsed when it is taken. Raises `UserError` where there is no data."""
        data = self._required_data()
        local = is_local(data)
        rows = self._local_rows(expand_home(data)) if local else None
        if rows is None:
            on_the_hub = None if local else (self.file_name() or "").removesuffix(".jsonl") or None
            name = self.data_name or on_the_hub
            rows = load_dataset_rows(data, name=name, split=self.data_split, revision=self.data_revision)
        if len(rows) == 0:
            raise DataError(f"task {self.name}: {data} has no rows; set tasks.{self.name}.data to {self._wanted()}")
        return rows

    def _local_rows(self, path: Path, most: int = WHOLE) -> Rows | None:
        """Rows of a local file, of which at most so many bytes are read; None where it is a folder for `datasets`."""
        file = self.file_name()
        if path.suffix == ".zip":
            if file is None:
                raise UserError(f"task {self.name}: data: {path} is an archive; unpack it and name its file")
            return read_zipped(path, file, most)
        if not path.is_dir():
            return read_jsonl(path, most)
        for inside in (path / (file or ""), path / "data" / (file or "")):
            if inside.is_file():
                return read_jsonl(inside, most)
        archive = path / "data.zip"
        return read_zipped(archive, file, most) if file is not None and archive.is_file() else None

    def n_available(self) -> int:
        return len(self.rows)

    def number(self, *, split: str, index: int) -> int:
        """Which of the available ones a sample is. Raises `UserError` where there are not so many."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        n = self.n_available()
        if not 0 <= index < n:
            raise UserError(f"task {self.name}: sample {index} asked for, but {self.data} has {n}; ask for at most {n}")
        return index if split == "evaluation" else n - 1 - index

    def row(self, *, split: str, index: int) -> Row:
        """The row of a sample. Raises `UserError` where it is malformed or there are not so many."""
        return self.rows[self.number(split=split, index=index)]
