"""What the search chose for a set of budgets."""

from __future__ import annotations

from baklava.budgets import Budgets


def find_choice(budgets: Budgets) -> str | None:
    """The estimator, or the mapping where that has none (uniform); None where no search chose anything."""
    choice = budgets.parameters.get("estimator") or budgets.parameters.get("mapping")
    return str(choice) if choice else None
