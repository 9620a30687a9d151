"""Classes by the names of their families, so that an import is all it takes to register one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

Base = TypeVar("Base")


def families_of(base: type[Base]) -> dict[str, type[Base]]:
    """Every subclass that was imported so far and names a `family` of its own, by that name.

    Raises `TypeError` where two classes name the same family.
    """
    families: dict[str, type[Base]] = {}
    for subclass in _subclasses(base):
        family = vars(subclass).get("family")
        if family is None:
            continue
        if families.setdefault(family, subclass) is not subclass:
            raise TypeError(f"{subclass.__qualname__} and {families[family].__qualname__} are both family {family!r}")
    return families


def _subclasses(base: type[Base]) -> Iterator[type[Base]]:
    for subclass in base.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
