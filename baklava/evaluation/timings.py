"""The timings file: how long each answer took, and what reading its context twice did.

It is apart from the records, which are the same at every run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa

from baklava.evaluation.record_schema import COLUMNS as RECORD_COLUMNS
from baklava.evaluation.record_schema import TIMED, Cell
from baklava.eviction.kvzip import MAX_LOSS
from baklava.system.parquet import read_parquet

SCHEMA = 1

# A row per sample and cell, with its share of the wall time of the batches in which it was answered. Where the policy
# had the context repeated: the seconds of that repetition, of which all cells have their share, and its loss; else NaN.
COLUMNS = pa.schema(
    [
        *(RECORD_COLUMNS.field(name) for name in (*Cell._fields, "sample")),
        *(pa.field(name, pa.float64()) for name in TIMED),
    ]
)
OPTIONAL = ("repetition_seconds", "repetition_loss")  # older files lack them


def timings(paths: Iterable[Path]) -> pd.DataFrame:
    """One row per cell, in the order of the summary: the number of samples, and how long they took.

    For policies that had contexts repeated: seconds and loss of a repetition on average, the highest loss, and the
    fraction of repetitions that failed (above `MAX_LOSS`); else NaN.

    Raises `UserError` for a missing, broken or newer file.
    """
    hint = "`baklava evaluate`"
    frames = [
        read_parquet(path, COLUMNS, schema=SCHEMA, what="timings", hint=hint, optional=OPTIONAL).to_pandas()
        for path in paths
    ]
    rows = pd.concat(frames or [COLUMNS.empty_table().to_pandas()], ignore_index=True)
    losses = rows["repetition_loss"]
    rows["failed"] = (losses > MAX_LOSS).astype(float).where(losses.notna())
    seconds = (
        rows.groupby(list(Cell._fields))
        .agg(
            n=("seconds", "size"),
            seconds=("seconds", "sum"),
            repetition_seconds=("repetition_seconds", "mean"),
            repetition_loss=("repetition_loss", "mean"),
            highest_repetition_loss=("repetition_loss", "max"),
            failed_repetitions=("failed", "mean"),
        )
        .reset_index()
    )
    seconds["seconds_per_sample"] = seconds["seconds"] / seconds["n"]
    seconds["samples_per_second"] = seconds["n"] / seconds["seconds"]
    return seconds.sort_values(["model", "task", "ratio", *Cell._fields], ignore_index=True)
