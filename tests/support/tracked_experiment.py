"""A synthetic experiment with all files that tracking reads, and readers of what MLflow then holds."""

from __future__ import annotations

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from synthetic_results import (
    EVICTION,
    MODELS,
    RATIOS,
    cell_records,
    write_budgets,
    write_profiles,
    write_records,
    write_timings,
)

from baklava.analysis.summary import summarize
from baklava.experiment.jobs import SummarizeJob, TrackJob
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.settings import SummaryConfig, TrackingConfig

RATIO = RATIOS[1]
FIGURES = (
    "score_vs_ratio",
    *(name.format(model) for name in ("importance_{}", "budgets_{}", "score_vs_ratio/{}/vt") for model in MODELS),
)


def small_records() -> pd.DataFrame:
    """Make records of 2 models x 1 task x (full, uniform, baklava)."""
    frames = []
    for model in MODELS:
        frames.append(cell_records([1, 1, 1, 0], model=model))
        for allocator, scores in (("uniform", [0, 0, 1, 0]), ("baklava", [1, 0, 1, 0])):
            frames.append(cell_records(scores, model=model, allocator=allocator, ratio=RATIO))
    return pd.concat(frames, ignore_index=True)


def write_summary(layout: ExperimentPaths, records: pd.DataFrame) -> None:
    """Write records, timings and their summary."""
    groups = list(records.groupby(["model", "task"]))
    summarize(
        SummarizeJob(
            summary=SummaryConfig(n_bootstrap=100),
            records=tuple(write_records(layout.records(*key), rows) for key, rows in groups),
            timings=tuple(write_timings(layout.timings(*key), rows) for key, rows in groups),
            timings_csv=layout.timings_csv,
            csv=layout.summary_csv,
            parquet=layout.summary_parquet,
            headline=layout.headline,
        )
    )


def write_finished(layout: ExperimentPaths, records: pd.DataFrame) -> None:
    """Write all files of a finished experiment that tracking requires."""
    write_summary(layout, records)
    write_budgets(layout)
    write_profiles(layout)
    for name in FIGURES:
        layout.figure(name).parent.mkdir(parents=True, exist_ok=True)
        layout.figure(name).write_text(f"<svg>{name}</svg>")


def job_of(
    layout: ExperimentPaths, *, ratios: tuple[float, ...] = (RATIO,), rebuild: bool = False, **tracking
) -> TrackJob:
    methods = [(model, allocator) for model in MODELS for allocator in ("uniform", "baklava")]
    found = sorted(layout.root.glob("records/*/*.parquet"))
    return TrackJob(
        experiment=layout.experiment,
        tracking=TrackingConfig(**tracking),
        calibration="ruler",
        results=layout.results,
        summary=layout.summary_parquet,
        headline=layout.headline,
        records=tuple(found),
        timings=tuple(layout.timings(path.parent.name, path.stem) for path in found),
        profiles={model: layout.profile(model) for model in MODELS},
        measurements=tuple(layout.measurements(model) for model in MODELS),
        budgets=tuple(layout.budgets(*method, EVICTION, ratio) for method in methods for ratio in ratios),
        figures=layout.figures,
        output=layout.tracked,
        rebuild=rebuild,
    )


def client_of(layout: ExperimentPaths) -> MlflowClient:
    return MlflowClient(f"sqlite:///{layout.results / 'mlflow.db'}")


def runs_in(layout: ExperimentPaths, stage: str | None = None, *, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    client = client_of(layout)
    experiment = client.get_experiment_by_name(f"baklava/{layout.experiment}").experiment_id
    return list(client.search_runs([experiment], f"tags.stage = '{stage}'" if stage else "", view))


def ids(runs: list[Run]) -> set[str]:
    return {run.info.run_id for run in runs}


def cell(layout: ExperimentPaths, **params: str) -> Run:
    found = [run for run in runs_in(layout, "evaluate") if params.items() <= run.data.params.items()]
    assert len(found) == 1
    return found[0]


def parent(layout: ExperimentPaths, model: str) -> Run:
    found = [run for run in runs_in(layout, "summarize") if run.data.params["model"] == model]
    assert len(found) == 1
    return found[0]
