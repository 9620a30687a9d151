"""BaKlaVa: how much memory each KV cache of an LLM deserves."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baklava.budgets import Budgets
    from baklava.cache.budgeted import BudgetedCache
    from baklava.decoder.length_dependent_rope import fixed_rotation
    from baklava.models import reference_model_path

__version__ = "0.1.0"
__all__ = ["BudgetedCache", "Budgets", "__version__", "fixed_rotation", "reference_model_path"]

# Loaded on first use, so that `import baklava` costs nothing.
_LAZY = {
    "BudgetedCache": "baklava.cache.budgeted",
    "Budgets": "baklava.budgets",
    "fixed_rotation": "baklava.decoder.length_dependent_rope",
    "reference_model_path": "baklava.models",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
