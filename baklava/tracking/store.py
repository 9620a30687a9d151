"""Bringing the runs of an MLflow experiment in line with what they should be."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow.entities as mlf
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from tqdm import tqdm

from baklava.errors import UserError
from baklava.tracking.runs import Run

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


class Store:
    """One experiment of an MLflow tracking store."""

    def __init__(self, client: MlflowClient, experiment_id: str):
        self.client = client
        self.experiment_id = experiment_id

    @classmethod
    def open(cls, uri: str, experiment: str, *, lock: Path, artifacts: Path | None) -> Store:
        """Open the store, make its tables and the experiment if they are not there yet.

        Several processes must not do that at once, hence the lock. `artifacts` is where a new experiment keeps its
        files; None leaves it to the server. Raises `UserError` if the store cannot be opened.
        """
        lock.parent.mkdir(parents=True, exist_ok=True)
        location = None if artifacts is None else artifacts.resolve().as_uri()
        try:
            with FileLock(lock):
                client = MlflowClient(tracking_uri=uri)
                found = client.get_experiment_by_name(experiment)
                if found is None:
                    return cls(client, client.create_experiment(experiment, artifact_location=location))
                if found.lifecycle_stage == "deleted":
                    client.restore_experiment(found.experiment_id)
                return cls(client, found.experiment_id)
        except MlflowException as error:
            raise UserError(f"tracking.uri: cannot open {uri} ({' '.join(str(error).split())})") from None

    def synchronise(self, runs: Sequence[Run]) -> Changes:
        """Make the experiment hold just these runs; parents come before their children.

        A run is left alone if it is finished and its content is the same, else it is made anew and the old one is
        deleted. Runs that this program did not make are not touched.
        """
        changes = Changes()
        there = self._there()
        ids: dict[str, str] = {}
        for run in tqdm(runs, desc="track", unit="run"):
            old = there.pop(run.key, [])
            parent = None if run.parent is None else ids[run.parent]
            same = next((one for one in old if _is_same(one, run)), None)
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
        run_id = self.client.create_run(self.experiment_id, tags=tags, run_name=run.name).info.run_id
        now = int(time.time() * 1000)
        self.client.log_batch(
            run_id,
            params=[mlf.Param(name, value) for name, value in run.params.items()],
            metrics=[mlf.Metric(name, value, now, 0) for name, value in run.metrics.items()],
        )
        for path in run.artifacts:
            self.client.log_artifact(run_id, str(path))
        self.client.set_terminated(run_id)  # last: a run that is not finished was cut short and counts as changed
        return run_id

    def _set_parent(self, run: mlf.Run, parent: str | None) -> None:
        if parent is not None and run.data.tags.get(MLFLOW_PARENT_RUN_ID) != parent:
            self.client.set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, parent)

    def _delete(self, runs: Iterable[mlf.Run]) -> None:
        for run in runs:
            self.client.delete_run(run.info.run_id)


def _is_same(there: mlf.Run, wanted: Run) -> bool:
    return there.info.status == "FINISHED" and there.data.tags.get(FINGERPRINT) == wanted.fingerprint
