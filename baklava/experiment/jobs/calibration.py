"""The job of `calibrate`."""

from __future__ import annotations

from pathlib import Path

from baklava.experiment.components import CalibrationConfig, ModelConfig
from baklava.experiment.jobs.base import Job, without_template
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig


class CalibrateJob(Job):
    """Write the calibration prompts in the model's tokens."""

    axes = ("model",)
    usage_beside = "prompts"

    model: ModelConfig
    calibration: CalibrationConfig
    prompts: Path

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths, model: str) -> CalibrateJob:
        return cls(
            model=without_template(config.models[model]), calibration=config.calibration, prompts=paths.prompts(model)
        )
