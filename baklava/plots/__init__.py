"""The figures of the report, one file per figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure
from tqdm import tqdm

from baklava.budgets import Budgets
from baklava.headline import Headline
from baklava.jobs import ReportJob
from baklava.plots.budgets import budgets
from baklava.plots.importance import importance
from baklava.plots.score_vs_kv_bytes import score_vs_kv_bytes
from baklava.plots.score_vs_ratio import score_vs_ratio
from baklava.plots.style import save, styled
from baklava.profile import Profile
from baklava.results import budgets_by_compression, read_summary


def report(job: ReportJob) -> None:
    """Draw every figure as SVG and PNG into the job's folder."""
    summary, headline = read_summary(job.summary), Headline.load(job.headline)
    found = _budgets(job)
    draw: dict[str, Callable[[], Figure]] = {
        "score_vs_ratio": partial(score_vs_ratio, summary, headline),
        "score_vs_kv_bytes": partial(score_vs_kv_bytes, headline),
    }
    for model, path in job.profiles.items():
        draw[f"importance_{model}"] = partial(importance, Profile.load(path))
        draw[f"budgets_{model}"] = partial(budgets, model, found[model])
    with styled():
        for name, figure in tqdm(draw.items(), desc="report", unit="figure"):
            save(figure(), job.figures, name)


def _budgets(job: ReportJob) -> dict[str, dict[tuple[str, str], list[Budgets]]]:
    """Budgets of each model by method, in the order of the ratios."""
    found: dict[str, dict[tuple[str, str], list[Budgets]]] = defaultdict(lambda: defaultdict(list))
    for compression, path in budgets_by_compression(job.budgets).items():
        found[compression.model][compression.allocator, compression.eviction].append(Budgets.load(path))
    for by_method in found.values():
        for some in by_method.values():
            some.sort(key=lambda one: one.ratio)
    return found
