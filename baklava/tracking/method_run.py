"""Makes the run of one method on one model: its curves over the ratio, in the colour that it has in every figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from baklava.analysis.headline import Headline, MethodFigures
from baklava.analysis.results import BudgetKey
from baklava.evaluation.record_schema import FULL
from baklava.report.data.looks import assign_looks, list_methods
from baklava.tracking.cell_run import name_method
from baklava.tracking.run_spec import MetricPoint, RunSpec, make_key

STAGE = "compare"
COLOUR = "mlflow.runColor"  # the tag that MLflow's UI draws a run by
SPEED = "tokens_per_second"


def make_method_run(
    experiment: str,
    model: str,
    method: MethodFigures,
    headline: Headline,
    *,
    parent: str,
    cells: pd.DataFrame,
    measured: Mapping[BudgetKey, Mapping[str, Any]],
) -> RunSpec:
    """Make the run of a method; `cells` are the model's rows of the summary."""
    name = name_method(method.allocator, method.eviction)
    look = assign_looks(list_methods(headline))[method.allocator, method.eviction]
    lossless = method.largest_lossless_ratio
    return RunSpec(
        key=make_key("method", model, name),
        name=f"{look.label}, {model}",
        parent=parent,
        tags={"stage": STAGE, "experiment": experiment, "model": model, "method": name, COLOUR: look.colour},
        params={
            "model": model,
            "allocator": method.allocator,
            "eviction": method.eviction,
            "lossless_up_to": headline.describe_lossless(model, method),
        },
        metrics={} if lossless is None else {"largest_lossless_ratio": lossless},
        curves={
            **_mean_curves(headline, model, method),
            **_task_curves(cells, method),
            **_speed_curve(model, method, measured),
        },
    )


def to_step(ratio: float) -> int:
    """Convert a ratio to a step, an integer: percent of the entries (with bits: bytes) removed."""
    return round(100 * ratio)


def _mean_curves(headline: Headline, model: str, method: MethodFigures) -> dict[str, tuple[MetricPoint, ...]]:
    """Curves from the full cache on: the mean over the tasks with its interval, and the KV bytes."""
    figures = headline.models[model]
    columns = {
        "compression_ratio": (0.0, [at_ratio.ratio for at_ratio in method.ratios]),  # a chart's other axis
        "score": (figures.full, [at_ratio.score for at_ratio in method.ratios]),
        "score_low": (figures.full_low, [at_ratio.ci_low for at_ratio in method.ratios]),
        "score_high": (figures.full_high, [at_ratio.ci_high for at_ratio in method.ratios]),
        "kv_bytes": (figures.kv_bytes_full, [at_ratio.kv_bytes for at_ratio in method.ratios]),
    }
    steps = [0, *(to_step(at_ratio.ratio) for at_ratio in method.ratios)]
    return {name: tuple(map(MetricPoint, steps, [full, *values])) for name, (full, values) in columns.items()}


def _task_curves(cells: pd.DataFrame, method: MethodFigures) -> dict[str, tuple[MetricPoint, ...]]:
    """A curve of the score per task, from the full cache on."""
    own = (cells["allocator"] == method.allocator) & (cells["eviction"] == method.eviction)
    return {
        f"score.{task}": tuple(map(MetricPoint, map(to_step, rows["ratio"]), rows["score"]))
        for task, rows in cells[own | (cells["allocator"] == FULL)].sort_values("ratio").groupby("task")
    }


def _speed_curve(
    model: str, method: MethodFigures, measured: Mapping[BudgetKey, Mapping[str, Any]]
) -> dict[str, tuple[MetricPoint, ...]]:
    keys = {at.ratio: BudgetKey.of(model, method.allocator, method.eviction, at.ratio) for at in method.ratios}
    points = tuple(MetricPoint(to_step(r), measured[key][SPEED]) for r, key in keys.items() if key in measured)
    return {SPEED: points} if points else {}
