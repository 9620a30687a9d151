"""Figures, the interactive page, and the table."""
