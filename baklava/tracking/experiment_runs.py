"""Makes the runs of an experiment from its files: one per model, and below it one per method and one per cell."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from baklava.analysis.headline import Headline
from baklava.analysis.results import BudgetKey, index_budgets, read_summary
from baklava.errors import UserError
from baklava.evaluation.measurements import read_measurements
from baklava.evaluation.record_schema import Cell
from baklava.evaluation.timings import timings
from baklava.experiment.jobs import TrackJob
from baklava.experiment.paths import ExperimentPaths
from baklava.tracking.answers import Answers
from baklava.tracking.cell_run import make_cell_run
from baklava.tracking.method_run import make_method_run
from baklava.tracking.model_run import find_usage_files, make_model_run, select_figures
from baklava.tracking.run_spec import RunSpec

TIMES = ("seconds_per_sample", "samples_per_second", "repetition_seconds", "repetition_loss")


class ExperimentRuns:
    """The runs of an experiment, made one at a time: with long answers, they may not fit into memory together.

    Raises `UserError` for missing or broken results.
    """

    def __init__(self, job: TrackJob):
        self._job = job
        self._headline = Headline.load(job.headline)
        self._figures = _find_figures(job.figures)
        self._budgets = index_budgets(job.budgets)
        self._records = {(path.parent.name, path.stem): path for path in job.records}
        self._measured = _read_measured([path for path in job.measurements if path.is_file()])
        times = timings(job.timings)[[*Cell._fields, *TIMES]]
        self._summary = read_summary(job.summary).merge(times, how="left", on=list(Cell._fields))
        self.measured = bool(self._measured)
        self.models = sorted(self._headline.models)
        self.n_methods = sum(len(figures.methods) for figures in self._headline.models.values())
        self.tasks = sorted(set(self._summary["task"]))
        self.n_cells = len(self._summary)

    def __len__(self) -> int:
        return len(self.models) + self.n_methods + self.n_cells

    def __iter__(self) -> Iterator[RunSpec]:
        """Make the run of each model, followed by those of its methods and of its cells."""
        job = self._job
        usage = find_usage_files(ExperimentPaths(job.results, job.experiment).root)
        for model in self.models:
            if model not in job.profiles:
                raise UserError(
                    f"{job.summary}: model {model} is not in this experiment; run `baklava summarize` again"
                )
            cells = self._summary[self._summary["model"] == model]
            parent = make_model_run(
                job,
                model,
                self._headline,
                cells=cells,
                figures=select_figures(model, job.figures, self._figures),
                usage=usage.get(model, {}),
            )
            yield parent
            for method in self._headline.models[model].methods:
                yield make_method_run(
                    job.experiment,
                    model,
                    method,
                    self._headline,
                    parent=parent.key,
                    cells=cells,
                    measured=self._measured,
                )
            yield from self._cell_runs(cells, parent.key)

    def _cell_runs(self, cells: pd.DataFrame, parent: str) -> Iterator[RunSpec]:
        rows: list[dict[str, Any]] = cells.to_dict("records")  # type: ignore[assignment]
        for (model, task), task_rows in groupby(rows, key=lambda row: (row["model"], row["task"])):
            path = self._records.get((model, task))
            if path is None:
                raise UserError(
                    f"{self._job.summary}: {model}, {task} is not in this experiment; run `baklava summarize` again"
                )
            answers = Answers(path)
            for row in task_rows:
                budget_key = BudgetKey.of(model, row["allocator"], row["eviction"], row["ratio"])
                yield make_cell_run(
                    self._job.experiment,
                    row,
                    parent,
                    answers=answers,
                    budgets=self._budgets.get(budget_key),
                    measured=self._measured.get(budget_key, {}),
                )


def _find_figures(folder: Path) -> list[Path]:
    figures = sorted(path for path in folder.rglob("[!.]*") if path.suffix in (".svg", ".png"))
    if not figures:
        raise UserError(f"{folder}: no figures there; make them with `baklava report`")
    return figures


def _read_measured(paths: list[Path]) -> dict[BudgetKey, dict[str, Any]]:
    rows = [row for path in paths for row in read_measurements(path).to_dict("records")]
    return {BudgetKey.of(row["model"], row["allocator"], row["eviction"], row["ratio"]): row for row in rows}  # type: ignore[misc]
