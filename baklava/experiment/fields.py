"""What all settings are made of: models that refuse unknown keys, names, ratios and sizes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
)

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


def _size(value: Any, read: Callable[[Any], int]) -> int:
    try:
        return read(value)
    except ValidationError:
        raise ValueError(f"expected a size such as 24GiB or 800MiB, got {value!r}") from None


Bytes = Annotated[ByteSize, WrapValidator(_size), Field(ge=0)]


def _n_tokens(value: Any) -> Any:
    if isinstance(value, str) and not value.strip().isdecimal():
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?[kK]", value.strip())
        if match is None:
            raise ValueError(f"expected a number of tokens such as 32768 or 32k, got {value!r}")
        return round(1024 * float(match[1]))
    return value


Tokens = Annotated[int, BeforeValidator(_n_tokens)]
