"""Settings of the stages, of the workflow's resources, of `baklava plan` and of MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from baklava.budgets import COMPRESS_ABOVE, Decoding
from baklava.experiment.chat_settings import DATE, Date
from baklava.experiment.components import CalibrationConfig, if_set
from baklava.experiment.fields import Bytes, FrozenModel, Name, NamedByKeys, Ratio, Tokens
from baklava.importance import ESTIMATORS, FROM_FILE, MODULES


class ProfileConfig(FrozenModel):
    """What a single pass over the calibration prompts records."""

    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    skip_first: int = Field(default=4, ge=0, description="positions at the start that enter no average")
    sinks: int = Field(default=4, ge=0, description="first entries that the simulated eviction keeps")
    window: float = Field(default=0.1, gt=0, le=1, description="fraction of the prompt, its end, that it keeps")
    seed: int = Field(default=0, ge=0, description="of the control `random`")
    scores: Path | None = if_set(default=None, description="scores of heads for the estimator `file`")

    @model_validator(mode="after")
    def _check(self) -> ProfileConfig:
        unknown = sorted(set(self.estimators) - set(MODULES))
        if unknown or not self.estimators:
            raise ValueError(f"estimators: unknown or none {unknown}; known: {', '.join(MODULES)}")
        if (FROM_FILE in self.estimators) != (self.scores is not None):
            raise ValueError(f"scores: a file is needed for the estimator {FROM_FILE!r}, and for it only")
        if self.scores is not None and not self.scores.is_file():
            raise ValueError(f"scores: no such file: {self.scores}")
        return self


def _levels(levels: tuple[float, ...]) -> tuple[float, ...]:
    if not levels or levels[0] != 0 or list(levels) != sorted(set(levels)):
        raise ValueError("levels must begin with 0 and rise")
    return levels


class CurvesConfig(FrozenModel):
    """How the loss rises as each KV cache alone keeps less."""

    levels: Annotated[tuple[Ratio, ...], AfterValidator(_levels)] = Field(
        default=(0.0, 0.02, 0.05, 0.1, 0.25, 0.5), description="shares of the context that the one KV cache keeps"
    )
    batch_rows: int = Field(
        default=32, ge=1, description="KV caches and levels whose continuation losses are measured together"
    )


# What a search lowers: the loss of answers, or the divergence from what the full cache would write.
Objective = Literal["loss", "divergence"]


class SearchConfig(FrozenModel):
    """The search of allocators that measure what an allocation loses."""

    objective: Objective = Field(
        default="divergence", description="of the calibration answers: from the full cache, or their loss"
    )
    n_rounds: int = Field(default=8, ge=1, description="each tries 8 mappings per ratio and learns from earlier ones")
    batch_rows: int = Field(default=32, ge=1, description="allocations whose continuations are read together")
    memory_gib: float | None = Field(
        default=None, ge=0, description="for contexts that are kept, not read again; null: half of what is free"
    )
    max_prefills: int | None = Field(
        default=None,
        ge=1,
        description="of its prompts that a search counts up to before it stops with what it has; null: no limit",
        exclude_if=lambda value: value is None,
    )
    seed: int = Field(default=0, ge=0)

    @property
    def memory(self) -> float | None:
        """The same in bytes."""
        return None if self.memory_gib is None else self.memory_gib * 2**30


# What is compressed: the context alone, or with its question; or the context alone, and questions about it come one
# after the other, with their answers, instead of each by itself.
Protocol = Literal["question_agnostic", "question_aware", "turns"]


class EvaluateConfig(FrozenModel):
    """Samples, protocol and batch size of an evaluation."""

    n_samples: int = Field(ge=1)
    length: Tokens = Field(ge=64, description="tokens per sample, generated ones included")
    seed: int = 0
    protocol: Protocol = "question_agnostic"
    decoding: Decoding = Field(
        default="grow",
        description="tokens after the context are added (grow), or overwrite the least important entries (fixed)",
    )
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
    compress_above: int = Field(
        default=COMPRESS_ABOVE, ge=0, description="tokens; contexts of at most so many are kept whole, as in the cache"
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
    """How far a profile can be relied on, and how well each estimator ranks the KV caches."""

    enabled: bool = Field(default=False, description="whether the workflow validates; `baklava validate` always does")
    calibrations: Annotated[dict[Name, CalibrationConfig], NamedByKeys] = Field(
        default={}, description="sets that are compared, at the length of the experiment's own"
    )
    lengths: tuple[Annotated[int, Field(ge=64)], ...] = Field(
        default=(512, 1024, 2048), description="of the experiment's own set, compared; in tokens"
    )
    n_prompts: int = Field(default=4, ge=1, description="of each set and length")
    top: float = Field(
        default=0.3, gt=0, le=1, description="fraction of the KV caches that counts as the most important"
    )


def _without_null(gains: Any) -> Any:
    """Leave out ratios that an experiment sets to null, as files are merged and cannot leave out one of another's."""
    return {key: gain for key, gain in gains.items() if gain is not None} if isinstance(gains, dict) else gains


Gains = Annotated[dict[Ratio, float], BeforeValidator(_without_null)]


class ClaimsConfig(FrozenModel):
    """Criteria that an allocator is held to, per model, on the mean of the tasks; lossless is as in the summary."""

    enabled: bool = Field(default=False, description="whether the workflow evaluates them; the command always does")
    allocator: Name = Field(default="baklava", description="the allocator under test")
    yardstick: Name | None = Field(default=None, description="the reference allocator to which its gap is shown")
    evictions: tuple[Name, ...] = Field(default=("streaming_llm",), description="with which it is lossless and gains")
    lossless_at: tuple[Ratio, ...] = (0.7,)
    gain_at: Gains = Field(default={0.8: 4.0}, description="least score / uniform's score, per ratio; null: none")
    gain_up_to: Gains = Field(default={0.95: 10.0}, description="the same, at some ratio up to this one")
    no_worse_at: tuple[Ratio, ...] = Field(default=(0.5, 0.7, 0.8), description="than all others, for all evictions")
    no_worse_margin: float = Field(default=0.01, ge=0, description="loss of score that counts as no worse")


class JobResources(FrozenModel):
    """What a job of the workflow asks for. A cluster enforces memory and time, a workstation does not look."""

    mem_mb: int = Field(default=32000, ge=1, description="main memory; the n-th attempt asks for n times as much")
    runtime: int = Field(default=240, ge=1, description="minutes")
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads; null: the cores, divided among the jobs of the stage",
        exclude_if=lambda value: value is None,
    )


class PlanConfig(FrozenModel):
    """A memory cap and what has to fit under it (`baklava plan`)."""

    gpu_memory: Annotated[Bytes, Field(ge=2**20)] | None = Field(
        default=None, description="null: the memory of the device"
    )
    context: Annotated[Tokens, Field(ge=1)] | None = Field(
        default=None, description="tokens per sequence that are compressed; null: 32k, or all that the model can take"
    )
    new_tokens: int = Field(default=256, ge=0, description="tokens per sequence after the context, not compressed")
    batch: int = Field(default=1, ge=1, description="sequences at once")
    prefill_rows: int = Field(default=1, ge=1, description="sequences whose contexts are prefilled together")
    prefill_chunk: int = Field(
        default=1024, ge=1, description="tokens, where prefilling in chunks takes less memory than one pass"
    )
    reserve: Bytes = Field(default="1GiB", validate_default=True, description="for the device and its allocator")
    largest_ratio: Ratio = 0.95
    allocator: Name | None = Field(default=None, description="the one of `allocators` that writes budgets")


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
