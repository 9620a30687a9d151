"""`baklava summarize`: one row per cell, with confidence intervals and paired differences."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from baklava.analysis.bootstrap import Bootstrap, Interval
from baklava.analysis.card_scores import add_scores
from baklava.analysis.cells import Cells, read_cells
from baklava.analysis.headline import compute_headline
from baklava.analysis.results import COLUMNS, SCHEMA
from baklava.evaluation.record_schema import Cell
from baklava.evaluation.timings import timings
from baklava.experiment.jobs import SummarizeJob
from baklava.experiment.settings import SummaryConfig
from baklava.system.files import atomic
from baklava.system.parquet import write_parquet

_NAN = Interval(math.nan, math.nan, math.nan)


def summarize(job: SummarizeJob) -> None:
    """Write the summary (CSV and Parquet), the headline figures and, to a file of their own, the timings."""
    cells = read_cells(job.records)
    figures = compute_headline(cells, job.summary)  # first: it refuses cells that cannot be averaged over tasks
    table = summarize_cells(cells, job.summary)
    write_parquet(job.parquet, table, schema=SCHEMA)
    _write_csv(job.csv, table.to_pandas())
    figures.save(job.headline)
    add_scores(job.headline.parent / "budgets", figures)
    _write_csv(job.timings_csv, timings(job.timings))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with atomic(path) as unfinished:
        table.to_csv(unfinished, index=False, lineterminator="\n")


def summarize_cells(cells: Cells, settings: SummaryConfig) -> pa.Table:
    """Summarise each cell in one row, sorted by model, task, ratio (so the full cache first), then method."""
    bootstrap = Bootstrap(settings.n_bootstrap, settings.confidence, settings.seed)
    order = sorted(cells, key=lambda cell: (cell.model, cell.task, cell.ratio, cell))
    rows = [_row(cell, cells, bootstrap) for cell in order]
    return pa.table([[row[name] for row in rows] for name in COLUMNS.names], schema=COLUMNS)


def _row(cell: Cell, cells: Cells, bootstrap: Bootstrap) -> dict[str, object]:
    own = cells[cell]
    score = bootstrap.mean(own.score, *cell, "score", clusters=own.context)
    full = bootstrap.mean(own.score - cells[cell.full].score, *cell, "full", clusters=own.context)
    uniform = _NAN
    if cell.uniform in cells:
        uniform = bootstrap.mean(own.score - cells[cell.uniform].score, *cell, "uniform", clusters=own.context)
    return {
        **cell._asdict(),
        "n": len(own.sample),
        "n_failed": own.n_failed,
        **dict(zip(("score", "ci_low", "ci_high"), score, strict=True)),
        "perplexity": np.exp(own.loss.mean()),  # NaN where answers are generated
        **dict(zip(("delta_full", "delta_full_low", "delta_full_high"), full, strict=True)),
        **dict(zip(("delta_uniform", "delta_uniform_low", "delta_uniform_high"), uniform, strict=True)),
        "kept_fraction": own.kept_entries.sum() / own.total_entries.sum(),
        "kv_bytes": own.kv_bytes.mean(),
        "kv_bytes_full": own.kv_bytes_full.mean(),
        "peak_kv_bytes": own.peak_kv_bytes.mean(),
    }
