"""The figures of a report: their files and under which headings they appear. `baklava.report.plots` draws them.

Nothing heavy is imported here, since the workflow asks for this list before its first job.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from baklava.experiment.schema import ExperimentConfig, methods

ALL = "all"  # the label of figures that show several models, tasks or methods


class ReportFigure(NamedTuple):
    """One figure: its file below the figures folder without suffix, its category, caption file and labels."""

    name: str
    category: str
    caption: str
    labels: dict[str, str]


def list_figures(config: ExperimentConfig) -> list[ReportFigure]:
    """List every figure of an experiment, in the order of the report."""
    return [*_accuracy(config), *_memory(config), *_importance(config), *_budgets(config), *_search(config)]


def _accuracy(config: ExperimentConfig) -> Iterator[ReportFigure]:
    def labels(figure: str, model: str = ALL, task: str = ALL) -> dict[str, str]:
        return {"figure": figure, "model": model, "task": task, "method": _method(config)}

    score = "score against ratio"
    yield ReportFigure("score_vs_ratio", "Accuracy", "score_vs_ratio", labels(score))
    for model in config.models:
        for task in config.tasks:
            yield ReportFigure(
                f"score_vs_ratio/{model}/{task}", "Accuracy", "score_vs_ratio", labels(score, model, task)
            )
        for task in config.needle_grids:
            grid = labels("depth by length", model, task)
            yield ReportFigure(f"needle_grid/{model}/{task}", "Accuracy", "needle_grid", grid)


def _memory(config: ExperimentConfig) -> Iterator[ReportFigure]:
    def labels(figure: str, model: str) -> dict[str, str]:
        return {"figure": figure, "model": model, "method": _method(config)}

    yield ReportFigure("score_vs_kv_bytes", "Memory", "score_vs_kv_bytes", labels("score against KV bytes", ALL))
    yield ReportFigure(
        "score_vs_peak_kv_bytes", "Memory", "score_vs_peak_kv_bytes", labels("score against peak KV bytes", ALL)
    )
    if config.measure.enabled:
        for model in config.models:
            yield ReportFigure(f"measured/{model}", "Memory", "measured", labels("measured memory and speed", model))


def _importance(config: ExperimentConfig) -> Iterator[ReportFigure]:
    for model in config.models:
        yield ReportFigure(
            f"importance_{model}",
            "Importance",
            "importance",
            {"figure": "importance of every KV cache", "model": model},
        )


def _budgets(config: ExperimentConfig) -> Iterator[ReportFigure]:
    for model in config.models:
        labels = {"figure": "budget of every KV cache", "model": model, "method": _method(config)}
        yield ReportFigure(f"budgets_{model}", "Budgets", "budgets", labels)


def _search(config: ExperimentConfig) -> Iterator[ReportFigure]:
    for name, figure, searches in (
        ("search_history", "history of the search", config.searches),
        ("search_importance", "what mattered", config.mapping_searches),
    ):
        for model, *method in searches:
            labels = {"figure": figure, "model": model, "method": " / ".join(method)}
            yield ReportFigure("/".join([name, model, *method]), "Search", name, labels)


def _method(config: ExperimentConfig) -> str:
    """The one method of the experiment, or all."""
    first, *others = methods(config)
    return ALL if others else " / ".join(first)
