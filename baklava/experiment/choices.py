"""Choices by name (`task=vt`), and dropping what an experiment sets for choices that overrides have replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from baklava.errors import UserError

# Sections of the configuration whose entries are chosen by name, and the Hydra group of each.
GROUPS = {"models": "model", "tasks": "task", "allocators": "allocator", "evictions": "eviction"}


class _Entry(NamedTuple):
    """A mapping that a choice fills: its keys, the Hydra group of the choice, and what every choice provides."""

    within: dict[str, Any]
    keys: tuple[str, ...]
    group: str
    needed: tuple[str, ...]

    @property
    def path(self) -> str:
        return ".".join(self.keys)

    @property
    def missing(self) -> list[str]:
        """Required keys that no choice has provided, where something else has set others."""
        values = self.within[self.keys[-1]]
        return [name for name in self.needed if name not in values] if isinstance(values, dict) else []


def check_chosen_once(overrides: Sequence[str]) -> None:
    """Raise `UserError` for a choice made twice, as in `task=[vt,vt]`, which Hydra would take for one."""
    for override in overrides:
        group, _, chosen = override.partition("=")
        names = [name.strip() for name in chosen.strip("[]").split(",")]
        twice = [name for name in names if names.count(name) > 1]
        if group in GROUPS.values() and twice:
            raise UserError(f"config: {override}: {twice[0]} is chosen twice; name each choice once")


def without_replaced(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Drop from composed `values`, in place, what an experiment sets for choices that `overrides` have replaced.

    Raises `UserError`, in the words of the override or of the experiment, for other settings that belong to no choice.
    """
    for entry in list(_entries(values)):
        if entry.missing:
            _check_replaced(entry, overrides)
            del entry.within[entry.keys[-1]]
    for section in GROUPS:
        if values.get(section) == {}:
            del values[section]  # as if nothing had been set: the schema then says how to choose
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
        keys = ("validate", "calibrations", name)
        group = f"calibration@{'.'.join(keys)}"
        yield from _texts(calibrations, keys, group)
        yield _Entry(calibrations, keys, group, ("name", "length"))


def _texts(within: dict[str, Any], keys: tuple[str, ...], group: str) -> Iterator[_Entry]:
    calibration = _mapping(within, keys[-1])
    if "text" in calibration:
        yield _Entry(calibration, (*keys, "text"), group, ("name", "data"))


def _names(entries: dict[Any, Any]) -> list[str]:
    """Names among the keys; the schema reports numbers (quotes that were forgotten)."""
    return [name for name in entries if isinstance(name, str)]


def _mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping under a key, or an empty one; the schema reports values of other kinds."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _check_replaced(entry: _Entry, overrides: Sequence[str]) -> None:
    missing = f"{entry.path}.{entry.missing[0]} is required"
    remedy = f"choose {entry.keys[-1]} with {entry.group}=NAME, or give {' and '.join(entry.needed)} too"
    if written := [override for override in _written(entry.path, overrides) if _key(override) != entry.group]:
        raise UserError(f"config: {written[0]}: {missing}; {remedy}")
    if not _choosing(entry.group, overrides):
        source = "".join(f"{override}: " for override in _choosing("experiment", overrides))
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
    return [override for override in overrides if _key(override) == group]


def _written(path: str, overrides: Sequence[str]) -> list[str]:
    """Overrides of a value, of something inside it, or of a mapping around it."""
    keyed = [(f"{_key(override)}.", override) for override in overrides]
    return [override for key, override in keyed if key.startswith(f"{path}.") or f"{path}.".startswith(key)]
