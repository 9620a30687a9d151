"""Parquet files that carry their schema version."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from baklava.errors import UserError
from baklava.files import atomic

_VERSION = b"schema_version"


def write_parquet(path: Path, table: pa.Table, *, schema: int) -> None:
    """Write `table` atomically, with nothing but the schema version in its metadata."""
    with atomic(path) as unfinished:
        pq.write_table(table.replace_schema_metadata({_VERSION: str(schema).encode()}), unfinished)


def write_parquet_rows(
    path: Path, rows: Iterable[dict[str, Any]], columns: pa.Schema, *, schema: int, block: int = 4096
) -> None:
    """Write rows as they come, `block` of them in memory at a time, atomically."""
    described = columns.with_metadata({_VERSION: str(schema).encode()})
    remaining = iter(rows)
    with atomic(path) as unfinished, pq.ParquetWriter(unfinished, described) as writer:
        while some := list(islice(remaining, block)):
            writer.write_table(pa.Table.from_pylist(some, schema=described))


def read_parquet(path: Path, columns: pa.Schema, *, schema: int, what: str, hint: str) -> pa.Table:
    """The named columns, of the given types and without gaps. Raises `UserError` for a missing, broken or newer file.

    `what` names the kind of file and `hint` the command that makes it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such {what} file; make it with {hint}")
    try:
        with pq.ParquetFile(path) as file:
            _check_version(path, file.schema_arrow.metadata or {}, schema, what)
            missing = [name for name in columns.names if name not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{path}: not a {what} file: column {missing[0]} is missing")
            table = file.read(columns.names).select(columns.names).replace_schema_metadata().cast(columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable {what} file ({' '.join(str(error).split())})") from None
    for name in columns.names:
        if table[name].null_count:
            raise UserError(f"{path}: column {name} of the {what} file has gaps")
    return table


def _check_version(path: Path, metadata: dict[bytes, bytes], schema: int, what: str) -> None:
    version = metadata.get(_VERSION, b"").decode(errors="replace")
    if not version.isdigit():
        raise UserError(f"{path}: not a {what} file: it has no schema_version")
    if int(version) != schema:
        newer = "a newer" if int(version) > schema else "an older"
        raise UserError(f"{path}: {what} schema {version}, from {newer} BaKlaVa; this one reads schema {schema}")
