"""The local search: never worse than its start, totals kept, and redundancy that single removals do not show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tqdm import tqdm

from baklava.allocation.fitted import Candidate
from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.search.local_search import LocalSearch, MeanLosses, search_locally

Loss = Callable[[NDArray[np.float64]], float]


def losses_by(loss: Loss):
    """`Losses` of a function of the shares of one allocation."""
    return lambda rows: {ratio: np.array([loss(one) for one in some]) for ratio, some in rows.items()}


def refined(loss: Loss, start: list[float], *, rounds: int = 12, step: float = 0.25, floor: float = 0.0) -> LocalSearch:
    return search_locally({0.5: {"start": np.array(start)}}, losses_by(loss), rounds=rounds, step=step, floor=floor)[
        0.5
    ]


@given(
    start=st.lists(st.floats(0, 1), min_size=1, max_size=7),
    seed=st.integers(0, 99),
    step=st.floats(0.01, 1),
    floor=st.sampled_from([0.0, 0.05, 0.4]),
)
@settings(max_examples=60)
def test_no_round_makes_it_worse_and_every_allocation_keeps_the_total(
    start: list[float], seed: int, step: float, floor: float
) -> None:
    """Whatever the losses are: here they depend on the shares in a jagged way."""
    weights = np.random.default_rng(seed).normal(size=(2, len(start)))
    found = refined(
        lambda shares: float(np.sin(9 * shares @ weights[0]) + shares @ weights[1]), start, step=step, floor=floor
    )
    assert found.best.loss <= found.candidates[0].loss
    for trial in found.candidates:
        assert trial.shares.sum() == pytest.approx(sum(start), abs=1e-9)
        assert ((trial.shares >= 0) & (trial.shares <= 1)).all()
        assert (trial.shares >= np.minimum(start, floor) - 1e-12).all()


def test_budget_ends_where_it_is_worth_most() -> None:
    worth = np.array([5.0, 1.0, 3.0, 0.1])
    found = refined(lambda shares: float(worth @ (1 - shares) ** 2), [0.5] * 4, rounds=40)
    left = worth * (1 - found.best.shares)  # what a little more would gain, equal where it could be either way
    inner = (found.best.shares > 0.01) & (found.best.shares < 0.99)
    assert np.ptp(left[inner]) < 0.2
    assert found.best.loss < 0.6 * found.start.loss


def test_redundancy_that_single_removals_do_not_show() -> None:
    """The first two hold the same, so each alone can go; what one of them lacks the other must have."""

    def loss(shares: NDArray[np.float64]) -> float:
        return 10 * float(np.prod(1 - shares[:2])) + float(1 - shares[2])

    alone = [loss(np.where(np.arange(3) == i, 0.0, 1.0)) for i in range(3)]
    assert alone[0] == alone[1] < alone[2]  # removed alone, the third seems to be the one that matters
    found = refined(loss, [0.0, 0.0, 1.0])
    assert found.best.shares[:2].max() == pytest.approx(1.0)
    assert found.best.loss == pytest.approx(1.0)


def test_a_round_without_gain_looks_closer() -> None:
    found = refined(lambda shares: float(np.abs(shares - 0.5).sum()), [0.5, 0.5], rounds=3, step=0.4)
    assert found.step == pytest.approx(0.05)
    assert found.best is found.candidates[0]


def test_probes_are_one_step_up_and_down_where_there_is_room() -> None:
    one = LocalSearch([Candidate("start", np.array([1.0, 0.3, 0.05]), 1.0)], 1, step=0.1, floor=0.05)
    expected = [[1.0, 0.4, 0.05], [1.0, 0.3, 0.15], [0.9, 0.3, 0.05], [1.0, 0.2, 0.05]]
    np.testing.assert_allclose(one.probes(), expected)


def test_ratios_go_side_by_side_and_do_not_touch_each_other() -> None:
    losses = losses_by(lambda shares: float(np.array([3.0, 1.0]) @ (1 - shares) ** 2))
    starts = {0.5: {"a": np.array([0.5, 0.5])}, 0.8: {"a": np.array([0.2, 0.2]), "b": np.array([0.4, 0.0])}}
    together = search_locally(starts, losses, rounds=3, step=0.1, floor=0.0)
    for ratio, tried in starts.items():
        alone = search_locally({ratio: tried}, losses, rounds=3, step=0.1, floor=0.0)[ratio]
        assert [trial.loss for trial in alone.candidates] == [trial.loss for trial in together[ratio].candidates]
    assert together[0.8].start.move == "b"


def test_where_nothing_can_move_nothing_is_proposed() -> None:
    found = refined(lambda shares: float(shares.sum()), [0.0, 0.0], floor=0.1)
    assert [trial.move for trial in found.candidates] == ["start"]


@pytest.mark.filterwarnings("error")
@given(
    start=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    rounds=st.integers(0, 3),
    lost=st.sampled_from([0.0, 0.3, 0.7, 2.0]),
)
def test_infinite_losses_are_worst_and_equal_to_each_other(start: list[float], rounds: int, lost: float) -> None:
    """An allocation whose first KV cache keeps less than `lost` has no loss that is a number: maybe none has one."""

    def loss(shares: NDArray[np.float64]) -> float:
        return float(1 - shares[0]) if shares[0] >= lost else np.inf

    found = refined(loss, start, rounds=rounds, step=0.5)
    assert found.best.loss == min(trial.loss for trial in found.candidates) == loss(found.best.shares)
    assert all(trial.shares.sum() == pytest.approx(sum(start)) for trial in found.candidates)


def test_from_an_infinite_loss_budget_moves_to_where_losses_are_finite() -> None:
    found = refined(lambda shares: 0.0 if shares[1] > 0.7 else np.inf, [0.5, 0.5, 0.5], rounds=1, step=0.5)
    assert (found.start.loss, found.best.loss) == (np.inf, 0.0)


def test_without_ratios_nothing_is_searched() -> None:
    assert search_locally({}, losses_by(lambda shares: float(shares.sum())), rounds=2, step=0.1, floor=0.0) == {}


class MeansOfShares:
    """Losses that are known: what is missing of all shares, and more on later prompts."""

    def losses(self, prompt: Prompt, budgets: list[Budgets]) -> np.ndarray:
        assert budgets
        return np.array([1 - one.shares.mean() + prompt.index for one in budgets])


@given(
    sizes=st.lists(st.integers(0, 3), max_size=4),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    n_prompts=st.integers(1, 3),
)
def test_means_are_those_of_every_allocation_however_few(
    sizes: list[int], shape: tuple[int, int], n_prompts: int
) -> None:
    random = np.random.default_rng(sum(sizes))
    rows = {float(place): [random.random(shape[0] * shape[1]) for _ in range(n)] for place, n in enumerate(sizes)}
    prompts = [Prompt("none", index, "context", "question", "answer") for index in range(n_prompts)]
    found = MeanLosses(MeansOfShares(), prompts, shape, tqdm(disable=True))(rows)  # type: ignore[arg-type]
    assert list(found) == list(rows)
    for ratio, some in rows.items():
        expected = [np.mean([1 - one.mean() + prompt.index for prompt in prompts]) for one in some]
        assert found[ratio].tolist() == pytest.approx(expected)
