"""What is on a page of the MLflow UI, as a user sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from browser import PATIENCE
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
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
        colour: (trace.line && trace.line.color) || (trace.marker && trace.marker.color),
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
        text = driver.find_element(By.TAG_NAME, "body").text
        raise AssertionError(f"no {what} on {driver.current_url}:\n{text}") from None


def plots(driver: webdriver.Chrome) -> list[dict[str, Any]]:
    """The charts drawn by Plotly: titles of their axes, and their traces."""
    return driver.execute_script(_PLOTS)


def text(driver: webdriver.Chrome) -> str:
    """All that can be read."""
    return driver.find_element(By.TAG_NAME, "body").text


def close_assistant(driver: webdriver.Chrome) -> None:
    """Close the panel that a local server opens beside its first page, and with it a third of the width."""
    wait_for(driver, "page", lambda: "Experiments" in text(driver) or "runs" in text(driver))
    for one in driver.find_elements(By.CSS_SELECTOR, '[data-component-id="mlflow.assistant.chat_panel.close"]'):
        one.click()


def button(driver: webdriver.Chrome, label: str) -> WebElement:
    """The button that says just that."""
    return wait_for(driver, f"button {label}", lambda: _of_text(driver, "button", label))


def open_first(driver: webdriver.Chrome) -> None:
    """Show the runs that are nested under the first one of the table."""
    expand = '[role=row] button[data-component-id*="runnamecellrenderer"]'
    wait_for(driver, "run with others under it", lambda: driver.find_elements(By.CSS_SELECTOR, expand))[0].click()


def select_nested(driver: webdriver.Chrome, n: int) -> list[str]:
    """Tick the first runs that are nested under the first one of the table; returns their names."""
    names = []
    for index in range(1, n + 1):
        row = f'[role=row][row-index="{index}"]'
        name = wait_for(driver, f"run {index}", lambda r=row: _of_cell(driver, f'{r} a[href*="/runs/"]'))
        box = f'{row} input[aria-label^="Press Space to toggle row selection"]'
        wait_for(driver, f"box of run {index}", lambda b=box: driver.find_element(By.CSS_SELECTOR, b)).click()
        names.append(name)
    return names


def open_tab(driver: webdriver.Chrome, name: str, *, x: str, y: str) -> None:
    """Open one of the tabs of Compare and choose what its axes show."""
    wait_for(driver, name, lambda: _of_text(driver, "[role=tab]", name)).click()
    for axis, metric in (("x", x), ("y", y)):
        selector = f"button#{axis}-axis-selector"
        wait_for(driver, f"{axis} axis", lambda s=selector: driver.find_element(By.CSS_SELECTOR, s)).click()
        wait_for(driver, metric, lambda m=metric: _of_text(driver, "[role=option]", m)).click()


def choose(driver: webdriver.Chrome, *metrics: str) -> None:
    """Add metrics to the parallel coordinates of Compare: the second of its two boxes takes them."""

    def box() -> WebElement:
        return driver.find_elements(By.CSS_SELECTOR, "[role=tabpanel] input[id^=dubois-select]")[1]

    for metric in metrics:
        wait_for(driver, "box of metrics", box).send_keys(metric)
        option = f'[class*=select-item-option-active][title="{metric}"]'
        wait_for(driver, metric, lambda o=option: driver.find_elements(By.CSS_SELECTOR, o))
        box().send_keys(Keys.ENTER)
        box().send_keys(Keys.ESCAPE)


def _of_text(driver: webdriver.Chrome, selector: str, words: str) -> WebElement | None:
    return next((one for one in driver.find_elements(By.CSS_SELECTOR, selector) if one.text == words), None)


def _of_cell(driver: webdriver.Chrome, selector: str) -> str:
    return driver.find_element(By.CSS_SELECTOR, selector).text
