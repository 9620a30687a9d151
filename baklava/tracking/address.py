"""Addresses: of the MLflow store, of the files beside it, and of the page that shows it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from baklava.experiment.jobs import TrackJob
from baklava.experiment.settings import TrackingConfig
from baklava.system.fingerprint import fingerprint

VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"  # in the results folder, unless another store is named
LOCAL_UI = "http://127.0.0.1:5000"  # where `make ui` serves


def store_uri(job: TrackJob) -> str:
    """The setting `tracking.uri`, or MLflow's own environment variable, or an SQLite file in the results folder."""
    return job.tracking.uri or os.environ.get(VARIABLE) or f"{SQLITE}{job.results / DATABASE}"


def is_default_store(tracking: TrackingConfig) -> bool:
    """Whether the store is in the results folder."""
    return not (tracking.uri or os.environ.get(VARIABLE))


def artifacts_folder(uri: str, job: TrackJob) -> Path | None:
    """The folder for the files of a new experiment; None for a server, which decides that itself."""
    return None if is_server(uri) else job.results / ARTIFACTS / job.experiment


def lock_file(uri: str, job: TrackJob) -> Path:
    """The file that a process locks while it writes to the store.

    It lies beside an SQLite file, so that all results that share the store share the lock.
    """
    database = sqlite_file(uri)
    return (job.results if database is None else database.parent) / ".mlflow.lock"


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for another store."""
    return Path(hide_password(uri).removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def ui_address(uri: str) -> str:
    """The address of the UI."""
    return hide_password(uri).rstrip("/") if is_server(uri) else LOCAL_UI


def hide_password(uri: str) -> str:
    """Strip user, password and query (which may hold them, too) from an address that is printed or kept in files."""
    address, host = uri.partition("?")[0], urlsplit(uri).netloc
    return address.replace(host, host.rpartition("@")[2], 1) if "@" in host else address


def fingerprint_store(job: TrackJob) -> str:
    """Fingerprint the store's address without the user, so that it changes with the store only.

    The workflow keeps it instead of the address, which may be a secret.
    """
    return fingerprint(hide_password(store_uri(job)))


def is_server(uri: str) -> bool:
    """Whether the address is one of a tracking server."""
    return urlsplit(uri).scheme in ("http", "https")
