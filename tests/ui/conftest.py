from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import browser, server
from selenium import webdriver
from shown import RATIOS, Shown
from synthetic_results import experiment_records
from tracked_experiment import job_of, write_finished

from baklava.experiment.paths import ExperimentPaths
from baklava.tracking.address import VARIABLE
from baklava.tracking.run import track

SCREENSHOTS = Path(__file__).parent / "screenshots"


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A made-up experiment of 2 models x 2 tasks x (full + 2 methods x 2 ratios), tracked through the server."""
    folder = tmp_path_factory.mktemp("ui")
    layout = ExperimentPaths(folder / "results", "demo")
    records = experiment_records()
    write_finished(layout, records[records["ratio"].isin((0.0, *RATIOS)) & (records["task"] != "vt")])
    with server(f"sqlite:///{folder / 'mlflow.db'}", folder) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, address)
        track(job_of(layout, ratios=RATIOS))
        yield Shown(address, layout)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with browser(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(autouse=True)
def screenshot(request: pytest.FixtureRequest, driver: webdriver.Chrome) -> Iterator[None]:
    """What the page looked like at the end of each test, in `tests/ui/screenshots`."""
    yield
    SCREENSHOTS.mkdir(exist_ok=True)
    driver.save_screenshot(str(SCREENSHOTS / f"{request.node.name}.png"))
