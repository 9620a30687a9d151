from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracked_experiment import job_of, runs_in

from baklava.experiment.paths import ExperimentPaths
from baklava.tracking.address import VARIABLE, artifacts_folder, hide_password, lock_file, store_uri, ui_address
from baklava.tracking.mlflow_store import MlflowStore
from baklava.tracking.run import track


def test_the_setting_comes_before_the_variable_before_the_default(
    layout: ExperimentPaths, monkeypatch: pytest.MonkeyPatch
):
    assert store_uri(job_of(layout)) == f"sqlite:///{layout.results}/mlflow.db"
    monkeypatch.setenv(VARIABLE, "http://tracking.example:5000")
    assert store_uri(job_of(layout)) == "http://tracking.example:5000"
    assert store_uri(job_of(layout, uri="http://mine.example")) == "http://mine.example"


def test_the_variable_leads_to_another_store(layout: ExperimentPaths, tables: Path, tmp_path: Path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "runs.db").write_bytes(tables.read_bytes())
    uri = f"sqlite:///{elsewhere}/runs.db"
    monkeypatch.setenv(VARIABLE, uri)
    track(job_of(layout))
    assert json.loads(layout.tracked.read_text())["uri"] == uri
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("baklava/demo")
    assert len(client.search_runs([experiment.experiment_id])) == 12
    with pytest.raises(AttributeError):  # no such experiment in the results folder
        runs_in(layout)


def test_a_server_keeps_the_files_itself(layout: ExperimentPaths):
    job = job_of(layout)
    assert artifacts_folder("http://tracking.example:5000", job) is None
    assert artifacts_folder("postgresql://host/db", job) == layout.results / "mlartifacts" / "demo"


def test_an_sqlite_file_has_one_lock_wherever_the_results_lie(layout: ExperimentPaths, tmp_path: Path):
    assert lock_file(f"sqlite:///{tmp_path}/shared/mlflow.db", job_of(layout)) == tmp_path / "shared" / ".mlflow.lock"
    assert lock_file("http://tracking.example", job_of(layout)) == layout.results / ".mlflow.lock"


def test_an_sqlite_address_may_have_options(tmp_path: Path):
    store = MlflowStore.open(f"sqlite:///{tmp_path}/runs.db?timeout=30", "mine", artifacts=None)
    again = MlflowStore.open(f"sqlite:///{tmp_path}/runs.db", "mine", artifacts=None)
    assert store.experiment_id == again.experiment_id
    assert [path.name for path in tmp_path.iterdir()] == ["runs.db"]


def test_passwords_are_not_shown():
    assert hide_password("https://me:secret@tracking.example:5000/x") == "https://tracking.example:5000/x"
    assert hide_password("postgresql://host/db?user=me&password=secret") == "postgresql://host/db"
    assert ui_address("https://me:secret@tracking.example/") == "https://tracking.example"
    assert hide_password("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert hide_password("sqlite:////a/b@c/mlflow.db") == "sqlite:////a/b@c/mlflow.db"
    assert ui_address("sqlite:///results/mlflow.db") == "http://127.0.0.1:5000"
