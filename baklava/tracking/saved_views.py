"""The saved view for the MLflow UI: people see the methods compared instead of an empty chart page."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from baklava.tracking.cell_run import STAGE as CELL_STAGE
from baklava.tracking.method_run import STAGE as METHOD_STAGE

CELLS = f"tags.stage = '{CELL_STAGE}'"
METHODS = f"tags.stage = '{METHOD_STAGE}'"
KEY, NAME = "curves", "Comparison of the methods"
KNOWN_MAJOR = "3"  # the state below is an internal format of the UI, taken from 3.17
MAX_TAG_LENGTH = 5000  # of the value of an experiment's tag
MAX_RUNS = 500

_COLUMNS = ("params.`model`", "params.`allocator`", "params.`eviction`", "params.`lossless_up_to`")


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


def make_view(tasks: Sequence[str], *, measured: bool) -> SavedView:
    """Make the view of the methods as curves: the score over the ratio and over KV memory. Every call gives the same.

    Speed has a chart if it was measured. If the curves of all tasks do not fit into a tag, only the mean has one.
    """
    means = [_chart("score", over="compression_ratio"), _chart("score", over="kv_bytes")]
    if measured:
        means.append(_chart("tokens_per_second", over="compression_ratio"))
    complete = _pack_view(means + [_chart(f"score.{task}", over="compression_ratio") for task in tasks])
    return complete if len(complete.value) <= MAX_TAG_LENGTH else _pack_view(means)


def _chart(metric: str, *, over: str) -> dict[str, Any]:
    """A chart with a line per run over another metric; MLflow names it and its axis after the two."""
    return {
        "type": "LINE",
        "uuid": f"{metric}-over-{over}",
        "metricSectionId": _SECTION["uuid"],
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": MAX_RUNS,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": over,
        **_LINE,
    }


_LINE = {
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "lineSmoothness": 0,
    "displayPoints": True,
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "range": {},
    "ignoreOutliers": False,
    "useGlobalXaxisKey": False,
    "useGlobalLineSmoothing": True,
}


def _pack_view(charts: list[dict[str, Any]]) -> SavedView:
    state = {
        "searchFilter": METHODS,
        "orderByKey": "metrics.`largest_lossless_ratio`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(_COLUMNS),
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": None,
        "groupsExpanded": {},
        "viewMaximized": False,
        "runListHidden": False,
        "compareRunCharts": charts,
        "compareRunSections": [_SECTION],
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    return SavedView(KEY, NAME, json.dumps({"name": NAME, "createdAt": 0, "updatedAt": 0, "state": packed}))


_SECTION = {
    "uuid": "comparison",
    "name": "Comparison",
    "display": True,
    "isReordered": False,
    "deleted": False,
    "isGenerated": False,
    "columns": 2,
    "cardHeight": 360,
}
