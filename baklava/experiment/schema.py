"""The typed configuration: Hydra composes it from `conf/`, pydantic checks it before any work starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from baklava.allocation import ALLOCATORS, Allocator
from baklava.errors import UserError
from baklava.eviction import POLICIES, EvictionPolicy
from baklava.experiment.chat_settings import DATE, Date, TemplateVariables
from baklava.experiment.choices import GROUPS, check_chosen_once, without_replaced
from baklava.experiment.old_names import under_new_names, with_new_names
from baklava.experiment.overrides import apply, as_text, named, readable
from baklava.experiment.paths import ratio_name
from baklava.experiment.stages import STAGES
from baklava.importance import ESTIMATORS
from baklava.system.files import expand_home
from baklava.tasks import FAMILIES, Task
from baklava.tasks.ruler.needle_grid import NeedleGrid

Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="also a folder name")]


class FrozenModel(BaseModel):
    """Settings that cannot be misspelt or changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def _named_by_keys(group: dict[str, Any]) -> dict[str, Any]:
    for key, choice in group.items():
        if choice.name != key:
            raise ValueError(f"{key}: its name must be {key!r} too, got {choice.name!r}")
    return group


NamedByKeys = AfterValidator(_named_by_keys)  # files carry the key, their rows the name


class ModelConfig(FrozenModel):
    """Which model, from where, in which arithmetic."""

    name: Name
    path: str = Field(description="`reference:NAME`, a local folder, or a Hugging Face hub id")
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU where there is one"
    )
    trust_remote_code: bool = False
    chat_template_kwargs: TemplateVariables = Field(
        default={}, description="variables for its chat template, e.g. enable_thinking: false"
    )


class _Family(FrozenModel):
    """A named choice with parameters, kept as a mapping and checked against the class that implements it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    family: str

    def _build(self, families: dict[str, type], kind: str, **given: Any) -> Any:
        if self.family not in families:
            raise ValueError(f"unknown {kind} {self.family!r}; known: {', '.join(sorted(families))}")
        return TypeAdapter(families[self.family]).validate_python({**given, **(self.model_extra or {})})


class TaskConfig(_Family):
    """A task: its family and its parameters."""

    name: Name

    @model_validator(mode="after")
    def _check(self) -> TaskConfig:
        self.build()
        return self

    def build(self) -> Task:
        return self._build(FAMILIES, "task family", name=self.name)


class AllocatorConfig(_Family):
    """An allocator: its family and its parameters."""

    name: Name

    @model_validator(mode="after")
    def _check(self) -> AllocatorConfig:
        self.build()
        return self

    def build(self) -> Allocator:
        return self._build(ALLOCATORS, "allocator", name=self.name)


class EvictionConfig(_Family):
    """An eviction policy: its family and its parameters."""

    name: Name

    @model_validator(mode="after")
    def _check(self) -> EvictionConfig:
        self.build()
        return self

    def build(self) -> EvictionPolicy:
        return self._build(POLICIES, "eviction policy")


class TextConfig(FrozenModel):
    """Plain text as calibration prompts: the end of each piece is held back as the continuation of its context.

    The tokens that need the context are those whose loss rises most without it: where only the first `sinks` tokens
    and the last part `window` of the prompt's length are left of it.
    """

    name: Name
    data: str = Field(description="a text or JSONL file, a folder of text files, or a path for `datasets`")
    data_name: str | None = None
    data_split: str = "train"
    data_revision: str | None = None
    field: str = Field(default="text", description="of each row of a JSONL file or data set")
    continuation: int = Field(default=256, ge=16, description="tokens held back at the end of each prompt")
    look_back: float = Field(default=0.1, gt=0, le=1, description="part of them that counts as needing the context")
    sinks: int = Field(default=4, ge=0)
    window: float = Field(default=0.1, gt=0, le=1)


class CalibrationConfig(FrozenModel):
    """Prompts with known continuations: the first `n_profile` are profiled, the rest guide the search.

    They come from tasks, from plain text, or from both by turns.
    """

    name: Name
    tasks: tuple[TaskConfig, ...] = Field(description="may be empty where there is a text")
    text: TextConfig | None = None
    length: int = Field(ge=64, description="tokens per prompt, generated ones included")
    n_profile: int = Field(ge=1)
    n_search: int = Field(ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> CalibrationConfig:
        if not self.tasks and self.text is None:
            raise ValueError("at least one of tasks or a text is needed")
        if self.text is not None and 2 * self.text.continuation > self.length:
            raise ValueError(
                f"text.continuation: {self.text.continuation} tokens leave less than half of length {self.length} "
                "as context; lower it or raise the length"
            )
        return self

    @property
    def needs_model(self) -> bool:
        """Whether the prompts take more than a tokenizer: which tokens of a text need the context, the model says."""
        return self.text is not None


class ProfileConfig(FrozenModel):
    """What one pass over the calibration prompts records."""

    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    skip_first: int = Field(default=4, ge=0, description="positions at the start that enter no average")
    sinks: int = Field(default=4, ge=0, description="first entries that the simulated eviction keeps")
    window: float = Field(default=0.1, gt=0, le=1, description="recent part of the prompt that it keeps")
    seed: int = Field(default=0, ge=0, description="of the control `random`")

    @model_validator(mode="after")
    def _check(self) -> ProfileConfig:
        unknown = sorted(set(self.estimators) - set(ESTIMATORS))
        if unknown or not self.estimators:
            raise ValueError(f"estimators: unknown or none {unknown}; known: {', '.join(ESTIMATORS)}")
        return self


def _levels(levels: tuple[float, ...]) -> tuple[float, ...]:
    if not levels or levels[0] != 0 or list(levels) != sorted(set(levels)):
        raise ValueError("levels must begin with 0 and rise")
    return levels


class CurvesConfig(FrozenModel):
    """How the loss rises as each KV cache alone keeps less."""

    levels: Annotated[tuple[Ratio, ...], AfterValidator(_levels)] = Field(
        default=(0.0, 0.02, 0.05, 0.1, 0.25, 0.5), description="parts of the context that the one KV cache keeps"
    )
    batch_rows: int = Field(default=32, ge=1, description="KV caches and levels that replay a continuation together")


class SearchConfig(FrozenModel):
    """The parameter search of the `baklava` allocator."""

    n_rounds: int = Field(default=8, ge=1, description="each tries 8 mappings per ratio, and learns from those before")
    batch_rows: int = Field(default=32, ge=1, description="mappings that replay a continuation together")
    memory_gib: float | None = Field(
        default=None, ge=0, description="for contexts that are kept, not read again; null: half of what is free"
    )
    seed: int = Field(default=0, ge=0)

    @property
    def memory(self) -> float | None:
        """The same in bytes."""
        return None if self.memory_gib is None else self.memory_gib * 2**30


class EvaluateConfig(FrozenModel):
    """Samples, protocol and batch size of an evaluation."""

    n_samples: int = Field(ge=1)
    length: int = Field(ge=64, description="tokens per sample, generated ones included")
    seed: int = 0
    protocol: Literal["question_agnostic", "question_aware"] = "question_agnostic"
    chat_template: bool = Field(default=True, description="where the tokenizer has one and the task wants it")
    date: Date = Field(default=DATE, description="told to chat templates that write today's date")
    batch_rows: int = Field(default=128, ge=1, description="rows (cells of one sample or of several) decoded together")
    memory_gib: float | None = Field(
        default=None, gt=0, description="memory for the KV of these rows; null: half of what is free"
    )
    prefill_chunk: int | None = Field(
        default=None,
        ge=1,
        description="tokens of a context that are read at a time; null: all, or fewer where memory runs out",
    )
    shards: int = Field(default=1, ge=1, description="jobs over which the workflow spreads the samples")


class MeasureConfig(FrozenModel):
    """Memory and speed of every cell by itself."""

    enabled: bool = Field(default=False, description="whether the workflow measures; `baklava measure` always does")
    context: int = Field(default=1024, ge=1, description="tokens of each context")
    batch: int = Field(default=1, ge=1)
    tokens: int = Field(default=32, ge=1, description="new tokens")
    repeats: int = Field(default=3, ge=1)
    seed: int = 0


class SummaryConfig(FrozenModel):
    """Statistics of the summary."""

    n_bootstrap: int = Field(default=2000, ge=100)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    margin: float = Field(default=0.02, ge=0, description="loss of score that still counts as lossless")
    seed: int = 0


class ValidateConfig(FrozenModel):
    """How far a profile can be relied on, and how well each estimator ranks."""

    enabled: bool = Field(default=False, description="whether the workflow validates; `baklava validate` always does")
    calibrations: Annotated[dict[Name, CalibrationConfig], NamedByKeys] = Field(
        default={}, description="sets that are compared, at the length of the experiment's own"
    )
    lengths: tuple[Annotated[int, Field(ge=64)], ...] = Field(
        default=(512, 1024, 2048), description="of the experiment's own set, compared; in tokens"
    )
    n_prompts: int = Field(default=4, ge=1, description="of each set and length")
    top: float = Field(default=0.3, gt=0, le=1, description="part of the KV caches that counts as the most important")


class ClaimsConfig(FrozenModel):
    """Criteria that an allocator is held to, per model, on the mean of the tasks; lossless is as in the summary."""

    enabled: bool = Field(default=False, description="whether the workflow evaluates them; the command always does")
    allocator: Name = Field(default="baklava", description="the allocator under test")
    yardstick: Name | None = Field(default=None, description="the reference allocator to which its gap is shown")
    evictions: tuple[Name, ...] = Field(default=("streaming_llm",), description="with which it is lossless and gains")
    lossless_at: tuple[Ratio, ...] = (0.7,)
    gain_at: dict[Ratio, float] = Field(default={0.8: 4.0}, description="least score / uniform's score, per ratio")
    gain_up_to: dict[Ratio, float] = Field(default={0.95: 10.0}, description="the same, at some ratio up to this one")
    no_worse_at: tuple[Ratio, ...] = Field(default=(0.5, 0.7, 0.8), description="than all others, for all evictions")
    no_worse_margin: float = Field(default=0.01, ge=0, description="loss of score that counts as no worse")


def _n_bytes(value: Any) -> Any:
    """A size like 24GiB or 800MB in bytes; other values are left to the schema."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B|B)\s*", value)
    if match is None:
        raise ValueError(f"expected a size such as 24GiB or 800MB, got {value!r}")
    number, prefix, binary = match.groups()
    return round(float(number) * (1024 if binary else 1000) ** (" KMGT".index(prefix or " ")))


Bytes = Annotated[int, BeforeValidator(_n_bytes), Field(ge=0)]


class JobResources(FrozenModel):
    """What a job of the workflow asks for. A cluster grants and enforces it, a workstation does not look."""

    mem_mb: int = Field(default=32000, ge=1, description="main memory; the n-th attempt asks for n times as much")
    runtime: int = Field(default=240, ge=1, description="minutes")


def _of_stages(resources: dict[str, JobResources]) -> dict[str, JobResources]:
    for stage in resources:
        if stage not in STAGES:
            raise ValueError(f"{stage}: no stage is called so; known: {', '.join(STAGES)}")
    return resources


class PlanConfig(FrozenModel):
    """A memory cap, and what has to fit under it (`baklava plan`)."""

    gpu_memory: Annotated[Bytes, Field(ge=2**20)] | None = Field(default=None, description="none: that of the device")
    context: int = Field(default=32768, ge=1, description="tokens per sequence that are compressed")
    new_tokens: int = Field(default=256, ge=0, description="tokens per sequence after them, which are not")
    batch: int = Field(default=1, ge=1, description="sequences at once")
    prefill_rows: int = Field(default=1, ge=1, description="sequences whose contexts are read together")
    prefill_chunk: int = Field(default=1024, ge=1, description="tokens, where reading in chunks takes less than a pass")
    reserve: Bytes = Field(default="1GiB", validate_default=True, description="for the device and its allocator")
    largest_ratio: Ratio = 0.95
    allocator: Name | None = Field(default=None, description="which one of `allocators` writes budgets")


def _without_password(uri: str) -> str:
    if urlsplit(uri).password is not None or "password" in urlsplit(uri).query:
        raise ValueError("holds a password, and settings are kept in files; set the variable MLFLOW_TRACKING_URI")
    return uri


class TrackingConfig(FrozenModel):
    """Where MLflow keeps the runs."""

    enabled: bool = True
    uri: Annotated[str, AfterValidator(_without_password)] = Field(
        default="", description="MLflow tracking URI; empty: an SQLite file in the results folder"
    )


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
    def _check_claims(self) -> ExperimentConfig:
        for key in ("allocator", "yardstick"):
            name = getattr(self.claims, key)
            if self.claims.enabled and name is not None and name not in self.allocators:
                raise ValueError(f"claims.{key}: {name!r} is none of the allocators ({', '.join(self.allocators)})")
        return self

    @property
    def compressed_ratios(self) -> tuple[float, ...]:
        """Ratios that remove something; the full cache is always evaluated besides."""
        return tuple(ratio for ratio in self.ratios if ratio > 0)

    def resources_of(self, stage: str) -> JobResources:
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


def conf_folder() -> Path:
    """The Hydra configuration: `conf/` of the current folder, else the one that came with the package."""
    package = Path(__file__).resolve().parent.parent
    for folder in (Path.cwd() / "conf", package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(
        "no configuration: neither ./conf/config.yaml nor the package's own conf/ is there; run from the repository"
    )


SECTIONS = (*GROUPS, "validate.calibrations")  # mappings of names, which may hold dots
_NO_TEXT = ("string_type", "path_type")  # what pydantic says of another value where a text belongs


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("Config search path")[0].split()) or type(error).__name__


def check(model: type[FrozenModel], values: Any, *, source: str) -> Any:
    """`values` as `model`; the first thing wrong with them becomes a one-line `UserError`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top level)"
        if first["type"] == "missing" and key in GROUPS:
            raise UserError(f"{source}: {key}: none chosen; choose one with {GROUPS[key]}=NAME") from None
        given = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
        if first["type"] in _NO_TEXT:
            given += "; put quotes around a text that looks like a number, true or null"
        more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise UserError(f"{source}: {key}: {first['msg'].removeprefix('Value error, ')}{given}{more}") from None


def compose(overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Compose `conf/` with Hydra overrides and check it. Raises `UserError` that names the key."""
    check_chosen_once(overrides)
    overrides = with_new_names(overrides)
    folder = conf_folder()
    values = without_replaced(_compose(folder, "config", overrides), overrides)
    texts = _with_texts(overrides, values)
    if texts != list(overrides):
        values = without_replaced(_compose(folder, "config", texts), texts)
    return check(ExperimentConfig, values, source="config")


def _with_texts(overrides: Sequence[str], values: Any) -> list[str]:
    """The overrides with quotes around what looks like a number, a truth value or null where a text belongs."""
    texts = list(overrides)
    try:
        ExperimentConfig.model_validate(values)
    except ValidationError as error:
        for one in error.errors():
            if one["type"] in _NO_TEXT:
                *keys, last = one["loc"]
                item = last if isinstance(last, int) else None
                texts = as_text(texts, ".".join(map(str, keys if item is not None else one["loc"])), item)
    return texts


def compose_task(name: str) -> TaskConfig:
    """The task of `conf/task/<name>.yaml`. Raises `UserError` for an unknown one."""
    folder = conf_folder()
    known = sorted(
        path.relative_to(folder / "task").with_suffix("").as_posix() for path in (folder / "task").rglob("*.yaml")
    )
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.5) or known
        raise UserError(f"no task {name!r} in {folder / 'task'}; try {', '.join(near)}")
    [values] = _compose(folder, f"task/{name}", ())["tasks"].values()
    return check(TaskConfig, values, source=f"task {name}")


def compose_training(model: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The training recipe of a reference model as plain values. Raises `UserError` for an unknown model or key."""
    folder = conf_folder() / "training"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if model not in known:
        raise UserError(f"no training recipe for {model!r}; known: {', '.join(known)}")
    return _compose(folder, model, overrides)


def _compose(folder: Path, name: str, overrides: Sequence[str]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import GrammarParseError, InterpolationResolutionError

    GlobalHydra.instance().clear()
    overrides, of_names = named(readable(overrides, folder), SECTIONS)
    try:
        with initialize_config_dir(str(folder), version_base="1.3", job_name="baklava"):
            composed = hydra_compose(name, overrides=overrides)
        for override in of_names:
            apply(override, composed, SECTIONS)
        return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OverrideParseException as error:
        raise UserError(f"config: {error.override}: {_first_line(error)}") from None
    except Exception as error:  # odd overrides make Hydra fail in all manner of ways, assertions among them
        hint = ""
        if isinstance(error.__cause__ or error, GrammarParseError | InterpolationResolutionError):
            hint = "; write \\${ for ${ where no other value is meant"
        elif "value in defaults" in str(error):
            hint = "; put quotes around a choice that looks like a number"
        raise UserError(f"config ({folder}): {_first_line(error)}{hint}") from None


def methods(groups: ExperimentConfig) -> Iterator[tuple[str, str]]:
    """Every method as (allocator, eviction policy)."""
    for allocator in groups.allocators:
        for eviction in groups.evictions:
            yield allocator, eviction
