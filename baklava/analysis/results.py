"""Read results for the figures, the table and MLflow: the rows of the summary and the budgets behind each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from baklava.budgets import Budgets
from baklava.eviction.kvzip import MAX_LOSS
from baklava.experiment.paths import ratio_name
from baklava.system.parquet import read_parquet

SCHEMA = 5
ROUNDING = 1e-3  # by which the entries that a cell keeps may miss its ratio

COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("task", pa.string()),
        ("allocator", pa.string()),
        ("eviction", pa.string()),
        ("ratio", pa.float64()),
        ("protocol", pa.string()),
        ("seed", pa.int64()),
        ("length", pa.int64()),
        ("decoding", pa.string()),
        ("n", pa.int64()),
        ("n_failed", pa.int64()),
        ("score", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("perplexity", pa.float64()),  # exp of the mean loss; NaN where answers are generated
        ("delta_full", pa.float64()),
        ("delta_full_low", pa.float64()),
        ("delta_full_high", pa.float64()),
        ("delta_uniform", pa.float64()),
        ("delta_uniform_low", pa.float64()),
        ("delta_uniform_high", pa.float64()),
        ("kept_fraction", pa.float64()),
        ("kv_bytes", pa.float64()),
        ("kv_bytes_full", pa.float64()),
        ("peak_kv_bytes", pa.float64()),  # with the tokens after the context
    ]
)


class BudgetKey(NamedTuple):
    """The model and method that budgets are for; `ratio` is text as in file names, so that keys compare exactly."""

    model: str
    allocator: str
    eviction: str
    ratio: str

    @classmethod
    def of(cls, model: str, allocator: str, eviction: str, ratio: float) -> BudgetKey:
        return cls(model, allocator, eviction, ratio_name(ratio))


def read_summary(path: Path) -> pd.DataFrame:
    """Read the summary that `baklava summarize` wrote. Raises `UserError` for a missing, broken or newer file."""
    return read_parquet(path, COLUMNS, schema=SCHEMA, what="summary", hint="`baklava summarize`").to_pandas()


def describe_kept_whole(summary: pd.DataFrame) -> list[str]:
    """Say for each task in which cells keep more than their ratio asks for why; no lines where none does."""
    asked = 1.0 - summary["ratio"] + ROUNDING
    # Quantised entries are more than their fraction of the bytes.
    more = summary[(summary["kept_fraction"] > asked) & (summary["kv_bytes"] > asked * summary["kv_bytes_full"])]
    highest = more.sort_values("ratio").groupby("task", sort=False).last()
    return [
        f"{task}: short contexts were kept whole (evaluate.compress_above), so that at r = {row['ratio']:g} "
        f"{100 * row['kept_fraction']:.1f}% of the entries were kept"
        for task, row in highest.iterrows()
    ]


def describe_repetitions(path: Path) -> list[str]:
    """Say for each policy that had contexts repeated what that took, and where it failed; no lines where none did.

    `path` is the `timings.csv` of the experiment, which older results lack.
    """
    timings = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    if "repetition_loss" not in timings:  # made by an earlier version
        return []
    repeated = timings[timings["repetition_loss"].notna()]
    lines = []
    for (model, eviction), rows in repeated.groupby(["model", "eviction"], sort=False):
        means = rows[["repetition_seconds", "repetition_loss", "failed_repetitions"]].mean()
        line = (
            f"{model}, {eviction}: reading a context twice took {means['repetition_seconds']:.2f} s more; "
            f"its repetition lost {means['repetition_loss']:.2f} nats per token, "
            f"{rows['highest_repetition_loss'].max():.2f} at most"
        )
        if means["failed_repetitions"]:
            failed = f"{100 * means['failed_repetitions']:.3g}% FAILED (above {MAX_LOSS:g})"
            line += f"; {failed}: the scores mean little there"
        lines.append(line)
    return lines


def index_budgets(paths: Iterable[Path]) -> dict[BudgetKey, Path]:
    """Index budgets files by what they are for, read from `<model>/<allocator>/<eviction>/<ratio>.json`."""
    return {BudgetKey(*path.with_suffix("").parts[-4:]): path for path in paths}


def load_budgets(paths: Iterable[Path]) -> dict[str, dict[tuple[str, str], list[Budgets]]]:
    """Load the budgets of each model by method (allocator, eviction), in the order of the ratios."""
    loaded: dict[str, dict[tuple[str, str], list[Budgets]]] = defaultdict(lambda: defaultdict(list))
    for key, path in index_budgets(paths).items():
        loaded[key.model][key.allocator, key.eviction].append(Budgets.load(path))
    for by_method in loaded.values():
        for by_ratio in by_method.values():
            by_ratio.sort(key=lambda budgets: budgets.ratio)
    return loaded
