from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest
from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH
from tracked_experiment import client_of, runs_in

from baklava.tracking.saved_views import MAX_TAG_LENGTH, SavedView, make_view


def state(value: str) -> dict[str, Any]:
    packed = json.loads(value)["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def lines(view: SavedView) -> list[tuple[str, str]]:
    """Metric and axis of every chart."""
    return [(chart["metricKey"], chart["selectedXAxisMetricKey"]) for chart in state(view.value)["compareRunCharts"]]


def test_the_view_shows_the_methods_as_curves(tracked):
    tags = client_of(tracked).get_experiment_by_name("baklava/demo").tags
    saved = state(tags["mlflow.sharedViewState.curves"])
    assert saved["searchFilter"] == "tags.stage = 'compare'"
    assert "params.`lossless_up_to`" in saved["selectedColumns"]
    runs = runs_in(tracked, "compare")
    assert len(runs) == 4
    for chart in saved["compareRunCharts"]:
        for metric in (chart["metricKey"], chart["selectedXAxisMetricKey"]):
            assert all(metric in run.data.metrics for run in runs if metric != "tokens_per_second")
    assert "viewStateShareKey=curves" in json.loads(tracked.tracked.read_text())["view"]


def test_the_view_is_the_same_at_every_call():
    assert make_view(["vt"], measured=True) == make_view(["vt"], measured=True)


def test_speed_has_a_chart_where_it_was_measured():
    means = [("score", "compression_ratio"), ("score", "kv_bytes")]
    task = ("score.vt", "compression_ratio")
    assert lines(make_view(["vt"], measured=False)) == [*means, task]
    assert lines(make_view(["vt"], measured=True)) == [*means, ("tokens_per_second", "compression_ratio"), task]


@pytest.mark.parametrize("n_tasks", [13, 5000])
def test_views_of_large_experiments_fit_into_a_tag(n_tasks: int):
    view = make_view([f"longbench_of_a_long_name_{i}" for i in range(n_tasks)], measured=True)
    assert len(view.value) <= MAX_TAG_LENGTH <= MAX_EXPERIMENT_TAG_VAL_LENGTH
    assert len(lines(view)) == (3 + n_tasks if n_tasks == 13 else 3)
