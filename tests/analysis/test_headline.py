from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from synthetic_results import EVICTION, RATIOS, TASKS, cell_records, experiment_records, write_records

from baklava.analysis.cells import read_cells
from baklava.analysis.headline import Headline, MethodFigures, compute_headline
from baklava.errors import UserError
from baklava.experiment.settings import SummaryConfig

N = 200
ONES = [1.0] * N


def headline_of(folder: Path, *frames: pd.DataFrame, **settings) -> Headline:
    path = write_records(folder / "records.parquet", pd.concat(frames))
    return compute_headline(read_cells([path]), SummaryConfig(**{"n_bootstrap": 400, **settings}))


def losing(n: int, of: int = N) -> list[float]:
    """Scores of which `n` are 0 and the others 1."""
    return [0.0] * n + [1.0] * (of - n)


def method_of(headline: Headline, allocator: str, model: str = "tiny-llama") -> MethodFigures:
    return next(method for method in headline.models[model].methods if method.allocator == allocator)


def baklava(scores, ratio: float, **changed) -> pd.DataFrame:
    return cell_records(scores, allocator="baklava", ratio=ratio, **changed)


def uniform(scores, ratio: float, **changed) -> pd.DataFrame:
    return cell_records(scores, allocator="uniform", ratio=ratio, **changed)


def test_largest_lossless_ratio_needs_all_smaller_ones_lossless(tmp_path):
    cells = [baklava(ONES, 0.3), baklava(losing(40), 0.5), baklava(ONES, 0.7)]
    method = method_of(headline_of(tmp_path, cell_records(ONES), *cells), "baklava")
    assert [figures.lossless for figures in method.ratios] == [True, False, True]
    assert method.largest_lossless_ratio == 0.3


def test_no_lossless_ratio_is_zero(tmp_path):
    headline = headline_of(tmp_path, cell_records(ONES), baklava(losing(120), 0.3), baklava(losing(160), 0.5))
    assert method_of(headline, "baklava").largest_lossless_ratio == 0.0


def test_all_ratios_lossless(tmp_path):
    headline = headline_of(tmp_path, cell_records(ONES), baklava(ONES, 0.3), baklava(ONES, 0.9))
    assert method_of(headline, "baklava").largest_lossless_ratio == 0.9


def test_lossless_is_about_the_confidence_bound_not_the_mean(tmp_path):
    four_lost = headline_of(tmp_path, cell_records(ONES), baklava(losing(4), 0.5), margin=0.03)
    figures = method_of(four_lost, "baklava").ratios[0]
    assert figures.delta_full == pytest.approx(-0.02)
    assert figures.delta_full_low < -0.03
    assert not figures.lossless


def test_a_loss_of_just_the_margin_still_counts_as_lossless(tmp_path):
    headline = headline_of(tmp_path, cell_records(ONES), baklava([0.98] * N, 0.5), margin=0.02)
    assert method_of(headline, "baklava").largest_lossless_ratio == 0.5
    headline = headline_of(tmp_path, cell_records(ONES), baklava(ONES, 0.5), margin=0.0)
    assert method_of(headline, "baklava").largest_lossless_ratio == 0.5


def test_nothing_is_lossless_where_the_full_cache_scores_nothing(tmp_path):
    headline = headline_of(tmp_path, cell_records(losing(N)), baklava(losing(N), 0.5))
    method = method_of(headline, "baklava")
    assert (method.largest_lossless_ratio, method.ratios[0].lossless) == (None, None)
    assert headline.describe_lossless("tiny-llama", method) == "full cache scores 0.00: no verdict"


@pytest.mark.parametrize(("n", "words"), [(4, "n = 4: undecided (needs 183)"), (182, None), (183, "r = 0.5")])
def test_nothing_is_lossless_where_the_same_answers_may_be_chance(tmp_path, n, words):
    """Of 183 samples without a difference, the exact 95% interval of the fraction that differs ends at 2.0%."""
    headline = headline_of(tmp_path, cell_records([1.0] * n), baklava([1.0] * n, 0.5))
    described = headline.describe_lossless("tiny-llama", method_of(headline, "baklava"))
    assert described == (words or f"n = {n}: undecided (needs 183)")
    assert binomtest(0, n).proportion_ci(0.95).high < 0.02 or "undecided" in described


def test_the_task_with_the_fewest_samples_bounds_all(tmp_path):
    cells = [cell_records(ONES, task="a"), cell_records([1.0] * 4, task="b")]
    cells += [baklava(ONES, 0.5, task="a"), baklava([1.0] * 4, 0.5, task="b")]
    headline = headline_of(tmp_path, *cells)
    assert headline.explain_no_verdict("tiny-llama") == "n = 8: undecided (needs 183)"


def test_no_tested_ratio_is_explained_by_the_first(tmp_path):
    headline = headline_of(tmp_path, cell_records(ONES), baklava(losing(4), 0.3), baklava(ONES, 0.5))
    method = method_of(headline, "baklava")
    assert headline.describe_lossless("tiny-llama", method) == "no tested ratio"
    assert method.explain_none().startswith("r = 0.3: -2.0 [-")


def test_mean_over_tasks_weighs_tasks_equally(tmp_path):
    headline = headline_of(
        tmp_path,
        cell_records([1.0] * 10, task="a"),
        cell_records([0.5] * 40, task="b"),
        baklava([0.8] * 10, 0.5, task="a"),
        baklava([0.2] * 40, 0.5, task="b"),
        uniform([0.1] * 10, 0.5, task="a"),
        uniform([0.3] * 40, 0.5, task="b"),
    )
    model = headline.models["tiny-llama"]
    assert model.n == {"a": 10, "b": 40}
    assert model.full == pytest.approx(0.75)
    figures = method_of(headline, "baklava").ratios[0]
    assert (figures.score, figures.full, figures.uniform) == pytest.approx((0.5, 0.75, 0.2))
    assert (figures.delta_full, figures.delta_uniform) == pytest.approx((-0.25, 0.3))
    assert figures.gain_over_uniform == pytest.approx(2.5)
    assert figures.kv_bytes == 0.5 * model.kv_bytes_full
    assert method_of(headline, "uniform").ratios[0].gain_over_uniform == 1.0


def test_samples_are_redrawn_within_each_task(tmp_path):
    """Constant scores within tasks leave nothing to chance, however far the tasks are apart."""
    headline = headline_of(
        tmp_path, cell_records(ONES, task="a"), cell_records([0.0] * N, task="b"),
        baklava(ONES, 0.5, task="a"), baklava([0.0] * N, 0.5, task="b"),
    )  # fmt: skip
    figures = method_of(headline, "baklava").ratios[0]
    assert (figures.ci_low, figures.score, figures.ci_high) == (0.5, 0.5, 0.5)


def test_differences_are_paired(tmp_path):
    scores = np.random.default_rng(0).random(50)
    headline = headline_of(tmp_path, cell_records(scores), baklava(scores - 0.01, 0.5), uniform(scores, 0.5))
    figures = method_of(headline, "baklava").ratios[0]
    assert (figures.delta_full_low, figures.delta_full_high) == pytest.approx((-0.01, -0.01))
    assert (figures.delta_uniform_low, figures.delta_uniform_high) == pytest.approx((-0.01, -0.01))
    assert figures.ci_high - figures.ci_low > 0.1


def test_gain_over_a_uniform_that_scores_nothing_is_null_and_said(tmp_path):
    headline = headline_of(tmp_path, cell_records(ONES), baklava(losing(80), 0.9), uniform([0.0] * N, 0.9))
    figures = method_of(headline, "baklava").ratios[0]
    assert figures.gain_over_uniform is None
    assert figures.uniform_is_zero


def test_without_uniform_there_is_no_gain(tmp_path):
    figures = method_of(headline_of(tmp_path, cell_records(ONES), baklava(ONES, 0.9)), "baklava").ratios[0]
    assert (figures.uniform, figures.delta_uniform, figures.gain_over_uniform) == (None, None, None)
    assert not figures.uniform_is_zero


def test_eviction_policies_are_compared_with_their_own_uniform(tmp_path):
    headline = headline_of(
        tmp_path, cell_records(ONES), baklava(losing(40), 0.5, eviction="snapkv"),
        uniform(losing(80), 0.5, eviction="snapkv"), uniform(losing(160), 0.5, eviction="tova"),
    )  # fmt: skip
    assert method_of(headline, "baklava").ratios[0].uniform == pytest.approx(0.6)
    methods = [(method.allocator, method.eviction) for method in headline.models["tiny-llama"].methods]
    assert methods == [("baklava", "snapkv"), ("uniform", "snapkv"), ("uniform", "tova")]


def test_file_is_strict_json_and_reads_back(tmp_path):
    path = write_records(tmp_path / "records.parquet", experiment_records())
    headline = compute_headline(read_cells([path]), SummaryConfig(n_bootstrap=100, margin=0.05, confidence=0.9))
    headline.save(tmp_path / "headline.json")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    values = json.loads((tmp_path / "headline.json").read_text(), parse_constant=refuse)
    assert (values["schema_version"], values["margin"], values["confidence"], values["n_bootstrap"]) == (
        1,
        0.05,
        0.9,
        100,
    )
    assert values["models"]["tiny-qwen2"]["n"] == dict.fromkeys(TASKS, 64)
    methods = values["models"]["tiny-qwen2"]["methods"]
    assert [method["allocator"] for method in methods] == ["baklava", "uniform"]
    assert {method["eviction"] for method in methods} == {EVICTION}
    assert [figures["ratio"] for figures in methods[0]["ratios"]] == list(RATIOS)
    assert Headline.load(tmp_path / "headline.json") == headline


def test_a_task_that_a_method_misses_is_refused(tmp_path):
    with pytest.raises(UserError, match="no records of task a where there are some of tiny-llama, b, baklava"):
        headline_of(tmp_path, cell_records(ONES, task="a"), cell_records(ONES, task="b"), baklava(ONES, 0.5, task="b"))


def test_mixed_settings_are_refused(tmp_path):
    with pytest.raises(UserError, match="mix several protocols, seeds or lengths"):
        headline_of(tmp_path, cell_records(ONES), cell_records(ONES, seed=1))


def test_a_broken_headline_names_file_and_key(tmp_path):
    path = tmp_path / "headline.json"
    path.write_text(
        '{"schema_version": 1, "margin": 0.1, "confidence": 0.9, "n_bootstrap": 100, "seed": "x", "models": {}}'
    )
    with pytest.raises(UserError, match=r"headline\.json: seed: "):
        Headline.load(path)
