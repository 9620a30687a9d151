"""The MLflow UI as a user meets it: the link that `baklava track` prints, and Compare."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from page import (
    button,
    choose,
    close_assistant,
    open_first,
    open_tab,
    plots,
    select_nested,
    text,
    wait_for,
)
from selenium import webdriver
from selenium.webdriver.common.by import By
from shown import RATIOS, Shown

from baklava.analysis.headline import Headline
from baklava.analysis.results import read_summary
from baklava.report.data.looks import assign_looks, list_methods
from baklava.tracking.saved_views import CELLS

Points = set[tuple[float, float]]


def points_of(shown: Shown) -> Points:
    cells = read_summary(shown.layout.summary_parquet)
    return set(zip(cells["kv_bytes"], cells["score"], strict=True))


def scatter(driver: webdriver.Chrome) -> Points:
    """The points of the chart of score against KV bytes; none while it is not there."""
    found: Points = set()
    for plot in plots(driver):
        if (plot["x"], plot["y"]) == ("kv_bytes", "score"):
            for trace in plot["traces"]:
                found |= set(zip(trace["x"], trace["y"], strict=True))
    return found


def test_compare_shows_selected_runs(shown: Shown, driver: webdriver.Chrome) -> None:
    driver.get(f"{shown.address}/#/experiments/1/runs?searchFilter={quote(CELLS)}")
    close_assistant(driver)
    open_first(driver)
    names = select_nested(driver, 5)
    button(driver, "Compare").click()
    wait_for(driver, "comparison", lambda: "Comparing 5 Runs" in text(driver))
    for name in names:
        assert name in text(driver)

    choose(driver, "score", "kv_bytes")

    def parallel() -> dict[str, int]:
        found = [trace for plot in plots(driver) for trace in plot["traces"] if trace["type"] == "parcoords"]
        return {one["label"]: one["n"] for one in found[0]["dimensions"]}

    wait_for(driver, "parallel coordinates", lambda: {"score", "kv_bytes", "allocator"} <= set(parallel()))
    assert set(parallel().values()) == {5}

    open_tab(driver, "Scatter Plot", x="kv_bytes", y="score")
    wait_for(driver, "scatter", lambda: scatter(driver))
    assert scatter(driver) <= points_of(shown)
    assert sum(len(trace["x"]) for plot in plots(driver) for trace in plot["traces"]) == 5


def test_the_printed_link_compares_the_methods_in_their_colours(shown: Shown, driver: webdriver.Chrome) -> None:
    driver.get(shown.link("view"))
    close_assistant(driver)

    def curves(chart: int) -> dict[str, tuple[list[float], list[float]]]:
        """The lines of a chart by the names of their runs; MLflow draws each twice, smoothed and as it is."""
        return {trace["name"]: (trace["x"], trace["y"]) for trace in plots(driver)[chart]["traces"]}

    headline = Headline.load(shown.layout.headline)
    methods = {
        f"{method.allocator}, {model}": (figures, method)
        for model, figures in headline.models.items()
        for method in figures.methods
    }
    wait_for(driver, "four curves", lambda: set(curves(0)) == set(methods))
    for name, (figures, method) in methods.items():
        scores = [figures.full, *(ratio.score for ratio in method.ratios)]
        assert curves(0)[name] == ([0.0, *RATIOS], pytest.approx(scores))
        memory = [figures.kv_bytes_full, *(ratio.kv_bytes for ratio in method.ratios)]
        assert sorted(zip(*curves(1)[name], strict=True)) == sorted(zip(memory, scores, strict=True))
    assert [plot["x"] for plot in plots(driver)[:2]] == ["compression_ratio", "kv_bytes"]
    assert "4 matching runs" in text(driver)
    looks = assign_looks(list_methods(headline))
    traces = plots(driver)[0]["traces"]
    colours = {trace["name"].partition(",")[0]: trace["colour"][:7] for trace in traces}  # without the opacity
    assert colours == {allocator: look.colour for (allocator, _), look in looks.items()}


def test_the_description_leads_to_the_view(shown: Shown, driver: webdriver.Chrome) -> None:
    driver.get(f"{shown.address}/#/experiments/1/runs")
    close_assistant(driver)
    expand = '[data-component-id="mlflow.experiment.metadata_editor.expand_button"]'
    wait_for(driver, "description", lambda: driver.find_element(By.CSS_SELECTOR, expand)).click()
    link = 'a[href*="viewStateShareKey=curves"]'
    wait_for(driver, link, lambda: driver.find_elements(By.CSS_SELECTOR, link))
