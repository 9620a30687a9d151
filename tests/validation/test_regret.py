"""Regret with losses that are known: how far shares are from wanted ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.errors import UserError
from baklava.validation.plots import draw_regret
from baklava.validation.regret import COLUMNS, FLOOR, greedy_budgets, measure_regret

PROMPTS = [Prompt("none", index, "", "", "") for index in range(4)]
IMPORTANCE = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.floats(0, 10))
RATIOS = st.floats(0, 0.99)


class FakeLosses:
    """Loss: memory that retrieval needs and does not get, in whole KV caches, and more on later prompts."""

    def __init__(self, needed: np.ndarray):
        self.needed = needed
        self.n_calls = 0

    def losses(self, prompt, budgets):
        self.n_calls += 1
        return np.array([np.clip(self.needed - tried.shares, 0, None).sum() + prompt.index for tried in budgets])


class TestGreedyBudgets:
    @given(IMPORTANCE, RATIOS)
    def test_whole_or_floor_but_for_one(self, importance: np.ndarray, ratio: float) -> None:
        shares = greedy_budgets(importance, ratio).shares
        floor = min(FLOOR, 1 - ratio)
        assert shares.mean() == pytest.approx(1 - ratio)
        between = (shares > floor + 1e-9) & (shares < 1 - 1e-9)
        assert between.sum() <= 1
        order = np.argsort(-importance.ravel(), kind="stable")
        assert (np.diff(shares.ravel()[order]) <= 1e-9).all()

    @given(IMPORTANCE, RATIOS)
    def test_only_the_ranking_counts(self, importance: np.ndarray, ratio: float) -> None:
        ranks = np.unique(importance, return_inverse=True)[1].reshape(importance.shape)
        assert np.array_equal(
            greedy_budgets(importance, ratio).shares, greedy_budgets(ranks.astype(float), ratio).shares
        )

    @given(IMPORTANCE, RATIOS, RATIOS)
    def test_no_kv_cache_gains_when_the_total_shrinks(self, importance, first: float, second: float) -> None:
        low, high = sorted((first, second))
        assert (greedy_budgets(importance, high).shares <= greedy_budgets(importance, low).shares + 1e-9).all()


def uniform(ratio: float) -> Budgets:
    return Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=ratio)


NEEDED = np.array([[1.0, 0.0], [0.0, 1.0]])
RIGHT, WRONG = NEEDED, 1 - NEEDED


def run(methods: dict[float, dict[str, Budgets]]) -> tuple[dict[tuple[float, str], dict], FakeLosses]:
    source = FakeLosses(NEEDED)
    rankings = {"right": RIGHT, "wrong": WRONG}
    rows = list(measure_regret(rankings, methods, source, PROMPTS, model="m", eviction="snapkv"))
    assert all(list(row) == COLUMNS.names for row in rows)
    return {(row["ratio"], row["estimator"]): row for row in rows}, source


def test_regret_is_the_loss_less_that_of_the_best_method() -> None:
    half = Budgets.from_shares([[0.9, 0.1], [0.1, 0.9]], ratio=0.5)
    rows, source = run({0.5: {"uniform": uniform(0.5), "baklava": half}, 0.75: {"uniform": uniform(0.75)}})
    right, wrong = rows[0.5, "right"], rows[0.5, "wrong"]
    assert source.n_calls == len(PROMPTS)  # all ratios, rankings and methods share a prompt's prefill
    assert right["best"] == wrong["best"] == "baklava"
    assert right["loss_full"] == pytest.approx(1.5)  # the mean of the prompts' own
    assert right["loss_best"] == pytest.approx(0.2 + 1.5)
    assert right["loss"] == pytest.approx(2 * FLOOR + 1.5)  # of the total the floors of the others are missing
    assert right["regret"] == pytest.approx(2 * FLOOR - 0.2)
    assert wrong["regret"] == pytest.approx(2 * (1 - FLOOR) - 0.2)
    assert rows[0.75, "wrong"]["best"] == "uniform"
    assert rows[0.75, "wrong"]["loss_best"] == pytest.approx(1.5 + 1.5)
    assert {row["n_prompts"] for row in rows.values()} == {4}


def test_where_nothing_is_compressed_nothing_is_measured_and_the_figure_says_so() -> None:
    rows, source = run({})
    assert (rows, source.n_calls) == ({}, 0)
    figure = draw_regret(pd.DataFrame([], columns=COLUMNS.names))
    assert "this experiment compresses nothing" in [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("index", [0, 1, -1])  # of the full cache, a ranking, a method
def test_a_non_finite_loss_is_one_line(bad: float, index: int) -> None:
    class Odd(FakeLosses):
        def losses(self, prompt, budgets):
            losses = super().losses(prompt, budgets)
            losses[index] = bad
            return losses

    methods = {0.5: {"uniform": uniform(0.5)}}
    with pytest.raises(UserError, match=r"^model m: some losses on the calibration prompts are NaN or infinite; set"):
        list(measure_regret({"right": RIGHT}, methods, Odd(NEEDED), PROMPTS, model="m", eviction="snapkv"))


def test_one_kv_cache_one_prompt_and_one_method_have_no_regret() -> None:
    methods = {0.5: {"uniform": Budgets.uniform(n_layers=1, n_kv_heads=1, ratio=0.5)}}
    source = FakeLosses(np.ones((1, 1)))
    [row] = measure_regret({"only": np.ones((1, 1))}, methods, source, PROMPTS[:1], model="m", eviction="snapkv")
    assert (row["best"], row["regret"], row["loss"]) == ("uniform", 0.0, pytest.approx(0.5))
    assert draw_regret(pd.DataFrame([row])).axes[0].get_title() == "snapkv"
