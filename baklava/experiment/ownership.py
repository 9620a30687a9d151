"""Which experiment owns a results folder: it writes its settings there, and another one of that name is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from baklava.errors import UserError
from baklava.experiment.overrides import chosen
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.system.files import read_json, write_json

SCHEMA = 1

# Where results are kept and what jobs ask of a cluster do not make another experiment.
_IGNORED = ("results", "tracking", "plan", "resources")

# Settings that change no number that is there already, or only add to them.
_HARMLESS = re.compile(r"(shards|batch_rows|memory_gib|prefill_chunk)$|^(measure|validate|claims)\.")
_GROWING = ("evaluate.n_samples", "search.n_rounds")


def check_results(config: ExperimentConfig, overrides: Sequence[str]) -> None:
    """Raise `UserError` where the results folder cannot be written or belongs to another experiment.

    Settings may change from run to run of one experiment (`experiment=NAME`): the workflow runs again what depends on
    them. Two experiments of one name would keep overwriting each other's results.
    """
    paths = ExperimentPaths(config.results, config.name)
    _check_writable(paths.root)
    if not paths.experiment_json.exists():
        return
    written = read_written(paths.experiment_json)
    ours, theirs = chosen(overrides, "experiment"), written.get("experiment")
    if ours == theirs:
        return
    for key, there, here in _differences(written.get("settings"), _settings(config)):
        raise UserError(
            f"{paths.experiment_json}: {paths.root} holds results of {_named(theirs)} with {key} = {there!r}, and "
            f"{_named(ours)} has {here!r}; give it a name of its own (name=...), or remove {paths.experiment_json} to "
            "let it take the folder over"
        )


def claim_results(config: ExperimentConfig, overrides: Sequence[str]) -> None:
    """Write which experiment the results folder belongs to, and its settings, unless the file says so already."""
    path = ExperimentPaths(config.results, config.name).experiment_json
    values = {
        "experiment": chosen(overrides, "experiment"),
        "overrides": list(overrides),
        "settings": _settings(config),
    }
    if not path.exists() or read_written(path) != values:
        write_json(path, values, schema=SCHEMA)


def read_written(path: Path) -> dict[str, Any]:
    """What the last run wrote: the experiment, its overrides, its settings. Raises `UserError` for a broken file."""
    return read_json(path, schema=SCHEMA, what="experiment")


def describe_replaced(config: ExperimentConfig) -> str | None:
    """Which results in the folder a run with these settings replaces, or None. Results that it only adds to stay."""
    paths = ExperimentPaths(config.results, config.name)
    if not (paths.experiment_json.exists() and paths.summary_parquet.exists()):
        return None
    there = read_written(paths.experiment_json).get("settings")
    changed = [
        f"{key} = {_short(old)}, now {_short(new)}"
        for key, old, new in _differences(there, _settings(config))
        if not (old is None or _HARMLESS.search(key) or (key in _GROWING and new > old) or _extends(new, old))
    ]
    if not changed:
        return None
    return (
        f"{paths.root} holds results with {'; '.join(changed)}: this run replaces its summary, figures and page; "
        "give it a name of its own (name=...) to keep both"
    )


def _extends(new: Any, old: Any) -> bool:
    return isinstance(old, list) and isinstance(new, list) and all(value in new for value in old)


def _short(value: Any) -> str:
    """A value in a message: a choice of a group is its name, and nothing where it is gone."""
    if value is None:
        return "none"
    return str(value["name"]) if isinstance(value, dict) and "name" in value else repr(value)


def _named(experiment: str | None) -> str:
    return f"experiment={experiment}" if experiment else "the settings of config.yaml"


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=set(_IGNORED))


def _differences(there: Any, here: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys whose values differ, with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in dict.fromkeys((*there, *here)):
            yield from _differences(there.get(name), here.get(name), f"{key}.{name}" if key else name)
    elif there != here:
        yield key, there, here


def _check_writable(folder: Path) -> None:
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise UserError(f"results: {folder}: {error.strerror}; set results=FOLDER to one that can be written") from None
    if not nearest.is_dir():
        what = "is a link to nothing" if nearest.is_symlink() and not nearest.exists() else "is not a folder"
        raise UserError(f"results: {nearest} {what}; set results=FOLDER to one that can be written")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"results: {nearest} cannot be written; set results=FOLDER to one that can")
