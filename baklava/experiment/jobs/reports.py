"""The jobs of `report`, `page` and `track`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from baklava.experiment.components import ModelConfig
from baklava.experiment.jobs.base import Job, all_budgets, all_records, all_timings
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.settings import TrackingConfig


class ResultFiles(Job):
    """The files that both the figures and the page are drawn from.

    `measurements` is empty where the workflow does not measure; `needle_grids` are the records of such tasks, by model.
    """

    summary: Path
    headline: Path
    profiles: dict[str, Path]
    budgets: tuple[Path, ...]
    measurements: dict[str, Path]
    needle_grids: dict[str, dict[str, Path]]


class ReportJob(ResultFiles):
    """Figures of the summary, the profiles, the budgets and the searches."""

    traces: tuple[Path, ...]
    figures: Path

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths) -> ReportJob:
        traces = tuple(paths.search_trace(*search) for search in config.searches)
        return cls(**_result_files(config, paths), traces=traces, figures=paths.figures)


class PageJob(ResultFiles):
    """The interactive page, and the headline table as a page of its own."""

    experiment: str
    models: dict[str, ModelConfig]
    timings_csv: Path
    output: Path
    headline_table: Path

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths) -> PageJob:
        return cls(
            **_result_files(config, paths),
            experiment=config.name,
            models=config.models,
            timings_csv=paths.timings_csv,
            output=paths.page,
            headline_table=paths.headline_table,
        )


class TrackJob(Job):
    """Project the files of an experiment into MLflow."""

    experiment: str
    tracking: TrackingConfig
    calibration: str
    results: Path
    summary: Path
    headline: Path
    records: tuple[Path, ...]
    timings: tuple[Path, ...]
    profiles: dict[str, Path]
    measurements: tuple[Path, ...] = Field(description="of `baklava measure`, each of which may be missing")
    budgets: tuple[Path, ...]
    figures: Path
    output: Path
    rebuild: bool = Field(default=False, description="make all runs again, not only those that changed")

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths) -> TrackJob:
        return cls(
            experiment=config.name,
            tracking=config.tracking,
            calibration=config.calibration.name,
            results=config.results,
            summary=paths.summary_parquet,
            headline=paths.headline,
            records=all_records(config, paths),
            timings=all_timings(config, paths),
            profiles={model: paths.profile(model) for model in config.models},
            measurements=tuple(paths.measurements(model) for model in config.models),
            budgets=all_budgets(config, paths),
            figures=paths.figures,
            output=paths.tracked,
        )


def _result_files(config: ExperimentConfig, paths: ExperimentPaths) -> dict[str, Any]:
    return {
        "summary": paths.summary_parquet,
        "headline": paths.headline,
        "profiles": {model: paths.profile(model) for model in config.models},
        "budgets": all_budgets(config, paths),
        "measurements": {model: paths.measurements(model) for model in config.models if config.measure.enabled},
        "needle_grids": {
            model: {task: paths.records(model, task) for task in config.needle_grids} for model in config.models
        },
    }
