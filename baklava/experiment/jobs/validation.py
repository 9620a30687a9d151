"""The job of `validate`."""

from __future__ import annotations

from pathlib import Path

from baklava.experiment.components import CalibrationConfig, EvictionConfig, ModelConfig
from baklava.experiment.jobs.base import Job, MethodBudgets, compressed_cells, without_template
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.settings import ProfileConfig, ValidateConfig

VALIDATION = ("consistency", "ranking", "policies", "regret")  # tables of a validation, each with a figure


class ValidateJob(Job):
    """How far the profile of a model can be relied on, and how well each estimator ranks its KV caches.

    Figures lie beside the tables.
    """

    axes = ("model",)
    usage_beside = "regret"

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
    policies: Path
    regret: Path

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths, model: str) -> ValidateJob:
        ranked = {name: choice for name, choice in config.evictions.items() if not choice.build().ignores_budgets}
        return cls(
            model=without_template(config.models[model]),
            settings=config.validation,
            calibration=config.calibration,
            profiling=config.profile,
            batch_rows=config.search.batch_rows,
            evictions=ranked,
            prompts=paths.prompts(model),
            profile=paths.profile(model),
            curves={eviction: paths.curves(model, eviction) for eviction in ranked},
            cells=tuple(cell for cell in compressed_cells(config, paths, model) if cell.eviction in ranked),
            **{table: paths.validation(model, table) for table in VALIDATION},
        )
