"""Brings the runs of an MLflow experiment in line with what they should hold."""

from __future__ import annotations

import glob
import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import mlflow.entities as mlf
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import MAX_METRICS_PER_BATCH
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from baklava.errors import UserError
from baklava.system.files import atomic
from baklava.tracking.address import SQLITE, hide_password, sqlite_file
from baklava.tracking.moved import to_local_path, update_locations
from baklava.tracking.run_spec import Dataset, RunSpec

KEY = "baklava.key"
FINGERPRINT = "baklava.fingerprint"


@dataclass
class Changes:
    """Numbers of runs that a synchronisation changed."""

    created: int = 0
    replaced: int = 0
    unchanged: int = 0
    removed: int = 0

    def __str__(self) -> str:
        counts = [f"{count} {name}" for name, count in vars(self).items() if count]
        return ", ".join(counts) or "nothing to do"


class MlflowStore:
    """One experiment of an MLflow tracking store."""

    def __init__(self, client: MlflowClient, experiment_id: str):
        self.client = client
        self.experiment_id = experiment_id

    @classmethod
    def open(cls, uri: str, experiment: str, *, artifacts: Path | None) -> MlflowStore:
        """Open the store; make its tables and the experiment if they do not exist yet.

        Several processes must not do that at once. `artifacts` is the folder for the files of a new experiment, or of
        one whose database was moved or copied; None leaves the choice to the server. Raises `UserError` if the store
        cannot be opened.
        """
        location = None if artifacts is None else artifacts.resolve().as_uri()
        database = sqlite_file(uri)
        try:
            if database is not None and not database.exists():
                _make_tables(database)
            elif database is not None and artifacts is not None:
                update_locations(database, artifacts.parent, experiment)
            client = MlflowClient(tracking_uri=uri)
            existing = client.get_experiment_by_name(experiment)
            if existing is None:
                return cls(client, client.create_experiment(experiment, artifact_location=location))
            if existing.lifecycle_stage == "deleted":
                client.restore_experiment(existing.experiment_id)
            _check_artifacts(existing, artifacts)
            return cls(client, existing.experiment_id)
        except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"tracking.uri: cannot open {hide_password(uri)} ({reason})") from None

    def synchronise(self, runs: Iterable[RunSpec], *, n_runs: int, rebuild: bool = False) -> Changes:
        """Make the experiment hold exactly these runs; parents come before their children.

        A run that is finished and has the same content stays, unless `rebuild`; any other is made anew and the old one
        is deleted. Runs that this program did not make are not touched.
        """
        changes = Changes()
        existing = self._existing_runs()
        ids: dict[str, str] = {}
        for run in tqdm(runs, desc="track", unit="run", total=n_runs):
            old_runs = existing.pop(run.key, [])
            parent = None if run.parent is None else ids[run.parent]
            same = None if rebuild else next((old for old in old_runs if _is_same(old, run)), None)
            if same is not None:
                ids[run.key] = same.info.run_id
                self._set_parent(same, parent)
                changes.unchanged += 1
            else:
                ids[run.key] = self._create(run, parent)
                changes.created += not old_runs
                changes.replaced += bool(old_runs)
            self._delete(old for old in old_runs if old is not same)
        for old_runs in existing.values():
            changes.removed += len(old_runs)
            self._delete(old_runs)
        return changes

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag of the experiment unless it has that value already."""
        if self.client.get_experiment(self.experiment_id).tags.get(key) != value:
            self.client.set_experiment_tag(self.experiment_id, key, value)

    def _existing_runs(self) -> dict[str, list[mlf.Run]]:
        """The runs that this program made, by key, newest first."""
        runs = defaultdict(list)
        token: str | None = ""
        while token is not None:
            page = self.client.search_runs(
                [self.experiment_id],
                order_by=["attributes.start_time DESC"],
                max_results=1000,
                page_token=token or None,
            )
            for run in page:
                if KEY in run.data.tags:
                    runs[run.data.tags[KEY]].append(run)
            token = page.token or None
        return dict(runs)

    def _create(self, run: RunSpec, parent: str | None) -> str:
        tags = {**run.tags, KEY: run.key, FINGERPRINT: run.fingerprint}
        if parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        if run.table is not None:
            tags[MLFLOW_LOGGED_ARTIFACTS] = json.dumps([{"path": run.table[0], "type": "table"}])
        run_id = self.client.create_run(self.experiment_id, tags=tags, run_name=run.name).info.run_id
        params = [mlf.Param(name, value) for name, value in run.params.items()]
        self.client.log_batch(run_id, params=params)
        metrics = _to_metrics(run)
        while batch := list(islice(metrics, MAX_METRICS_PER_BATCH)):
            self.client.log_batch(run_id, metrics=batch)
        if run.datasets:
            self.client.log_inputs(run_id, datasets=[_to_input(dataset) for dataset in run.datasets])
        for folder, path in run.artifacts:
            self.client.log_artifact(run_id, str(path), folder or None)
        if run.table is not None:
            name, text = run.table
            self.client.log_text(run_id, text, name)
        self.client.set_terminated(run_id)  # last, because a run that was cut short must not count as finished
        return run_id

    def _set_parent(self, run: mlf.Run, parent: str | None) -> None:
        if parent is not None and run.data.tags.get(MLFLOW_PARENT_RUN_ID) != parent:
            self.client.set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, parent)

    def _delete(self, runs: Iterable[mlf.Run]) -> None:
        for run in runs:
            self.client.delete_run(run.info.run_id)


def _make_tables(database: Path) -> None:
    """Make the tables in a temporary file, because MLflow cannot continue if it is killed between two of them."""
    # SQLite leaves a journal beside the file of a killed process.
    for journal in database.parent.glob(f".{glob.escape(database.name)}.*.unfinished-journal"):
        journal.unlink()
    with atomic(database) as unfinished:
        MlflowClient(tracking_uri=f"{SQLITE}{unfinished}").search_experiments(max_results=1)


def _check_artifacts(experiment: mlf.Experiment, artifacts: Path | None) -> None:
    """Raise `UserError` if the experiment keeps its files in results that were moved, or on another machine."""
    folder = to_local_path(experiment.artifact_location)
    if artifacts is None or folder is None or folder.parent.name != artifacts.parent.name:
        return
    if folder != artifacts.resolve() and not folder.exists():
        raise UserError(
            f"tracking.uri: the store keeps the files of {experiment.name} in {folder}, which is not there; put the "
            "results back, or give the experiment a name of its own (name=...)"
        )


def _is_same(run: mlf.Run, spec: RunSpec) -> bool:
    """Whether a run is finished, has the content of `spec` and still has its files.

    A database may have been copied without the files.
    """
    finished = run.info.status == "FINISHED" and run.data.tags.get(FINGERPRINT) == spec.fingerprint
    folder = to_local_path(run.info.artifact_uri)
    files = [*(f"{subfolder}/{path.name}" for subfolder, path in spec.artifacts), *(spec.table or ())[:1]]
    return finished and (folder is None or all((folder / file.lstrip("/")).is_file() for file in files))


def _to_metrics(run: RunSpec) -> Iterator[mlf.Metric]:
    now = int(time.time() * 1000)
    for name, value in run.metrics.items():
        yield mlf.Metric(name, value, now, 0)
    for name, points in run.curves.items():
        for point in points:
            yield mlf.Metric(name, point.value, now if point.time is None else int(1000 * point.time), point.step)


def _to_input(dataset: Dataset) -> mlf.DatasetInput:
    columns = [{"name": name, "type": kind, "required": True} for name, kind in dataset.columns]
    return mlf.DatasetInput(
        dataset=mlf.Dataset(
            name=dataset.name,
            digest=dataset.digest,
            source_type="local",
            source=json.dumps({"uri": dataset.source}),
            schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
            profile=json.dumps({"num_rows": dataset.n_rows}),
        ),
        tags=[mlf.InputTag(MLFLOW_DATASET_CONTEXT, dataset.context)],
    )
