"""Attention over a budgeted cache: dense while the context is read, ragged afterwards."""
