"""What `make ui` prints: a link per experiment, checked against the database."""

from __future__ import annotations

import json
import shutil

from tracked_experiment import client_of

from baklava.tracking.links import list_links

ADDRESS = "http://127.0.0.1:5000"


def test_links_carry_the_experiments_names_and_lead_to_what_the_database_holds(tracked):
    experiment = client_of(tracked).get_experiment_by_name("baklava/demo")
    [line] = list_links(tracked.results, ADDRESS)
    assert line.startswith(f"demo: {ADDRESS}/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=")
    key = line.partition("viewStateShareKey=")[2].partition("&")[0]
    assert f"mlflow.sharedViewState.{key}" in experiment.tags


def test_an_experiment_that_is_not_there_has_no_link(tracked, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(tracked.results, results, ignore=shutil.ignore_patterns("mlartifacts"))
    path = results / "demo" / "tracked.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "experiment": {**values["experiment"], "name": "baklava/other"}}))
    (results / "off").mkdir()
    (results / "off" / "tracked.json").write_text('{"enabled": false}')
    missing = f"demo: not in {results}/mlflow.db; `baklava track name=demo ...` adds it"
    assert list(list_links(results, ADDRESS)) == [missing]
