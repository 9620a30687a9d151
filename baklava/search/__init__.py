"""Finds budgets: the search for a mapping from importance to shares, and the local search that needs no mapping."""
