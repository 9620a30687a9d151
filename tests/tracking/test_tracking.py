from __future__ import annotations

import json
import re
import shutil
import sqlite3
from dataclasses import replace

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from synthetic_results import EVICTION, MODELS, measurements, write_measurements
from tracked_experiment import (
    RATIO,
    cell,
    client_of,
    ids,
    job_of,
    parent,
    runs_in,
    small_records,
    write_summary,
)

from baklava.analysis.headline import Headline
from baklava.analysis.results import read_summary
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.importance.profile import Profile
from baklava.report.data.looks import assign_looks, list_methods
from baklava.system.usage import usage_path
from baklava.tracking.address import VARIABLE
from baklava.tracking.cell_run import MEASURED_PARAMS
from baklava.tracking.model_run import select_figures
from baklava.tracking.run import track

PARAMS = ["model", "task", "allocator", "eviction", "ratio", "protocol", "seed", "length", "decoding"]


def test_one_run_per_cell_named_as_the_columns(tracked):
    rows = read_summary(tracked.summary_parquet)
    found = {tuple(run.data.params[name] for name in PARAMS): run for run in runs_in(tracked, "evaluate")}
    assert len(found) == len(rows) == 6
    for row in rows.to_dict("records"):
        run = found[tuple(f"{row[name]:g}" if name == "ratio" else str(row[name]) for name in PARAMS)]
        expected = {name: row[name] for name in rows.columns if name not in PARAMS and not pd.isna(row[name])}
        assert expected.items() <= run.data.metrics.items()
        assert run.data.metrics["compression_ratio"] == row["ratio"]
        assert run.data.metrics["seconds_per_sample"] == 0.25
        assert run.data.metrics["samples_per_second"] == 4.0
        assert run.info.status == "FINISHED"
    full = cell(tracked, model="tiny-llama", allocator="full")
    assert "delta_uniform" not in full.data.metrics
    assert full.data.metrics["delta_full"] == 0.0


def test_cells_tell_what_the_search_chose(tracked):
    chosen = cell(tracked, model="tiny-llama", allocator="baklava").data.params
    assert chosen["budgets.estimator"] == "eviction_shift"
    assert chosen["budgets.floor"] == "0.02"
    assert set(cell(tracked, model="tiny-llama", allocator="full").data.params) == {*PARAMS, *MEASURED_PARAMS.values()}


def test_cells_hold_what_was_measured_where_it_was(tracked):
    one, rows = cell(tracked, model="tiny-llama", allocator="baklava").data, measurements("tiny-llama")
    [measured] = rows[(rows.allocator == "baklava") & (rows.ratio == RATIO)].to_dict("records")
    assert one.metrics["tokens_per_second"] == measured["tokens_per_second"]
    assert one.metrics["prefill_seconds"] == measured["prefill_seconds"]
    assert one.metrics["measured_kv_bytes"] == measured["kv_bytes"]
    assert one.metrics["kv_bytes"] != measured["kv_bytes"]
    assert "peak_bytes" not in one.metrics  # nothing tells it on a CPU
    assert one.params["measured_device"] == "cpu"
    assert not {"tokens_per_second", "peak_bytes"} & set(
        cell(tracked, model="tiny-qwen2", allocator="full").data.metrics
    )


@pytest.mark.parametrize(
    ("search", "n"),
    [
        ("tags.stage = 'evaluate'", 6),
        ("tags.stage = 'summarize'", 2),
        ("tags.stage = 'compare'", 4),
        ("tags.method = 'baklava.streaming_llm' and tags.model = 'tiny-llama' and tags.task = 'vt'", 1),
        ("tags.task = 'vt' and metrics.compression_ratio >= 0.5", 4),
        ("tags.experiment = 'demo' and tags.method = 'full'", 2),
        ("params.`budgets.estimator` = 'eviction_shift'", 2),
        ("dataset.context = 'calibration'", 2),
        ("dataset.name = 'vt'", 6),
    ],
)
def test_the_search_of_the_ui_finds_runs(tracked, search, n):
    client = client_of(tracked)
    experiment = client.get_experiment_by_name("baklava/demo").experiment_id
    assert len(client.search_runs([experiment], search)) == n


def test_data_sets_are_inputs(tracked):
    [prompts] = parent(tracked, "tiny-llama").inputs.dataset_inputs
    assert (prompts.dataset.name, prompts.dataset.profile) == ("calibration ruler", '{"num_rows": 4}')
    inputs = {run.data.params["model"]: run.inputs.dataset_inputs[0] for run in runs_in(tracked, "evaluate")}
    one = inputs["tiny-llama"]
    assert (one.dataset.name, one.dataset.profile) == ("vt", '{"num_rows": 4}')
    assert [tag.value for tag in one.tags if tag.key == "mlflow.data.context"] == ["evaluation"]
    digests = {run.inputs.dataset_inputs[0].dataset.digest for run in runs_in(tracked, "evaluate")}
    assert len(digests) == 1  # the same samples in all cells


def test_other_samples_are_another_data_set(layout):
    track(job_of(layout))
    before = cell(layout, model="tiny-llama", allocator="full").inputs.dataset_inputs[0].dataset.digest
    records = small_records()
    records["context_tokens"] += 1
    write_summary(layout, records)
    track(job_of(layout))
    after = cell(layout, model="tiny-llama", allocator="full").inputs.dataset_inputs[0].dataset.digest
    assert before != after


def test_answers_are_a_table_that_mlflow_reads(tracked, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"sqlite:///{tracked.results / 'mlflow.db'}")  # it searches there
    one = cell(tracked, model="tiny-llama", allocator="baklava")
    assert json.loads(one.data.tags["mlflow.loggedArtifacts"]) == [{"path": "predictions.json", "type": "table"}]
    client = client_of(tracked)
    table = client.load_table(one.info.experiment_id, "predictions.json", [one.info.run_id])
    assert table["prediction"].tolist() == [f"answer {i}" for i in range(4)]
    assert table["answers"].tolist() == [f"answer {i}" for i in range(4)]
    assert table["score"].tolist() == [1, 0, 1, 0]


def method(layout, model: str, allocator: str) -> Run:
    [run] = [
        run
        for run in runs_in(layout, "compare")
        if (run.data.params["model"], run.data.params["allocator"]) == (model, allocator)
    ]
    return run


def test_methods_hold_curves_over_the_ratio(tracked):
    client = client_of(tracked)
    baklava, uniform = (method(tracked, "tiny-llama", allocator) for allocator in ("baklava", "uniform"))

    def curve(run: Run, name: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]

    headline = Headline.load(tracked.headline).models["tiny-llama"]
    for name in ("score", "score.vt"):
        assert curve(baklava, name) == [(0, 0.75), (50, 0.5)]
    assert curve(baklava, "compression_ratio") == [(0, 0.0), (50, 0.5)]
    assert curve(uniform, "score") == [(0, 0.75), (50, 0.25)]
    assert curve(baklava, "kv_bytes") == [(0, headline.kv_bytes_full), (50, headline.methods[0].ratios[0].kv_bytes)]
    assert curve(baklava, "score_low") == [(0, headline.full_low), (50, headline.methods[0].ratios[0].ci_low)]
    rows = measurements("tiny-llama").set_index(["allocator", "ratio"])["tokens_per_second"]
    assert curve(baklava, "tokens_per_second") == [(50, rows["baklava", 0.5])]
    assert "tokens_per_second" not in method(tracked, "tiny-qwen2", "baklava").data.metrics


def test_methods_have_the_colour_that_they_have_in_every_figure(tracked):
    looks = assign_looks(list_methods(Headline.load(tracked.headline)))
    for run in runs_in(tracked, "compare"):
        look = looks[run.data.params["allocator"], run.data.params["eviction"]]
        assert run.data.tags["mlflow.runColor"] == look.colour
        assert run.info.run_name == f"{look.label}, {run.data.params['model']}"


def test_methods_say_in_words_how_far_nothing_is_lost(tracked):
    data = method(tracked, "tiny-llama", "baklava").data
    assert data.params["lossless_up_to"] == "n = 4: undecided (needs 137)"
    assert "largest_lossless_ratio" not in data.metrics


def test_models_hold_what_their_jobs_took(tracked):
    run, client = parent(tracked, "tiny-llama"), client_of(tracked)
    history = client.get_metric_history(run.info.run_id, "system/records.vt/cpu_percent")
    assert [(one.step, one.value, one.timestamp) for one in history] == [(0, 0.0, 100_500), (1, 99.0, 101_500)]
    assert run.data.metrics["system/records.vt/memory_bytes"] == 2000.0
    assert [one.step for one in client.get_metric_history(run.info.run_id, "system/records.vt/gpu_0_percent")] == [1]
    assert not any(name.startswith("system/") for name in parent(tracked, "tiny-qwen2").data.metrics)


def test_models_tell_what_was_profiled(layout):
    profile = Profile.load(layout.profile("tiny-llama"))
    meta = {"path": "reference:tiny-llama", "calibration": "76eb", "dtype": "float32", "versions": {"torch": "2.13"}}
    replace(profile, meta=meta).save(layout.profile("tiny-llama"))
    track(job_of(layout))
    one = parent(layout, "tiny-llama")
    assert one.data.params["model_path"] == "reference:tiny-llama"
    assert one.data.params["torch"] == "2.13"
    assert one.inputs.dataset_inputs[0].dataset.digest == "76eb"


def test_cells_are_nested_under_one_parent_per_model(tracked):
    parents = {run.data.params["model"]: run for run in runs_in(tracked, "summarize")}
    assert sorted(parents) == sorted(MODELS)
    for run in runs_in(tracked, "evaluate"):
        assert run.data.tags["mlflow.parentRunId"] == parents[run.data.params["model"]].info.run_id


def test_budgets_profile_and_figures_are_artifacts(tracked):
    client = client_of(tracked)

    def artifacts(run: Run, folder: str | None = None) -> list[str]:
        return [one.path for one in client.list_artifacts(run.info.run_id, folder)]

    one = cell(tracked, model="tiny-qwen2", allocator="baklava")
    assert artifacts(one) == ["0.5.json", "predictions.json"]
    copies = list((tracked.results / "mlartifacts").glob(f"**/{one.info.run_id}/**/0.5.json"))
    assert [Budgets.load(copy).shape for copy in copies] == [MODELS["tiny-qwen2"]]
    assert artifacts(cell(tracked, model="tiny-qwen2", allocator="full")) == ["predictions.json"]
    run = parent(tracked, "tiny-llama")
    assert artifacts(run) == ["figures", "headline.json", "profile"]
    assert artifacts(run, "profile") == ["profile/tiny-llama.safetensors"]
    figures = ("budgets_tiny-llama.svg", "importance_tiny-llama.svg", "score_vs_ratio", "score_vs_ratio.svg")
    assert artifacts(run, "figures") == [f"figures/{name}" for name in figures]
    assert artifacts(run, "figures/score_vs_ratio") == ["figures/score_vs_ratio/tiny-llama"]
    assert artifacts(run, "figures/score_vs_ratio/tiny-llama") == ["figures/score_vs_ratio/tiny-llama/vt.svg"]


def test_figures_of_a_validation_are_artifacts_of_its_model(layout):
    figure = layout.validation("tiny-llama", "regret").with_suffix(".svg")
    figure.parent.mkdir(parents=True)
    figure.write_text("<svg>regret</svg>")
    track(job_of(layout))

    def validations(model: str) -> list[str]:
        return [one.path for one in client_of(layout).list_artifacts(parent(layout, model).info.run_id, "validation")]

    assert validations("tiny-llama") == ["validation/regret.svg"]
    assert validations("tiny-qwen2") == []


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
    assert found["runs"] == {"models": 2, "methods": 4, "cells": 6}


def test_a_cell_that_is_gone_loses_its_run(layout):
    track(job_of(layout))
    before = runs_in(layout, "evaluate")
    records = small_records()
    gone = (records["model"] == "tiny-llama") & (records["allocator"] == "uniform")
    write_summary(layout, records[~gone])
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


def test_a_rebuild_makes_every_run_again(layout):
    track(job_of(layout))
    before = runs_in(layout)
    by_hand = client_of(layout).create_run(before[0].info.experiment_id, run_name="by hand").info.run_id
    track(job_of(layout, rebuild=True))
    after = runs_in(layout)
    assert ids(before) & ids(after) == set()
    assert len(after) == len(before) + 1
    assert by_hand in ids(after)


def test_a_store_that_was_lost_is_rebuilt(layout, tables):
    track(job_of(layout))
    before = {run.info.run_name: run.data.metrics for run in runs_in(layout)}
    shutil.copy(tables, layout.results / "mlflow.db")
    shutil.rmtree(layout.results / "mlartifacts")
    track(job_of(layout, rebuild=True))
    assert {run.info.run_name: run.data.metrics for run in runs_in(layout)} == before


def test_changed_content_replaces_just_that_run(layout):
    track(job_of(layout))
    before = runs_in(layout)
    changed = cell(layout, model="tiny-llama", allocator="baklava")
    records = small_records()
    rows = (records["model"] == "tiny-llama") & (records["allocator"] == "baklava")
    records.loc[rows, "seconds"] = 9.0
    write_summary(layout, records)
    track(job_of(layout))
    new = cell(layout, model="tiny-llama", allocator="baklava")
    assert new.data.metrics["seconds_per_sample"] == 9.0
    assert ids(runs_in(layout)) == ids(before) - {changed.info.run_id} | {new.info.run_id}


def test_changed_budgets_replace_the_cells_that_used_them(layout):
    track(job_of(layout))
    before = ids(runs_in(layout, "evaluate"))
    path = layout.budgets("tiny-llama", "baklava", EVICTION, RATIO)
    budgets = Budgets.load(path)
    replace(budgets, parameters={**budgets.parameters, "estimator": "value_output_cosine"}).save(path)
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


def test_a_figure_belongs_to_its_model_whatever_the_model_is_called(tmp_path):
    names = ("score_vs_ratio", "importance_qwen2.5-7b", "importance_qwen2", "measured/qwen2.5-7b", "measured/qwen2")
    paths = [tmp_path / f"{name}.svg" for name in (*names, "needle_grid/qwen2.5-7b/vt", "needle_grid/qwen2/vt")]
    found = select_figures("qwen2.5-7b", tmp_path, paths)
    assert found == [paths[i] for i in (0, 1, 3, 5)]


def test_a_run_that_was_cut_short_is_made_again(layout, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            track(job_of(layout))
    half = runs_in(layout)
    assert [run.info.status for run in half] == ["RUNNING"]
    track(job_of(layout))
    assert len(runs_in(layout)) == 12
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


@pytest.mark.parametrize("version", ["4.0.0", "2.22.1", "unknown"])
def test_an_unknown_mlflow_gets_no_view(layout, monkeypatch, version):
    monkeypatch.setattr("mlflow.__version__", version)
    track(job_of(layout))
    assert "mlflow.sharedViewState.trade-off" not in client_of(layout).get_experiment_by_name("baklava/demo").tags
    assert len(runs_in(layout)) == 12


def test_a_view_that_fails_does_not_matter(layout, monkeypatch, capsys):
    monkeypatch.setattr("baklava.tracking.mlflow_store.MlflowStore.set_tag", lambda *_: 1 / 0)
    track(job_of(layout))
    assert "no saved view" in capsys.readouterr().err
    assert len(runs_in(layout)) == 12


def test_switched_off_it_touches_no_store(layout):
    (layout.results / "mlflow.db").unlink()
    track(job_of(layout, enabled=False))
    assert not (layout.results / "mlflow.db").exists()
    assert json.loads(layout.tracked.read_text()).items() >= {"schema_version": 1, "enabled": False}.items()


def test_measurements_and_usage_that_come_later_are_added(layout):
    track(job_of(layout))
    before = ids(runs_in(layout))
    write_measurements(layout, "tiny-llama")
    usage_path(layout.profile("tiny-qwen2")).write_text("time,cpu_percent\n1.0,50.0\n")
    track(job_of(layout))
    after = runs_in(layout)
    changed = {run.info.run_name for run in after if run.info.run_id not in before}
    assert len(after) == len(before)
    assert len(ids(after) & before) == 6  # the other model's cells and methods, and the parent of the measured one
    assert "tiny-qwen2" in changed
    assert parent(layout, "tiny-qwen2").data.metrics["system/profile/cpu_percent"] == 50.0


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


@pytest.mark.parametrize("what", ["profile", "records"])
def test_missing_files_of_a_model_are_named(layout, what):
    path = layout.profile("tiny-llama") if what == "profile" else layout.records("tiny-llama", "vt")
    job = job_of(layout)
    path.unlink()
    with pytest.raises(UserError, match="make it with"):
        track(job)
    assert not layout.tracked.exists()


def test_a_summary_of_another_experiment_is_refused(layout):
    job = job_of(layout)
    with pytest.raises(UserError, match="tiny-llama is not in this experiment"):
        track(job.model_copy(update={"profiles": {"tiny-qwen2": layout.profile("tiny-qwen2")}}))


def test_a_damaged_usage_file_is_named(layout):
    path = usage_path(layout.records("tiny-llama", "vt"))
    path.write_text("time,cpu_percent\n1.0,many\n")
    with pytest.raises(UserError, match=re.escape(str(path))):
        track(job_of(layout))


def test_a_store_that_cannot_be_opened_is_named(layout):
    with pytest.raises(UserError, match=r"tracking\.uri: cannot open nowhere://at-all"):
        track(job_of(layout, uri="nowhere://at-all"))


def test_a_store_that_cannot_be_written_is_named(layout):
    with sqlite3.connect(layout.results / "mlflow.db") as store:
        store.execute("CREATE TRIGGER full BEFORE INSERT ON runs BEGIN SELECT RAISE(ABORT, 'no room'); END")
    store.close()
    with pytest.raises(UserError, match=r"^tracking\.uri: cannot write to sqlite:///.*no room[^\n]*$"):
        track(job_of(layout))
    assert not layout.tracked.exists()
