"""Results that were moved or copied to another place, with the MLflow database among them.

MLflow keeps an absolute address of every run's files, so without this a copy would write to the folder of the original,
and its UI would show the original's files, or none. `python -m baklava.tracking.moved RESULTS` is for a UI that is
opened before the next `baklava track`.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Where MLflow keeps addresses of files below that of their experiment; older versions lack some.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)


def follow(database: Path, artifacts: Path, experiment: str | None = None) -> None:
    """Let the database say that the experiments' files lie in the folder `artifacts`, where they do now.

    That is so for the experiments whose files came along with the database, and for `experiment`, which goes on here.
    In a database that lies elsewhere and so did not come along, only `experiment` is changed, and only where the folder
    it had is gone: a copy of results shares the database with the original. Experiments with a place of their own
    choosing are left alone. Raises `sqlite3.Error` for what is no such database.
    """
    came_along = database.resolve().parent == artifacts.resolve().parent
    with closing(sqlite3.connect(database, timeout=60)) as store, store:
        for name, location in store.execute("SELECT name, artifact_location FROM experiments").fetchall():
            old = local_path(location)
            if old is None or old.parent.name != artifacts.name or old.parent == artifacts.resolve():
                continue
            new = artifacts.resolve() / old.name
            if (came_along and new.is_dir()) or (name == experiment and (came_along or not old.exists())):
                _rewrite(store, location, new.as_uri())


def local_path(address: str | None) -> Path | None:
    """The path of an address on this machine; None for another."""
    scheme = urlsplit(address or "").scheme
    if not address or scheme not in ("", "file"):
        return None
    return Path(unquote(urlsplit(address).path) if scheme else address)


def _rewrite(store: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in _there(store):
        store.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, length(?) + 1) "
            f"WHERE {column} = ? OR substr({column}, 1, length(?) + 1) = ? || '/'",
            (new, old, old, old, old),
        )


def _there(store: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for table, column in _COLUMNS:
        if column in {row[1] for row in store.execute(f"PRAGMA table_info({table})")}:
            yield table, column


if __name__ == "__main__":
    from baklava.tracking.address import ARTIFACTS, DATABASE

    results = Path(sys.argv[1])
    try:
        follow(results / DATABASE, results / ARTIFACTS)
    except sqlite3.Error as error:
        sys.exit(f"error: {results / DATABASE}: {error}")
