"""The job of `allocate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from baklava.experiment.components import AllocatorConfig, EvictionConfig, ModelConfig
from baklava.experiment.jobs.base import Job, without_template
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig, methods
from baklava.experiment.settings import SearchConfig


class AllocateJob(Job):
    """Turn a profile into budgets, for all ratios of one method; `curves` is set where its allocator needs them."""

    axes = ("model", "allocator", "eviction")
    usage_beside = "trace"

    model: ModelConfig
    allocator: AllocatorConfig
    eviction: EvictionConfig
    search: SearchConfig
    prompts: Path
    profile: Path
    curves: Path | None
    budgets: dict[float, Path]
    trace: Path
    losses: Path
    cost: Path

    @classmethod
    def of(
        cls, config: ExperimentConfig, paths: ExperimentPaths, model: str, allocator: str, eviction: str
    ) -> AllocateJob:
        return cls(
            model=without_template(config.models[model]),
            allocator=config.allocators[allocator],
            eviction=config.evictions[eviction],
            search=config.search,
            prompts=paths.prompts(model),
            profile=paths.profile(model),
            curves=paths.curves(model, eviction) if config.allocators[allocator].build().needs_curves else None,
            budgets={ratio: paths.budgets(model, allocator, eviction, ratio) for ratio in config.compressed_ratios},
            trace=paths.search_trace(model, allocator, eviction),
            losses=paths.search_losses(model, allocator, eviction),
            cost=paths.search_cost(model, allocator, eviction),
        )

    @classmethod
    def all(cls, config: ExperimentConfig, paths: ExperimentPaths) -> Iterator[AllocateJob]:
        return (cls.of(config, paths, model, *method) for model in config.models for method in methods(config))
