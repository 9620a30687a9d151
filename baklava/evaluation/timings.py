"""The timings file: how long each answer took. It is apart from the records, which are the same at every run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa

from baklava.evaluation.record_schema import COLUMNS as RECORD_COLUMNS
from baklava.evaluation.record_schema import Cell
from baklava.system.parquet import read_parquet

SCHEMA = 1

# A row per sample and cell, with its share of the wall time of the batches in which it was answered.
COLUMNS = pa.schema(
    [*(RECORD_COLUMNS.field(name) for name in (*Cell._fields, "sample")), pa.field("seconds", pa.float64())]
)


def timings(paths: Iterable[Path]) -> pd.DataFrame:
    """One row per cell, in the order of the summary: the number of samples, and how long they took.

    Raises `UserError` for a missing, broken or newer file.
    """
    hint = "`baklava evaluate`"
    frames = [read_parquet(path, COLUMNS, schema=SCHEMA, what="timings", hint=hint).to_pandas() for path in paths]
    rows = pd.concat(frames or [COLUMNS.empty_table().to_pandas()], ignore_index=True)
    seconds = rows.groupby(list(Cell._fields))["seconds"].agg(n="size", seconds="sum").reset_index()
    seconds["seconds_per_sample"] = seconds["seconds"] / seconds["n"]
    seconds["samples_per_second"] = seconds["n"] / seconds["seconds"]
    return seconds.sort_values(["model", "task", "ratio", *Cell._fields], ignore_index=True)
