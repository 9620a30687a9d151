"""The stages of the chain: command, rule and key of `resources` all carry a stage's name.

The table names classes and functions without importing them, as `baklava --help` must load none of their libraries.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baklava.experiment.jobs import Job


@dataclass(frozen=True)
class Stage:
    """A stage: its job class, the function that runs one job, and what it does in a few words.

    Classes and functions are written `module:name`.
    """

    job: str
    run: str
    summary: str

    @property
    def job_class(self) -> type[Job]:
        return load(self.job)


def load(reference: str) -> Any:
    """The class or function that `module:name` names. The first use imports its module."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


JOBS = "baklava.experiment.jobs"

STAGES = {
    "calibrate": Stage(
        f"{JOBS}.calibration:CalibrateJob", "baklava.calibration.run:calibrate", "write the calibration prompts"
    ),
    "profile": Stage(
        f"{JOBS}.profiling:ProfileJob",
        "baklava.profiling.run:profile",
        "estimate the importance of every KV cache",
    ),
    "curves": Stage(
        f"{JOBS}.profiling:CurvesJob",
        "baklava.profiling.loss_curves:measure_curves",
        "measure the loss as each KV cache alone keeps less",
    ),
    "allocate": Stage(
        f"{JOBS}.search:AllocateJob", "baklava.search.run:allocate", "search and write the memory budgets"
    ),
    "evaluate": Stage(
        f"{JOBS}.evaluation:EvaluateJob", "baklava.evaluation.run:evaluate", "answer the tasks with every budget"
    ),
    "merge": Stage(
        f"{JOBS}.evaluation:MergeJob", "baklava.evaluation.merge:merge", "put the records of shards together"
    ),
    "measure": Stage(
        f"{JOBS}.evaluation:MeasureJob",
        "baklava.evaluation.speed:measure",
        "memory and speed of every budget by itself",
    ),
    "validate": Stage(
        f"{JOBS}.validation:ValidateJob",
        "baklava.validation.run:validate",
        "judge the profile and every estimator's ranking",
    ),
    "summarize": Stage(
        f"{JOBS}.analysis:SummarizeJob",
        "baklava.analysis.summary:summarize",
        "one row per cell, and the headline figures",
    ),
    "claims": Stage(
        f"{JOBS}.analysis:ClaimsJob", "baklava.claims.run:claims", "check the criteria that an allocator is held to"
    ),
    "report": Stage(f"{JOBS}.reports:ReportJob", "baklava.report.plots.run:draw_report", "draw the figures"),
    "page": Stage(
        f"{JOBS}.reports:PageJob", "baklava.report.page.run:write_page", "write one page with interactive figures"
    ),
    "track": Stage(f"{JOBS}.reports:TrackJob", "baklava.tracking.run:track", "project the results into MLflow"),
}
