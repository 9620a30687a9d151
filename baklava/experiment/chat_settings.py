"""Settings for a model's chat template: the variables and the date that it is given."""

from __future__ import annotations

import datetime
import math
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

# The day that Llama 3's own templates write when they are given none.
DATE = datetime.date(2024, 7, 26)

TemplateValue = bool | int | float | str | None

# Arguments of `apply_chat_template`, and what templates are given anyway: any other name may be a variable.
TAKEN = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


def _variables(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if not name.isidentifier() or name in TAKEN:
            raise ValueError(f"{name!r} is no variable that a chat template can be given; leave it out")
        if not isinstance(value, TemplateValue) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{name}: expected text, a number, true, false or null, got {value!r}")
    return values


def _written(value: Any) -> Any:
    """Accept dates written as text only: numbers would be read as seconds."""
    if not isinstance(value, str | datetime.date):
        raise ValueError(f"expected a date such as {DATE}, got {value!r}")
    return value


TemplateVariables = Annotated[dict[str, Any], AfterValidator(_variables)]
Date = Annotated[datetime.date, BeforeValidator(_written)]
