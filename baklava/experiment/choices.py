"""Settings that are chosen by name, and what an experiment sets for choices that overrides have replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from baklava.errors import UserError

# Sections of the configuration whose entries are chosen by name, and the Hydra group of each.
GROUPS = {"models": "model", "tasks": "task", "allocators": "allocator", "evictions": "eviction"}


class _Entry(NamedTuple):
    """A mapping that a choice fills: where it is, the group of the choice, and what every choice gives."""

    within: dict[str, Any]
    place: tuple[str, ...]
    group: str
    needed: tuple[str, ...]

    @property
    def path(self) -> str:
        return ".".join(self.place)

    @property
    def missing(self) -> list[str]:
        """What no choice has given, of an entry that something sets."""
        values = self.within[self.place[-1]]
        return [name for name in self.needed if name not in values] if isinstance(values, dict) else []


def check_chosen_once(overrides: Sequence[str]) -> None:
    """Hydra takes the same choice twice, as in `task=[vt,vt]`, for one."""
    for override in overrides:
        group, _, chosen = override.partition("=")
        names = [name.strip() for name in chosen.strip("[]").split(",")]
        twice = [name for name in names if names.count(name) > 1]
        if group in GROUPS.values() and twice:
            raise UserError(f"config: {override}: {twice[0]} is chosen twice; name each choice once")


def without_replaced(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Composed `values` without what an experiment sets for choices that `overrides` have replaced; changed in place.

    Raises `UserError`, in the words of the override or of the experiment, where settings are left that belong to no
    choice.
    """
    for entry in list(_entries(values)):
        if entry.missing:
            _check_replaced(entry, overrides)
            del entry.within[entry.place[-1]]
    for section in GROUPS:
        if values.get(section) == {}:
            del values[section]  # as where nothing was ever set: the schema says how to choose
    _drop_replaced_names(values, overrides)
    return values


def _entries(values: dict[str, Any]) -> Iterator[_Entry]:
    for section, group in GROUPS.items():
        needed = ("name", "path" if section == "models" else "family")
        for name in _names(_mapping(values, section)):
            yield _Entry(values[section], (section, name), group, needed)
    yield from _texts(values, ("calibration",), "calibration")
    calibrations = _mapping(_mapping(values, "validate"), "calibrations")
    for name in _names(calibrations):
        place = ("validate", "calibrations", name)
        group = f"calibration@{'.'.join(place)}"
        yield from _texts(calibrations, place, group)
        yield _Entry(calibrations, place, group, ("name", "length"))


def _texts(within: dict[str, Any], place: tuple[str, ...], group: str) -> Iterator[_Entry]:
    calibration = _mapping(within, place[-1])
    if "text" in calibration:
        yield _Entry(calibration, (*place, "text"), group, ("name", "data"))


def _names(entries: dict[Any, Any]) -> list[str]:
    """Of numbers for names (quotes that were forgotten) the schema says what is wrong."""
    return [name for name in entries if isinstance(name, str)]


def _mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    """What is there, if it is a mapping; what is wrong with other things the schema says."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _check_replaced(entry: _Entry, overrides: Sequence[str]) -> None:
    missing = f"{entry.path}.{entry.missing[0]} is required"
    remedy = f"choose {entry.place[-1]} with {entry.group}=NAME, or give {' and '.join(entry.needed)} too"
    if written := [one for one in _written(entry.path, overrides) if _key(one) != entry.group]:
        raise UserError(f"config: {written[0]}: {missing}; {remedy}")
    if not _choosing(entry.group, overrides):
        source = "".join(f"{one}: " for one in _choosing("experiment", overrides))
        raise UserError(f"config: {source}{missing}; {remedy}, where {entry.path} is set")


def _drop_replaced_names(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """The names of replaced allocators among the claims: there is no gap to a reference that is not evaluated."""
    claims, allocators = _mapping(values, "claims"), _mapping(values, "allocators")
    replacing = _choosing("allocator", overrides)
    if not replacing or not allocators:
        return
    if claims.get("yardstick") not in allocators and not _written("claims.yardstick", overrides):
        claims["yardstick"] = None
    tested = claims.get("allocator")
    if claims.get("enabled") and tested not in allocators and not _written("claims.allocator", overrides):
        raise UserError(
            f"config: {replacing[-1]}: leaves out {tested}, the allocator that is held to the claims; choose it too, "
            "name another with claims.allocator=NAME, or judge none with claims.enabled=false"
        )


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _choosing(group: str, overrides: Sequence[str]) -> list[str]:
    """Overrides that choose from a group."""
    return [one for one in overrides if _key(one) == group]


def _written(path: str, overrides: Sequence[str]) -> list[str]:
    """Overrides of a value, of something in it, or of what it is in."""
    keys = [(f"{_key(one)}.", one) for one in overrides]
    return [one for key, one in keys if key.startswith(f"{path}.") or f"{path}.".startswith(key)]
