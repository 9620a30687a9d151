"""Finds budgets: the mapping from importance to shares, and the local search that refines it."""
