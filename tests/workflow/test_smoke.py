"""experiment=smoke from end to end: real models, real caches, the files that a user reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from baklava.budgets import Budgets
from baklava.experiment.compose import compose
from baklava.experiment.schema import ExperimentConfig
from baklava.report.figure_list import list_figures

pytestmark = pytest.mark.workflow

Snakemake = Callable[..., Any]
CELL = ["model", "task", "allocator", "eviction", "ratio"]


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return compose(["experiment=smoke"])


@pytest.fixture(scope="module")
def run(snakemake: Snakemake, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The working folder of one finished run, and what it said."""
    folder = tmp_path_factory.mktemp("smoke")
    run = snakemake(folder, "--cores", "2")
    assert run.status == 0, run.output
    return folder, run.output


@pytest.fixture(scope="module")
def folder(run: tuple[Path, str]) -> Path:
    return run[0]


@pytest.fixture(scope="module")
def results(folder: Path) -> Path:
    return folder / "results" / "smoke"


@pytest.fixture(scope="module")
def summary(results: Path) -> pd.DataFrame:
    return pd.read_csv(results / "summary.csv", keep_default_na=False, na_values=[""])


@pytest.fixture(scope="module")
def records(results: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(file) for file in sorted(results.glob("records/*/*.parquet"))])


def test_the_summary_has_one_row_per_cell(summary: pd.DataFrame, config: ExperimentConfig) -> None:
    expected = {
        (model, task, *method)
        for model in config.models
        for task in config.tasks
        for method in [
            ("full", "none", 0.0),
            *(
                (allocator, eviction, ratio)
                for allocator in config.allocators
                for eviction in config.evictions
                for ratio in config.compressed_ratios
            ),
        ]
    }
    rows = list(summary[CELL].itertuples(index=False, name=None))
    assert len(rows) == len(expected)
    assert set(rows) == expected
    assert set(summary["n"]) == {config.evaluate.n_samples}


def test_the_summary_agrees_with_its_parquet_twin(summary: pd.DataFrame, results: Path) -> None:
    twin = pd.read_parquet(results / "summary.parquet")
    pd.testing.assert_frame_equal(summary, twin[list(summary.columns)], check_dtype=False)


def test_scores_are_the_means_of_the_records(summary: pd.DataFrame, records: pd.DataFrame) -> None:
    means = records.groupby(CELL)["score"].mean()
    assert summary.set_index(CELL)["score"].sort_index().to_dict() == pytest.approx(means.sort_index().to_dict())
    assert (summary["ci_low"] <= summary["score"]).all()
    assert (summary["score"] <= summary["ci_high"]).all()


def test_every_cell_keeps_what_its_ratio_leaves(records: pd.DataFrame, summary: pd.DataFrame) -> None:
    """To the entry: the budgets of a sample add up to (1 - ratio) of all its entries, whatever the method."""
    asked = (1 - records["ratio"]) * records["total_entries"]
    assert (records["kept_entries"] - asked).abs().max() <= 1
    assert (summary["kept_fraction"] - (1 - summary["ratio"])).abs().max() <= 1 / records["total_entries"].min()


def test_bytes_follow_the_entries_kept(records: pd.DataFrame, summary: pd.DataFrame) -> None:
    per_entry = records["kv_bytes_full"] / records["total_entries"]
    assert (records["kv_bytes"] / (records["kept_entries"] * per_entry) - 1).abs().max() <= 0.02
    assert (summary["kv_bytes"] / summary["kv_bytes_full"] - summary["kept_fraction"]).abs().max() <= 0.02


def test_deltas_are_paired_differences(summary: pd.DataFrame) -> None:
    for _, cells in summary.groupby(["model", "task"]):
        full = cells.loc[cells["allocator"] == "full", "score"].item()
        assert (cells["score"] - full).tolist() == pytest.approx(cells["delta_full"].tolist())
        for _, row in cells[cells["ratio"] > 0].iterrows():
            same = (cells["eviction"] == row["eviction"]) & (cells["ratio"] == row["ratio"])
            uniform = cells.loc[same & (cells["allocator"] == "uniform"), "score"].item()
            assert row["delta_uniform"] == pytest.approx(row["score"] - uniform)


def test_the_chosen_mapping_is_no_worse_than_uniform_on_calibration(results: Path, config: ExperimentConfig) -> None:
    for ratio in config.compressed_ratios:
        budgets = Budgets.load(results / "budgets" / "tiny-llama" / "baklava" / "streaming_llm" / f"{ratio:g}.json")
        assert budgets.shares.mean() == pytest.approx(1 - ratio)
        assert budgets.provenance["loss"] <= budgets.provenance["loss_uniform"]


def test_figures_page_headline_and_tracking_are_there(results: Path, config: ExperimentConfig) -> None:
    for figure in list_figures(config):
        path = results / "figures" / f"{figure.name}.svg"
        assert "</svg>" in path.read_text(encoding="utf-8")
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "</html>" in (results / "report.html").read_text(encoding="utf-8")
    assert json.loads((results / "headline.json").read_text(encoding="utf-8"))
    assert json.loads((results / "tracked.json").read_text(encoding="utf-8"))
    assert (results.parent / "mlflow.db").is_file()


def test_it_ends_with_the_table_and_where_everything_is(run: tuple[Path, str]) -> None:
    assert run[1].count("smoke: mean score over niah_single_1, vt") == 1
    assert "Budgets    results/smoke/budgets\n" in run[1]


def test_logs_hold_whole_lines(results: Path) -> None:
    logs = [path.read_bytes() for path in results.glob("logs/**/*.log")]
    assert len(logs) > 8
    assert any(b"100%" in log for log in logs)
    assert not any(b"\r" in log or b"\x1b" in log or b"Loading weights" in log for log in logs)


def test_a_second_run_only_shows_the_table(snakemake: Snakemake, folder: Path) -> None:
    run = snakemake(folder, "--cores", "2")
    assert run.status == 0
    assert "Nothing to be done" in run.output
    assert run.output.count("smoke: mean score over niah_single_1, vt") == 1


def test_adding_a_ratio_profiles_nothing(snakemake: Snakemake, folder: Path) -> None:
    planned = snakemake(folder, "-n", overrides="ratios=[0,0.5,0.7,0.8]").planned
    assert planned == {"allocate": 2, "evaluate": 2, "summarize": 1, "report": 1, "page": 1, "track": 1}


def test_the_report_holds_figures_and_tables_by_category_and_loads_nothing(
    snakemake: Snakemake, folder: Path, config: ExperimentConfig
) -> None:
    run = snakemake(folder, "--report", "report.html")
    assert run.status == 0, run.output
    page = (folder / "report.html").read_text(encoding="utf-8")
    categories = json.loads(re.search(r"var categories = (\{.*?\});\n", page)[1])
    found = {(name, path) for name, some in categories.items() for paths in some.values() for path in paths}
    figures = {(f.category, f"results/smoke/figures/{f.name}.svg") for f in list_figures(config)}
    tables = {("Headlines", f"results/smoke/{name}") for name in ("headline.html", "summary.csv")}
    assert found == figures | tables
    assert not re.search(r"<(script|link|img|iframe)\b[^>]*\b(src|href)\s*=\s*[\"']?(https?:)?//", page)
