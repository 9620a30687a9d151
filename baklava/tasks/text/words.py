"""English words of the `wonderwords` package, which RULER takes, too; in a fixed order."""

from __future__ import annotations

from functools import cache
from typing import Literal

Category = Literal["adjectives", "nouns", "verbs"]


@cache
def load_words(category: Category) -> tuple[str, ...]:
    """Load all words of a category, sorted."""
    from wonderwords import RandomWord
    from wonderwords.random_word import Defaults

    lists = RandomWord(**{category: getattr(Defaults, category.upper())})
    return tuple(sorted(set(lists.filter(include_categories=[category]))))
