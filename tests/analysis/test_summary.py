from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from synthetic_results import (
    EVICTION,
    MODELS,
    RATIOS,
    TASKS,
    cell_records,
    experiment_records,
    write_records,
    write_timings,
)

from baklava.analysis.headline import Headline
from baklava.analysis.results import COLUMNS, read_summary
from baklava.analysis.summary import summarize
from baklava.errors import UserError
from baklava.evaluation.record_schema import SCHEMA
from baklava.evaluation.timings import timings
from baklava.experiment.jobs import SummarizeJob
from baklava.experiment.settings import SummaryConfig

SETTINGS = SummaryConfig(n_bootstrap=200)
SCORES = st.sampled_from([0.0, 0.25, 1.0])
ORDER = [
    *(
        "model",
        "task",
        "allocator",
        "eviction",
        "ratio",
        "protocol",
        "seed",
        "length",
        "decoding",
        "n",
        "n_failed",
        "score",
        "ci_low",
        "ci_high",
        "perplexity",
    ),
    *("delta_full", "delta_full_low", "delta_full_high", "delta_uniform", "delta_uniform_low", "delta_uniform_high"),
    *("kept_fraction", "kv_bytes", "kv_bytes_full", "peak_kv_bytes"),
]


def job_for(folder: Path, *records: Path, settings: SummaryConfig = SETTINGS) -> SummarizeJob:
    return SummarizeJob(
        summary=settings,
        records=records,
        timings=(folder / "timings" / "all.parquet",),
        csv=folder / "summary.csv",
        parquet=folder / "summary.parquet",
        headline=folder / "headline.json",
        timings_csv=folder / "timings.csv",
    )


def summarized(folder: Path, records: pd.DataFrame, *, files: int = 1) -> SummarizeJob:
    """Summarise `records` dealt out over some files."""
    parts = [records.iloc[i::files] for i in range(files)]
    write_timings(folder / "timings" / "all.parquet", records)
    job = job_for(folder, *(write_records(folder / f"{i}.parquet", part) for i, part in enumerate(parts)))
    summarize(job)
    return job


def outputs(job: SummarizeJob) -> list[bytes]:
    return [path.read_bytes() for path in (job.csv, job.parquet, job.headline)]


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return experiment_records()


@pytest.fixture(scope="module")
def job(records, tmp_path_factory) -> SummarizeJob:
    return summarized(tmp_path_factory.mktemp("summary"), records)


def test_one_row_per_cell_in_the_agreed_columns(job):
    table = read_summary(job.parquet)
    assert list(table.columns) == ORDER == COLUMNS.names
    assert len(table) == len(MODELS) * len(TASKS) * (1 + 2 * len(RATIOS))
    assert not table.duplicated(["model", "task", "allocator", "eviction", "ratio"]).any()
    assert (table.groupby(["model", "task"])["allocator"].first() == "full").all()


def test_csv_and_parquet_hold_the_same(job):
    pd.testing.assert_frame_equal(pd.read_csv(job.csv), read_summary(job.parquet), check_dtype=False)


def test_means_and_paired_differences_equal_a_naive_loop(job, records):
    key = ["model", "task", "allocator", "eviction", "ratio", "sample"]
    score_of = {tuple(row): score for row, score in zip(records[key].values, records["score"], strict=True)}

    def scores(row, allocator, eviction, ratio):
        return [score_of.get((row["model"], row["task"], allocator, eviction, ratio, i), np.nan) for i in range(64)]

    for row in read_summary(job.parquet).to_dict("records"):
        own = scores(row, row["allocator"], row["eviction"], row["ratio"])
        full = scores(row, "full", "none", 0.0)
        uniform = scores(row, "uniform", EVICTION, row["ratio"])
        assert row["n"] == 64
        assert row["score"] == pytest.approx(sum(own) / 64)
        assert row["delta_full"] == pytest.approx(sum(own[i] - full[i] for i in range(64)) / 64)
        assert row["delta_uniform"] == pytest.approx(sum(own[i] - uniform[i] for i in range(64)) / 64, nan_ok=True)
        assert np.isnan(row["delta_uniform"]) == (row["allocator"] == "full")
        for name, low, high in (
            ("score", "ci_low", "ci_high"),
            ("delta_full", "delta_full_low", "delta_full_high"),
            ("delta_uniform", "delta_uniform_low", "delta_uniform_high"),
        ):
            assert np.isnan(row[name]) or row[low] <= row[name] <= row[high]


def test_memory(tmp_path):
    full = cell_records([1, 1], kv_bytes=[100, 300], kv_bytes_full=[100, 300], total_entries=[10, 30])
    half = full.assign(allocator="uniform", eviction=EVICTION, ratio=0.5, kv_bytes=[50, 152], kept_entries=[5, 17])
    row = read_summary(summarized(tmp_path, pd.concat([full, half])).parquet).iloc[1]
    assert (row["kv_bytes"], row["kv_bytes_full"]) == (101.0, 200.0)
    assert row["kept_fraction"] == 22 / 40


def test_time_is_in_a_file_of_its_own(tmp_path):
    full, half = cell_records([1, 1]), cell_records([1, 1], allocator="uniform", ratio=0.5)
    slow = half.assign(seconds=[1.0, 3.0])
    quick = summarized(tmp_path / "quick", pd.concat([full, half]))
    job = summarized(tmp_path / "slow", pd.concat([full, slow]))
    assert outputs(job) == outputs(quick)
    rows = pd.read_csv(job.timings_csv).set_index("allocator")
    assert rows.loc["uniform", ["n", "seconds", "seconds_per_sample", "samples_per_second"]].tolist() == [2, 4, 2, 0.5]
    assert rows.loc["full", "seconds"] == 0.5


def test_pairing_is_by_sample_number_not_by_row(tmp_path):
    scores = np.random.default_rng(1).random(40)
    full = cell_records(scores)
    same = cell_records(scores, allocator="baklava", ratio=0.5).sample(frac=1, random_state=3)
    row = read_summary(summarized(tmp_path, pd.concat([full, same])).parquet).iloc[1]
    assert (row["delta_full_low"], row["delta_full_high"]) == (0.0, 0.0)
    assert row["ci_low"] < row["ci_high"]


def test_bytes_depend_neither_on_row_order_nor_on_the_split_into_files(job, records, tmp_path):
    shuffled = records.sample(frac=1, random_state=1)
    assert outputs(summarized(tmp_path, shuffled, files=5)) == outputs(job)


def test_rows_do_not_depend_on_which_other_cells_exist(job, records, tmp_path):
    fewer = records[(records.model == "tiny-llama") & (records.task == "vt") & (records.ratio != 0.5)]
    alone = read_summary(summarized(tmp_path, fewer).parquet)
    everything = read_summary(job.parquet)
    kept = (everything.model == "tiny-llama") & (everything.task == "vt") & (everything.ratio != 0.5)
    pd.testing.assert_frame_equal(everything[kept].reset_index(drop=True), alone)


def test_uniform_is_not_needed(tmp_path):
    records = pd.concat([cell_records([1, 1]), cell_records([1, 0], allocator="baklava", ratio=0.5)])
    row = read_summary(summarized(tmp_path, records).parquet).iloc[1]
    assert row["delta_full"] == -0.5
    assert np.isnan(row["delta_uniform"])


def refused(folder: Path, records: pd.DataFrame, pattern: str) -> None:
    path = write_records(folder / "tiny-llama" / "vt.parquet", records)
    with pytest.raises(UserError, match=pattern) as caught:
        summarize(job_for(folder, path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "summary.csv").exists()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.parquet: no such records file; make it with `baklava evaluate`"):
        summarize(job_for(tmp_path, tmp_path / "gone.parquet"))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all, but long enough for a footer"])
def test_broken_file_is_named(tmp_path, content):
    (tmp_path / "broken.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.parquet: not a readable records file"):
        summarize(job_for(tmp_path, tmp_path / "broken.parquet"))


@pytest.mark.parametrize(
    ("schema", "message"),
    [(SCHEMA + 1, f"records schema {SCHEMA + 1}, from a newer BaKlaVa"), (SCHEMA - 1, "from an older"), (-1, "has no")],
)
def test_other_schema_is_refused(tmp_path, schema, message):
    path = write_records(tmp_path / "r.parquet", cell_records([1.0]), schema=schema)
    with pytest.raises(UserError, match=message) as caught:
        summarize(job_for(tmp_path, path))
    assert str(path) in str(caught.value)


def test_unusable_records_are_refused(tmp_path):
    full = cell_records([1, 1, 0])
    refused(tmp_path, full.drop(columns="score"), "column score is missing")
    refused(tmp_path, full.assign(score=["a", "b", "c"]), "not a readable records file")
    refused(tmp_path, full.assign(score=[1.0, np.inf, 0.0]), "column score holds NaN or infinite values")
    refused(tmp_path, full.assign(task=["vt", None, "vt"]), "column task of the records file has gaps")
    refused(tmp_path, full.assign(total_entries=0), "total_entries")
    refused(tmp_path, full.iloc[:0], "empty")


def test_a_sample_that_failed_somewhere_is_left_out_everywhere_and_counted(tmp_path):
    full, half = cell_records([1, 1, 0]), cell_records([1, 0, 0], allocator="uniform", ratio=0.5)
    half.loc[2, ["failed", "total_entries"]] = ["it was too long", 0]
    job = summarized(tmp_path, pd.concat([full, half]))
    table = read_summary(job.parquet)
    assert table["n"].tolist() == [2, 2] and table["n_failed"].tolist() == [1, 1]
    assert table["score"].tolist() == [1.0, 0.5]
    refused(tmp_path / "all", full.assign(failed="no"), r"every sample failed; its column `failed` says why")


def test_a_task_without_any_answer_is_refused_and_not_left_out_of_the_mean(tmp_path):
    good = write_records(tmp_path / "vt.parquet", cell_records([1.0]))
    bad = write_records(tmp_path / "fwe.parquet", cell_records([np.nan], task="fwe", failed="no", total_entries=0))
    with pytest.raises(UserError, match=rf"^{bad}: every sample failed; its column `failed` says why$"):
        summarize(job_for(tmp_path, good, bad))


@given(
    scores=arrays(np.float64, st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)), elements=SCORES),
    methods=st.sets(st.sampled_from(["uniform", "baklava", "duo"])),
    ratios=st.sets(st.sampled_from([0.5, 0.9]), min_size=1),
)
@settings(max_examples=25, deadline=None)
def test_the_smallest_experiments_have_the_means_of_a_naive_loop(
    tmp_path_factory, scores: np.ndarray, methods: set[str], ratios: set[float]
):
    """`scores` of models x tasks x samples; compressed, the first sample is answered wrongly."""
    folder = tmp_path_factory.mktemp("few")
    frames = []
    for model, of_model in zip(MODELS, scores, strict=False):
        for task, own in zip(TASKS, of_model, strict=False):
            worse = [0.0, *own[1:]]
            cells = [(method, ratio) for method in sorted(methods) for ratio in sorted(ratios)]
            frames += [cell_records(own, model=model, task=task)]
            frames += [cell_records(worse, model=model, task=task, allocator=a, ratio=r) for a, r in cells]
    job = summarized(folder, pd.concat(frames))
    table, headline = read_summary(job.parquet), Headline.load(job.headline)
    assert len(table) == scores.shape[0] * scores.shape[1] * (1 + len(methods) * len(ratios))
    for model, of_model in zip(MODELS, scores, strict=False):
        figures = headline.models[model]
        assert figures.full == pytest.approx(of_model.mean())
        assert [method.allocator for method in figures.methods] == sorted(methods)
        assert {len(method.ratios) for method in figures.methods} <= {len(ratios)}
        for at_ratio in (at_ratio for method in figures.methods for at_ratio in method.ratios):
            assert at_ratio.score == pytest.approx(np.mean([[0.0, *own[1:]] for own in of_model]))
            assert at_ratio.delta_full_low <= at_ratio.delta_full <= at_ratio.delta_full_high
            assert (at_ratio.uniform is None) == ("uniform" not in methods)
            assert at_ratio.gain_over_uniform == (1.0 if at_ratio.uniform else None)


def test_without_timings_there_is_a_table_without_rows():
    assert timings([]).empty


def test_cells_that_cannot_be_paired_are_refused(tmp_path):
    full, half = cell_records([1, 1, 0]), cell_records([1, 0, 0], allocator="uniform", ratio=0.5)
    refused(tmp_path, pd.concat([full, half.iloc[:2]]), "uniform/streaming_llm at r = 0.5 holds 2 samples and .* 3")
    refused(tmp_path, pd.concat([full, half.assign(sample=[0, 1, 7])]), "sample 2 is in one only")
    refused(tmp_path, half, "no records of the full cache")
    refused(tmp_path, pd.concat([full, full.iloc[1:2]]), "sample 1 of tiny-llama, vt, full/none at r = 0 occurs more")


def test_no_records_at_all_are_refused(tmp_path):
    with pytest.raises(UserError, match="no records files"):
        summarize(job_for(tmp_path))
