"""Parquet files that carry their schema version and a checksum of all their bytes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from baklava.errors import UserError
from baklava.system.files import atomic

_VERSION = b"schema_version"
_ENDING_BYTES = 8  # a file ends with the length of its footer and a magic word, of four bytes each
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_CHUNK_BYTES = 2**20


def write_parquet(path: Path, table: pa.Table, *, schema: int) -> None:
    """Write `table` atomically; its metadata is only the schema version."""
    with atomic(path) as unfinished:
        pq.write_table(table.replace_schema_metadata({_VERSION: str(schema).encode()}), unfinished)
        _insert_checksum(unfinished)


def write_parquet_rows(
    path: Path, rows: Iterable[dict[str, Any]], columns: pa.Schema, *, schema: int, block_rows: int = 4096
) -> None:
    """Write rows as they come, atomically, with at most `block_rows` of them in memory."""
    described = columns.with_metadata({_VERSION: str(schema).encode()})
    remaining = iter(rows)
    with atomic(path) as unfinished:
        with pq.ParquetWriter(unfinished, described) as writer:
            while block := list(islice(remaining, block_rows)):
                writer.write_table(pa.Table.from_pylist(block, schema=described))
        _insert_checksum(unfinished)


def read_parquet(
    path: Path, columns: pa.Schema, *, schema: int, what: str, hint: str, optional: Collection[str] = ()
) -> pa.Table:
    """Read the named columns, of the given types and without gaps.

    `what` names the kind of file and `hint` the command that makes it. Columns of numbers that are `optional`, because
    older files lack them, are NaN there.

    Raises `UserError` for a missing, broken or newer file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such {what} file; make it with {hint}")
    if not _is_intact(path):  # before any of it is parsed
        raise UserError(
            f"{path}: not a readable {what} file: its checksum is not that of its content, so it is damaged or not "
            f"from this version of BaKlaVa; remove it and make it again with {hint}"
        )
    try:
        with pq.ParquetFile(path) as file:
            _check_version(path, file.schema_arrow.metadata or {}, schema, what)
            missing = [name for name in columns.names if name not in file.schema_arrow.names]
            if needed := [name for name in missing if name not in optional]:
                raise UserError(f"{path}: not a {what} file: column {needed[0]} is missing")
            table = file.read([name for name in columns.names if name not in missing])
            for name in missing:
                table = table.append_column(name, pa.array([math.nan] * len(table), pa.float64()))
            table = table.select(columns.names).replace_schema_metadata().cast(columns)
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


def _insert_checksum(path: Path) -> None:
    """Insert a checksum of all bytes of a Parquet file before its footer.

    Parquet's own checksums cover pages, but neither their headers nor the footer. Readers find everything by its offset
    from the start of the file, and ignore the bytes between the last page and the footer.
    """
    with path.open("r+b") as file:
        footer_at, _ = _find_footer(file)
        file.seek(0)
        checksum = hashlib.file_digest(file, "sha256").digest()
        file.seek(footer_at)
        footer = file.read()
        file.seek(footer_at)
        file.write(checksum + footer)


def _is_intact(path: Path) -> bool:
    with path.open("rb") as file:
        footer_at, size = _find_footer(file)
        checksum_at = footer_at - _CHECKSUM_BYTES
        if checksum_at < 0 or footer_at > size - _ENDING_BYTES:
            return False
        file.seek(0)
        digest = hashlib.sha256()
        while file.tell() < checksum_at:
            digest.update(file.read(min(_CHUNK_BYTES, checksum_at - file.tell())))
        checksum = file.read(_CHECKSUM_BYTES)
        digest.update(file.read())
        return digest.digest() == checksum


def _find_footer(file: BinaryIO) -> tuple[int, int]:
    """Offset of the footer (any number if the file is damaged), and the size of the file."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _ENDING_BYTES))
    return size - _ENDING_BYTES - int.from_bytes(file.read(4), "little"), size
