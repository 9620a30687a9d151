"""Finds budgets: growth along influence, the search for a mapping from importance, the local search from a start."""
