"""Settings that are chosen by name: models, tasks, allocators, eviction policies and calibration sets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from baklava.allocation import ALLOCATORS, Allocator
from baklava.eviction import POLICIES, EvictionPolicy
from baklava.experiment.chat_settings import TemplateVariables
from baklava.experiment.fields import FrozenModel, Name
from baklava.tasks import FAMILIES, Task


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
    trust_remote_code: bool = False
    chat_template_kwargs: TemplateVariables = Field(
        default={}, description="variables for its chat template, e.g. enable_thinking: false"
    )


class _Family(FrozenModel):
    """A choice with parameters, kept as a mapping and checked against the class that implements it."""

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
        """Whether making the prompts takes the model, which finds a text's context-dependent tokens."""
        return self.text is not None
