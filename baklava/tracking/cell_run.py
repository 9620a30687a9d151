"""Makes the run of one cell: its row of the summary, budgets, answers and measured speed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.evaluation.record_schema import FULL, Cell
from baklava.experiment.paths import ratio_name
from baklava.tracking.answers import TABLE, Answers
from baklava.tracking.run_spec import RunSpec, make_key

STAGE = "evaluate"
PARAMS = Cell._fields
# Columns of `baklava measure`, and their names in MLflow.
MEASURED_METRICS = {
    "peak_bytes": "peak_bytes",
    "tokens_per_second": "tokens_per_second",
    "prefill_seconds": "prefill_seconds",
    "first_token_seconds": "first_token_seconds",
    "kv_bytes": "measured_kv_bytes",
}
MEASURED_PARAMS = {"device": "measured_device", "context": "measured_context", "batch": "measured_batch"}


def make_cell_run(
    experiment: str,
    row: Mapping[str, Any],
    parent: str,
    *,
    answers: Answers,
    budgets: Path | None,
    measured: Mapping[str, Any],
) -> RunSpec:
    """Make the run of a row of the summary.

    `budgets` is None for the full cache, and `measured` is empty if its speed was not measured.
    """
    if budgets is not None and not budgets.is_file():
        raise UserError(f"{budgets}: no such budgets file; make it with `baklava allocate`")
    cell = Cell(*(row[name] for name in PARAMS))
    method = name_method(cell.allocator, cell.eviction)
    identity = {name: _format(row[name]) for name in PARAMS}
    metrics = {name: value for name, value in row.items() if name not in PARAMS}
    metrics |= {name: measured[column] for column, name in MEASURED_METRICS.items() if measured}
    return RunSpec(
        key=make_key("cell", *identity.values()),
        name=f"{cell.task} {method} {ratio_name(cell.ratio)}",
        parent=parent,
        tags={
            "stage": STAGE,
            "experiment": experiment,
            "model": cell.model,
            "task": cell.task,
            "method": method,
        },
        params={
            **identity,
            **({} if budgets is None else _budget_params(Budgets.load(budgets))),
            **{name: _format(measured[column]) for column, name in MEASURED_PARAMS.items() if measured},
        },
        metrics={
            "compression_ratio": cell.ratio,  # MLflow compares metrics with <, but parameters only as strings
            **{name: float(value) for name, value in metrics.items() if not math.isnan(value)},
        },
        datasets=(answers.dataset,),
        artifacts=() if budgets is None else (("", budgets),),
        table=(TABLE, answers.table(cell)),
    )


def name_method(allocator: str, eviction: str) -> str:
    return FULL if allocator == FULL else f"{allocator}.{eviction}"


def _budget_params(budgets: Budgets) -> dict[str, str]:
    """The allocator's parameters, including those that a search has chosen."""
    plain = {name: value for name, value in budgets.parameters.items() if isinstance(value, str | int | float)}
    return {f"budgets.{name}": _format(value) for name, value in plain.items()}


def _format(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
