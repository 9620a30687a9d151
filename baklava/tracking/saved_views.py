"""Saved views for the MLflow UI: people see memory against score instead of an empty chart page."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from baklava.tracking.cell_run import STAGE as CELL_STAGE
from baklava.tracking.cell_run import name_method
from baklava.tracking.model_run import STAGE as MODEL_STAGE

CELLS = f"tags.stage = '{CELL_STAGE}'"
MODELS = f"tags.stage = '{MODEL_STAGE}'"
TRADE_OFF, CURVES = "trade-off", "curves"
KNOWN_MAJOR = "3"  # the state below is an internal format of the UI, taken from 3.17
MAX_TAG_LENGTH = 5000  # of the value of an experiment's tag
MAX_RUNS = 500

_COLUMNS = ("params.`model`", "params.`task`", "params.`allocator`", "params.`eviction`", "params.`ratio`")
_NUMBERS = ("score", "ci_low", "ci_high", "delta_full", "delta_uniform", "kept_fraction", "kv_bytes")


class SavedView(NamedTuple):
    """A saved view: its key in links, its name for people, and the value of the tag that holds it."""

    key: str
    name: str
    value: str

    @property
    def tag(self) -> str:
        return f"mlflow.sharedViewState.{self.key}"


def supports_version(version: str) -> bool:
    """Whether this version of MLflow is expected to read the views."""
    return version.split(".")[0] == KNOWN_MAJOR


def format_link(experiment_id: str, key: str) -> str:
    """Format the part of a link to a view that follows the UI's address."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}&compareRunsMode=CHART"


def make_views(methods: Sequence[tuple[str, str]], tasks: Sequence[str], *, measured: bool) -> list[SavedView]:
    """Make a view of the cells as points and one of the models as curves over the ratio; every call gives the same.

    Speed has a chart if it was measured. If the curves of all tasks do not fit into a tag, only the mean has one.
    """
    return [_make_trade_off(measured), _make_curves([name_method(*method) for method in methods], tasks)]


def _make_trade_off(measured: bool) -> SavedView:
    charts = [
        _chart("SCATTER", "score against KV bytes", **_axes("kv_bytes", "score")),
        _chart(
            "PARALLEL",
            "all settings",
            selectedParams=["model", "task", "allocator", "eviction", "ratio"],
            selectedMetrics=["kv_bytes", "score"],
            showAllRuns=True,
        ),
        _chart("SCATTER", "seconds per sample against score", **_axes("score", "seconds_per_sample")),
    ]
    if measured:
        charts.append(_chart("SCATTER", "tokens per second against score", **_axes("score", "tokens_per_second")))
    columns = [*_COLUMNS, *(f"metrics.`{name}`" for name in _NUMBERS)]
    name = "Score against KV memory"
    return _pack_view(TRADE_OFF, name, charts, columns=columns, cells=CELLS, order="metrics.`score`")


def _make_curves(methods: Sequence[str], tasks: Sequence[str]) -> SavedView:
    def over_ratio(title: str, metric: str) -> dict[str, Any]:
        keys = [f"{metric}/{method}" for method in methods]
        return _chart("LINE", title, metricKey=keys[0], selectedMetricKeys=keys, **_LINE) if keys else {}

    means = [
        over_ratio("mean score over percent removed", "score"),
        over_ratio("KV bytes over percent removed", "kv_bytes"),
    ]
    task_charts = [over_ratio(f"{task}: score over percent removed", f"score.{task}") for task in tasks]
    lossless = [f"params.`lossless_up_to/{method}`" for method in methods]
    columns = ["params.`model`", "metrics.`score_full`", *lossless]

    def view(charts: list[dict[str, Any]]) -> SavedView:
        name = "Score over the ratio"
        return _pack_view(CURVES, name, charts, columns=columns, cells=MODELS, order="metrics.`score_full`")

    complete = view(means + task_charts)
    return complete if len(complete.value) <= MAX_TAG_LENGTH else view(means)


_LINE = {
    "xAxisKey": "step",
    "selectedXAxisMetricKey": "",
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "lineSmoothness": 0,
    "displayPoints": True,
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "range": {},
    "ignoreOutliers": False,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}


def _pack_view(
    key: str, name: str, charts: list[dict[str, Any]], *, columns: list[str], cells: str, order: str
) -> SavedView:
    state = {
        "searchFilter": cells,
        "orderByKey": order,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": None,
        "groupsExpanded": {},
        "viewMaximized": False,
        "runListHidden": False,
        "compareRunCharts": [chart for chart in charts if chart],
        "compareRunSections": [_SECTION],
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    return SavedView(key, name, json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": packed}))


_SECTION = {
    "uuid": "comparison",
    "name": "Comparison",
    "display": True,
    "isReordered": False,
    "deleted": False,
    "isGenerated": False,
}


def _chart(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    identity = {
        "uuid": name.replace(" ", "-"),
        "metricSectionId": _SECTION["uuid"],
        "deleted": False,
        "isGenerated": False,
    }
    return {"type": kind, "displayName": name, "runsCountToCompare": MAX_RUNS, **identity, **settings}


def _axes(x: str, y: str) -> dict[str, Any]:
    return {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
