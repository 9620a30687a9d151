"""Read cells and their samples from the records files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from baklava.errors import UserError
from baklava.evaluation.record_schema import COLUMNS, SCHEMA, Cell
from baklava.system.parquet import read_parquet


@dataclass(frozen=True, eq=False)
class Samples:
    """Measurements of one cell, each `[n]`, in the order of the sample numbers."""

    sample: NDArray[np.int64]
    context: NDArray[np.object_]  # a name, the same for samples that share a context
    score: NDArray[np.float64]
    loss: NDArray[np.float64]  # NaN where answers are generated
    kept_entries: NDArray[np.int64]
    total_entries: NDArray[np.int64]
    kv_bytes: NDArray[np.int64]
    kv_bytes_full: NDArray[np.int64]
    peak_kv_bytes: NDArray[np.int64]
    n_failed: int = 0  # further samples, which failed in this cell or in one that it is compared with


Cells = Mapping[Cell, Samples]

_MEASURED = tuple(name for name in Samples.__annotations__ if name != "n_failed")
_COLUMNS = pa.schema([COLUMNS.field(name) for name in (*Cell._fields, *_MEASURED, "failed")])
_SAMPLE = ["model", "task", "protocol", "seed", "length", "decoding", "sample"]


def read_cells(paths: Iterable[Path]) -> Cells:
    """Read all cells of the records files, sorted; the order of rows and their spread over files do not matter.

    A sample that failed in any cell is dropped from all of them, so that cells stay comparable, and counted.

    Raises `UserError` for a missing, broken or newer file, a task without any answer, a sample that occurs twice, and
    cells that cannot be compared: without a full cache, or with other samples than the full cache's.
    """
    frames = [_read(path).assign(file=str(path)) for path in paths]
    if not frames:
        raise UserError("no records files to summarise")
    records = pd.concat(frames, ignore_index=True).sort_values([*Cell._fields, "sample"])
    failed = records.loc[records["failed"] != "", _SAMPLE].drop_duplicates()
    records = records.merge(failed, how="left", on=_SAMPLE, indicator="state")
    answered, n_failed = records["state"] == "left_only", failed.groupby(_SAMPLE[:-1]).size()
    unanswered = records.loc[~answered.groupby([records[name] for name in _SAMPLE[:-1]]).transform("any"), "file"]
    if len(unanswered):  # a mean over the other tasks would mean something else
        raise UserError(f"{unanswered.iloc[0]}: every sample failed; its column `failed` says why")
    records = records[answered]
    cells: dict[Cell, Samples] = {}
    files: dict[Cell, str] = {}
    for key, rows in records.groupby(list(Cell._fields), sort=False):
        cell = Cell._make(key)
        files[cell] = rows["file"].iloc[0]
        duplicated = rows["sample"].duplicated()
        if duplicated.any():
            repeated = rows[duplicated].iloc[0]
            raise UserError(f"{repeated['file']}: sample {repeated['sample']} of {cell} occurs more than once")
        failures = int(n_failed.get(tuple(getattr(cell, name) for name in _SAMPLE[:-1]), 0))
        cells[cell] = Samples(**{name: rows[name].to_numpy() for name in _MEASURED}, n_failed=failures)
    for cell in cells:
        _check_comparable(cell, cells, files[cell])
    return cells


def _read(path: Path) -> pd.DataFrame:
    table = read_parquet(path, _COLUMNS, schema=SCHEMA, what="records", hint="`baklava evaluate`")
    records = table.to_pandas()
    if records.empty:
        raise UserError(f"{path}: the records file is empty; make it again with `baklava evaluate`")
    answered = records[records["failed"] == ""]
    if not np.isfinite(answered["score"]).all():
        raise UserError(f"{path}: column score holds NaN or infinite values")
    if (answered["total_entries"] <= 0).any():
        raise UserError(f"{path}: column total_entries holds values that are not positive")
    return records


def _check_comparable(cell: Cell, cells: Cells, file: str) -> None:
    if cell.full not in cells:
        raise UserError(f"{file}: no records of the full cache to compare {cell} with; run `baklava evaluate` again")
    ours, theirs = cells[cell].sample, cells[cell.full].sample
    if not np.array_equal(ours, theirs):
        odd = np.setxor1d(ours, theirs)[0]
        raise UserError(
            f"{file}: {cell} holds {len(ours)} samples and the full cache {len(theirs)}, not the same ones "
            f"(sample {odd} is in one only); run `baklava evaluate` again"
        )
