"""Which parameters of a search matter, at each ratio."""

from __future__ import annotations

import numpy as np
import optuna
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import create_trial

from baklava.allocation.fitted import MAPPING
from baklava.report.plots.heat_map import add_colour_bar, draw_heat_map
from baklava.report.plots.style import add_headings
from baklava.search.trace import parameters

BEST = 0.25  # fraction of the trials that counts as good


def draw_search_importance(trace: pd.DataFrame) -> Figure:
    """Draw a row per parameter and a column per ratio; the importances at a ratio add up to 1."""
    [(model, allocator, eviction)] = trace[["model", "allocator", "eviction"]].drop_duplicates().to_numpy().tolist()
    names = parameters(trace)
    trace = trace[trace["move"] == MAPPING]
    by_ratio = {f"{ratio:g}": find_importances(trials) for ratio, trials in trace.groupby("ratio")}
    values = np.array(
        [[importances[name] for importances in by_ratio.values()] for name in names]
    )  # [parameters, ratios]
    figure = Figure(figsize=(8.0, 0.42 * len(names) + 1.9), layout="constrained")
    add_headings(
        figure,
        f"{model}: what matters to {allocator} / {eviction}",
        f"share in telling the best {BEST:.0%} of the trials from the others (PED-ANOVA)",
    )
    axes = figure.subplots()
    mesh = draw_heat_map(axes, values, low=0.0, high=1.0, text=".2f")
    axes.yaxis.set_major_locator(FixedLocator([i + 0.5 for i in range(len(names))]))
    axes.set_yticklabels(names)
    axes.xaxis.set_major_locator(FixedLocator([i + 0.5 for i in range(len(by_ratio))]))
    axes.set_xticklabels(list(by_ratio))
    axes.set_xlabel("compression ratio")
    add_colour_bar(axes, mesh)
    return figure


def find_importances(trials: pd.DataFrame) -> dict[str, float]:
    """Importance of each parameter, from the loss on the prompts that every trial saw, so that all can be compared."""
    names = parameters(trials)
    varied = {name: _distribution(trials[name]) for name in names if trials[name].nunique() > 1}
    study = optuna.create_study()
    for _, row in trials.iterrows():
        params = {name: row[name] for name in varied}
        study.add_trial(create_trial(params=params, distributions=varied, value=float(row["early_loss"])))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST)
    importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: importances.get(name, 0.0) for name in names}


def _distribution(column: pd.Series) -> BaseDistribution:
    """The distribution over the values that were tried."""
    if pd.api.types.is_numeric_dtype(column):
        return FloatDistribution(float(column.min()), float(column.max()))
    return CategoricalDistribution(sorted(column.unique()))
