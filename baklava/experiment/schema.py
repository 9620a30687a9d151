"""The typed configuration of an experiment; pydantic checks it before any work starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from baklava.experiment.components import (
    AllocatorConfig,
    CalibrationConfig,
    EvictionConfig,
    ModelConfig,
    TaskConfig,
)
from baklava.experiment.fields import FrozenModel, Name, NamedByKeys, Ratio
from baklava.experiment.old_names import under_new_names
from baklava.experiment.paths import ratio_name
from baklava.experiment.settings import (
    ClaimsConfig,
    CurvesConfig,
    EvaluateConfig,
    JobResources,
    MeasureConfig,
    PlanConfig,
    ProfileConfig,
    SearchConfig,
    SummaryConfig,
    TrackingConfig,
    ValidateConfig,
)
from baklava.experiment.stages import STAGES
from baklava.system.files import expand_home
from baklava.tasks.ruler.needle_grid import NeedleGrid


def _of_stages(resources: dict[str, JobResources]) -> dict[str, JobResources]:
    for stage in resources:
        if stage not in STAGES:
            raise ValueError(f"{stage}: no stage is called so; known: {', '.join(STAGES)}")
    return resources


def _distinct(ratios: tuple[float, ...]) -> tuple[float, ...]:
    names = [ratio_name(ratio) for ratio in ratios]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"each ratio may occur once (to 6 digits, as in file names); {', '.join(twice)} occurs again")
    if not ratios:
        raise ValueError("at least one ratio is needed")
    return tuple(sorted(ratios))


def _ready(group: dict[str, Any]) -> dict[str, Any]:
    for choice in group.values():
        choice.build().check()
    return group


def _local(path: Any) -> Any:
    if isinstance(path, str) and "://" in path:
        raise ValueError(f"{path} is an address; give a folder of this machine")
    return path


class ExperimentConfig(FrozenModel):
    """One experiment: models x tasks x (allocators x eviction policies) x ratios."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: Name
    results: Annotated[Path, BeforeValidator(_local), AfterValidator(expand_home)] = Path("results")
    models: Annotated[dict[Name, ModelConfig], NamedByKeys] = Field(min_length=1)
    tasks: Annotated[dict[Name, TaskConfig], NamedByKeys, AfterValidator(_ready)] = Field(min_length=1)
    allocators: Annotated[dict[Name, AllocatorConfig], NamedByKeys, AfterValidator(_ready)] = Field(min_length=1)
    evictions: Annotated[dict[Name, EvictionConfig], NamedByKeys] = Field(min_length=1)
    ratios: Annotated[tuple[Ratio, ...], AfterValidator(_distinct)]
    calibration: CalibrationConfig
    profile: ProfileConfig
    curves: CurvesConfig
    search: SearchConfig
    evaluate: EvaluateConfig
    measure: MeasureConfig
    summary: SummaryConfig
    claims: ClaimsConfig
    validation: ValidateConfig = Field(alias="validate")  # pydantic has a `validate` of its own
    resources: Annotated[dict[str, JobResources], BeforeValidator(under_new_names), AfterValidator(_of_stages)]
    plan: PlanConfig
    tracking: TrackingConfig

    @model_validator(mode="after")
    def _check_validation(self) -> ExperimentConfig:
        text = self.calibration.text
        if self.validation.enabled and text is not None:
            short = [length for length in self.validation.lengths if length < 2 * text.continuation]
            if short:
                raise ValueError(
                    f"validate.lengths: {min(short)} tokens are less than twice calibration.text.continuation, "
                    f"{text.continuation}"
                )
        return self

    @model_validator(mode="after")
    def _check_compress_above(self) -> ExperimentConfig:
        length, above = self.evaluate.length, self.evaluate.compress_above
        if self.compressed_ratios and length <= above:
            raise ValueError(
                f"evaluate.length: contexts of at most {above} tokens are kept whole (evaluate.compress_above), so "
                f"with {length} tokens a sample nothing would be compressed; raise it, or set evaluate.compress_above=0"
            )
        return self

    @model_validator(mode="after")
    def _check_decoding(self) -> ExperimentConfig:
        for name, choice in self.evictions.items():
            if choice.build().rescores_every is None:
                continue
            if self.evaluate.decoding == "grow":
                raise ValueError(
                    f"evaluate.decoding: {name} evicts while the model writes, and a cache that grows evicts nothing; "
                    "set evaluate.decoding=fixed"
                )
            for allocator, config in self.allocators.items():
                if key := config.build().quantises:
                    raise ValueError(
                        f"allocators.{allocator}.{key}: {name} scores what KV caches hold while the model writes, "
                        f"which must not be quantised; leave {key} or {name} out"
                    )
        return self

    @model_validator(mode="after")
    def _check_claims(self) -> ExperimentConfig:
        if not self.claims.enabled:
            return self
        for key in ("allocator", "yardstick"):
            name = getattr(self.claims, key)
            if name is not None and name not in self.allocators:
                raise ValueError(f"claims.{key}: {name!r} is none of the allocators ({', '.join(self.allocators)})")
        evaluated = set(methods(self))
        for eviction in self.claims.evictions:
            if eviction in self.evictions and (self.claims.allocator, eviction) not in evaluated:
                raise ValueError(
                    f"claims.evictions: {eviction} ignores budgets, so {self.claims.allocator} cannot be better with it"
                )
        return self

    @property
    def compressed_ratios(self) -> tuple[float, ...]:
        """Ratios that remove something; the full cache is always evaluated too."""
        return tuple(ratio for ratio in self.ratios if ratio > 0)

    def resources_of(self, stage: str) -> JobResources:
        """What the stage's jobs ask of a cluster, by default where `resources` has no entry for it."""
        return self.resources.get(stage, JobResources())

    @property
    def needle_grids(self) -> tuple[str, ...]:
        """Tasks whose scores make a heat map over depth and length."""
        return tuple(name for name, task in self.tasks.items() if task.family == NeedleGrid.family)

    @property
    def searches(self) -> list[tuple[str, str, str]]:
        """Every search that leaves a trace, as (model, allocator, eviction policy)."""
        if not self.compressed_ratios:
            return []
        searched = [method for method in methods(self) if self.allocators[method[0]].build().searches]
        return [(model, *method) for model in self.models for method in searched]

    @property
    def mapping_searches(self) -> list[tuple[str, str, str]]:
        """Those among the searches that pick the parameters of a mapping."""
        return [search for search in self.searches if self.allocators[search[1]].build().searches_mappings]


def methods(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    """Every method as (allocator, eviction policy).

    A policy that ignores budgets comes once, if there is one with the allocator `uniform`, and with allocators that
    quantise.
    """
    built = {name: allocator.build() for name, allocator in config.allocators.items()}
    sums = [name for name, allocator in built.items() if not allocator.quantises]  # nothing but a sum to keep
    one = min(sums, key=lambda name: (name != "uniform", built[name].page > 1, built[name].searches), default=None)
    once = {name for name, eviction in config.evictions.items() if eviction.build().ignores_budgets}
    for allocator in config.allocators:
        for eviction in config.evictions:
            if allocator == one or allocator not in sums or eviction not in once:
                yield allocator, eviction
