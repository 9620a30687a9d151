"""`baklava track`: one experiment of MLflow brought in line with the files."""

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
from baklava.tracking.address import artifacts_folder, is_server, lock_file, page, store_uri, without_password
from baklava.tracking.mlflow_store import MlflowStore
from baklava.tracking.runs import Runs
from baklava.tracking.saved_views import CELLS, CURVES, TRADE_OFF, SavedView, is_known, link, views

SCHEMA = 1


def track(job: TrackJob) -> None:
    """Make the MLflow experiment `baklava/<experiment>` hold what the files say; a second time changes nothing.

    One run per model, with its curves and figures, and under it one run per cell (a row of the summary). Processes
    that track into the same store do so one after the other.
    """
    if not job.tracking.enabled:
        write_json(job.output, {"enabled": False}, schema=SCHEMA)
        return
    runs = Runs(job)
    name, uri = f"baklava/{job.experiment}", store_uri(job)
    lock = lock_file(uri, job)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        wait_for_lock(file, f"{lock}: waiting while another process tracks into this store")
        store = MlflowStore.open(uri, name, artifacts=artifacts_folder(uri, job))
        try:
            changes = store.synchronise(runs, n_runs=len(runs), rebuild=job.rebuild)
        except (MlflowException, SQLAlchemyError) as error:  # read-only, without room, ...
            reason = " ".join(str(error).split())
            raise UserError(f"tracking.uri: cannot write to {without_password(uri)} ({reason})") from None
        _decorate(store, views(runs.methods, runs.tasks, measured=runs.measured))
    tracked = {
        "enabled": True,
        "uri": without_password(uri),
        "experiment": {"id": store.experiment_id, "name": name},
        "runs": {"models": len(runs.models), "cells": runs.n_cells},
        "view": link(store.experiment_id, TRADE_OFF),
        "curves": link(store.experiment_id, CURVES),
    }
    write_json(job.output, tracked, schema=SCHEMA)
    print(f"MLflow experiment {name}: {changes}")
    if not is_server(uri):
        print(f"Start the UI with `make ui`, or `mlflow ui --backend-store-uri {shlex.quote(without_password(uri))}`")
    print(f"Score against KV memory: {page(uri)}/{tracked['view']}")
    print(f"Score over the ratio:    {page(uri)}/{tracked['curves']}")


def _decorate(store: MlflowStore, wanted: list[SavedView]) -> None:
    """Help for whoever opens the UI. It can fail with a version that we do not know, and must not matter then."""
    try:
        store.set_tag("mlflow.note.content", _note(store.experiment_id, wanted))
        store.set_tag("mlflow.experimentKind", "custom_model_development")
        if is_known(mlflow.__version__):
            for view in wanted:
                store.set_tag(view.tag, view.value)
    except Exception as error:
        print(f"MLflow: no saved view ({error})", file=sys.stderr)


def _note(experiment_id: str, wanted: list[SavedView]) -> str:
    links = [f"- [{view.name}]({link(experiment_id, view.key)})" for view in wanted]
    return (
        "One run per model, its cells (task x method x ratio) nested under it; "
        f"the filter `{CELLS}` lists the cells.\n\n" + "\n".join(links)
    )
