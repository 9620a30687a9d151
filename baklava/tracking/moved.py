"""Repairs the MLflow database of results that were moved or copied to another folder.

MLflow stores an absolute address for every run's files. Without this repair, a copy would write to the folder of the
original, and its UI would show the original's files, or none. `python -m baklava.tracking.moved RESULTS` is for those
who open the UI before the next `baklava track`.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Columns in which MLflow keeps addresses below that of their experiment; older versions lack some of them.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)


def update_locations(database: Path, artifacts: Path, experiment: str | None = None) -> None:
    """Update the addresses of the experiments' files to the folder `artifacts`, where they are now.

    This concerns the experiments whose files were moved along with the database, and `experiment`, which continues
    here. A database elsewhere was not moved: then only `experiment` is updated, and only if its old folder is gone,
    because a copy of results shares the database with the original. Experiments with a folder that somebody chose are
    left alone. Raises `sqlite3.Error` if the file is not such a database.
    """
    was_moved = database.resolve().parent == artifacts.resolve().parent
    with closing(sqlite3.connect(database, timeout=60)) as store, store:
        for name, location in store.execute("SELECT name, artifact_location FROM experiments").fetchall():
            old = to_local_path(location)
            if old is None or old.parent.name != artifacts.name or old.parent == artifacts.resolve():
                continue
            new = artifacts.resolve() / old.name
            if (was_moved and new.is_dir()) or (name == experiment and (was_moved or not old.exists())):
                _rewrite(store, location, new.as_uri())


def to_local_path(address: str | None) -> Path | None:
    """The path of an address on this machine; None for other addresses."""
    scheme = urlsplit(address or "").scheme
    if not address or scheme not in ("", "file"):
        return None
    return Path(unquote(urlsplit(address).path) if scheme else address)


def _rewrite(store: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in _existing_columns(store):
        store.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, length(?) + 1) "
            f"WHERE {column} = ? OR substr({column}, 1, length(?) + 1) = ? || '/'",
            (new, old, old, old, old),
        )


def _existing_columns(store: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for table, column in _COLUMNS:
        if column in {row[1] for row in store.execute(f"PRAGMA table_info({table})")}:
            yield table, column


if __name__ == "__main__":
    from baklava.tracking.address import ARTIFACTS, DATABASE

    results = Path(sys.argv[1])
    try:
        update_locations(results / DATABASE, results / ARTIFACTS)
    except sqlite3.Error as error:
        sys.exit(f"error: {results / DATABASE}: {error}")
