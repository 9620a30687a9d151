from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest
from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH
from tracked_experiment import client_of

from baklava.allocation import ALLOCATORS
from baklava.eviction import POLICIES
from baklava.tracking.saved_views import MAX_TAG_LENGTH, SavedView, make_views

METHODS = [("baklava", "streaming_llm"), ("uniform", "streaming_llm")]


def state(value: str) -> dict[str, Any]:
    packed = json.loads(value)["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_one_view_shows_memory_against_score_of_the_cells(tracked):
    tags = client_of(tracked).get_experiment_by_name("baklava/demo").tags
    saved = state(tags["mlflow.sharedViewState.trade-off"])
    assert saved["searchFilter"] == "tags.stage = 'evaluate'"
    first, second = saved["compareRunCharts"][:2]
    assert (first["type"], first["xaxis"]["key"], first["yaxis"]["key"]) == ("SCATTER", "kv_bytes", "score")
    assert second["type"] == "PARALLEL"
    assert {"model", "allocator", "ratio"} <= set(second["selectedParams"])
    assert second["selectedMetrics"] == ["kv_bytes", "score"]
    assert "viewStateShareKey=trade-off" in json.loads(tracked.tracked.read_text())["view"]


def test_the_other_shows_the_models_scores_over_the_ratio(tracked):
    tags = client_of(tracked).get_experiment_by_name("baklava/demo").tags
    saved = state(tags["mlflow.sharedViewState.curves"])
    assert saved["searchFilter"] == "tags.stage = 'summarize'"
    lines = [chart["selectedMetricKeys"] for chart in saved["compareRunCharts"]]
    assert lines == [
        [f"{metric}/{method}.streaming_llm" for method in ("baklava", "uniform")]
        for metric in ("score", "kv_bytes", "score.vt")
    ]
    assert "viewStateShareKey=curves" in json.loads(tracked.tracked.read_text())["curves"]


def test_views_are_the_same_at_every_call():
    assert make_views(METHODS, ["vt"], measured=True) == make_views(METHODS, ["vt"], measured=True)


def test_speed_has_a_chart_where_it_was_measured():
    def drawn(measured: bool) -> bool:
        return "tokens_per_second" in json.dumps(state(make_views(METHODS, ["vt"], measured=measured)[0].value))

    assert drawn(True)
    assert not drawn(False)


@pytest.mark.parametrize(
    "view",
    make_views([(one, two) for one in ALLOCATORS for two in POLICIES], [f"task_{i}" for i in range(60)], measured=True),
)
def test_views_of_large_experiments_fit_into_a_tag(view: SavedView):
    assert len(view.value) <= MAX_TAG_LENGTH <= MAX_EXPERIMENT_TAG_VAL_LENGTH
    assert len(state(view.value)["compareRunCharts"]) >= 2
