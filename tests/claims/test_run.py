"""Claims: made-up records with known verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_results import cell_records, experiment_records, write_records

from baklava.claims.comparison import Comparison
from baklava.claims.criteria import Criterion
from baklava.claims.run import Claims, claims
from baklava.experiment.jobs import ClaimsJob
from baklava.experiment.settings import ClaimsConfig, SummaryConfig

N = 50
DECIDABLE = {"margin": 0.1}  # with N samples
NO_CRITERIA = {
    "lossless_at": (),
    "gain_at": {},
    "gain_up_to": {},
    "no_worse_at": (),
}


def right(n: float) -> list[float]:
    """Scores of N samples, of which the first `n` are 1 and the others 0."""
    return [1.0] * round(n) + [0.0] * (N - round(n))


def cell(allocator: str, ratio: float, n_right: float, **changed) -> pd.DataFrame:
    return cell_records(right(n_right), allocator=allocator, ratio=ratio, **changed)


def claimed(folder: Path, *frames: pd.DataFrame, summary: dict | None = None, full: int = N, **criteria) -> Claims:
    """Claims of records in which the full cache answers `full` samples of every task and model rightly."""
    cells = pd.concat(frames)
    fulls = [cell_records(right(full), model=m, task=t) for m, t in cells[["model", "task"]].drop_duplicates().values]
    job = ClaimsJob(
        claims=ClaimsConfig(**{**NO_CRITERIA, **criteria}),
        summary=SummaryConfig(**{"n_bootstrap": 300, **(summary or {})}),
        records=(write_records(folder / "records.parquet", pd.concat([*fulls, cells])),),
        output=folder / "claims.json",
        markdown=folder / "claims.md",
    )
    claims(job)
    return Claims.load(job.output)


def only(result: Claims) -> Criterion:
    [criterion] = result.criteria
    return criterion


def row(result: Claims, allocator: str, *, task: str = "mean", eviction: str = "streaming_llm") -> Comparison:
    [comparison] = [
        each for each in result.comparisons if (each.allocator, each.task, each.eviction) == (allocator, task, eviction)
    ]
    return comparison


class TestLossless:
    def test_within_the_margin_is_met(self, tmp_path: Path) -> None:
        criterion = only(claimed(tmp_path, cell("baklava", 0.7, N), lossless_at=[0.7], summary=DECIDABLE))
        assert (criterion.verdict, criterion.model, criterion.eviction) == ("met", "tiny-llama", "streaming_llm")
        assert criterion.asked.startswith("lossless at r = 0.7")
        assert criterion.figures == "difference +0.0 [+0.0, +0.0] points"

    def test_the_interval_decides_not_the_mean(self, tmp_path: Path) -> None:
        """Four lost of fifty are eight points; the interval reaches further."""
        criterion = only(claimed(tmp_path, cell("baklava", 0.7, N - 4), lossless_at=[0.7], summary=DECIDABLE))
        assert criterion.verdict == "missed"
        assert criterion.figures.startswith("difference -8.0 [")

    def test_few_samples_decide_nothing(self, tmp_path: Path) -> None:
        criterion = only(claimed(tmp_path, cell("baklava", 0.7, N), lossless_at=[0.7]))
        assert (criterion.verdict, criterion.figures) == ("no verdict", "n = 50: undecided (needs 183)")

    def test_what_the_ratio_alone_is_asked_and_what_none_below_means_stand_side_by_side(self, tmp_path: Path) -> None:
        claimed(tmp_path, cell("baklava", 0.5, 40), cell("baklava", 0.7, N), lossless_at=[0.7], summary=DECIDABLE)
        page = (tmp_path / "claims.md").read_text()
        assert "- met: tiny-llama, streaming_llm: lossless at r = 0.7, tested alone" in page
        assert "| no tested ratio, r = 0.5: -20.0 [" in page
        assert "a criterion tests its ratio alone" in page

    def test_other_allocators_and_evictions_are_not_asked(self, tmp_path: Path) -> None:
        cells = (cell("baklava", 0.7, N), cell("uniform", 0.7, 0), cell("baklava", 0.7, 0, eviction="snapkv"))
        assert only(claimed(tmp_path, *cells, lossless_at=[0.7], summary=DECIDABLE)).verdict == "met"


def test_where_the_full_cache_scores_nothing_no_criterion_has_a_verdict(tmp_path: Path) -> None:
    criteria = {"lossless_at": [0.7], "gain_at": {0.7: 1}, "gain_up_to": {0.7: 1}, "no_worse_at": [0.7]}
    cells = (cell("baklava", 0.7, 0), cell("uniform", 0.7, 0))
    result = claimed(tmp_path, *cells, full=0, **criteria)
    assert {(criterion.verdict, criterion.figures) for criterion in result.criteria} == {
        ("no verdict", "full cache scores 0.00: no verdict")
    }
    assert len(result.criteria) == 4


class TestGain:
    @pytest.mark.parametrize(("uniform", "verdict"), [(10, "met"), (11, "missed")])
    def test_the_multiple_of_uniform_decides(self, tmp_path: Path, uniform: int, verdict: str) -> None:
        criterion = only(claimed(tmp_path, cell("baklava", 0.8, 40), cell("uniform", 0.8, uniform), gain_at={0.8: 4}))
        assert criterion.verdict == verdict
        assert criterion.figures == f"{40 / uniform:.1f}x at r = 0.8 (0.800 against {uniform / N:.3f})"

    def test_somewhere_means_the_best_ratio_up_to_the_given_one(self, tmp_path: Path) -> None:
        cells = [
            one
            for ratio, own, uniform in ((0.8, 40, 20), (0.9, 36, 3), (0.95, 30, 1))
            for one in (cell("baklava", ratio, own), cell("uniform", ratio, uniform))
        ]
        result = claimed(tmp_path, *cells, gain_up_to={0.9: 10})
        assert only(result).verdict == "met"
        assert only(result).figures.startswith("12.0x at r = 0.9 ")
        assert only(claimed(tmp_path, *cells, gain_up_to={0.8: 10})).verdict == "missed"

    def test_a_uniform_that_scores_nothing_counts_as_one_right_answer(self, tmp_path: Path) -> None:
        """Else a single right answer would be an endless gain."""
        cells = (cell("baklava", 0.9, 5), cell("uniform", 0.9, 0))
        criterion = only(claimed(tmp_path, *cells, gain_at={0.9: 6}))
        assert criterion.verdict == "missed"
        assert criterion.figures == "5.0x at r = 0.9 (0.100 against 0.000, which counts as one right answer)"
        assert only(claimed(tmp_path, *cells, gain_at={0.9: 5})).verdict == "met"

    def test_without_uniform_it_is_not_measured(self, tmp_path: Path) -> None:
        assert only(claimed(tmp_path, cell("baklava", 0.8, N), gain_at={0.8: 4})).verdict == "not measured"


class TestNoWorse:
    def test_a_difference_above_the_margin_is_met(self, tmp_path: Path) -> None:
        cells = (cell("baklava", 0.5, 48), cell("duo", 0.5, 49), cell("uniform", 0.5, 10))
        criterion = only(claimed(tmp_path, *cells, no_worse_at=[0.5], no_worse_margin=0.03))
        assert criterion.verdict == "met"
        assert criterion.figures.startswith("least lead over duo -2.0 [")

    def test_a_difference_of_just_the_margin_is_missed(self, tmp_path: Path) -> None:
        cells = (cell("baklava", 0.5, 48), cell("duo", 0.5, 49))
        assert only(claimed(tmp_path, *cells, no_worse_at=[0.5], no_worse_margin=0.02)).verdict == "missed"

    def test_everyone_who_is_better_is_named(self, tmp_path: Path) -> None:
        cells = [cell(name, 0.5, n) for name, n in (("baklava", 40), ("duo", 45), ("headkv", 50), ("random", 10))]
        criterion = only(claimed(tmp_path, *cells, no_worse_at=[0.5]))
        assert criterion.verdict == "missed"
        assert "duo -10.0 [" in criterion.figures
        assert "headkv -20.0 [" in criterion.figures
        assert "random" not in criterion.figures

    def test_every_model_and_eviction_policy_is_judged_apart(self, tmp_path: Path) -> None:
        cells = []
        for model, eviction, rival in (
            ("tiny-llama", "snapkv", 10),
            ("tiny-llama", "h2o", 50),
            ("tiny-qwen2", "snapkv", 50),
            ("tiny-qwen2", "h2o", 10),
        ):
            where = {"model": model, "eviction": eviction}
            cells += [cell("baklava", 0.5, 40, **where), cell("duo", 0.5, rival, **where)]
        result = claimed(tmp_path, *cells, no_worse_at=[0.5])
        assert {(criterion.model, criterion.eviction): criterion.verdict for criterion in result.criteria} == {
            ("tiny-llama", "snapkv"): "met",
            ("tiny-llama", "h2o"): "missed",
            ("tiny-qwen2", "snapkv"): "missed",
            ("tiny-qwen2", "h2o"): "met",
        }


@pytest.mark.parametrize(
    "criteria", [{"lossless_at": [0.6]}, {"gain_at": {0.6: 2}}, {"gain_up_to": {0.3: 2}}, {"no_worse_at": [0.6]}]
)
def test_a_ratio_that_was_not_evaluated_is_not_measured(tmp_path: Path, criteria: dict) -> None:
    criterion = only(claimed(tmp_path, cell("baklava", 0.5, N), cell("uniform", 0.5, N), **criteria))
    assert (criterion.verdict, criterion.figures) == ("not measured", "")


def test_an_eviction_policy_that_was_not_evaluated_is_not_measured(tmp_path: Path) -> None:
    result = claimed(tmp_path, cell("baklava", 0.5, N), evictions=["h2o"], lossless_at=[0.5])
    assert (only(result).eviction, only(result).verdict) == ("h2o", "not measured")


def test_differences_are_paired_differences_of_the_mean_of_tasks_and_of_each_task(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random(N)  # alike in both cells but for a shift, so that pairing leaves no noise
    cells = [
        cell_records(scores - shift * (allocator == "duo"), task=task, allocator=allocator, ratio=0.5)
        for task, shift in (("a", 0.1), ("b", 0.3))
        for allocator in ("baklava", "duo")
    ]
    result = claimed(tmp_path, *cells)
    for task, expected in (("mean", 0.2), ("a", 0.1), ("b", 0.3)):
        [paired] = row(result, "duo", task=task).differences
        assert (paired.ratio, paired.difference, paired.low, paired.high) == pytest.approx(
            (0.5, expected, expected, expected)
        )
    assert row(result, "baklava").differences == ()
    assert (row(result, "duo").n, row(result, "duo", task="a").n) == (2 * N, N)


def test_the_largest_lossless_ratio_of_a_task_is_that_tasks_own(tmp_path: Path) -> None:
    cells = [
        cell("baklava", ratio, n, task=task)
        for task, some in (("a", (N, N)), ("b", (N, 20)))
        for ratio, n in zip((0.5, 0.7), some, strict=True)
    ]
    result = claimed(tmp_path, *cells, summary=DECIDABLE)
    assert {task: row(result, "baklava", task=task).figures.largest_lossless_ratio for task in ("a", "b", "mean")} == {
        "a": 0.7,
        "b": 0.5,
        "mean": 0.5,
    }


def test_the_same_records_give_the_same_bytes_whatever_else_is_there(tmp_path: Path) -> None:
    records = experiment_records()
    records = records[(records["allocator"] != "full") & (records["sample"] < N)]
    first = claimed(tmp_path / "1", records.sample(frac=1, random_state=0), summary={"n_bootstrap": 100})
    again = claimed(tmp_path / "2", records, summary={"n_bootstrap": 100})
    assert (tmp_path / "1" / "claims.json").read_bytes() == (tmp_path / "2" / "claims.json").read_bytes()
    fewer = claimed(tmp_path / "3", records[records["model"] == "tiny-qwen2"], summary={"n_bootstrap": 100})
    assert fewer.comparisons == tuple(one for one in first.comparisons if one.model == "tiny-qwen2")
    assert again == first


def test_bars_table_and_gap_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [
        cell(allocator, ratio, n, task=task)
        for task in ("a", "b")
        for ratio in (0.5, 0.8)
        for allocator, n in (("baklava", 40), ("uniform", 10), ("baklava_measured", 45))
    ]
    criteria = {"gain_at": {0.8: 4}, "no_worse_at": [0.5], "lossless_at": [0.7], "yardstick": "baklava_measured"}
    claimed(tmp_path, *cells, **criteria)
    printed = capsys.readouterr().out
    page = (tmp_path / "claims.md").read_text()
    for text in (printed, page):
        assert "met: tiny-llama, streaming_llm: at least 4x uniform at r = 0.8: 4.0x at r = 0.8 (0.800 against" in text
        assert "MISSED: tiny-llama, streaming_llm: no worse than any other allocator at r = 0.5" in text
        assert "not measured: tiny-llama, streaming_llm: lossless at r = 0.7" in text
        assert "baklava minus baklava_measured, tiny-llama, streaming_llm: -10.0 [" in text
        assert "0.800 4.0x" in text
    [line] = [line for line in printed.splitlines() if line.split()[2:3] == ["uniform"]]
    verdict = ["n", "=", "100:", "undecided", "(needs", "183)"]
    assert line.split() == ["tiny-llama", "streaming_llm", "uniform", *verdict, *["0.200", "1.0x"] * 2]
    assert [line for line in page.splitlines() if line.startswith("## ")] == ["## Mean over the tasks", "## a", "## b"]
    assert json.loads((tmp_path / "claims.json").read_text())["schema_version"] == 1


def test_models_with_different_ratios_share_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claimed(tmp_path, cell("baklava", 0.5, N), cell("baklava", 0.9, N, model="tiny-qwen2"))
    lines = [line.split("|") for line in (tmp_path / "claims.md").read_text().splitlines() if "baklava |" in line]
    assert [[part.strip(" *") for part in line[5:7]] for line in lines[:2]] == [["1.000", ""], ["", "1.000"]]


def test_where_nothing_is_compressed_there_is_nothing_to_judge(tmp_path: Path) -> None:
    job = ClaimsJob(
        claims=ClaimsConfig(),
        summary=SummaryConfig(n_bootstrap=100),
        records=(write_records(tmp_path / "records.parquet", cell_records([1.0])),),
        output=tmp_path / "claims.json",
        markdown=tmp_path / "claims.md",
    )
    claims(job)
    result = Claims.load(job.output)
    assert (result.comparisons, result.criteria) == ((), ())
