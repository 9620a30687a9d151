"""A saved view for the MLflow UI: the trade-off of memory against score instead of an empty chart page."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

CELLS = "tags.stage = 'evaluate'"
SHARE_KEY = "trade-off"
TAG = f"mlflow.sharedViewState.{SHARE_KEY}"
KNOWN_MAJOR = "3"  # the state below is an internal format of the UI, taken from 3.17

_COLUMNS = ("params.`model`", "params.`task`", "params.`allocator`", "params.`eviction`", "params.`ratio`")
_NUMBERS = ("score", "delta_full", "delta_uniform", "kept_fraction", "kv_bytes")
_SECTION = "trade-off"


def is_known(version: str) -> bool:
    """Whether this MLflow can be expected to read the view."""
    return version.split(".")[0] == KNOWN_MAJOR


def link(experiment_id: str) -> str:
    """Where the UI shows the view, after its address."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={SHARE_KEY}&compareRunsMode=CHART"


def saved_view() -> str:
    """The value of the experiment's tag, the same at every call."""
    state = json.dumps({**_search(), **_table(), **_charts()})
    packed = "deflate;" + base64.b64encode(zlib.compress(state.encode(), 9)).decode()
    return json.dumps({"name": "Score against KV memory", "createdAt": 0, "updatedAt": 0, "state": packed})


def _search() -> dict[str, Any]:
    return {
        "searchFilter": CELLS,
        "orderByKey": "metrics.`score`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
    }


def _table() -> dict[str, Any]:
    return {
        "selectedColumns": [*_COLUMNS, *(f"metrics.`{name}`" for name in _NUMBERS)],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": None,
        "groupsExpanded": {},
        "viewMaximized": False,
        "runListHidden": False,
    }


def _charts() -> dict[str, Any]:
    charts = [
        _chart("SCATTER", "score against KV bytes", **_axes("kv_bytes", "score"), runsCountToCompare=500),
        _chart("SCATTER", "seconds against score", **_axes("score", "seconds_per_sample"), runsCountToCompare=500),
        _chart(
            "PARALLEL",
            "all settings",
            selectedParams=["model", "task", "allocator", "ratio"],
            selectedMetrics=["kv_bytes", "score"],
            showAllRuns=True,
        ),
    ]
    section = {"uuid": _SECTION, "name": "Trade-off", "display": True, "isReordered": False}
    return {
        "compareRunCharts": charts,
        "compareRunSections": [{**section, "deleted": False, "isGenerated": False}],
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _chart(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    place = {"uuid": name.replace(" ", "-"), "metricSectionId": _SECTION, "deleted": False, "isGenerated": False}
    return {"type": kind, "displayName": name, **place, **settings}


def _axes(x: str, y: str) -> dict[str, Any]:
    return {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
