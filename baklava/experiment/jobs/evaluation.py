"""The jobs of `evaluate`, `merge` and `measure`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from baklava.budgets import Decoding
from baklava.experiment.components import EvictionConfig, ModelConfig, TaskConfig
from baklava.experiment.fields import FrozenModel
from baklava.experiment.jobs.base import Job, MethodBudgets, compressed_cells, without_template
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.settings import EvaluateConfig, MeasureConfig


class Shard(FrozenModel):
    """One of `of` consecutive runs into which a task's samples are divided."""

    index: int = Field(default=0, ge=0)
    of: int = Field(default=1, ge=1)

    def __str__(self) -> str:
        return f"{self.index}-of-{self.of}"

    def samples(self, n_samples: int) -> range:
        """Indices of the shard's samples; empty where there are fewer samples than shards."""
        return range(self.index * n_samples // self.of, (self.index + 1) * n_samples // self.of)


class EvaluateJob(Job):
    """Answer the samples of one task, or of one shard, with the full cache and with every method at every ratio."""

    axes = ("model", "task", "shard")
    usage_beside = "records"

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
        cls, config: ExperimentConfig, paths: ExperimentPaths, model: str, task: str, index: int | str = 0
    ) -> EvaluateJob:
        """The job of one shard; with a single shard, of all samples."""
        shard = Shard(index=int(index), of=config.evaluate.shards)
        records, timings = paths.records(model, task), paths.timings(model, task)
        if shard.of > 1:
            records, timings = (paths.shard(path, shard.index, shard.of) for path in (records, timings))
        return cls(
            model=config.models[model],
            task=config.tasks[task],
            evictions=config.evictions,
            evaluate=config.evaluate.model_copy(update={"shards": 1}),  # `shard` holds their number
            cells=compressed_cells(config, paths, model),
            store=paths.store(model, task),
            shard=shard,
            records=records,
            timings=timings,
        )


class MergeJob(Job):
    """Put the records of all shards of one task together, and the timings."""

    axes = ("model", "task")

    records_of_shards: tuple[Path, ...]
    timings_of_shards: tuple[Path, ...]
    records: Path
    timings: Path

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths, model: str, task: str) -> MergeJob:
        shards = [EvaluateJob.of(config, paths, model, task, index) for index in range(config.evaluate.shards)]
        return cls(
            records_of_shards=tuple(shard.records for shard in shards),
            timings_of_shards=tuple(shard.timings for shard in shards),
            records=paths.records(model, task),
            timings=paths.timings(model, task),
        )

    @classmethod
    def all(cls, config: ExperimentConfig, paths: ExperimentPaths) -> Iterator[MergeJob]:
        """None where each task is answered in one job: there is nothing to merge."""
        return super().all(config, paths) if config.evaluate.shards > 1 else iter(())


class MeasureJob(Job):
    """Memory and speed of the full cache and of every method at every ratio, each on its own."""

    axes = ("model",)
    usage_beside = "output"

    model: ModelConfig
    evictions: dict[str, EvictionConfig]
    measure: MeasureConfig
    decoding: Decoding = Field(default="grow", exclude_if=lambda decoding: decoding == "grow")  # as before it existed
    cells: tuple[MethodBudgets, ...]
    output: Path

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths, model: str) -> MeasureJob:
        return cls(
            model=without_template(config.models[model]),
            evictions=config.evictions,
            measure=config.measure,
            decoding=config.evaluate.decoding,
            cells=compressed_cells(config, paths, model),
            output=paths.measurements(model),
        )
