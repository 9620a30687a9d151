"""What MLflow should hold: one run per model and one per cell, made from the files of an experiment."""

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
from baklava.evaluation.records import Cell
from baklava.evaluation.timings import timings
from baklava.experiment.jobs import TrackJob
from baklava.experiment.paths import ExperimentPaths
from baklava.tracking.answers import Answers
from baklava.tracking.cell_run import cell_run
from baklava.tracking.model_run import figures_of, model_run, usage_files
from baklava.tracking.run import Run

TIMES = ("seconds_per_sample", "samples_per_second")


class Runs:
    """The runs of an experiment, made one after the other: with long answers, all of them may not fit into memory.

    Raises `UserError` for missing or broken results.
    """

    def __init__(self, job: TrackJob):
        self._job = job
        self._headline = Headline.load(job.headline)
        self._figures = _figures(job.figures)
        self._budgets = index_budgets(job.budgets)
        self._records = {(path.parent.name, path.stem): path for path in job.records}
        self._measured = _measured([path for path in job.measurements if path.is_file()])
        times = timings(job.timings)[[*Cell._fields, *TIMES]]
        self._summary = read_summary(job.summary).merge(times, how="left", on=list(Cell._fields))
        self.measured = bool(self._measured)
        self.models = sorted(self._headline.models)
        self.methods = sorted(
            {(one.allocator, one.eviction) for numbers in self._headline.models.values() for one in numbers.methods}
        )
        self.tasks = sorted(set(self._summary["task"]))
        self.n_cells = len(self._summary)

    def __len__(self) -> int:
        return len(self.models) + self.n_cells

    def __iter__(self) -> Iterator[Run]:
        """A run per model, each followed by those of its cells."""
        job = self._job
        usage = usage_files(ExperimentPaths(job.results, job.experiment).root)
        for model in self.models:
            if model not in job.profiles:
                raise UserError(
                    f"{job.summary}: model {model} is not in this experiment; run `baklava summarize` again"
                )
            cells = self._summary[self._summary["model"] == model]
            parent = model_run(
                job,
                model,
                self._headline,
                cells=cells,
                figures=figures_of(model, job.figures, self._figures),
                usage=usage.get(model, {}),
            )
            yield parent
            yield from self._cells(cells, parent.key)

    def _cells(self, cells: pd.DataFrame, parent: str) -> Iterator[Run]:
        rows: list[dict[str, Any]] = cells.to_dict("records")  # type: ignore[assignment]
        for (model, task), some in groupby(rows, key=lambda row: (row["model"], row["task"])):
            path = self._records.get((model, task))
            if path is None:
                raise UserError(
                    f"{self._job.summary}: {model}, {task} is not in this experiment; run `baklava summarize` again"
                )
            answers = Answers(path)
            for row in some:
                compression = BudgetKey.of(model, row["allocator"], row["eviction"], row["ratio"])
                yield cell_run(
                    self._job.experiment,
                    row,
                    parent,
                    answers=answers,
                    budgets=self._budgets.get(compression),
                    measured=self._measured.get(compression, {}),
                )


def _figures(folder: Path) -> list[Path]:
    figures = sorted(path for path in folder.rglob("[!.]*") if path.suffix in (".svg", ".png"))
    if not figures:
        raise UserError(f"{folder}: no figures there; make them with `baklava report`")
    return figures


def _measured(paths: list[Path]) -> dict[BudgetKey, dict[str, Any]]:
    rows = [row for path in paths for row in read_measurements(path).to_dict("records")]
    return {BudgetKey.of(row["model"], row["allocator"], row["eviction"], row["ratio"]): row for row in rows}  # type: ignore[misc]
