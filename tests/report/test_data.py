"""What plots and page draw: curves as the summary has them, looks and units."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_results import EVICTION, cell_records, measurements, write_records

from baklava.analysis.cells import read_cells
from baklava.analysis.headline import Headline, compute_headline
from baklava.analysis.summary import summarize_cells
from baklava.experiment.settings import SummaryConfig
from baklava.report.data.curves import MEAN, Curves, list_curves
from baklava.report.data.looks import assign_looks, list_methods
from baklava.report.data.measured import list_quantities
from baklava.report.data.ticks import format_tick, log_ticks
from baklava.system.units import choose_unit

HALF = {"allocator": "uniform", "ratio": 0.5}


def results(folder: Path, *frames: pd.DataFrame) -> tuple[pd.DataFrame, Headline]:
    cells = read_cells([write_records(folder / "r.parquet", pd.concat(frames))])
    settings = SummaryConfig(n_bootstrap=100)
    return summarize_cells(cells, settings).to_pandas(), compute_headline(cells, settings)


def test_curves_begin_with_the_full_cache_and_the_mean_comes_before_the_tasks(tmp_path: Path) -> None:
    frames = [cell_records([1.0, 1.0], task="a"), cell_records([0.5], task="b")]
    frames += [cell_records([0.5, 0.0], task="a", **HALF), cell_records([0.25], task="b", **HALF)]
    frames += [cell_records([1.0, 0.5], task="a", allocator="duo", ratio=0.5)]
    frames += [cell_records([0.5], task="b", allocator="duo", ratio=0.5)]
    summary, headline = results(tmp_path, *frames)
    curves = {task: curves for _, task, curves in list_curves(summary, headline)}
    assert list(curves) == [MEAN, "a", "b"]
    for name, scores in (("a", [1.0, 0.25, 0.75]), ("b", [0.5, 0.25, 0.5]), (MEAN, [0.75, 0.25, 0.625])):
        full, uniform, duo = scores
        assert list(curves[name].by_method) == [("uniform", EVICTION), ("duo", EVICTION)] == list_methods(headline)
        assert [[p.score for p in points] for points in curves[name].by_method.values()] == [
            [full, uniform],
            [full, duo],
        ]
        assert {(p.ratio, p.kept_fraction) for p in curves[name].points} == {(0.0, 1.0), (0.5, 0.5)}
    assert curves[MEAN].by_method["duo", EVICTION][1].delta_uniform.estimate == pytest.approx(0.375)
    assert curves["a"].full.samples == "2 samples"
    assert curves[MEAN].full.samples == "mean of 2 tasks, 3 samples"


def test_what_has_nothing_to_compare_with_has_no_difference(tmp_path: Path) -> None:
    summary, headline = results(tmp_path, cell_records([1.0]), cell_records([0.5], allocator="duo", ratio=0.5))
    for _, _, curves in list_curves(summary, headline):
        assert math.isnan(curves.by_method["duo", EVICTION][1].delta_uniform.estimate)


def test_where_nothing_is_compressed_the_full_cache_is_the_only_point(tmp_path: Path) -> None:
    summary, _ = results(tmp_path, cell_records([1.0, 0.5]))
    curves = Curves.of_task(summary)
    assert (curves.by_method, curves.points, curves.full.score) == ({}, [curves.full], 0.75)


def test_bytes_that_a_device_does_not_report_are_left_out() -> None:
    rows = measurements("tiny-llama")
    titles = [quantity.title for quantity in list_quantities(rows)]
    assert titles == ["prefill, s", "time to first token, s", "decoding, tokens/s", "KV cache held, MiB"]
    peak = list_quantities(rows.assign(peak_bytes=np.where(rows["ratio"] > 0, 2.0**30, 2.0**31)))[-1]
    assert (peak.title, peak.full, peak.largest) == ("peak above the weights, GiB", 2.0, 2.0)
    assert peak.by_method["baklava", EVICTION][1] == [2.0] + [1.0] * 5


@pytest.mark.parametrize(
    ("n_bytes", "unit"), [(0, "bytes"), (1023, "bytes"), (1024, "KiB"), (2**20, "MiB"), (5 * 2**30, "GiB")]
)
def test_bytes_are_in_the_largest_unit_that_they_fill(n_bytes: int, unit: str) -> None:
    assert choose_unit(n_bytes)[0] == unit


def test_methods_are_told_apart():
    methods = [(a, e) for a in ("uniform", "baklava", "measured", "pyramid") for e in ("streaming_llm", "snapkv")]
    looks = assign_looks(methods)
    assert len({(look.colour, look.dashes) for look in looks.values()}) == len(methods)
    assert looks["measured", "snapkv"].label == "measured / snapkv"
    assert assign_looks([("uniform", "snapkv"), ("baklava", "snapkv")])["baklava", "snapkv"].label == "baklava"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.4, 7, [0.5, 1, 2, 5]),
        (0.1, 2000, [0.1, 1, 10, 100, 1000]),
        (2.605, 2.65, [2.61, 2.62, 2.63, 2.64, 2.65]),
        (1.9, 3.1, [2, 2.2, 2.4, 2.6, 2.8, 3]),
        (3, 3, [3]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round_numbers_however_narrow_it_is(low, high, ticks):
    assert log_ticks(low, high) == ticks
    assert [float(format_tick(tick)) for tick in ticks] == ticks
