"""Checks before any work starts, made from the settings and the files alone."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from baklava.budgets.bits import Packing
from baklava.errors import UserError
from baklava.experiment.compose import compose
from baklava.experiment.ownership import check_results
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.models import local_model
from baklava.models.files import check_model
from baklava.tracking.address import ARTIFACTS, DATABASE, is_default_store

# Of transformers, for all that runs an experiment. The library alone runs with older ones (docs/own_project.md).
OLDEST_TRANSFORMERS = (5, 23)


def check_ready(config: ExperimentConfig, overrides: Sequence[str], *, models: bool = True) -> None:
    """Raise `UserError` for what would fail later: the results folder and, with `models`, models' and tasks' files."""
    if config.name in (DATABASE, ARTIFACTS):
        raise UserError(f"name: {config.name} is what MLflow's part of the results folder is called; choose another")
    _check_transformers()
    check_results(config, overrides)
    if config.tracking.enabled and is_default_store(config.tracking) and "?" in str(config.results):
        raise UserError(
            f"results: {config.results} holds a question mark, at which the address of MLflow's database in it would "
            "end; set results=FOLDER to one without, or tracking.uri"
        )
    lengths = {"evaluate.length": config.evaluate.length, "calibration.length": config.calibration.length}
    if models:
        for model in config.models.values():
            check_model(model, lengths)
        _check_bits(config)
        for task in config.tasks.values():
            task.build().check_rows()


def _check_bits(config: ExperimentConfig) -> None:
    """Raise `UserError` where a model's head dimension has no groups of the size in which bits are stored."""
    quantising = [name for name, allocator in config.allocators.items() if allocator.build().quantises]
    if not quantising:
        return
    from baklava.decoder.config import decoder_of
    from baklava.models.load import load_config

    for model in config.models.values():
        if local_model(model.path) is not None:
            try:
                Packing().check_dim(decoder_of(load_config(model)).head_dim)
            except UserError as error:
                raise UserError(f"allocator {quantising[0]}, model {model.name}: {error}") from None


def _check_transformers() -> None:
    installed = version("transformers")
    if tuple(map(int, installed.split(".")[:2])) < OLDEST_TRANSFORMERS:
        oldest = ".".join(map(str, OLDEST_TRANSFORMERS))
        raise UserError(
            f"transformers {installed} is installed, and experiments need {oldest} or later (BudgetedCache does not); "
            "install baklava with -c constraints.txt"
        )


def planned_experiment(overrides: Sequence[str]) -> ExperimentConfig:
    """The experiment that the workflow is to run. Raises `UserError` for what is wrong with it."""
    config = compose(overrides)
    check_ready(config, overrides)
    _check_patterns(config.results)
    _check_calibration_text(config)
    return config


def _check_calibration_text(config: ExperimentConfig) -> None:
    """Raise `UserError` where a text that calibration prompts are to be made of is missing or no text."""
    text, paths = config.calibration.text, ExperimentPaths(config.results, config.name)
    if text is not None and not all(paths.prompts(model).exists() for model in config.models):
        from baklava.tasks.text.documents import check_source

        check_source(text, who=f"text {text.name}", key="calibration.text.data")


def _check_patterns(results: Path) -> None:
    """Raise `UserError` where the results folder cannot stand in the workflow's file name patterns."""
    if set(str(results)) & set("{}"):
        raise UserError(
            f"results: {results} holds braces, which Snakemake takes for wildcards; set results=FOLDER to one without"
        )
