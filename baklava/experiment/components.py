"""Settings that are chosen by name: models, tasks, allocators, eviction policies and calibration sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from baklava.allocation import ALLOCATORS, Allocator
from baklava.eviction import POLICIES, EvictionPolicy
from baklava.experiment.chat_settings import TemplateVariables
from baklava.experiment.fields import Bytes, FrozenModel, Name, Tokens
from baklava.tasks import FAMILIES, Task


def if_set(*, default: Any, **settings: Any) -> Any:
    """A setting that is left out of jobs where it has its default: jobs of before are then the same jobs still."""
    return Field(default=default, exclude_if=lambda value: value == default, **settings)


def _text_keys(group: Any) -> Any:
    return {str(key): value for key, value in group.items()} if isinstance(group, dict) else group


class ModelConfig(FrozenModel):
    """Which model, from where, in which arithmetic."""

    name: Name
    path: str = Field(
        description="`reference:NAME`, a local folder, a GGUF file, `package:NAME/FILE`, or a Hugging Face hub id"
    )
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU where there is one"
    )
    gpus: int = if_set(default=1, ge=1, description="GPUs that a job takes; device_map spreads the model over them")
    device_map: str | dict[str, int | str] | None = if_set(
        default=None, description="as for transformers: auto, balanced, sequential, or a device for every module"
    )
    max_memory: Annotated[dict[str, Bytes], BeforeValidator(_text_keys)] = if_set(
        default={}, description="that weights may take at most, per device, e.g. {0: 20GiB, cpu: 60GiB}"
    )
    offload_folder: Path | None = if_set(default=None, description="for weights that device_map puts on disk")
    quantization: dict[str, Any] | None = if_set(
        default=None, description="settings of a quantisation of transformers, `quant_method` among them"
    )
    trust_remote_code: bool = False
    chat_template_kwargs: TemplateVariables = Field(
        default={}, description="variables for its chat template, e.g. enable_thinking: false"
    )

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.device_map is None:
            for key in ("max_memory", "offload_folder"):
                if getattr(self, key):
                    raise ValueError(f"{key} has no effect without a device_map; set it to auto, for example")
            if self.gpus > 1:
                raise ValueError(f"gpus: {self.gpus} are of no use without a device_map; set it to auto, for example")
        elif self.device != "auto":
            raise ValueError(f"device: {self.device} and a device_map exclude each other; leave one of them out")
        if self.quantization is not None and "quant_method" not in self.quantization:
            raise ValueError("quantization: quant_method is missing, e.g. bitsandbytes or torchao")
        if self.quantization is not None and self.path.endswith(".gguf"):
            raise ValueError("quantization: a GGUF file has its own; leave this out")
        return self

    @property
    def arithmetic(self) -> dict[str, Any]:
        """What the model's numbers depend on beside its files."""
        return {"dtype": self.dtype} | ({} if self.quantization is None else {"quantization": self.quantization})


class _Family(FrozenModel):
    """A choice with parameters, kept as a mapping and checked against the class that implements it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    family: str
    name: Name

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.build()
        return self

    def build(self) -> Any:
        """The object that the parameters describe. Raises `ValueError` for an unknown family or parameter."""
        raise NotImplementedError

    def _build(self, families: dict[str, type], kind: str, **given: Any) -> Any:
        if self.family not in families:
            raise ValueError(f"unknown {kind} {self.family!r}; known: {', '.join(sorted(families))}")
        return TypeAdapter(families[self.family]).validate_python({**given, **(self.model_extra or {})})


class TaskConfig(_Family):
    """A task: its family and its parameters."""

    @model_validator(mode="before")
    @classmethod
    def _without_defaults(cls, values: Any) -> Any:
        """Parameters that the files name since later are left out at their defaults: jobs are those of before."""
        free = {"n_questions": 1, "depth": None, "direction": "any"}
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if key not in free or value != free[key]}

    def build(self) -> Task:
        return self._build(FAMILIES, "task family", name=self.name)


class AllocatorConfig(_Family):
    """An allocator: its family and its parameters."""

    @model_validator(mode="before")
    @classmethod
    def _without_defaults(cls, values: Any) -> Any:
        """Constraints that constrain nothing are left out: jobs of before there were any are the same jobs still."""
        free = {"granularity": "head", "page": 1, "bits": 16}
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if key not in free or value != free[key]}

    def build(self) -> Allocator:
        return self._build(ALLOCATORS, "allocator", name=self.name)


class EvictionConfig(_Family):
    """An eviction policy: its family and its parameters."""

    def build(self) -> EvictionPolicy:
        return self._build(POLICIES, "eviction policy")


class TextConfig(FrozenModel):
    """Plain text as calibration prompts: the end of each block is held back as the continuation of its context.

    Its context-dependent tokens are those whose loss rises most without the context, that is when only the first
    `sinks` tokens and the last fraction `window` of the prompt's length are left of it.
    """

    name: Name
    data: str = Field(description="a text or JSONL file, a folder of text files, or a path for `datasets`")
    data_name: str | None = None
    data_split: str = "train"
    data_revision: str | None = None
    field: str = Field(default="text", description="of each row of a JSONL file or data set")
    continuation: int = Field(default=256, ge=16, description="tokens held back at the end of each prompt")
    look_back: float = Field(default=0.1, gt=0, le=1, description="fraction of them that counts as context-dependent")
    sinks: int = Field(default=4, ge=0)
    window: float = Field(default=0.1, gt=0, le=1)


class CalibrationConfig(FrozenModel):
    """Prompts with known continuations: the first `n_profile` are profiled, the rest guide the search.

    They come from tasks, from plain text, or from both in turn.
    """

    name: Name
    tasks: tuple[TaskConfig, ...] = Field(description="may be empty where there is a text")
    text: TextConfig | None = None
    length: Tokens = Field(ge=64, description="tokens per prompt, generated ones included")
    n_profile: int = Field(ge=1)
    n_search: int = Field(ge=1)
    seed: int = 0
    protocol: Literal["question_agnostic", "question_aware"] = Field(
        default="question_agnostic",
        description="whether a task's question is compressed with its context",
        exclude_if=lambda value: value == "question_agnostic",
    )

    @model_validator(mode="after")
    def _check(self) -> CalibrationConfig:
        if not self.tasks and self.text is None:
            raise ValueError("at least one of tasks or a text is needed")
        if self.text is not None and 2 * self.text.continuation > self.length:
            raise ValueError(
                f"text.continuation: {self.text.continuation} tokens leave less than half of calibration.length, "
                f"{self.length}, as context; lower it or raise calibration.length"
            )
        return self

    @property
    def needs_model(self) -> bool:
        """Whether making the prompts takes the model, which finds a text's context-dependent tokens."""
        return self.text is not None
