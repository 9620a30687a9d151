from __future__ import annotations

import base64
import json
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from synthetic import EVICTION, MODELS, RATIOS, cell_records, write_budgets, write_records, write_timings

from baklava.budgets import Budgets
from baklava.config import SummaryConfig, TrackingConfig
from baklava.errors import UserError
from baklava.jobs import SummarizeJob, TrackJob
from baklava.layout import Layout
from baklava.results import read_summary
from baklava.summarize import summarize
from baklava.tracking import track
from baklava.tracking.store import Store
from baklava.tracking.view import saved_view

RATIO = RATIOS[1]
PARAMS = ["model", "task", "allocator", "eviction", "ratio", "protocol", "seed", "length"]


def small_records() -> pd.DataFrame:
    """2 models x 1 task x (full, uniform, baklava)."""
    frames = []
    for model in MODELS:
        frames.append(cell_records([1, 1, 1, 0], model=model))
        for allocator, scores in (("uniform", [0, 0, 1, 0]), ("baklava", [1, 0, 1, 0])):
            frames.append(cell_records(scores, model=model, allocator=allocator, ratio=RATIO))
    return pd.concat(frames, ignore_index=True)


def summarized(layout: Layout, records: pd.DataFrame) -> None:
    path = write_records(layout.root / "records.parquet", records)
    summarize(
        SummarizeJob(
            summary=SummaryConfig(n_bootstrap=100),
            records=(path,),
            timings=(write_timings(layout.timings("both", "vt"), records),),
            timings_csv=layout.timings_csv,
            csv=layout.summary_csv,
            parquet=layout.summary_parquet,
            headline=layout.headline,
        )
    )


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """A store without runs; making its tables takes seconds, copying it nothing."""
    folder = tmp_path_factory.mktemp("tables")
    Store.open(f"sqlite:///{folder / 'mlflow.db'}", "other", lock=folder / "lock", artifacts=folder)
    return folder / "mlflow.db"


def finished(results: Path, tables: Path) -> Layout:
    """An experiment with all that tracking reads, and a store without runs."""
    layout = Layout(results, "demo")
    layout.results.mkdir()
    shutil.copy(tables, layout.results / "mlflow.db")
    summarized(layout, small_records())
    write_budgets(layout)
    layout.figures.mkdir()
    for name in ("score_vs_ratio", *(f"{what}_{model}" for what in ("importance", "budgets") for model in MODELS)):
        layout.figure(name).write_text(f"<svg>{name}</svg>")
    return layout


@pytest.fixture
def layout(tmp_path, tables) -> Layout:
    return finished(tmp_path / "results", tables)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, tables) -> Layout:
    """For tests that only look."""
    layout = finished(tmp_path_factory.mktemp("tracked") / "results", tables)
    track(job_of(layout))
    return layout


def job_of(layout: Layout, **tracking) -> TrackJob:
    methods = [(model, allocator) for model in MODELS for allocator in ("uniform", "baklava")]
    return TrackJob(
        experiment=layout.experiment,
        tracking=TrackingConfig(**tracking),
        results=layout.results,
        summary=layout.summary_parquet,
        headline=layout.headline,
        timings=(layout.timings("both", "vt"),),
        budgets=tuple(layout.budgets(model, allocator, EVICTION, RATIO) for model, allocator in methods),
        figures=layout.figures,
        output=layout.tracked,
    )


def client_of(layout: Layout) -> MlflowClient:
    return MlflowClient(f"sqlite:///{layout.results / 'mlflow.db'}")


def runs_in(layout: Layout, stage: str | None = None, *, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    client = client_of(layout)
    experiment = client.get_experiment_by_name("baklava/demo").experiment_id
    return list(client.search_runs([experiment], f"tags.stage = '{stage}'" if stage else "", view))


def ids(runs: list[Run]) -> set[str]:
    return {run.info.run_id for run in runs}


def cell(layout: Layout, **params: str) -> Run:
    found = [run for run in runs_in(layout, "evaluate") if params.items() <= run.data.params.items()]
    assert len(found) == 1
    return found[0]


def test_one_run_per_cell_named_as_the_columns(tracked):
    rows = read_summary(tracked.summary_parquet)
    found = {tuple(run.data.params[name] for name in PARAMS): run for run in runs_in(tracked, "evaluate")}
    assert len(found) == len(rows) == 6
    for row in rows.to_dict("records"):
        run = found[tuple(f"{row[name]:g}" if name == "ratio" else str(row[name]) for name in PARAMS)]
        expected = {name: row[name] for name in rows.columns if name not in PARAMS and not pd.isna(row[name])}
        times = {name: run.data.metrics[name] for name in ("seconds_per_sample", "samples_per_second")}
        assert run.data.metrics == {**expected, **times}
        assert times == {"seconds_per_sample": 0.25, "samples_per_second": 4.0}
        assert set(run.data.params) == set(PARAMS)
        assert run.info.status == "FINISHED"
    full = cell(tracked, model="tiny-llama", allocator="full")
    assert "delta_uniform" not in full.data.metrics
    assert full.data.metrics["delta_full"] == 0.0


def test_cells_are_nested_under_one_parent_per_model(tracked):
    parents = {run.data.params["model"]: run for run in runs_in(tracked, "summarize")}
    assert sorted(parents) == sorted(MODELS)
    for run in runs_in(tracked, "evaluate"):
        assert run.data.tags["mlflow.parentRunId"] == parents[run.data.params["model"]].info.run_id


def test_budgets_and_figures_are_artifacts(tracked):
    client = client_of(tracked)

    def artifacts(run: Run) -> list[str]:
        return [one.path for one in client.list_artifacts(run.info.run_id)]

    one = cell(tracked, model="tiny-qwen2", allocator="baklava")
    assert artifacts(one) == ["0.5.json"]
    copies = list((tracked.results / "mlartifacts").glob(f"**/{one.info.run_id}/**/0.5.json"))
    assert [Budgets.load(copy).shape for copy in copies] == [MODELS["tiny-qwen2"]]
    assert artifacts(cell(tracked, model="tiny-qwen2", allocator="full")) == []
    parent = next(run for run in runs_in(tracked, "summarize") if run.data.params["model"] == "tiny-llama")
    expected = ["budgets_tiny-llama.svg", "headline.json", "importance_tiny-llama.svg", "score_vs_ratio.svg"]
    assert artifacts(parent) == expected


def test_a_second_time_changes_nothing(layout):
    track(job_of(layout))
    before, written = runs_in(layout, view=ViewType.ALL), layout.tracked.read_bytes()
    track(job_of(layout))
    after = runs_in(layout, view=ViewType.ALL)
    assert [run.to_dictionary() for run in after] == [run.to_dictionary() for run in before]
    assert layout.tracked.read_bytes() == written


def test_output_says_where_and_how_many(tracked):
    found = json.loads(tracked.tracked.read_text())
    assert found["uri"] == f"sqlite:///{tracked.results}/mlflow.db"
    assert found["experiment"]["name"] == "baklava/demo"
    assert found["runs"] == {"models": 2, "cells": 6}


def test_a_cell_that_is_gone_loses_its_run(layout):
    track(job_of(layout))
    before = runs_in(layout, "evaluate")
    records = small_records()
    gone = (records["model"] == "tiny-llama") & (records["allocator"] == "uniform")
    summarized(layout, records[~gone])
    track(job_of(layout))
    left = {(run.data.params["model"], run.data.params["allocator"]) for run in runs_in(layout, "evaluate")}
    assert len(left) == 5
    assert ("tiny-llama", "uniform") not in left
    # The others stay as they were, but for the one that is no longer compared with uniform.
    kept = {
        run.info.run_id
        for run in before
        if run.data.params["model"] == "tiny-qwen2" or run.data.params["allocator"] == "full"
    }
    assert kept <= ids(runs_in(layout, "evaluate"))


def test_changed_content_replaces_just_that_run(layout):
    track(job_of(layout))
    before = runs_in(layout)
    changed = cell(layout, model="tiny-llama", allocator="baklava")
    records = small_records()
    rows = (records["model"] == "tiny-llama") & (records["allocator"] == "baklava")
    records.loc[rows, "seconds"] = 9.0
    summarized(layout, records)
    track(job_of(layout))
    new = cell(layout, model="tiny-llama", allocator="baklava")
    assert new.data.metrics["seconds_per_sample"] == 9.0
    assert ids(runs_in(layout)) == ids(before) - {changed.info.run_id} | {new.info.run_id}


def test_changed_budgets_replace_the_cells_that_used_them(layout):
    track(job_of(layout))
    before = ids(runs_in(layout, "evaluate"))
    path = layout.budgets("tiny-llama", "baklava", EVICTION, RATIO)
    path.write_text(path.read_text().replace("eviction_shift", "value_output_cosine"))
    track(job_of(layout))
    assert len(ids(runs_in(layout, "evaluate")) & before) == 5


def test_a_changed_figure_replaces_the_parent_and_keeps_the_cells(layout):
    track(job_of(layout))
    cells, parents = runs_in(layout, "evaluate"), runs_in(layout, "summarize")
    layout.figure("budgets_tiny-llama").write_text("<svg>other</svg>")
    track(job_of(layout))
    assert ids(runs_in(layout, "evaluate")) == ids(cells)
    new = {run.data.params["model"]: run.info.run_id for run in runs_in(layout, "summarize")}
    old = {run.data.params["model"]: run.info.run_id for run in parents}
    assert new["tiny-llama"] != old["tiny-llama"]
    assert new["tiny-qwen2"] == old["tiny-qwen2"]
    for run in runs_in(layout, "evaluate"):
        assert run.data.tags["mlflow.parentRunId"] == new[run.data.params["model"]]


def test_a_run_that_was_cut_short_is_made_again(layout, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            track(job_of(layout))
    half = runs_in(layout)
    assert [run.info.status for run in half] == ["RUNNING"]
    track(job_of(layout))
    assert len(runs_in(layout)) == 8
    assert not ids(half) & ids(runs_in(layout))


def test_duplicates_and_other_peoples_runs(layout):
    track(job_of(layout))
    client, before = client_of(layout), runs_in(layout)
    experiment = before[0].info.experiment_id
    client.create_run(experiment, tags=dict(before[0].data.tags))
    foreign = client.create_run(experiment, run_name="by hand").info.run_id
    track(job_of(layout))
    assert ids(runs_in(layout)) == ids(before) | {foreign}


def test_a_deleted_experiment_comes_back(layout):
    track(job_of(layout))
    before = runs_in(layout)
    client_of(layout).delete_experiment(before[0].info.experiment_id)
    track(job_of(layout))
    assert len(runs_in(layout)) == len(before)


def test_the_view_opens_on_memory_against_score_of_the_cells(tracked):
    client = client_of(tracked)
    tags = client.get_experiment_by_name("baklava/demo").tags
    value = json.loads(tags["mlflow.sharedViewState.trade-off"])
    state = json.loads(zlib.decompress(base64.b64decode(value["state"].removeprefix("deflate;"))))
    assert state["searchFilter"] == "tags.stage = 'evaluate'"
    first = state["compareRunCharts"][0]
    assert (first["type"], first["xaxis"]["key"], first["yaxis"]["key"]) == ("SCATTER", "kv_bytes", "score")
    assert len(saved_view()) < 5000  # the longest value of an experiment's tag
    assert "viewStateShareKey=trade-off" in json.loads(tracked.tracked.read_text())["view"]


@pytest.mark.parametrize("version", ["4.0.0", "2.22.1", "unknown"])
def test_an_unknown_mlflow_gets_no_view(layout, monkeypatch, version):
    monkeypatch.setattr("mlflow.__version__", version)
    track(job_of(layout))
    assert "mlflow.sharedViewState.trade-off" not in client_of(layout).get_experiment_by_name("baklava/demo").tags
    assert len(runs_in(layout)) == 8


def test_a_view_that_fails_does_not_matter(layout, monkeypatch, capsys):
    monkeypatch.setattr("baklava.tracking.saved_view", lambda: 1 / 0)
    track(job_of(layout))
    assert "no saved view" in capsys.readouterr().err
    assert len(runs_in(layout)) == 8


def test_several_at_once_make_one_experiment(layout):
    def open_store(_: int) -> str:
        uri = f"sqlite:///{layout.results / 'mlflow.db'}"
        return Store.open(uri, "new", lock=layout.results / "lock", artifacts=None).experiment_id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(open_store, range(4)))) == 1


def test_switched_off_it_touches_no_store(layout):
    (layout.results / "mlflow.db").unlink()
    track(job_of(layout, enabled=False))
    assert not (layout.results / "mlflow.db").exists()
    assert json.loads(layout.tracked.read_text()) == {"schema_version": 1, "enabled": False}


@pytest.mark.parametrize("name", ["summary", "headline", "figures"])
def test_missing_results_are_named(layout, name):
    path = getattr(job_of(layout), name)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError) as caught:
        track(job_of(layout))
    assert str(path) in str(caught.value)
    assert not layout.tracked.exists()


def test_missing_budgets_are_named(layout):
    path = layout.budgets("tiny-llama", "baklava", EVICTION, RATIO)
    path.unlink()
    with pytest.raises(UserError, match="no such budgets file"):
        track(job_of(layout))


def test_a_store_that_cannot_be_opened_is_named(layout):
    with pytest.raises(UserError, match=r"tracking\.uri: cannot open nowhere://at-all"):
        track(job_of(layout, uri="nowhere://at-all"))
