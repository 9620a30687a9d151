"""What each stage needs, as typed data: a slice of the configuration and the paths of its files.

The workflow passes a job as JSON (`baklava profile --job '{...}'`), so a rule depends on nothing but its slice;
the command line makes the same jobs from Hydra overrides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field

from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import (
    AllocatorConfig,
    CalibrationConfig,
    ClaimsConfig,
    CurvesConfig,
    EvaluateConfig,
    EvictionConfig,
    ExperimentConfig,
    FrozenModel,
    MeasureConfig,
    ModelConfig,
    ProfileConfig,
    SearchConfig,
    SummaryConfig,
    TaskConfig,
    TrackingConfig,
    ValidateConfig,
    methods,
)


def _without_template(model: ModelConfig) -> ModelConfig:
    """For stages that use no chat template: variables for it are no reason to do them again."""
    return model.model_copy(update={"chat_template_kwargs": {}})


class CalibrateJob(FrozenModel):
    """Write the calibration prompts in the model's tokens."""

    model: ModelConfig
    calibration: CalibrationConfig
    prompts: Path

    @classmethod
    def of(cls, config: ExperimentConfig, layout: ExperimentPaths, model: str) -> CalibrateJob:
        return cls(
            model=_without_template(config.models[model]), calibration=config.calibration, prompts=layout.prompts(model)
        )


class ProfileJob(FrozenModel):
    """Estimate the importance of every KV cache in one prefill per prompt."""

    model: ModelConfig
    profile: ProfileConfig
    prompts: Path
    output: Path

    @classmethod
    def of(cls, config: ExperimentConfig, layout: ExperimentPaths, model: str) -> ProfileJob:
        return cls(
            model=_without_template(config.models[model]),
            profile=config.profile,
            prompts=layout.prompts(model),
            output=layout.profile(model),
        )


class CurvesJob(FrozenModel):
    """Measure how the loss rises as each KV cache alone keeps less, under one eviction policy."""

    model: ModelConfig
    eviction: EvictionConfig
    curves: CurvesConfig
    prompts: Path
    output: Path

    @classmethod
    def of(cls, config: ExperimentConfig, layout: ExperimentPaths, model: str, eviction: str) -> CurvesJob:
        return cls(
            model=_without_template(config.models[model]),
            eviction=config.evictions[eviction],
            curves=config.curves,
            prompts=layout.prompts(model),
            output=layout.curves(model, eviction),
        )


class AllocateJob(FrozenModel):
    """Turn a profile into budgets, for all ratios of one method; `curves` are there where its allocator needs them."""

    model: ModelConfig
    allocator: AllocatorConfig
    eviction: EvictionConfig
    search: SearchConfig
    prompts: Path
    profile: Path
    curves: Path | None
    budgets: dict[float, Path]
    trace: Path
    study: Path
    cost: Path

    @classmethod
    def of(
        cls, config: ExperimentConfig, layout: ExperimentPaths, model: str, allocator: str, eviction: str
    ) -> AllocateJob:
        return cls(
            model=_without_template(config.models[model]),
            allocator=config.allocators[allocator],
            eviction=config.evictions[eviction],
            search=config.search,
            prompts=layout.prompts(model),
            profile=layout.profile(model),
            curves=layout.curves(model, eviction) if config.allocators[allocator].build().needs_curves else None,
            budgets={ratio: layout.budgets(model, allocator, eviction, ratio) for ratio in config.compressed_ratios},
            trace=layout.search_trace(model, allocator, eviction),
            study=layout.search_study(model, allocator, eviction),
            cost=layout.search_cost(model, allocator, eviction),
        )

    @property
    def losses(self) -> Path:
        """What refining its budgets has measured so far."""
        return self.study.with_suffix(".losses")


class MethodBudgets(FrozenModel):
    """One compressed cell to evaluate: the budgets of a method at a ratio."""

    allocator: str
    eviction: str
    ratio: float
    path: Path


class Shard(FrozenModel):
    """One of `of` parts of a task's samples, each a run of samples without gaps."""

    index: int = Field(default=0, ge=0)
    of: int = Field(default=1, ge=1)

    def __str__(self) -> str:
        return f"{self.index}-of-{self.of}"

    def samples(self, n_samples: int) -> range:
        """Numbers of the shard's samples; empty where there are fewer samples than shards."""
        return range(self.index * n_samples // self.of, (self.index + 1) * n_samples // self.of)


class EvaluateJob(FrozenModel):
    """Answer the samples of one task, or a part of them, with the full cache and with every method at every ratio."""

    model: ModelConfig
    task: TaskConfig
    evictions: dict[str, EvictionConfig]
    evaluate: EvaluateConfig
    cells: tuple[MethodBudgets, ...]
    store: Path
    shard: Shard = Shard()
    records: Path
    timings: Path

    @classmethod
    def of(
        cls, config: ExperimentConfig, layout: ExperimentPaths, model: str, task: str, index: int = 0
    ) -> EvaluateJob:
        """The job of a shard; where there is only one, of all samples."""
        shard = Shard(index=index, of=config.evaluate.shards)
        records, timings = layout.records(model, task), layout.timings(model, task)
        if shard.of > 1:
            records, timings = (layout.shard(whole, index, shard.of) for whole in (records, timings))
        return cls(
            model=config.models[model],
            task=config.tasks[task],
            evictions=config.evictions,
            evaluate=config.evaluate.model_copy(update={"shards": 1}),  # `shard` says it
            cells=_all_cells(config, layout, model),
            store=layout.store(model, task),
            shard=shard,
            records=records,
            timings=timings,
        )


class MergeJob(FrozenModel):
    """Put the records of all shards of one task together, and the timings."""

    records_of_shards: tuple[Path, ...]
    timings_of_shards: tuple[Path, ...]
    records: Path
    timings: Path

    @classmethod
    def of(cls, config: ExperimentConfig, layout: ExperimentPaths, model: str, task: str) -> MergeJob:
        shards = [EvaluateJob.of(config, layout, model, task, index) for index in range(config.evaluate.shards)]
        return cls(
            records_of_shards=tuple(shard.records for shard in shards),
            timings_of_shards=tuple(shard.timings for shard in shards),
            records=layout.records(model, task),
            timings=layout.timings(model, task),
        )


class MeasureJob(FrozenModel):
    """Memory and speed of the full cache and of every method at every ratio, one by one."""

    model: ModelConfig
    evictions: dict[str, EvictionConfig]
    measure: MeasureConfig
    cells: tuple[MethodBudgets, ...]
    output: Path

    @classmethod
    def of(cls, config: ExperimentConfig, layout: ExperimentPaths, model: str) -> MeasureJob:
        return cls(
            model=_without_template(config.models[model]),
            evictions=config.evictions,
            measure=config.measure,
            cells=_all_cells(config, layout, model),
            output=layout.measurements(model),
        )


VALIDATION = ("consistency", "ranking", "regret")  # tables of a validation, and the figures of each


class ValidateJob(FrozenModel):
    """How far the profile of a model can be relied on, and how well each estimator ranks its KV caches.

    Figures lie beside the tables.
    """

    model: ModelConfig
    settings: ValidateConfig
    calibration: CalibrationConfig
    profiling: ProfileConfig
    batch_rows: int
    evictions: dict[str, EvictionConfig]
    prompts: Path
    profile: Path
    curves: dict[str, Path]
    cells: tuple[MethodBudgets, ...]
    consistency: Path
    ranking: Path
    regret: Path

    @classmethod
    def of(cls, config: ExperimentConfig, layout: ExperimentPaths, model: str) -> ValidateJob:
        return cls(
            model=_without_template(config.models[model]),
            settings=config.validation,
            calibration=config.calibration,
            profiling=config.profile,
            batch_rows=config.search.batch_rows,
            evictions=config.evictions,
            prompts=layout.prompts(model),
            profile=layout.profile(model),
            curves={name: layout.curves(model, name) for name in config.evictions},
            cells=_all_cells(config, layout, model),
            **{what: layout.validation(model, what) for what in VALIDATION},
        )


class SummarizeJob(FrozenModel):
    """Records of all models and tasks to one row per cell, and the headline figures."""

    summary: SummaryConfig
    records: tuple[Path, ...]
    timings: tuple[Path, ...]
    csv: Path
    parquet: Path
    headline: Path
    timings_csv: Path

    @classmethod
    def of(cls, config: ExperimentConfig, layout: ExperimentPaths) -> SummarizeJob:
        return cls(
            summary=config.summary,
            records=_all_records(config, layout),
            timings=_all_timings(config, layout),
            csv=layout.summary_csv,
            parquet=layout.summary_parquet,
            headline=layout.headline,
            timings_csv=layout.timings_csv,
        )


class ClaimsJob(FrozenModel):
    """Every allocator beside the one whose claims are judged, and the bars."""

    claims: ClaimsConfig
    summary: SummaryConfig
    records: tuple[Path, ...]
    output: Path
    markdown: Path

    @classmethod
    def of(cls, config: ExperimentConfig, layout: ExperimentPaths) -> ClaimsJob:
        return cls(
            claims=config.claims,
            summary=config.summary,
            records=_all_records(config, layout),
            output=layout.claims,
            markdown=layout.claims.with_suffix(".md"),
        )


class ResultFiles(FrozenModel):
    """What both the figures and the page are drawn from.

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
    def of(cls, config: ExperimentConfig, layout: ExperimentPaths) -> ReportJob:
        traces = tuple(layout.search_trace(*one) for one in config.searches)
        return cls(**_result_files(config, layout), traces=traces, figures=layout.figures)


class PageJob(ResultFiles):
    """The interactive page, and the headline table as a page of its own."""

    experiment: str
    models: dict[str, ModelConfig]
    output: Path
    headline_table: Path

    @classmethod
    def of(cls, config: ExperimentConfig, layout: ExperimentPaths) -> PageJob:
        return cls(
            **_result_files(config, layout),
            experiment=config.name,
            models=config.models,
            output=layout.page,
            headline_table=layout.headline_table,
        )


class TrackJob(FrozenModel):
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
    def of(cls, config: ExperimentConfig, layout: ExperimentPaths) -> TrackJob:
        return cls(
            experiment=config.name,
            tracking=config.tracking,
            calibration=config.calibration.name,
            results=config.results,
            summary=layout.summary_parquet,
            headline=layout.headline,
            records=_all_records(config, layout),
            timings=_all_timings(config, layout),
            profiles={model: layout.profile(model) for model in config.models},
            measurements=tuple(layout.measurements(model) for model in config.models),
            budgets=_all_budgets(config, layout),
            figures=layout.figures,
            output=layout.tracked,
        )


def _all_cells(config: ExperimentConfig, layout: ExperimentPaths, model: str) -> tuple[MethodBudgets, ...]:
    """Every method at every ratio that removes something."""
    return tuple(
        MethodBudgets(
            allocator=allocator,
            eviction=eviction,
            ratio=ratio,
            path=layout.budgets(model, allocator, eviction, ratio),
        )
        for allocator, eviction in methods(config)
        for ratio in config.compressed_ratios
    )


def _result_files(config: ExperimentConfig, layout: ExperimentPaths) -> dict[str, Any]:
    return {
        "summary": layout.summary_parquet,
        "headline": layout.headline,
        "profiles": {model: layout.profile(model) for model in config.models},
        "budgets": _all_budgets(config, layout),
        "measurements": {model: layout.measurements(model) for model in config.models if config.measure.enabled},
        "needle_grids": {
            model: {task: layout.records(model, task) for task in config.needle_grids} for model in config.models
        },
    }


def _all_budgets(config: ExperimentConfig, layout: ExperimentPaths) -> tuple[Path, ...]:
    return tuple(cell.path for model in config.models for cell in _all_cells(config, layout, model))


def _all_records(config: ExperimentConfig, layout: ExperimentPaths) -> tuple[Path, ...]:
    return tuple(layout.records(model, task) for model in config.models for task in config.tasks)


def _all_timings(config: ExperimentConfig, layout: ExperimentPaths) -> tuple[Path, ...]:
    return tuple(layout.timings(model, task) for model in config.models for task in config.tasks)


Jobs = Callable[[ExperimentConfig, ExperimentPaths], Iterator[FrozenModel]]


def calibrate_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    yield from (CalibrateJob.of(config, layout, model) for model in config.models)


def profile_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    yield from (ProfileJob.of(config, layout, model) for model in config.models)


def curves_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    yield from (CurvesJob.of(config, layout, model, name) for model in config.models for name in config.evictions)


def allocate_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    yield from (AllocateJob.of(config, layout, model, *method) for model in config.models for method in methods(config))


def evaluate_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    every = product(config.models, config.tasks, range(config.evaluate.shards))
    yield from (EvaluateJob.of(config, layout, *one) for one in every)


def merge_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    if config.evaluate.shards > 1:
        yield from (MergeJob.of(config, layout, *one) for one in product(config.models, config.tasks))


def measure_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    yield from (MeasureJob.of(config, layout, model) for model in config.models)


def validate_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    yield from (ValidateJob.of(config, layout, model) for model in config.models)


def summarize_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    yield SummarizeJob.of(config, layout)


def claims_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    yield ClaimsJob.of(config, layout)


def report_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    yield ReportJob.of(config, layout)


def page_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    yield PageJob.of(config, layout)


def track_jobs(config: ExperimentConfig, layout: ExperimentPaths) -> Iterator[FrozenModel]:
    yield TrackJob.of(config, layout)
