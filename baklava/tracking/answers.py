"""The answers of one model to one task: as a data set, and as one table per cell."""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from baklava.evaluation.record_schema import COLUMNS, FULL, SCHEMA, Cell
from baklava.system.parquet import read_parquet
from baklava.tracking.run_spec import Dataset

TABLE = "predictions.json"

_TABLE_COLUMNS = ("sample", "prediction", "answers", "score", "failed")
_DATASET_COLUMNS = ("sample", "context_tokens", "answers", "group", "failed")
_TYPES = (("sample", "long"), ("context_tokens", "long"), ("answers", "string"), ("group", "string"))
_READ = pa.schema([COLUMNS.field(name) for name in dict.fromkeys((*Cell._fields, *_TABLE_COLUMNS, *_DATASET_COLUMNS))])


class Answers:
    """The rows of a records file, by cell. Raises `UserError` if it is missing, broken or newer."""

    def __init__(self, path: Path):
        table = read_parquet(path, _READ, schema=SCHEMA, what="records", hint="`baklava evaluate`")
        self._path = path
        self._rows: dict[Cell, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            self._rows.setdefault(Cell(*(row[name] for name in Cell._fields)), []).append(row)

    def table(self, cell: Cell) -> str:
        """Format the cell's answers as `mlflow.log_table` does."""
        data = [[_plain(row[name]) for name in _TABLE_COLUMNS] for row in self._rows[cell]]
        return json.dumps({"columns": _TABLE_COLUMNS, "data": data})

    @cached_property
    def dataset(self) -> Dataset:
        """The samples, identified by what all cells share: context sizes, right answers, which ones failed."""
        cell = next(cell for cell in self._rows if cell.allocator == FULL)
        samples = [[row[name] for name in _DATASET_COLUMNS] for row in self._rows[cell]]
        identity = json.dumps([cell.protocol, cell.seed, cell.length, samples])
        return Dataset(
            name=cell.task,
            digest=hashlib.sha256(identity.encode()).hexdigest()[:16],
            context="evaluation",
            source=str(self._path),
            n_rows=len(samples),
            columns=_TYPES,
        )


def _plain(value: Any) -> Any:
    """Convert a value to one that the UI shows in a field of a table."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list):
        return value[0] if len(value) == 1 else json.dumps(value)
    return value
