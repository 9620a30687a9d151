"""`baklava report`: draw every figure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure
from tqdm import tqdm

from baklava.experiment.jobs import ReportJob
from baklava.report.data.read_files import Results
from baklava.report.plots.budgets import draw_budgets
from baklava.report.plots.importance import draw_importance
from baklava.report.plots.measured import draw_measured
from baklava.report.plots.needle_grid import draw_needle_grid
from baklava.report.plots.score_vs_kv_bytes import draw_score_vs_kv_bytes
from baklava.report.plots.score_vs_ratio import draw_score_vs_ratio, draw_score_vs_ratio_of_task
from baklava.report.plots.search_growth import draw_growth, is_growth
from baklava.report.plots.search_history import draw_search_history
from baklava.report.plots.search_importance import draw_search_importance
from baklava.report.plots.style import save, styled
from baklava.search.trace import parameters, read_trace


def draw_report(job: ReportJob) -> None:
    """Draw every figure as SVG and PNG into the job's folder."""
    results = Results.read(job)
    summary, headline = results.summary, results.headline
    figures: dict[str, Callable[[], Figure]] = {
        "score_vs_ratio": partial(draw_score_vs_ratio, summary, headline),
        "score_vs_kv_bytes": partial(draw_score_vs_kv_bytes, summary, headline),
        "score_vs_peak_kv_bytes": partial(draw_score_vs_kv_bytes, summary, headline, peak=True),
    }
    for (model, task), rows in summary.groupby(["model", "task"]):
        figures[f"score_vs_ratio/{model}/{task}"] = partial(draw_score_vs_ratio_of_task, rows, headline)
    for model, profile in results.profiles.items():
        figures[f"importance_{model}"] = partial(draw_importance, profile)
        figures[f"budgets_{model}"] = partial(draw_budgets, model, results.budgets.get(model, {}))
    for model, measurements in results.measurements.items():
        figures[f"measured/{model}"] = partial(draw_measured, model, measurements)
    for model, grids in results.needle_grids.items():
        for task, grid in grids.items():
            figures[f"needle_grid/{model}/{task}"] = partial(draw_needle_grid, model, task, grid)
    for path in job.traces:
        trace, search = read_trace(path), "/".join(path.with_suffix("").parts[-3:])  # model, allocator, eviction
        draw_search = draw_growth if is_growth(trace) else draw_search_history
        figures[f"search_history/{search}"] = partial(draw_search, trace)
        if parameters(trace):
            figures[f"search_importance/{search}"] = partial(draw_search_importance, trace)
    with styled():
        for name, draw in tqdm(figures.items(), desc="report", unit="figure"):
            save(draw(), job.figures, name)
