"""`baklava new`: settings as a file of `conf/experiment`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from baklava.errors import UserError
from baklava.experiment.compose import SECTIONS, WORKFLOW_FILES, compose, conf_folder
from baklava.experiment.fields import Name
from baklava.experiment.overrides import Parts, parsed_value
from baklava.experiment.schema import ExperimentConfig
from baklava.system.files import atomic


def write_experiment(name: str, overrides: Sequence[str]) -> None:
    """Write `conf/experiment/<name>.yaml` with the settings in `overrides`, and check that it gives the same settings.

    Where the package was installed from a wheel, its `conf/`, `workflow/` and Snakefile are copied into the current
    folder first. Raises `UserError` for settings that are wrong or cannot be kept in a file, and for one that is there.
    """
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise UserError(f"{name!r} is no name of an experiment: letters, digits, '.', '_' and '-'") from None
    path = conf_folder() / "experiment" / f"{name}.yaml"
    if path.exists():
        raise UserError(f"{path}: there already; edit it, or give another name")
    settings = [_parts(override) for override in overrides]
    config = compose([*overrides, f"name='{name}'"])
    values = _to_file(name, settings, config)
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True)
    if path.is_relative_to(WORKFLOW_FILES):
        _copy_workflow()
        path = Path.cwd() / path.relative_to(WORKFLOW_FILES)
    with atomic(path) as unfinished:
        unfinished.write_text(f"# @package _global_\n{text}", encoding="utf-8")
    try:
        if compose([f"experiment='{name}'"]) != config:
            raise UserError(f"{path}: these settings cannot be kept in a file; give them as overrides")
    except UserError:
        path.unlink()
        raise
    print(f"{path}; run it with `baklava run experiment={name}`")


def _copy_workflow() -> None:
    """Copy what the wheel brings along into the current folder, where it can be edited."""
    for source in WORKFLOW_FILES.iterdir():
        if Path(source.name).exists():
            raise UserError(f"{Path.cwd() / source.name}: there already; run `baklava new` in a folder without it")
    shutil.copytree(WORKFLOW_FILES, Path.cwd(), dirs_exist_ok=True)


def _parts(override: str) -> Parts:
    parts = Parts.of(override)
    if parts is None or parts.sign:
        raise UserError(f"{override}: a file keeps settings of the form KEY=VALUE")
    return parts


def _to_file(name: str, overrides: Sequence[Parts], config: ExperimentConfig) -> dict[str, Any]:
    """The content of the file: the experiment to begin with, the choices, the settings."""
    defaults: list[Any] = []
    settings: dict[str, Any] = {}
    for parts in overrides:
        value = parsed_value(parts.value)
        if parts.key == "experiment":
            defaults.insert(0, value)
        elif (conf_folder() / parts.key.partition("@")[0]).is_dir():
            defaults.append({f"override /{parts.key}": value})
        elif parts.key != "name":
            *above, last = _path(parts.key, config)
            within = settings
            for key in above:
                within = within.setdefault(key, {})
            within[last] = _replacing(parts, value, overrides) if above == ["claims"] else value
    return {**({"defaults": defaults} if defaults else {}), "name": name, **settings}


def _replacing(parts: Parts, value: Any, overrides: Sequence[Parts]) -> Any:
    """Add null for the keys that a mapping of criteria replaces: overrides do, but files are merged."""
    if not isinstance(value, dict):
        return value
    claims = compose([str(other) for other in overrides if other != parts]).claims
    return {**dict.fromkeys(getattr(claims, parts.key.removeprefix("claims."))), **value}


def _path(key: str, config: ExperimentConfig) -> list[str]:
    """The keys of a dotted one; a name in a section may hold dots itself."""
    values = config.model_dump()
    for section in SECTIONS:
        below = key.removeprefix(f"{section}.")
        if below != key and "." not in section:
            names = [name for name in values[section] if f"{below}.".startswith(f"{name}.")]
            if names:
                name = max(names, key=len)
                return [section, name, *filter(None, below.removeprefix(name).split("."))]
    return key.split(".")
