"""The run of one cell: a row of the summary, its budgets, its answers, and what was measured of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.evaluation.records import FULL, Cell
from baklava.experiment.paths import ratio_name
from baklava.tracking.answers import TABLE, Answers
from baklava.tracking.run import Run, key_of

STAGE = "evaluate"
PARAMS = Cell._fields
# Of `baklava measure`, under the name that each has in MLflow.
MEASURED = {
    "peak_bytes": "peak_bytes",
    "tokens_per_second": "tokens_per_second",
    "prefill_seconds": "prefill_seconds",
    "first_token_seconds": "first_token_seconds",
    "kv_bytes": "measured_kv_bytes",
}
MEASURED_ON = {"device": "measured_device", "context": "measured_context", "batch": "measured_batch"}


def cell_run(
    experiment: str,
    row: Mapping[str, Any],
    parent: str,
    *,
    answers: Answers,
    budgets: Path | None,
    measured: Mapping[str, Any],
) -> Run:
    """Of a row of the summary; `budgets` is None for the full cache, `measured` empty where nothing was measured."""
    if budgets is not None and not budgets.is_file():
        raise UserError(f"{budgets}: no such budgets file; make it with `baklava allocate`")
    cell = Cell(*(row[name] for name in PARAMS))
    method = method_name(cell.allocator, cell.eviction)
    identity = {name: _text(row[name]) for name in PARAMS}
    numbers = {name: value for name, value in row.items() if name not in PARAMS}
    numbers |= {ours: measured[theirs] for theirs, ours in MEASURED.items() if measured}
    return Run(
        key=key_of("cell", *identity.values()),
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
            **({} if budgets is None else _chosen(Budgets.load(budgets))),
            **{ours: _text(measured[theirs]) for theirs, ours in MEASURED_ON.items() if measured},
        },
        metrics={
            "compression_ratio": cell.ratio,  # parameters are text: only a metric can be compared with <
            **{name: float(value) for name, value in numbers.items() if not math.isnan(value)},
        },
        datasets=(answers.dataset,),
        artifacts=() if budgets is None else (("", budgets),),
        table=(TABLE, answers.table(cell)),
    )


def method_name(allocator: str, eviction: str) -> str:
    return FULL if allocator == FULL else f"{allocator}.{eviction}"


def _chosen(budgets: Budgets) -> dict[str, str]:
    """The allocator's parameters, those that a search has chosen among them."""
    plain = {name: value for name, value in budgets.parameters.items() if isinstance(value, str | int | float)}
    return {f"budgets.{name}": _text(value) for name, value in plain.items()}


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
