"""Bringing the runs of an MLflow experiment in line with what they should be."""

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
from baklava.tracking.address import SQLITE, sqlite_file, without_password
from baklava.tracking.moved import follow, local_path
from baklava.tracking.run import Dataset, Run

KEY = "baklava.key"
FINGERPRINT = "baklava.fingerprint"


@dataclass
class Changes:
    """What one synchronisation did, in numbers of runs."""

    created: int = 0
    replaced: int = 0
    unchanged: int = 0
    removed: int = 0

    def __str__(self) -> str:
        counts = [f"{number} {name}" for name, number in vars(self).items() if number]
        return ", ".join(counts) or "nothing to do"


class MlflowStore:
    """One experiment of an MLflow tracking store."""

    def __init__(self, client: MlflowClient, experiment_id: str):
        self.client = client
        self.experiment_id = experiment_id

    @classmethod
    def open(cls, uri: str, experiment: str, *, artifacts: Path | None) -> MlflowStore:
        """Open the store, make its tables and the experiment if they are not there yet.

        Several processes must not do that at once. `artifacts` is where a new experiment keeps its files, and one whose
        database was moved or copied too; None leaves it to the server. Raises `UserError` if the store cannot be
        opened.
        """
        location = None if artifacts is None else artifacts.resolve().as_uri()
        database = sqlite_file(uri)
        try:
            if database is not None and not database.exists():
                _make_tables(database)
            elif database is not None and artifacts is not None:
                follow(database, artifacts.parent, experiment)
            client = MlflowClient(tracking_uri=uri)
            found = client.get_experiment_by_name(experiment)
            if found is None:
                return cls(client, client.create_experiment(experiment, artifact_location=location))
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            _check_place(found, artifacts)
            return cls(client, found.experiment_id)
        except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"tracking.uri: cannot open {without_password(uri)} ({reason})") from None

    def synchronise(self, runs: Iterable[Run], *, n_runs: int, rebuild: bool = False) -> Changes:
        """Make the experiment hold just these runs; parents come before their children.

        A run is left alone if it is finished and its content is the same, unless all are to be rebuilt, else it is
        made anew and the old one is deleted. Runs that this program did not make are not touched.
        """
        changes = Changes()
        there = self._there()
        ids: dict[str, str] = {}
        for run in tqdm(runs, desc="track", unit="run", total=n_runs):
            old = there.pop(run.key, [])
            parent = None if run.parent is None else ids[run.parent]
            same = None if rebuild else next((one for one in old if _is_same(one, run)), None)
            if same is not None:
                ids[run.key] = same.info.run_id
                self._set_parent(same, parent)
                changes.unchanged += 1
            else:
                ids[run.key] = self._create(run, parent)
                changes.created += not old
                changes.replaced += bool(old)
            self._delete(one for one in old if one is not same)
        for left in there.values():
            changes.removed += len(left)
            self._delete(left)
        return changes

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag of the experiment unless it has that value already."""
        if self.client.get_experiment(self.experiment_id).tags.get(key) != value:
            self.client.set_experiment_tag(self.experiment_id, key, value)

    def _there(self) -> dict[str, list[mlf.Run]]:
        """The runs that this program made, by key, newest first."""
        found = defaultdict(list)
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
                    found[run.data.tags[KEY]].append(run)
            token = page.token or None
        return dict(found)

    def _create(self, run: Run, parent: str | None) -> str:
        tags = {**run.tags, KEY: run.key, FINGERPRINT: run.fingerprint}
        if parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        if run.table is not None:
            tags[MLFLOW_LOGGED_ARTIFACTS] = json.dumps([{"path": run.table[0], "type": "table"}])
        run_id = self.client.create_run(self.experiment_id, tags=tags, run_name=run.name).info.run_id
        params = [mlf.Param(name, value) for name, value in run.params.items()]
        self.client.log_batch(run_id, params=params)
        for some in _batched(_metrics(run), MAX_METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=some)
        if run.datasets:
            self.client.log_inputs(run_id, datasets=[_input(one) for one in run.datasets])
        for folder, path in run.artifacts:
            self.client.log_artifact(run_id, str(path), folder or None)
        if run.table is not None:
            name, text = run.table
            self.client.log_text(run_id, text, name)
        self.client.set_terminated(run_id)  # last: a run that is not finished was cut short and counts as changed
        return run_id

    def _set_parent(self, run: mlf.Run, parent: str | None) -> None:
        if parent is not None and run.data.tags.get(MLFLOW_PARENT_RUN_ID) != parent:
            self.client.set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, parent)

    def _delete(self, runs: Iterable[mlf.Run]) -> None:
        for run in runs:
            self.client.delete_run(run.info.run_id)


def _make_tables(database: Path) -> None:
    """MLflow makes its tables one by one, and cannot go on where it was killed: a new database appears as a whole."""
    # What SQLite leaves beside the file of a killed process.
    for journal in database.parent.glob(f".{glob.escape(database.name)}.*.unfinished-journal"):
        journal.unlink()
    with atomic(database) as unfinished:
        MlflowClient(tracking_uri=f"{SQLITE}{unfinished}").search_experiments(max_results=1)


def _check_place(found: mlf.Experiment, artifacts: Path | None) -> None:
    """Raise `UserError` where the files of an experiment are kept in results that were moved, or on another machine."""
    place = local_path(found.artifact_location)
    if artifacts is None or place is None or place.parent.name != artifacts.parent.name:
        return
    if place != artifacts.resolve() and not place.exists():
        raise UserError(
            f"tracking.uri: the store keeps the files of {found.name} in {place}, which is not there; put the results "
            "back, or give the experiment a name of its own (name=...)"
        )


def _is_same(there: mlf.Run, wanted: Run) -> bool:
    """Also that its files are there: a database may have been copied without them."""
    finished = there.info.status == "FINISHED" and there.data.tags.get(FINGERPRINT) == wanted.fingerprint
    folder = local_path(there.info.artifact_uri)
    files = [*(f"{below}/{path.name}" for below, path in wanted.artifacts), *(wanted.table or ())[:1]]
    return finished and (folder is None or all((folder / file.lstrip("/")).is_file() for file in files))


def _metrics(run: Run) -> Iterator[mlf.Metric]:
    now = int(time.time() * 1000)
    for name, value in run.metrics.items():
        yield mlf.Metric(name, value, now, 0)
    for name, points in run.curves.items():
        for point in points:
            yield mlf.Metric(name, point.value, now if point.time is None else int(1000 * point.time), point.step)


def _input(dataset: Dataset) -> mlf.DatasetInput:
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


def _batched(values: Iterable[mlf.Metric], size: int) -> Iterator[list[mlf.Metric]]:
    remaining = iter(values)
    while some := list(islice(remaining, size)):
        yield some
