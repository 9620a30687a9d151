from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from synthetic import EVICTION, MODELS, RATIOS, TASKS, importance, write_budgets, write_experiment, write_profiles

from baklava.budgets import Budgets
from baklava.config import SummaryConfig
from baklava.headline import Headline
from baklava.jobs import ReportJob, SummarizeJob
from baklava.layout import Layout
from baklava.plots import report
from baklava.plots.budgets import budgets as budgets_figure
from baklava.plots.importance import importance as importance_figure
from baklava.plots.score_vs_kv_bytes import score_vs_kv_bytes
from baklava.plots.score_vs_ratio import score_vs_ratio
from baklava.plots.style import looks
from baklava.profile import Profile
from baklava.results import read_summary
from baklava.summarize import summarize

FIGURES = [
    "score_vs_ratio",
    "score_vs_kv_bytes",
    *(f"{what}_{m}" for what in ("importance", "budgets") for m in MODELS),
]


def report_job(layout: Layout, **changed) -> ReportJob:
    values = {
        "summary": layout.summary_parquet,
        "headline": layout.headline,
        "profiles": {model: layout.profile(model) for model in MODELS},
        "budgets": tuple(
            layout.budgets(model, allocator, EVICTION, ratio)
            for model in MODELS
            for allocator in ("uniform", "baklava")
            for ratio in RATIOS
        ),
        "figures": layout.figures,
    }
    return ReportJob(**{**values, **changed})


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Layout:
    """A finished experiment with its figures."""
    layout = Layout(tmp_path_factory.mktemp("results"), "demo")
    write_experiment(layout)
    write_budgets(layout)
    write_profiles(layout)
    summarize(
        SummarizeJob(
            summary=SummaryConfig(n_bootstrap=100),
            records=tuple(layout.records(model, task) for model in MODELS for task in TASKS),
            csv=layout.summary_csv,
            parquet=layout.summary_parquet,
            headline=layout.headline,
        )
    )
    report(report_job(layout))
    return layout


@pytest.fixture(scope="module")
def summary(layout) -> pd.DataFrame:
    return read_summary(layout.summary_parquet)


@pytest.fixture(scope="module")
def headline(layout) -> Headline:
    return Headline.load(layout.headline)


def lines_of(axes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Points of the curves, without reference lines and single markers."""
    return [tuple(map(np.asarray, line.get_data())) for line in axes.lines if len(line.get_xdata()) > 2]


def panels(figure) -> dict[str, object]:
    return {title_of(axes): axes for axes in figure.get_axes() if title_of(axes)}


def title_of(axes) -> str:
    return (axes.get_title(loc="left") or axes.get_title()).strip()


def test_every_figure_is_there_as_svg_and_png(layout):
    expected = sorted(f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png"))
    assert sorted(path.name for path in layout.figures.iterdir()) == expected
    for path in layout.figures.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


def test_the_same_results_give_the_same_bytes(layout, tmp_path):
    report(report_job(layout, figures=tmp_path))
    for path in layout.figures.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_drawing_leaves_matplotlib_as_it_was(layout, tmp_path):
    before = dict(matplotlib.rcParams)
    report(report_job(layout, profiles={}, figures=tmp_path))
    assert dict(matplotlib.rcParams) == before


def test_score_against_ratio_draws_the_summary(summary, headline):
    blocks = score_vs_ratio(summary, headline).subfigs
    assert len(blocks) == len(MODELS)
    for block, model in zip(blocks, sorted(MODELS), strict=True):
        axes = panels(block)
        assert list(axes) == ["mean over 3 tasks", *TASKS]
        for task in TASKS:
            rows = summary[(summary["model"] == model) & (summary["task"] == task)].sort_values("ratio")
            full = rows[rows.allocator == "full"]["score"].item()
            uniform, baklava = lines_of(axes[task])
            for (x, y), allocator in ((uniform, "uniform"), (baklava, "baklava")):
                assert list(x) == [0.0, *RATIOS]
                assert list(y) == [full, *rows[rows.allocator == allocator]["score"]]
        mean = lines_of(axes["mean over 3 tasks"])
        by_hand = summary[summary["model"] == model].groupby(["allocator", "ratio"])["score"].mean()
        for (_, y), allocator in zip(mean, ("uniform", "baklava"), strict=True):
            assert list(y) == pytest.approx([by_hand["full"][0.0], *by_hand[allocator]])


def test_score_against_memory_is_in_units_that_read_well(headline, summary):
    axes = panels(score_vs_kv_bytes(headline))
    assert list(axes) == sorted(MODELS)
    for model, panel in axes.items():
        assert panel.get_xscale() == "log"
        assert "MiB" in panel.get_xlabel()
        rows = summary[(summary["model"] == model) & (summary.task == "vt")].sort_values("ratio")
        expected = [rows["kv_bytes_full"].iloc[0], *rows[rows.allocator == "baklava"]["kv_bytes"]]
        x, _ = lines_of(panel)[1]
        assert list(x * 2**20) == pytest.approx(expected)


@pytest.mark.parametrize("model", MODELS)
def test_importance_has_a_panel_per_estimator_with_layer_0_at_the_top(layout, model):
    profile = Profile.load(layout.profile(model))
    axes = panels(importance_figure(profile))
    assert list(axes) == ["value_output_cosine", "eviction_shift_cosine", "eviction_shift", "layer"]
    for name in list(axes)[:-1]:
        mesh = axes[name].collections[0]
        assert np.allclose(mesh.get_array(), profile.kv_importance(name))
        assert axes[name].get_ylim() == (MODELS[model][0], 0)


def test_budgets_show_every_ratio_and_name_the_estimator():
    found = [
        Budgets.from_shares(shares := np.clip(importance("tiny-llama"), 0, 1), parameters={"estimator": estimator})
        for estimator in ("eviction_shift", "value_output_cosine")
    ]
    uniform = Budgets.uniform(n_layers=6, n_kv_heads=4, ratio=0.5)
    figure = budgets_figure("m", {("uniform", "x"): [uniform], ("baklava", "x"): found, ("baklava", "y"): found[:1]})
    drawn = [axes for axes in figure.get_axes() if title_of(axes)]
    assert [title_of(axes) for axes in drawn] == [f"r = {found[0].ratio:g}"] * 3
    named = [{text.get_text() for text in axes.texts} & {"eviction_shift", "value_output_cosine"} for axes in drawn]
    assert named == [{"eviction_shift"}, {"value_output_cosine"}, {"eviction_shift"}]
    for axes in drawn:
        assert np.allclose(axes.collections[0].get_array(), 100 * shares)
        assert axes.get_ylim() == (6, 0)


def test_uniform_budgets_are_drawn_where_there_are_no_others():
    uniform = Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=0.5)
    assert list(panels(budgets_figure("m", {("uniform", "x"): [uniform]}))) == ["r = 0.5"]
    assert panels(budgets_figure("m", {})) == {}


def test_methods_are_told_apart():
    methods = [(a, e) for a in ("uniform", "baklava", "measured", "pyramid") for e in ("streaming_llm", "snapkv")]
    found = looks(methods)
    assert len({(look.colour, look.dashes) for look in found.values()}) == len(methods)
    assert found["measured", "snapkv"].label == "measured / snapkv"
    assert looks([("uniform", "snapkv"), ("baklava", "snapkv")])["baklava", "snapkv"].label == "baklava"
