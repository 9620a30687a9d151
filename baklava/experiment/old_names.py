"""Keys of `resources` under their names of before: stages were called by what they make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

STAGES_BEFORE = {
    "prompts": "calibrate",
    "budgets": "allocate",
    "records": "evaluate",
    "measurements": "measure",
    "validation": "validate",
}
_NAME = "|".join(STAGES_BEFORE)
_KEY = re.compile(rf"([~+]*resources\.)({_NAME})(?=[.=]|$)")
_IN_MAPPING = re.compile(rf"({_NAME})(?=\s*:)")


def with_new_names(overrides: Sequence[str]) -> list[str]:
    """The overrides with new names in keys such as `resources.records.mem_mb` and in `resources={records: ...}`."""
    return [_renamed(override) for override in overrides]


def _renamed(override: str) -> str:
    if override.lstrip("+").startswith("resources={"):
        return _IN_MAPPING.sub(lambda match: STAGES_BEFORE[match[1]], override)
    return _KEY.sub(lambda match: match[1] + STAGES_BEFORE[match[2]], override, count=1)


def under_new_names(resources: Any) -> Any:
    """The mapping that an experiment's file gives, with what stands under an old name put under the new one."""
    if not isinstance(resources, dict):
        return resources
    renamed = {name: values for name, values in resources.items() if name not in STAGES_BEFORE}
    for old, values in resources.items():
        if old in STAGES_BEFORE:
            new = renamed.get(STAGES_BEFORE[old])
            renamed[STAGES_BEFORE[old]] = (
                {**new, **values} if isinstance(new, dict) and isinstance(values, dict) else values
            )
    return renamed
