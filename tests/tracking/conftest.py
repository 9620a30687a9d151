from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from synthetic_results import write_measurements
from tracked_experiment import small_records, write_finished

from baklava.experiment.paths import ExperimentPaths
from baklava.tracking.address import VARIABLE
from baklava.tracking.mlflow_store import MlflowStore


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs; making its tables takes seconds, copying it nothing."""
    folder = tmp_path_factory.mktemp("tables")
    MlflowStore.open(f"sqlite:///{folder / 'mlflow.db'}", "other", artifacts=folder)
    return folder / "mlflow.db"


def finished(results: Path, tables: Path) -> ExperimentPaths:
    """An experiment with all that tracking reads, and a store without runs."""
    layout = ExperimentPaths(results, "demo")
    layout.results.mkdir()
    shutil.copy(tables, layout.results / "mlflow.db")
    write_finished(layout, small_records())
    return layout


@pytest.fixture
def layout(tmp_path: Path, tables: Path) -> ExperimentPaths:
    return finished(tmp_path / "results", tables)


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> ExperimentPaths:
    """For tests that only look: one model measured, one of its jobs with a usage file."""
    from tracked_experiment import job_of

    from baklava.system.usage import usage_path
    from baklava.tracking.run import track

    layout = finished(tmp_path_factory.mktemp("tracked") / "results", tables)
    write_measurements(layout, "tiny-llama")
    usage_path(layout.records("tiny-llama", "vt")).write_text(
        "time,cpu_percent,memory_bytes,gpu_0_percent\n100.5,0.0,1000,\n101.5,99.0,2000,70\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        track(job_of(layout))
    return layout
