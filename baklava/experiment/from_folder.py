"""An experiment from its results folder: the settings that its last run wrote there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from baklava.errors import UserError
from baklava.experiment.compose import check, compose
from baklava.experiment.ownership import read_written
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig

# Of other runs or other machines, so at their defaults.
_LEFT_OUT = ("resources", "plan", "tracking")


def experiment_of(arguments: Sequence[str]) -> tuple[ExperimentConfig, list[str]]:
    """The experiment that a command's arguments mean, and its overrides: KEY=VALUE ..., or a results folder alone.

    Raises `UserError` for a folder without an experiment, and for settings beside a folder.
    """
    folders = [argument for argument in arguments if "=" not in argument and not argument.startswith("~")]
    if not folders:
        return compose(arguments), list(arguments)
    folder = Path(folders[0])
    if not folder.is_dir():
        raise UserError(f"{folder}: neither a setting (KEY=VALUE) nor a results folder such as results/demo")
    if len(arguments) > 1:
        raise UserError(f"{folder}: a results folder brings its settings, so it takes no {arguments[-1]!r} beside it")
    path = ExperimentPaths(folder.resolve().parent, folder.resolve().name).experiment_json
    if not path.is_file():
        raise UserError(f"{folder}: not a results folder: no {path.name} there; give one such as results/demo")
    written = read_written(path)
    # The folder may have been moved or renamed since.
    place = {"name": folder.resolve().name, "results": folder.parent if folder.name else folder.resolve().parent}
    values = {**written["settings"], **{key: {} for key in _LEFT_OUT}, **place}
    return check(ExperimentConfig, values, source=str(path)), list(written.get("overrides", ()))
