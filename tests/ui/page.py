"""What is on a page of the MLflow UI, as a user sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from browser import PATIENCE
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.support.ui import WebDriverWait

Found = TypeVar("Found")

# Data of the charts of a page, as Plotly keeps it with each.
_PLOTS = """
return Array.from(document.querySelectorAll('.js-plotly-plot')).map(plot => ({
    x: plot.layout.xaxis && plot.layout.xaxis.title && plot.layout.xaxis.title.text,
    y: plot.layout.yaxis && plot.layout.yaxis.title && plot.layout.yaxis.title.text,
    traces: plot.data.map(trace => ({
        type: trace.type,
        name: trace.name,
        x: Array.from(trace.x || []).map(Number),
        y: Array.from(trace.y || []).map(Number),
        dimensions: (trace.dimensions || []).map(one => ({label: one.label, n: one.values.length})),
    })),
}))
"""


def wait_for(driver: webdriver.Chrome, what: str, look: Callable[[], Found]) -> Found:
    """What `look` returns once it is something; an assertion that shows the page's text where it stays nothing."""
    try:
        return WebDriverWait(driver, PATIENCE, ignored_exceptions=(Exception,)).until(lambda _: look())
    except TimeoutException:
        text = driver.find_element("tag name", "body").text
        raise AssertionError(f"no {what} on {driver.current_url}:\n{text}") from None


def plots(driver: webdriver.Chrome) -> list[dict[str, Any]]:
    """The charts drawn by Plotly: titles of their axes, and their traces."""
    return driver.execute_script(_PLOTS)


def text(driver: webdriver.Chrome) -> str:
    """All that can be read."""
    return driver.find_element("tag name", "body").text
