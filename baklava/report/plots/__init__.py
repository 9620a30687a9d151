"""The figures of the report, one file per figure; `baklava.report.figure_list` lists them for the workflow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure
from tqdm import tqdm

from baklava.analysis.depth_by_length import read_depth_by_length
from baklava.analysis.headline import Headline
from baklava.analysis.results import budgets_by_method, read_summary
from baklava.evaluation.measurements import read_measurements
from baklava.experiment.jobs import ReportJob
from baklava.importance.profile import Profile
from baklava.report.plots.budgets import budgets
from baklava.report.plots.importance import importance
from baklava.report.plots.measured import measured
from baklava.report.plots.needle_grid import needle_grid
from baklava.report.plots.score_vs_kv_bytes import score_vs_kv_bytes
from baklava.report.plots.score_vs_ratio import score_vs_ratio, score_vs_ratio_of_task
from baklava.report.plots.search_history import search_history
from baklava.report.plots.search_importance import search_importance
from baklava.report.plots.style import save, styled
from baklava.search.trace import read_trace


def report(job: ReportJob) -> None:
    """Draw every figure as SVG and PNG into the job's folder."""
    summary, headline = read_summary(job.summary), Headline.load(job.headline)
    found = budgets_by_method(job.budgets)
    draw: dict[str, Callable[[], Figure]] = {
        "score_vs_ratio": partial(score_vs_ratio, summary, headline),
        "score_vs_kv_bytes": partial(score_vs_kv_bytes, headline),
    }
    for (model, task), rows in summary.groupby(["model", "task"]):
        draw[f"score_vs_ratio/{model}/{task}"] = partial(score_vs_ratio_of_task, rows, headline)
    for model, path in job.profiles.items():
        draw[f"importance_{model}"] = partial(importance, Profile.load(path))
        draw[f"budgets_{model}"] = partial(budgets, model, found.get(model, {}))
    for model, path in job.measurements.items():
        draw[f"measured/{model}"] = partial(measured, model, read_measurements(path))
    for model, grids in job.needle_grids.items():
        for task, path in grids.items():
            draw[f"needle_grid/{model}/{task}"] = partial(needle_grid, model, task, read_depth_by_length(path))
    for path in job.traces:
        trace, search = read_trace(path), "/".join(path.with_suffix("").parts[-3:])  # model, allocator, eviction
        draw[f"search_history/{search}"] = partial(search_history, trace)
        draw[f"search_importance/{search}"] = partial(search_importance, trace)
    with styled():
        for name, figure in tqdm(draw.items(), desc="report", unit="figure"):
            save(figure(), job.figures, name)
