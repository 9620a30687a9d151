"""The MLflow UI as a user meets it: the link that `baklava track` prints, the curves, and Compare."""

from __future__ import annotations

import pytest
from page import (
    axes_of_parallel_coordinates,
    button,
    choose,
    close_assistant,
    open_tab,
    plots,
    select_runs,
    text,
    wait_for,
)
from selenium import webdriver
from selenium.webdriver.common.by import By
from shown import RATIOS, Shown

from baklava.analysis.headline import Headline
from baklava.analysis.results import read_summary

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


def test_the_printed_link_opens_score_against_kv_bytes(shown: Shown, driver: webdriver.Chrome) -> None:
    driver.get(shown.link("view"))
    close_assistant(driver)
    expected = points_of(shown)
    wait_for(driver, "scatter of all cells", lambda: scatter(driver) == expected)
    axes = wait_for(driver, "parallel coordinates", lambda: axes_of_parallel_coordinates(driver))
    assert axes == ["model", "task", "allocator", "eviction", "ratio", "kv_bytes", "score"]
    assert "20 matching runs" in text(driver)
    assert "tags.stage = 'evaluate'" in driver.page_source


def test_compare_shows_selected_runs(shown: Shown, driver: webdriver.Chrome) -> None:
    driver.get(shown.link("view"))
    close_assistant(driver)
    names = select_runs(driver, 5)
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


def test_the_other_link_opens_scores_over_the_ratio(shown: Shown, driver: webdriver.Chrome) -> None:
    driver.get(shown.link("curves"))
    close_assistant(driver)

    def curves() -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
        """The lines of the first chart, one per model and method; MLflow draws each twice, smoothed and as it is."""
        traces = plots(driver)[0]["traces"]
        return sorted({(tuple(trace["x"]), tuple(trace["y"])) for trace in traces})

    headline = Headline.load(shown.layout.headline)
    steps = (0.0, *(100 * ratio for ratio in RATIOS))
    expected = sorted(
        (steps, (numbers.full, *(ratio.score for ratio in method.ratios)))
        for numbers in headline.models.values()
        for method in numbers.methods
    )
    wait_for(driver, "four curves", lambda: len(curves()) == len(expected))
    for (steps_shown, scores), (_, wanted) in zip(curves(), expected, strict=True):
        assert steps_shown == steps
        assert scores == pytest.approx(wanted)


def test_the_description_leads_to_both_views(shown: Shown, driver: webdriver.Chrome) -> None:
    driver.get(f"{shown.address}/#/experiments/1/runs")
    close_assistant(driver)
    expand = '[data-component-id="mlflow.experiment.metadata_editor.expand_button"]'
    wait_for(driver, "description", lambda: driver.find_element(By.CSS_SELECTOR, expand)).click()
    for key in ("trade-off", "curves"):
        link = f'a[href*="viewStateShareKey={key}"]'
        wait_for(driver, link, lambda one=link: driver.find_elements(By.CSS_SELECTOR, one))
