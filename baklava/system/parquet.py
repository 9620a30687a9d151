"""Parquet files that carry their schema version, and a checksum of all their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from baklava.errors import UserError
from baklava.system.files import atomic

_VERSION = b"schema_version"
_TAIL = 8  # a file ends with the length of its footer and a magic word, of four bytes each
_CHECKSUM = hashlib.sha256().digest_size
_CHUNK = 2**20


def write_parquet(path: Path, table: pa.Table, *, schema: int) -> None:
    """Write `table` atomically, with nothing but the schema version in its metadata."""
    with atomic(path) as unfinished:
        pq.write_table(table.replace_schema_metadata({_VERSION: str(schema).encode()}), unfinished)
        _seal(unfinished)


def write_parquet_rows(
    path: Path, rows: Iterable[dict[str, Any]], columns: pa.Schema, *, schema: int, block: int = 4096
) -> None:
    """Write rows as they come, `block` of them in memory at a time, atomically."""
    described = columns.with_metadata({_VERSION: str(schema).encode()})
    remaining = iter(rows)
    with atomic(path) as unfinished:
        with pq.ParquetWriter(unfinished, described) as writer:
            while some := list(islice(remaining, block)):
                writer.write_table(pa.Table.from_pylist(some, schema=described))
        _seal(unfinished)


def read_parquet(path: Path, columns: pa.Schema, *, schema: int, what: str, hint: str) -> pa.Table:
    """The named columns, of the given types and without gaps. Raises `UserError` for a missing, broken or newer file.

    `what` names the kind of file and `hint` the command that makes it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such {what} file; make it with {hint}")
    if not _is_sealed(path):  # before any of it is parsed
        raise UserError(
            f"{path}: not a readable {what} file: its checksum is not that of its content, so it is damaged or not "
            f"from this version of BaKlaVa; remove it and make it again with {hint}"
        )
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


def _seal(path: Path) -> None:
    """Put a checksum of all bytes of a Parquet file before its footer.

    Parquet's own checksums cover pages, neither their headers nor the footer. Readers find everything by its place in
    the file, counted from the start, and do not look at what lies between the last page and the footer.
    """
    with path.open("r+b") as file:
        place, _ = _before_footer(file)
        file.seek(0)
        checksum = hashlib.file_digest(file, "sha256").digest()
        file.seek(place)
        footer = file.read()
        file.seek(place)
        file.write(checksum + footer)


def _is_sealed(path: Path) -> bool:
    with path.open("rb") as file:
        end, size = _before_footer(file)
        place = end - _CHECKSUM
        if place < 0 or end > size - _TAIL:
            return False
        file.seek(0)
        digest = hashlib.sha256()
        while file.tell() < place:
            digest.update(file.read(min(_CHUNK, place - file.tell())))
        checksum = file.read(_CHECKSUM)
        digest.update(file.read())
        return digest.digest() == checksum


def _before_footer(file: BinaryIO) -> tuple[int, int]:
    """Where the footer of a file begins (anywhere at all in one that is damaged), and the size of the file."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL))
    return size - _TAIL - int.from_bytes(file.read(4), "little"), size
