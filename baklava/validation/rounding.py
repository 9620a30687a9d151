"""`baklava export --check`: what rounding to another project's format costs in score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from numpy.typing import ArrayLike

from baklava.allocation.formats import Options
from baklava.allocation.formats.convert import export_budgets
from baklava.analysis.bootstrap import Bootstrap, Interval
from baklava.analysis.cells import Samples, read_cells
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.evaluation.record_schema import FULL
from baklava.evaluation.run import evaluate
from baklava.experiment.components import ModelConfig
from baklava.experiment.compose import compose
from baklava.experiment.jobs import EvaluateJob, MethodBudgets
from baklava.experiment.schema import ExperimentConfig
from baklava.models.shape import read_shape
from baklava.system.devices import reserve_gpu

DEFAULTS = ("task=niah_single_1", "evaluate.n_samples=16")
GIVEN, ROUNDED = "budgets", "rounded"


def export_checked(path: Path, name: str, output: Path, options: Options, overrides: Sequence[str]) -> None:
    """Write budgets for another project, answer samples with them as they are and as rounded, and print both scores.

    `overrides` say with which model, tasks, eviction policies and samples, as for `baklava evaluate`. Raises
    `UserError` before anything is written where the budgets are not those of the model.
    """
    config, budgets = compose([*DEFAULTS, *overrides]), Budgets.load(path)
    model = _find_model(config, budgets, path)
    expressed = export_budgets(path, name, output, options)
    rounded = Budgets.from_shares(expressed.shares, model=budgets.model, allocator=ROUNDED)
    with TemporaryDirectory() as folder:
        for line in _measure(config, model, {GIVEN: budgets, ROUNDED: rounded}, Path(folder)):
            print(line)


def _find_model(config: ExperimentConfig, budgets: Budgets, path: Path) -> ModelConfig:
    if len(config.models) > 1:
        raise UserError(f"--check: {', '.join(config.models)}: budgets are checked with one model; set model=NAME")
    [model] = config.models.values()
    shape = read_shape(model)
    if (actual := (shape.n_layers, shape.n_kv_heads)) != budgets.shape:
        raise UserError(
            f"--check: {path} is [layers, KV heads] {list(budgets.shape)}, model {model.name} has {list(actual)}; set "
            "model=NAME to the one that the budgets are for"
        )
    return model


def _measure(config: ExperimentConfig, model: ModelConfig, budgets: dict[str, Budgets], folder: Path) -> Iterator[str]:
    """Answer the samples of every task; a line for each task and eviction policy."""
    settings = config.evaluate.model_copy(update={"shards": 1})
    for name, own in budgets.items():
        own.save(folder / f"{name}.json")
    cells = tuple(
        MethodBudgets(allocator=name, eviction=eviction, ratio=own.ratio, path=folder / f"{name}.json")
        for name, own in budgets.items()
        for eviction in config.evictions
    )
    bootstrap = Bootstrap(config.summary.n_bootstrap, config.summary.confidence, config.summary.seed)
    for task in config.tasks.values():
        records = folder / f"{task.name}.parquet"
        job = EvaluateJob(
            model=model,
            task=task,
            evictions=config.evictions,
            evaluate=settings,
            cells=cells,
            store=folder / f"{task.name}.store",
            records=records,
            timings=folder / f"{task.name}-timings.parquet",
        )
        with reserve_gpu(model.device.replace("auto", "cuda"), model.gpus):
            evaluate(job)
        answered = {(cell.allocator, cell.eviction): samples for cell, samples in read_cells([records]).items()}
        for eviction in config.evictions:
            yield from _compare(
                f"{model.name}, {task.name}, {eviction}",
                answered[FULL, "none"],
                *(answered[name, eviction] for name in budgets),
                bootstrap=bootstrap,
            )


def _compare(where: str, full: Samples, given: Samples, rounded: Samples, *, bootstrap: Bootstrap) -> Iterator[str]:
    def mean(values: ArrayLike, what: str) -> Interval:
        return bootstrap.mean(values, where, what, clusters=given.context)

    failed = f", {given.n_failed} more failed" * bool(given.n_failed)
    yield f"checked with {where}, {len(given.sample)} samples{failed}:"
    for label, samples in (("full cache", full), ("these budgets", given), ("rounded", rounded)):
        share = samples.kept_entries.sum() / samples.total_entries.sum()
        yield f"  score {_text(mean(samples.score, label))} {label}, {share:.3f} of the entries"
    yield f"  rounding: {_text(mean(rounded.score - given.score, 'rounding'), sign='+')}"


def _text(interval: Interval, *, sign: str = "") -> str:
    estimate, low, high = (f"{value:{sign}.4f}" for value in interval)
    return f"{estimate} [{low}, {high}]"
