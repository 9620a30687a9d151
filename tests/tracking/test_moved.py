"""Results that were moved or copied: what is tracked from then on, and what the UI shows, lies at the new place."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracked_experiment import client_of, ids, job_of, parent, runs_in

from baklava.errors import UserError
from baklava.experiment.paths import ExperimentPaths
from baklava.tracking.mlflow_store import MlflowStore
from baklava.tracking.moved import to_local_path, update_locations
from baklava.tracking.run import track
from baklava.tracking.run_spec import RunSpec


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by what is in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def places(layout: ExperimentPaths) -> set[Path]:
    """The folders in which MLflow looks for the files of the runs."""
    return {to_local_path(run.info.artifact_uri).parents[1] for run in runs_in(layout)}


def shown(layout: ExperimentPaths, tmp_path: Path) -> str:
    """A figure as the UI gets it."""
    found = parent(layout, "tiny-llama").info.run_id
    folder = tmp_path / "downloads" / layout.results.name
    folder.mkdir(parents=True)
    return Path(client_of(layout).download_artifacts(found, "figures/score_vs_ratio.svg", str(folder))).read_text()


@pytest.fixture
def original(layout: ExperimentPaths) -> ExperimentPaths:
    track(job_of(layout))
    return layout


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_copy_is_on_its_own(original: ExperimentPaths, tmp_path: Path, rebuild: bool) -> None:
    before = contents(original.results)
    copy = ExperimentPaths(tmp_path / "my copy #2 (50%)", "demo")
    shutil.copytree(original.results, copy.results)
    figure = copy.figure("score_vs_ratio")
    figure.write_text("<svg>changed</svg>")
    track(job_of(copy, rebuild=rebuild))
    assert contents(original.results) == before
    assert places(copy) == {copy.results / "mlartifacts" / "demo"}
    assert len(runs_in(copy)) == 12
    assert shown(copy, tmp_path) == "<svg>changed</svg>"
    assert shown(original, tmp_path) == "<svg>score_vs_ratio</svg>"


def test_moved_results_keep_what_nobody_else_can_make(original: ExperimentPaths, tmp_path: Path) -> None:
    client = client_of(original)
    experiment = client.get_experiment_by_name("baklava/demo").experiment_id
    by_hand = client.create_run(experiment, run_name="by hand").info.run_id
    client.log_text(by_hand, "mine", "notes/mine.txt")
    new = ExperimentPaths(tmp_path / "elsewhere" / "results", "demo")
    new.results.parent.mkdir()
    original.results.rename(new.results)
    track(job_of(new))
    assert Path(client_of(new).download_artifacts(by_hand, "notes/mine.txt")).read_text() == "mine"
    assert places(new) == {new.results / "mlartifacts" / "demo"}
    assert not original.results.exists()


def test_a_ui_that_is_opened_first_finds_the_files(original: ExperimentPaths, tmp_path: Path) -> None:
    new = ExperimentPaths(tmp_path / "new", "demo")
    before = ids(runs_in(original))
    original.results.rename(new.results)
    command = [sys.executable, "-m", "baklava.tracking.moved", str(new.results)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    assert shown(new, tmp_path) == "<svg>score_vs_ratio</svg>"
    assert ids(runs_in(new)) == before


def test_a_place_that_did_not_change_is_not_written(original: ExperimentPaths, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(original.results)
    before = contents(original.results)
    update_locations(original.results / "mlflow.db", original.results / "mlartifacts", "baklava/demo")
    update_locations(tmp_path / "link" / "mlflow.db", tmp_path / "link" / "mlartifacts", "baklava/demo")
    assert contents(original.results) == before


def test_a_database_without_its_files_gets_them_again(original: ExperimentPaths, tmp_path: Path) -> None:
    copy = ExperimentPaths(tmp_path / "copy", "demo")
    shutil.copytree(original.results, copy.results, ignore=shutil.ignore_patterns("mlartifacts"))
    track(job_of(copy))
    assert shown(copy, tmp_path) == "<svg>score_vs_ratio</svg>"
    with_files = [run for run in runs_in(copy) if run.data.tags["stage"] != "compare"]
    assert ids(with_files).isdisjoint(ids(runs_in(original)))


def open_store(database: Path, results: Path, name: str = "x") -> MlflowStore:
    return MlflowStore.open(f"sqlite:///{database}", f"baklava/{name}", artifacts=results / "mlartifacts" / name)


def place(store: MlflowStore) -> Path | None:
    return to_local_path(store.client.get_experiment(store.experiment_id).artifact_location)


class TestDatabaseOfSeveralResults:
    """It lies outside the results folders, or in one of them."""

    @pytest.fixture
    def database(self, tables: Path, tmp_path: Path) -> Path:
        return Path(shutil.copy(tables, tmp_path / "runs.db"))

    @pytest.fixture
    def text(self, tmp_path: Path) -> RunSpec:
        (tmp_path / "text").write_text("some")
        return RunSpec(key="k", name="cell", artifacts=(("", tmp_path / "text"),))

    def test_a_copy_shares_it_with_the_original(self, database: Path, text: RunSpec, tmp_path: Path) -> None:
        open_store(database, tmp_path / "old").synchronise([text], n_runs=1)
        shutil.copytree(tmp_path / "old", tmp_path / "new")
        assert place(open_store(database, tmp_path / "new")) == tmp_path / "old" / "mlartifacts" / "x"

    def test_a_move_takes_the_files_along(self, database: Path, text: RunSpec, tmp_path: Path) -> None:
        open_store(database, tmp_path / "old").synchronise([text], n_runs=1)
        (tmp_path / "old").rename(tmp_path / "new")
        store = open_store(database, tmp_path / "new")
        assert place(store) == tmp_path / "new" / "mlartifacts" / "x"
        assert store.synchronise([text], n_runs=1).unchanged == 1

    def test_experiments_of_other_results_stay(self, tables: Path, text: RunSpec, tmp_path: Path) -> None:
        old, other, new = tmp_path / "old", tmp_path / "other", tmp_path / "new"
        old.mkdir()
        shutil.copy(tables, old / "mlflow.db")
        for results, name in ((old, "x"), (old, "y"), (other, "z")):
            open_store(old / "mlflow.db", results, name).synchronise([text], n_runs=1)
        old.rename(new)
        store = open_store(new / "mlflow.db", new, "x")
        found = {name: store.client.get_experiment_by_name(f"baklava/{name}").artifact_location for name in "xyz"}
        assert {name: to_local_path(address) for name, address in found.items()} == {
            "x": new / "mlartifacts" / "x",
            "y": new / "mlartifacts" / "y",
            "z": other / "mlartifacts" / "z",
        }

    def test_a_place_of_the_users_choice_stays(self, database: Path, tmp_path: Path) -> None:
        chosen = tmp_path / "mine"
        MlflowClient(f"sqlite:///{database}").create_experiment("baklava/x", artifact_location=chosen.as_uri())
        assert place(open_store(database, tmp_path / "results")) == chosen

    def test_what_is_no_database_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "mlflow.db").write_text("no database, but long enough to be taken for one" * 100)
        with pytest.raises(UserError, match=r"tracking\.uri: cannot open sqlite:///.*mlflow\.db"):
            open_store(tmp_path / "mlflow.db", tmp_path)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("file:///a/b%20c%23", Path("/a/b c#")),
        ("/a/b c", Path("/a/b c")),
        ("s3://bucket/x", None),
        ("mlflow-artifacts:/1", None),
        ("", None),
        (None, None),
    ],
)
def test_addresses_on_this_machine(address: str | None, path: Path | None) -> None:
    assert to_local_path(address) == path
