"""`baklava merge`: joins the files of all shards into those that a single job would have written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from baklava.evaluation import record_schema, timings
from baklava.experiment.jobs import MergeJob
from baklava.system.parquet import read_parquet, write_parquet_rows


def merge(job: MergeJob) -> None:
    """Write the shards' rows one after the other. Raises `UserError` for a missing, broken or newer file."""
    for shards, merged, file, what in (
        (job.records_of_shards, job.records, record_schema, "records"),
        (job.timings_of_shards, job.timings, timings, "timings"),
    ):
        rows = _read_rows(shards, file.COLUMNS, file.SCHEMA, file.OPTIONAL, what)
        write_parquet_rows(merged, rows, file.COLUMNS, schema=file.SCHEMA)


def _read_rows(
    shards: Iterable[Path], columns: pa.Schema, schema: int, optional: Collection[str], what: str
) -> Iterator[dict[str, Any]]:
    for shard in shards:
        table = read_parquet(shard, columns, schema=schema, what=what, hint="`baklava evaluate`", optional=optional)
        yield from table.to_pylist()
