"""Measured memory and speed of one model: a curve per method and quantity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from baklava.evaluation.record_schema import FULL
from baklava.report.data.looks import Method, uniform_first
from baklava.system.units import choose_unit

SECONDS = {"prefill_seconds": "prefill, s", "first_token_seconds": "time to first token, s"}
SPEED = {"tokens_per_second": "decoding, tokens/s"}
BYTES = {"kv_bytes": "KV cache held", "peak_bytes": "peak above the weights"}


@dataclass(frozen=True)
class MeasuredQuantity:
    """One quantity, its unit in the title; each method's (ratios, values) begin with the full cache, uniform first."""

    title: str
    full: float
    by_method: dict[Method, tuple[list[float], list[float]]]

    @property
    def largest(self) -> float:
        return float(np.nanmax([self.full, *(value for _, values in self.by_method.values() for value in values)]))


def list_quantities(rows: pd.DataFrame) -> list[MeasuredQuantity]:
    """Every quantity of one model's measurements; bytes that the device does not report are left out."""
    quantities = [_quantity(rows, name, title) for name, title in (SECONDS | SPEED).items()]
    for name, title in BYTES.items():
        if rows[name].notna().all():
            unit, size = choose_unit(float(rows[name].max()))
            quantities.append(_quantity(rows, name, f"{title}, {unit}", float(size)))
    return quantities


def _quantity(rows: pd.DataFrame, name: str, title: str, unit: float = 1.0) -> MeasuredQuantity:
    full = rows.loc[rows["allocator"] == FULL, name].item() / unit
    curves = {}
    for (allocator, eviction), cells in rows[rows["allocator"] != FULL].groupby(["allocator", "eviction"]):
        by_ratio = cells.sort_values("ratio")
        curves[str(allocator), str(eviction)] = ([0.0, *by_ratio["ratio"]], [full, *(by_ratio[name] / unit)])
    return MeasuredQuantity(title, full, {method: curves[method] for method in uniform_first(curves)})


def describe_conditions(rows: pd.DataFrame) -> str:
    """What it was measured on, from the first row; all are measured alike."""
    first = rows.iloc[0]
    return f"{first['device']}; context of {first['context']} tokens, batch {first['batch']}; medians"
