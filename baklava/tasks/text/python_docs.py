"""Ordinary English that is on every machine: the language reference inside CPython, and its library's docstrings."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Shorter docstrings are hardly running text.
MIN_DOCSTRING_CHARACTERS = 400

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}


@cache
def load_english_text() -> str:
    """Load all help topics of this Python, in alphabetical order; about 450,000 characters, version-dependent."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


@cache
def load_docstrings() -> str:
    """Load the long docstrings of this Python's library, file by file; about 850,000 characters, version-dependent.

    Files are parsed, not imported. None of it is in `load_english_text`. Takes a few seconds.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in library.rglob("*.py") if not _NOT_LIBRARY & set(file.relative_to(library).parts))
    return "\n\n".join(text for file in files for text in _docstrings(file))


def _docstrings(file: Path) -> Iterator[str]:
    with warnings.catch_warnings(action="ignore"):  # escapes that the library itself writes wrongly
        tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= MIN_DOCSTRING_CHARACTERS:
                yield text
