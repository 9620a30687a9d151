from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from synthetic_results import (
    MODELS,
    RATIOS,
    TASKS,
    cell_records,
    growth_trace,
    importance,
    measurements,
    search_trace,
    write_needle_grid,
    write_records,
    write_results,
)

from baklava.analysis.cells import read_cells
from baklava.analysis.depth_by_length import read_depth_by_length
from baklava.analysis.headline import Headline, compute_headline
from baklava.analysis.results import read_summary
from baklava.analysis.summary import summarize_cells
from baklava.budgets import Budgets
from baklava.experiment.compose import compose
from baklava.experiment.jobs import ReportJob
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.settings import SummaryConfig
from baklava.importance.profile import Profile
from baklava.report.data.budgets import describe
from baklava.report.figure_list import list_figures
from baklava.report.page.budgets import show_budgets
from baklava.report.page.headline_table import tabulate_headline
from baklava.report.plots.budgets import draw_budgets
from baklava.report.plots.importance import draw_importance
from baklava.report.plots.measured import draw_measured
from baklava.report.plots.needle_grid import draw_needle_grid
from baklava.report.plots.run import draw_report
from baklava.report.plots.score_vs_kv_bytes import draw_score_vs_kv_bytes
from baklava.report.plots.score_vs_ratio import draw_score_vs_ratio, draw_score_vs_ratio_of_task
from baklava.report.plots.search_growth import draw_growth
from baklava.report.plots.search_history import draw_search_history
from baklava.report.plots.search_importance import draw_search_importance, find_importances
from baklava.report.plots.style import save
from baklava.report.table import lossless_lines
from baklava.validation.plots import draw_ranking
from baklava.validation.ranking import COLUMNS as RANKING

EVERYTHING = ["experiment=demo", "task=[niah_single_1,niah_multikey_1,vt,needle_grid]", "measure.enabled=true"]


def report_job(layout: ExperimentPaths, *overrides: str, **changed) -> ReportJob:
    return ReportJob.of(compose(["experiment=demo", *overrides]), layout).model_copy(update=changed)


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> ExperimentPaths:
    """A finished experiment with its figures."""
    layout = ExperimentPaths(tmp_path_factory.mktemp("results"), "demo")
    write_results(layout, compose(["experiment=demo", "summary.n_bootstrap=100"]))
    draw_report(report_job(layout))
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


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_figure_is_there_as_svg_and_png(layout):
    drawn = files(layout.figures)
    names = [figure.name for figure in list_figures(compose(["experiment=demo"]))]
    assert set(drawn) == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    for name, content in drawn.items():
        assert content.startswith(b"\x89PNG" if name.endswith(".png") else b"<?xml")


def test_grids_and_measurements_have_figures_where_there_are_any(tmp_path, monkeypatch):
    config, layout, drawn = compose([*EVERYTHING, "summary.n_bootstrap=100"]), ExperimentPaths(tmp_path, "demo"), []
    write_results(layout, config)
    monkeypatch.setattr("baklava.report.plots.run.save", lambda figure, folder, name: drawn.append(name))
    draw_report(ReportJob.of(config, layout))
    assert sorted(drawn) == sorted(figure.name for figure in list_figures(config))
    assert {"needle_grid/tiny-llama/needle_grid", "measured/tiny-qwen2"} <= set(drawn)


def test_the_same_results_give_the_same_bytes(layout, tmp_path):
    draw_report(report_job(layout, "model=tiny-llama", figures=tmp_path))
    again, before = files(tmp_path), files(layout.figures)
    assert again == {name: before[name] for name in again}


def test_drawing_leaves_matplotlib_as_it_was(layout, tmp_path, monkeypatch):
    before = dict(matplotlib.rcParams)
    monkeypatch.setattr("baklava.report.plots.run.save", lambda *_: None)
    draw_report(report_job(layout, figures=tmp_path))
    assert dict(matplotlib.rcParams) == before


def test_score_against_ratio_draws_the_summary(summary, headline):
    blocks = draw_score_vs_ratio(summary, headline).subfigs
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


@pytest.mark.parametrize(
    ("changed", "phrase"),
    [
        ({"n_contexts": {"vt": 4}}, "n = 4: undecided (needs 178)"),
        ({"full": 0.004}, "full cache scores 0.00: no verdict"),
    ],
)
def test_figure_table_and_page_say_in_the_same_words_why_there_is_no_verdict(summary, headline, changed, phrase):
    figures = headline.models["tiny-llama"].model_copy(update=changed)
    undecided = headline.model_copy(update={"models": {**headline.models, "tiny-llama": figures}})
    [block, other] = draw_score_vs_ratio(summary, undecided).subfigs
    [mean, *_] = panels(block).values()
    assert [text.get_text() for text in mean.texts] == [phrase]
    assert f"  tiny-llama: {phrase}" in lossless_lines(undecided)
    page = tabulate_headline(undecided).blocks[0]
    assert [(row.lossless, row.why) for row in page.rows] == [(phrase, "")] * 2
    assert not any(entry.lossless for row in page.rows for entry in row.entries)
    assert page.facts[0][0] == phrase
    [mean, *_] = panels(other).values()
    uniform = next(method for method in headline.models["tiny-qwen2"].methods if method.allocator == "uniform")
    words = [text.get_text().strip() for text in mean.texts]
    assert words[:2] == [uniform.explain_none(), "uniform: no tested ratio"]


def test_the_best_method_may_be_a_policy_that_only_uniform_has(headline):
    figures = headline.models["tiny-qwen2"]
    [uniform, other] = sorted(figures.methods, key=lambda method: method.allocator != "uniform")
    alone = uniform.model_copy(update={"eviction": "kvzip", "largest_lossless_ratio": 0.9})
    with_rival = figures.model_copy(update={"methods": (uniform, other, alone)})
    page = tabulate_headline(headline.model_copy(update={"models": {"tiny-qwen2": with_rival}}))
    assert page.blocks[0].facts[0] == ("r = 0.9", "largest lossless ratio of any method, by uniform / kvzip")


def test_a_task_by_itself_has_the_curves_of_its_panel(summary, headline):
    rows = summary[(summary["model"] == "tiny-llama") & (summary["task"] == "vt")]
    [axes] = draw_score_vs_ratio_of_task(rows, headline).get_axes()
    together = panels(draw_score_vs_ratio(summary, headline).subfigs[0])["vt"]
    for alone, beside in zip(lines_of(axes), lines_of(together), strict=True):
        assert np.array_equal(alone, beside)


def test_a_needle_grid_shows_depth_by_length_for_every_cell(tmp_path):
    layout = ExperimentPaths(tmp_path, "demo")
    write_needle_grid(layout, "tiny-llama")
    grid = read_depth_by_length(layout.records("tiny-llama", "needle_grid"))
    drawn = [axes for axes in draw_needle_grid("tiny-llama", "needle_grid", grid).get_axes() if title_of(axes)]
    line = ["full cache", *(f"r = {ratio:g}" for ratio in RATIOS)]
    assert [title_of(axes) for axes in drawn] == line * 2
    uniform, baklava = (np.asarray(drawn[i].collections[0].get_array()) for i in (1, 7))
    assert uniform.tolist() == [[1, 1], [1, 0], [1, 1]]
    assert (baklava == 0.75).all()
    assert [label.get_text() for label in drawn[0].get_xticklabels()] == ["512", "1024"]
    assert [label.get_text() for label in drawn[0].get_yticklabels()] == ["0", "0.5", "1"]


def test_measurements_are_drawn_from_the_full_cache_on_and_what_is_not_known_is_left_out():
    rows = measurements("tiny-llama")
    axes = panels(draw_measured("tiny-llama", rows))
    assert list(axes) == ["prefill, s", "time to first token, s", "decoding, tokens/s", "KV cache held, MiB"]
    for x, y in lines_of(axes["KV cache held, MiB"]):
        assert list(x) == [0.0, *RATIOS]
        assert list(y) == pytest.approx([10 * (1 - ratio) for ratio in (0.0, *RATIOS)])
    peaks = panels(draw_measured("tiny-llama", rows.assign(peak_bytes=rows["kv_bytes"] * 3.0)))
    assert "peak above the weights, MiB" in peaks


def test_score_against_memory_is_in_units_that_read_well(headline, summary):
    axes = panels(draw_score_vs_kv_bytes(summary, headline))
    assert list(axes) == sorted(MODELS)
    for model, panel in axes.items():
        assert panel.get_xscale() == "log"
        assert "MiB" in panel.get_xlabel()
        rows = summary[(summary["model"] == model) & (summary.task == "vt")].sort_values("ratio")
        expected = [rows["kv_bytes_full"].iloc[0], *rows[rows.allocator == "baklava"]["kv_bytes"]]
        x, _ = lines_of(panel)[1]
        assert list(x * 2**20) == pytest.approx(expected)


def test_the_peak_is_that_of_the_whole_answer(headline, summary):
    rows = summary[summary["model"] == "tiny-llama"]
    of_task = {"niah_single_1": 10, "niah_multikey_1": 20, "vt": 30}  # MiB of the full cache, half of it with a method
    peaks = rows["task"].map(of_task) * 2**20 * (1.0 - 0.5 * (rows["ratio"] > 0))
    changed = summary.assign(peak_kv_bytes=peaks.reindex(summary.index, fill_value=2**20))
    panel = panels(draw_score_vs_kv_bytes(changed, headline, peak=True))["tiny-llama"]
    for x, _ in lines_of(panel):
        assert list(x) == pytest.approx([20.0, *[10.0] * (len(x) - 1)])


@pytest.mark.parametrize("model", MODELS)
def test_importance_has_a_panel_per_estimator_with_layer_0_at_the_top(layout, model):
    profile = Profile.load(layout.profile(model))
    axes = panels(draw_importance(profile))
    assert list(axes) == ["value_output_cosine", "eviction_shift_cosine", "eviction_shift", "layer_cosine"]
    assert np.allclose(axes["layer_cosine"].collections[0].get_array()[:, 0], profile.layer_importance.mean(0))
    for name in list(axes)[:-1]:
        mesh = axes[name].collections[0]
        assert np.allclose(mesh.get_array(), profile.kv_importance(name))
        assert axes[name].get_ylim() == (MODELS[model][0], 0)


def test_the_estimator_of_whole_layers_is_drawn_once(layout):
    profile = Profile.load(layout.profile("tiny-llama"))
    of_layers = np.repeat(profile.layer_importance[:, :, None], 8, axis=2)
    both = replace(profile, head_importance={"layer_cosine": of_layers, **profile.head_importance})
    assert list(panels(draw_importance(both))) == list(panels(draw_importance(profile)))
    alone = panels(draw_importance(replace(profile, head_importance={"layer_cosine": of_layers})))
    assert list(alone) == ["layer_cosine"]
    assert alone["layer_cosine"].get_ylabel() == "layer"


def test_budgets_show_every_ratio_and_name_the_estimator():
    searched = [
        Budgets.from_shares(shares := np.clip(importance("tiny-llama"), 0, 1), parameters={"estimator": estimator})
        for estimator in ("eviction_shift", "value_output_cosine")
    ]
    uniform = Budgets.uniform(n_layers=6, n_kv_heads=4, ratio=0.5)
    figure = draw_budgets(
        "m", {("uniform", "x"): [uniform], ("baklava", "x"): searched, ("baklava", "y"): searched[:1]}
    )
    drawn = [axes for axes in figure.get_axes() if title_of(axes)]
    assert [title_of(axes) for axes in drawn] == [f"r = {searched[0].ratio:g}"] * 3
    named = [{text.get_text() for text in axes.texts} & {"eviction_shift", "value_output_cosine"} for axes in drawn]
    assert named == [{"eviction_shift"}, {"value_output_cosine"}, {"eviction_shift"}]
    for axes in drawn:
        assert np.allclose(axes.collections[0].get_array(), 100 * shares)
        assert axes.get_ylim() == (6, 0)


def test_budgets_say_their_bits():
    shares = np.full((2, 2), 0.5)
    apart = Budgets.from_shares(shares, bits=np.array([[[8, 4], [4, 2]], [[4, 2], [4, 4]]]), allocator="a")
    alike = Budgets.from_shares(shares, bits=4, allocator="a")
    exact = Budgets.from_shares(shares, allocator="a")
    assert [describe(budgets) for budgets in (apart, alike, exact)] == ["a, bits 5.0 / 3.0", "a, 4 bits", "a"]
    figure = draw_budgets("m", {("a", "x"): [apart]})
    assert "bits 5.0 / 3.0" in {
        text.get_text().removeprefix("a, ") for axes in figure.get_axes() for text in axes.texts
    }
    keys_apart = show_budgets({"m": {("a", "x"): [apart]}}).frames[0].figure.data[0].hovertext[0][0]
    assert keys_apart == "layer 0, KV head 0<br>keeps 50.0% of the context<br>in 8 / 4 bits"


def test_uniform_budgets_are_drawn_where_there_are_no_others():
    uniform = Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=0.5)
    assert list(panels(draw_budgets("m", {("uniform", "x"): [uniform]}))) == ["r = 0.5"]
    assert panels(draw_budgets("m", {})) == {}


def test_the_history_of_a_search_has_a_panel_per_ratio_with_every_trial_once():
    trace = search_trace()
    axes = panels(draw_search_history(trace))
    assert list(axes) == [f"r = {ratio:g}" for ratio in RATIOS]
    for ratio, panel in zip(RATIOS, axes.values(), strict=True):
        trials = trace[trace["ratio"] == ratio]
        full, uniform, dropped, complete, best = (line.get_data() for line in panel.lines)
        assert set(full[1]) == {0.05} and set(uniform[1]) == {2.0 + ratio}
        for (x, y), part in ((complete, trials[trials["complete"]]), (dropped, trials[~trials["complete"]])):
            assert list(x) == list(part["trial"])
            assert list(y) == list(part["loss"])
        assert list(best[1]) == list(np.minimum.accumulate(complete[1]))
        assert best[1][-1] == trials[trials["chosen"]]["loss"].item()


def test_growth_is_drawn_beside_uniform_on_both_kinds_of_prompts():
    trace = growth_trace()
    [axes] = draw_growth(trace).get_axes()
    uniform, uniform_held_back, grown, grown_held_back = (line.get_data() for line in axes.lines)
    for line, move, column in (
        (uniform, "uniform", "loss"),
        (uniform_held_back, "uniform", "held_back"),
        (grown, "grown", "loss"),
        (grown_held_back, "grown", "held_back"),
    ):
        assert list(line[0]) == list(RATIOS)
        assert list(line[1]) == trace.loc[trace["move"] == move, column].tolist()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["uniform", "baklava"]


def test_the_parameter_that_decides_is_the_important_one():
    trace = search_trace(n_trials=60)
    for _, trials in trace.groupby("ratio"):
        importances = find_importances(trials)
        assert sum(importances.values()) == pytest.approx(1)
        assert importances["pool"] == 0  # never varied
        assert importances["estimator"] > importances["floor"]
    [drawn] = [axes for axes in draw_search_importance(trace).get_axes() if axes.get_xlabel() == "compression ratio"]
    assert [label.get_text() for label in drawn.get_yticklabels()] == ["estimator", "pool", "floor"]
    assert [label.get_text() for label in drawn.get_xticklabels()] == [f"{ratio:g}" for ratio in RATIOS]
    assert np.allclose(drawn.collections[0].get_array().sum(0), 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1)])
@pytest.mark.parametrize("estimators", [["eviction_shift"], ["layer_cosine"], ["random"]])
def test_importance_of_the_smallest_models_has_a_figure(tmp_path, shape, estimators):
    heads = {name: np.random.default_rng(0).random((1, *shape)).astype(np.float32) for name in estimators}
    figure = draw_importance(Profile("m", shape[1], heads, np.ones((1, shape[0]), np.float32)))
    save(figure, tmp_path, "f")
    panels = [axes.get_title().strip() for axes in figure.axes if axes.get_title()]
    assert panels == [*(name for name in estimators if name != "layer_cosine"), "layer_cosine"]
    assert (tmp_path / "f.svg").stat().st_size > 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ratios", [(0.5,), (0.5, 0.9)])
def test_a_method_that_keeps_nothing_has_no_place_on_the_axis_of_memory(tmp_path, ratios):
    """At the last of the ratios no entry is kept, and a logarithmic axis has no 0."""
    kept = [1000, 0][-len(ratios) :]
    cells = [
        cell_records([1.0, 0.0], allocator="uniform", ratio=ratio, kept_entries=n, kv_bytes=n * 256)
        for ratio, n in zip(ratios, kept, strict=True)
    ]
    records = write_records(tmp_path / "r.parquet", pd.concat([cell_records([1.0, 1.0]), *cells]))
    cells, settings = read_cells([records]), SummaryConfig(n_bootstrap=100)
    figure = draw_score_vs_kv_bytes(summarize_cells(cells, settings).to_pandas(), compute_headline(cells, settings))
    save(figure, tmp_path, "f")
    [panel] = [axes for axes in figure.axes if axes.get_title() == "tiny-llama"]
    low, high = panel.get_xlim()
    assert 0 < low < high < np.inf


def test_a_ranking_without_measured_losses_says_so():
    figure = draw_ranking(pd.DataFrame([], columns=RANKING.names))
    assert "no losses were measured" in [text.get_text() for text in figure.texts]
