"""The stage `track`: brings an MLflow experiment in line with the files."""

from __future__ import annotations

import shlex
import sys

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from baklava.errors import UserError
from baklava.experiment.jobs import TrackJob
from baklava.system.files import write_json
from baklava.system.lock import wait_for_lock
from baklava.tracking.address import artifacts_folder, hide_password, is_server, lock_file, store_uri, ui_address
from baklava.tracking.experiment_runs import ExperimentRuns
from baklava.tracking.mlflow_store import MlflowStore
from baklava.tracking.saved_views import CELLS, SavedView, format_link, make_view, supports_version

SCHEMA = 1


def track(job: TrackJob) -> None:
    """Make the MLflow experiment `baklava/<experiment>` hold what the files say. Repeating this changes nothing.

    It holds a run per model, with its figures, and below it a run per method, with its curves, and per cell (a row of
    the summary). Processes that write to the same store take turns.
    """
    if not job.tracking.enabled:
        write_json(job.output, {"enabled": False}, schema=SCHEMA)
        return
    runs = ExperimentRuns(job)
    name, uri = f"baklava/{job.experiment}", store_uri(job)
    lock = lock_file(uri, job)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        wait_for_lock(file, f"{lock}: waiting while another process tracks into this store")
        store = MlflowStore.open(uri, name, artifacts=artifacts_folder(uri, job))
        try:
            changes = store.synchronise(runs, n_runs=len(runs), rebuild=job.rebuild)
        except (MlflowException, SQLAlchemyError) as error:  # the store is read-only, the disk is full, ...
            reason = " ".join(str(error).split())
            raise UserError(f"tracking.uri: cannot write to {hide_password(uri)} ({reason})") from None
        view = make_view(runs.tasks, measured=runs.measured)
        _decorate(store, view)
    tracked = {
        "enabled": True,
        "uri": hide_password(uri),
        "experiment": {"id": store.experiment_id, "name": name},
        "runs": {"models": len(runs.models), "methods": runs.n_methods, "cells": runs.n_cells},
        "view": format_link(store.experiment_id, view.key),
    }
    write_json(job.output, tracked, schema=SCHEMA)
    print(f"MLflow experiment {name}: {changes}")
    if not is_server(uri):
        print(f"Start the UI with `make ui`, or `mlflow ui --backend-store-uri {shlex.quote(hide_password(uri))}`")
    print(f"{view.name} of {job.experiment}: {ui_address(uri)}/{tracked['view']}")


def _decorate(store: MlflowStore, view: SavedView) -> None:
    """Add a note and a saved view for people who open the UI. A failure, as with a new MLflow, is only reported."""
    try:
        store.set_tag("mlflow.note.content", _format_note(store.experiment_id, view))
        store.set_tag("mlflow.experimentKind", "custom_model_development")
        if supports_version(mlflow.__version__):
            store.set_tag(view.tag, view.value)
    except Exception as error:
        print(f"MLflow: no saved view ({error})", file=sys.stderr)


def _format_note(experiment_id: str, view: SavedView) -> str:
    return (
        "One run per model, with its methods and its cells (task x method x ratio) nested under it; "
        f"the filter `{CELLS}` lists the cells.\n\n[{view.name}]({format_link(experiment_id, view.key)})"
    )
