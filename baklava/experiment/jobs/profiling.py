"""The jobs of `profile` and `curves`."""

from __future__ import annotations

from pathlib import Path

from baklava.experiment.components import EvictionConfig, ModelConfig
from baklava.experiment.jobs.base import Job, without_template
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.settings import CurvesConfig, ProfileConfig


class ProfileJob(Job):
    """Estimate the importance of every KV cache in one prefill per prompt."""

    axes = ("model",)
    usage_beside = "output"

    model: ModelConfig
    profile: ProfileConfig
    prompts: Path
    output: Path

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths, model: str) -> ProfileJob:
        return cls(
            model=without_template(config.models[model]),
            profile=config.profile,
            prompts=paths.prompts(model),
            output=paths.profile(model),
        )


class CurvesJob(Job):
    """Measure how the loss rises as each KV cache alone keeps less, under one eviction policy."""

    axes = ("model", "eviction")
    usage_beside = "output"

    model: ModelConfig
    eviction: EvictionConfig
    curves: CurvesConfig
    prompts: Path
    output: Path

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths, model: str, eviction: str) -> CurvesJob:
        return cls(
            model=without_template(config.models[model]),
            eviction=config.evictions[eviction],
            curves=config.curves,
            prompts=paths.prompts(model),
            output=paths.curves(model, eviction),
        )
