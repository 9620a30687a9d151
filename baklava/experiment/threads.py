"""How many threads each job of a stage computes with, so that no core of a machine is idle."""

from __future__ import annotations

import math

from baklava.experiment.jobs.base import AXES
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.stages import STAGES


def threads_of(stage: str, config: ExperimentConfig, cores: int) -> int:
    """The number set in `resources`, else an equal part of the cores where a stage has fewer jobs than there are cores.

    It depends on the experiment and the machine, not on what happens to run: sums in float32 depend on the number of
    threads, in their last digits.
    """
    return config.resources_of(stage).threads or max(1, cores // max(1, _count_jobs(stage, config)))


def _count_jobs(stage: str, config: ExperimentConfig) -> int:
    """The number of a stage's jobs that take time: of allocators, only those that search do."""
    if stage == "allocate":
        return len(config.searches)
    return math.prod(len(list(AXES[axis](config))) for axis in STAGES[stage].job_class.axes)
