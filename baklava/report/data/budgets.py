"""What a set of budgets is, in a few words: what the search chose, and in how many bits entries are stored."""

from __future__ import annotations

from baklava.budgets import Budgets


def find_choice(budgets: Budgets) -> str | None:
    """The estimator, or the mapping where that has none (uniform); None where no search chose anything."""
    choice = budgets.parameters.get("estimator") or budgets.parameters.get("mapping")
    return str(choice) if choice else None


def describe(budgets: Budgets) -> str:
    """What was chosen, or else the allocator; and the bits of keys and values, of all KV caches or on average."""
    choice = find_choice(budgets) or budgets.allocator
    if budgets.bits is None:
        return choice
    pairs = budgets.bits.reshape(-1, 2)
    if (pairs == pairs[0]).all():
        return f"{choice}, {name_bits(*pairs[0])} bits"
    keys, values = pairs.mean(0)
    return f"{choice}, bits {keys:.1f} / {values:.1f}"


def name_bits(keys: int, values: int) -> str:
    """One number where both are equal, else those of keys and of values."""
    return f"{keys}" if keys == values else f"{keys} / {values}"
