"""What a job is: the slice of the configuration that a stage depends on, and the paths of its files.

The workflow passes a job as a file (`baklava profile --job FILE`) that is named after its content, so a rule depends on
nothing but its slice;
the command line makes the same jobs from Hydra overrides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Self

from baklava.experiment.components import ModelConfig
from baklava.experiment.fields import FrozenModel
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig, methods
from baklava.system.files import atomic
from baklava.system.fingerprint import fingerprint

# What a stage may have one job for each of; in the workflow, the wildcards of its rule.
AXES: dict[str, Callable[[ExperimentConfig], Iterable[Any]]] = {
    "model": lambda config: config.models,
    "task": lambda config: config.tasks,
    "allocator": lambda config: config.allocators,
    "eviction": lambda config: config.evictions,
    "shard": lambda config: range(config.evaluate.shards),
}


class Job(FrozenModel):
    """One job of a stage. A subclass declares its fields, its axes, and `of`, which fills the fields in."""

    # The stage has one job per combination of their values; `of` takes one value of each, in this order.
    axes: ClassVar[tuple[str, ...]] = ()
    # Of a stage that loads a model: the field with the output beside which the use of the machine is recorded.
    usage_beside: ClassVar[str | None] = None

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths, *args: Any, **kwargs: Any) -> Self:
        raise NotImplementedError

    @classmethod
    def all(cls, config: ExperimentConfig, paths: ExperimentPaths) -> Iterator[Self]:
        """All jobs that the stage has in an experiment."""
        return (cls.of(config, paths, *values) for values in product(*(AXES[axis](config) for axis in cls.axes)))

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.model_dump_json())[:12]

    def save(self, path: Path) -> None:
        """Write the job to a file that `--job` takes."""
        with atomic(path) as unfinished:
            unfinished.write_text(f"{self.model_dump_json(indent=2)}\n", encoding="utf-8")

    @classmethod
    def loads_model(cls) -> bool:
        return cls.usage_beside is not None

    @classmethod
    def named(cls, config: ExperimentConfig, paths: ExperimentPaths, names: Mapping[str, str]) -> Self:
        """The job that a rule's wildcards name; an axis without a wildcard keeps the default of `of`."""
        return cls.of(config, paths, *(names[axis] for axis in cls.axes if axis in names))


class MethodBudgets(FrozenModel):
    """One compressed cell to evaluate: the budgets of a method at a ratio."""

    allocator: str
    eviction: str
    ratio: float
    path: Path


def without_template(model: ModelConfig) -> ModelConfig:
    """The model for stages that use no chat template: variables for one are no reason to run them again."""
    return model.model_copy(update={"chat_template_kwargs": {}})


def compressed_cells(config: ExperimentConfig, paths: ExperimentPaths, model: str) -> tuple[MethodBudgets, ...]:
    """Every method at every ratio that removes something."""
    return tuple(
        MethodBudgets(
            allocator=allocator, eviction=eviction, ratio=ratio, path=paths.budgets(model, allocator, eviction, ratio)
        )
        for allocator, eviction in methods(config)
        for ratio in config.compressed_ratios
    )


def all_budgets(config: ExperimentConfig, paths: ExperimentPaths) -> tuple[Path, ...]:
    return tuple(cell.path for model in config.models for cell in compressed_cells(config, paths, model))


def all_records(config: ExperimentConfig, paths: ExperimentPaths) -> tuple[Path, ...]:
    return tuple(paths.records(model, task) for model in config.models for task in config.tasks)


def all_timings(config: ExperimentConfig, paths: ExperimentPaths) -> tuple[Path, ...]:
    return tuple(paths.timings(model, task) for model in config.models for task in config.tasks)
