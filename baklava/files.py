"""Reading and writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from baklava.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes `path`'s place only if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any], *, schema: int) -> None:
    """Write `values` with their schema version first, indented, keys in the order given."""
    with atomic(path) as unfinished:
        unfinished.write_text(json.dumps({"schema_version": schema, **values}, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path, *, schema: int, what: str) -> dict[str, Any]:
    """Read what `write_json` wrote. Raises `UserError` for a missing, broken or newer file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what} file") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable {what} file ({' '.join(str(error).split())})") from None
    version = values.pop("schema_version", None) if isinstance(values, dict) else None
    if type(version) is not int:
        raise UserError(f"{path}: not a {what} file: it has no schema_version")
    if version != schema:
        newer = "a newer" if version > schema else "an older"
        raise UserError(f"{path}: {what} schema {version}, from {newer} BaKlaVa; this one reads schema {schema}")
    return values
