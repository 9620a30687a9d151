"""Ordinary English that is on every machine: the language reference inside CPython."""

from __future__ import annotations

from functools import cache


@cache
def load_english_text() -> str:
    """Load all help topics of this Python, in alphabetical order; about 450,000 characters, version-dependent."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))
