"""The results in MLflow. The files are the truth; MLflow is a copy of them that can be made again at any time."""

from __future__ import annotations

import sys

import mlflow

from baklava.files import write_json
from baklava.jobs import TrackJob
from baklava.tracking.runs import runs_of
from baklava.tracking.store import Store
from baklava.tracking.view import CELLS, TAG, is_known, link, saved_view

SCHEMA = 1


def track(job: TrackJob) -> None:
    """Make the MLflow experiment `baklava/<experiment>` hold what the files say; a second time changes nothing.

    One run per model, with the figures, and under it one run per cell (a row of the summary), with its budgets.
    """
    if not job.tracking.enabled:
        write_json(job.output, {"enabled": False}, schema=SCHEMA)
        return
    runs = runs_of(job)
    name = f"baklava/{job.experiment}"
    uri = job.tracking.uri or f"sqlite:///{job.results / 'mlflow.db'}"
    artifacts = None if job.tracking.uri else job.results / "mlartifacts" / job.experiment
    store = Store.open(uri, name, lock=job.results / ".mlflow.lock", artifacts=artifacts)
    changes = store.synchronise(runs)
    _decorate(store)
    cells = sum(run.parent is not None for run in runs)
    tracked = {
        "enabled": True,
        "uri": uri,
        "experiment": {"id": store.experiment_id, "name": name},
        "runs": {"models": len(runs) - cells, "cells": cells},
        "view": link(store.experiment_id),
    }
    write_json(job.output, tracked, schema=SCHEMA)
    print(f"MLflow experiment {name}: {changes}. See it with `mlflow ui --backend-store-uri {uri}`")


def _decorate(store: Store) -> None:
    """Help for whoever opens the UI. It can fail with a version that we do not know, and must not matter then."""
    try:
        store.set_tag("mlflow.note.content", _note(store.experiment_id))
        store.set_tag("mlflow.experimentKind", "custom_model_development")
        if is_known(mlflow.__version__):
            store.set_tag(TAG, saved_view())
    except Exception as error:
        print(f"MLflow: no saved view ({error})", file=sys.stderr)


def _note(experiment_id: str) -> str:
    return (
        "One run per model, its cells (task x method x ratio) nested under it; "
        f"the filter `{CELLS}` lists the cells.\n\n"
        f"[Score against KV memory of all cells]({link(experiment_id)})"
    )
