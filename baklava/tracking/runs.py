"""What MLflow should hold: one run per model and one per cell, made from the files of an experiment."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baklava.cells import Cell
from baklava.errors import UserError
from baklava.headline import Headline, ModelFigures
from baklava.jobs import TrackJob
from baklava.results import COLUMNS, Compression, budgets_by_compression, read_summary
from baklava.timings import timings

PARAMS = Cell._fields
METRICS = tuple(name for name in COLUMNS.names if name not in PARAMS)
TIMES = ("seconds_per_sample", "samples_per_second")
OF_ONE_MODEL = ("importance_", "budgets_")  # figures whose name ends with the model's


@dataclass(frozen=True)
class Run:
    """A run as it should be. `key` says which run it is, the fingerprint whether its content is the same."""

    key: str
    name: str
    parent: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    artifacts: tuple[Path, ...] = ()

    @property
    def fingerprint(self) -> str:
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.artifacts}
        content = [self.name, dict(self.tags), dict(self.params), dict(self.metrics), files]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def runs_of(job: TrackJob) -> list[Run]:
    """A parent run per model, each followed by a run per cell. Raises `UserError` for missing or broken results."""
    headline = Headline.load(job.headline)
    figures = _figures(job.figures)
    budgets = budgets_by_compression(job.budgets)
    times = timings(job.timings)[[*PARAMS, *TIMES]]
    cells = read_summary(job.summary).merge(times, how="left", on=list(PARAMS))
    rows: list[dict[str, Any]] = cells.to_dict("records")  # type: ignore[assignment]
    runs = []
    for model, numbers in headline.models.items():
        own = [path for path in figures if not path.stem.startswith(OF_ONE_MODEL) or _is_of(path, model)]
        parent = _parent(job.experiment, model, numbers, (*own, job.headline))
        runs += [parent, *(_cell(row, parent.key, budgets) for row in rows if row["model"] == model)]
    return runs


def _figures(folder: Path) -> list[Path]:
    figures = sorted(path for path in folder.glob("[!.]*") if path.suffix in (".svg", ".png"))
    if not figures:
        raise UserError(f"{folder}: no figures there; make them with `baklava report`")
    return figures


def _is_of(figure: Path, model: str) -> bool:
    return figure.stem in {prefix + model for prefix in OF_ONE_MODEL}


def _parent(experiment: str, model: str, numbers: ModelFigures, artifacts: tuple[Path, ...]) -> Run:
    lossless = {
        f"largest_lossless_ratio/{one.allocator}.{one.eviction}": one.largest_lossless_ratio for one in numbers.methods
    }
    return Run(
        key=_key("model", model),
        name=model,
        tags={"stage": "summarize"},
        params={"experiment": experiment, "model": model},
        metrics={"score_full": numbers.full, "kv_bytes_full": numbers.kv_bytes_full, **lossless},
        artifacts=artifacts,
    )


def _cell(row: Mapping[str, Any], parent: str, budgets: Mapping[Compression, Path]) -> Run:
    compression = Compression.of(row["model"], row["allocator"], row["eviction"], row["ratio"])
    params = {name: _text(row[name]) for name in PARAMS}
    own = budgets.get(compression)
    if own is not None and not own.is_file():
        raise UserError(f"{own}: no such budgets file; make it with `baklava allocate`")
    return Run(
        key=_key("cell", *params.values()),
        name=f"{row['task']} {compression.allocator} {compression.ratio}",
        parent=parent,
        tags={"stage": "evaluate"},
        params=params,
        metrics={name: float(row[name]) for name in (*METRICS, *TIMES) if not math.isnan(row[name])},
        artifacts=() if own is None else (own,),
    )


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _key(*identity: str) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
