"""Where the runs are kept: the address of the store, of what lies beside it, and of the page that shows it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from baklava.experiment.jobs import TrackJob
from baklava.experiment.settings import TrackingConfig
from baklava.system.fingerprint import fingerprint

VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"  # in the results folder, where no other store is named
LOCAL_PAGE = "http://127.0.0.1:5000"  # of `make ui`


def store_uri(job: TrackJob) -> str:
    """The setting `tracking.uri`, else MLflow's own environment variable, else an SQLite file in the results folder."""
    return job.tracking.uri or os.environ.get(VARIABLE) or f"{SQLITE}{job.results / DATABASE}"


def is_default_store(tracking: TrackingConfig) -> bool:
    """Whether the runs are kept in the results folder."""
    return not (tracking.uri or os.environ.get(VARIABLE))


def artifacts_folder(uri: str, job: TrackJob) -> Path | None:
    """Where a new experiment keeps its files: a server decides that itself, a database has no place for them."""
    return None if is_server(uri) else job.results / ARTIFACTS / job.experiment


def lock_file(uri: str, job: TrackJob) -> Path:
    """Held while a process writes: beside an SQLite file, so that it serves all results that share the file."""
    database = sqlite_file(uri)
    return (job.results if database is None else database.parent) / ".mlflow.lock"


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for another store."""
    return Path(without_password(uri).removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def page(uri: str) -> str:
    """The address of the UI."""
    return without_password(uri).rstrip("/") if is_server(uri) else LOCAL_PAGE


def without_password(uri: str) -> str:
    """An address that may be printed and kept in files: without user, and without query, which may hold the same."""
    address, host = uri.partition("?")[0], urlsplit(uri).netloc
    return address.replace(host, host.rpartition("@")[2], 1) if "@" in host else address


def store_fingerprint(job: TrackJob) -> str:
    """Changes with the store, and not with who enters it. The workflow keeps it, and an address may be a secret too."""
    return fingerprint(without_password(store_uri(job)))


def is_server(uri: str) -> bool:
    """Whether a tracking server answers there."""
    return urlsplit(uri).scheme in ("http", "https")
