"""The search finds low losses, prunes bad trials early, is never worse than uniform, and survives being killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from tqdm import tqdm

from baklava.allocation import Baklava
from baklava.allocation.base import SearchPoint
from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.experiment.schema import EvictionConfig, ModelConfig
from baklava.importance.profile import Profile
from baklava.inference.stored_losses import LossStore
from baklava.search.allowance import Allowance
from baklava.search.mapping_search import NEIGHBOURS, MappingSearch
from baklava.search.study import ROUND, Study

PROMPTS = [Prompt("none", index, "", "", "") for index in range(8)]
RATIOS = (0.5, 0.8)
Loss = Callable[[Budgets], float]


class Killed(Exception):
    pass


class FakeReplay:
    """A loss of the budgets, and as much on top of it for every mapping as a prompt is hard."""

    def __init__(self, loss: Loss, *, calls: int | None = None):
        self.loss = loss
        self.asked: list[tuple[int, int]] = []
        self.calls = calls

    def losses(self, prompt: Prompt, budgets: list[Budgets]) -> np.ndarray:
        assert budgets
        if len(self.asked) == self.calls:
            raise Killed
        self.asked.append((prompt.index, len(budgets)))
        return np.array([self.loss(one) + 0.5 * (prompt.index % 3) for one in budgets])


def profile() -> Profile:
    """Two estimators: one ranks the KV caches as `near_the_best` wants them, the other the other way round."""
    right = np.linspace(0, 1, 8, dtype=np.float32).reshape(1, 2, 4)
    heads = {"value_output_cosine": 1 - right, "eviction_shift": right}
    return Profile("fake", 4, heads, np.ones((1, 2), np.float32))


def near_the_best(budgets: Budgets) -> float:
    """Distance to what a slope of 6 on `eviction_shift` gives."""
    mapping = Baklava(name="b", slope=6.0, floor=0.04, whole=0.2)
    return float(np.abs(budgets.shares - mapping.shares(profile(), budgets.ratio)).sum())


def uniform_is_best(budgets: Budgets) -> float:
    return float(np.ptp(budgets.shares))


def run(path: Path, replay: FakeReplay, n_rounds: int, ratios=RATIOS, prompts=PROMPTS) -> Mapping[float, Study]:
    """Search with the losses that the store holds, as a job does."""
    model = ModelConfig(name="fake", path="nowhere/fake")
    policy = EvictionConfig(name="streaming_llm", family="streaming_llm")
    with LossStore.at(path, model, policy, lambda: replay) as losses:  # type: ignore[arg-type, return-value]
        search = MappingSearch(Baklava(name="b"), profile(), ratios, prompts, losses, seed=0)
        for _ in range(n_rounds):
            search.round(tqdm(disable=True))
        return search.studies


def outcome(some: Mapping[float, Study]) -> list[list[tuple[TrialState, SearchPoint, dict[int, float]]]]:
    """All that counts of every trial."""
    return [[(one.state, one.params, one.intermediate_values) for one in study.trials] for study in some.values()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeReplay, Mapping[float, Study]]:
    replay = FakeReplay(near_the_best)
    return replay, run(tmp_path_factory.mktemp("search") / "a.losses", replay, 4)


def test_what_is_found_beats_uniform_and_the_configured_mapping(finished) -> None:
    for study in finished[1].values():
        uniform, configured, *_ = study.trials
        assert study.best.value < 0.8 * configured.value
        assert study.best.value < 0.4 * uniform.value
        assert study.best.params["estimator"] == "eviction_shift"


def test_later_rounds_are_better_than_the_first(finished) -> None:
    for study in finished[1].values():
        early = [one.intermediate_values[2] for one in study.trials]
        assert np.median(early[2 * ROUND :]) < np.median(early[:ROUND])


def test_uniform_and_the_configured_mapping_see_every_prompt(tmp_path: Path) -> None:
    for study in run(tmp_path / "a", FakeReplay(near_the_best), 1).values():
        uniform, configured, *_ = study.trials
        assert uniform.params["steepness"] == uniform.params["whole"] == 0
        assert Baklava(name="b").at(configured.params) == Baklava(name="b")
        assert [one.state for one in (uniform, configured)] == [TrialState.COMPLETE] * 2


def test_the_winner_is_the_lowest_loss_among_trials_that_saw_every_prompt(finished) -> None:
    for study in finished[1].values():
        assert study.best.value == min(one.value for one in study.trials if one.state == TrialState.COMPLETE)
        assert set(study.best.intermediate_values) == {2, 4, len(PROMPTS)}


def test_of_equal_losses_uniform_wins(tmp_path: Path) -> None:
    assert [one.best.number for one in run(tmp_path / "a", FakeReplay(lambda _: 1.0), 1).values()] == [0, 0]
    assert [one.best.number for one in run(tmp_path / "b", FakeReplay(uniform_is_best), 2).values()] == [0, 0]


def test_trials_that_are_worse_than_the_median_are_pruned(finished) -> None:
    replay, some = finished
    for study in some.values():
        first = [(one.intermediate_values[2], one.state) for one in study.trials[2:ROUND]]
        middle = np.median([one.intermediate_values[2] for one in study.trials[:ROUND]])
        worse = [state for loss, state in first if loss > middle]
        assert worse and set(worse) == {TrialState.PRUNED}
    n_trials = sum(len(study.trials) for study in some.values())
    assert sum(n for _, n in replay.asked) < 0.6 * n_trials * len(PROMPTS)


@pytest.mark.parametrize(("stop", "part"), [(2, 0.5), (4, 0.25)])
def test_what_continues_is_among_the_better_of_the_round_and_of_earlier_complete_trials(finished, stop, part) -> None:
    for study in finished[1].values():
        before = [one for one in study.trials[:ROUND] if one.state == TrialState.COMPLETE]
        second = [one for one in study.trials[ROUND : 2 * ROUND] if stop in one.intermediate_values]
        known = sorted(one.intermediate_values[stop] for one in (*before, *second))
        good = known[: int(part * (len(known) - 1)) + 1]
        assert {max(one.intermediate_values) > stop for one in second} == {True, False}
        for one in second:
            assert (max(one.intermediate_values) > stop) == (one.intermediate_values[stop] in good)


def test_all_ratios_share_the_passes_over_the_prompts(tmp_path: Path) -> None:
    replay = FakeReplay(near_the_best)
    run(tmp_path / "a", replay, 2)
    assert [prompt for prompt, _ in replay.asked] == [*range(len(PROMPTS))] * 2
    assert replay.asked[0][1] == ROUND * len(RATIOS)


def test_a_ratio_tries_the_best_mappings_of_its_neighbours(tmp_path: Path) -> None:
    ratios = (0.3, 0.5, 0.7, 0.9)
    first = run(tmp_path / "a", FakeReplay(near_the_best), 1, ratios)
    best = {ratio: study.best.params for ratio, study in first.items()}
    second = run(tmp_path / "a", FakeReplay(near_the_best), 2, ratios)
    for ratio, study in second.items():
        tried = [one.params for one in study.trials]
        nearest = sorted((other for other in ratios if other != ratio), key=lambda other: abs(other - ratio))
        assert all(best[other] in tried for other in nearest[:NEIGHBOURS])
        assert len(tried) == 2 * ROUND


@pytest.mark.parametrize("calls", [0, 3, 9, 15])
def test_a_killed_search_finds_what_an_undisturbed_one_does(tmp_path: Path, calls: int) -> None:
    undisturbed = run(tmp_path / "a", FakeReplay(near_the_best), 3)
    with pytest.raises(Killed):
        run(tmp_path / "b", FakeReplay(near_the_best, calls=calls), 3)
    again = FakeReplay(near_the_best)
    assert outcome(run(tmp_path / "b", again, 3)) == outcome(undisturbed)
    assert len(again.asked) == 3 * len(PROMPTS) - calls  # finished prompts are not measured again


@pytest.mark.parametrize("lines", [3, 7, 11, 14])
def test_a_store_cut_anywhere_is_continued(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "a"
    undisturbed = outcome(run(path, FakeReplay(near_the_best), 2))
    written = path.read_bytes().splitlines(keepends=True)
    cut = round(len(written) * lines / 16)
    path.write_bytes(b"".join(written[:cut]) + written[cut][:-9])
    again = FakeReplay(near_the_best)
    assert outcome(run(path, again, 2)) == undisturbed
    assert len(again.asked) == len(written) - cut


def test_a_cap_ends_the_search_after_a_round(tmp_path: Path) -> None:
    limits = {}
    for limit in (None, 1.0):
        search = MappingSearch(
            *(Baklava(name="b"), profile(), RATIOS, PROMPTS, FakeReplay(near_the_best)),
            seed=0,
            allowance=Allowance(limit),
        )
        limits[limit] = {trial.number for trial in search.run(2).trials}, search._allowance.capped
    assert limits == {None: ({*range(2 * ROUND)}, False), 1.0: ({*range(ROUND)}, True)}


def test_a_finished_search_replays_nothing(tmp_path: Path) -> None:
    first = outcome(run(tmp_path / "a", FakeReplay(near_the_best), 2))
    assert outcome(run(tmp_path / "a", FakeReplay(near_the_best, calls=0), 2)) == first


def test_more_rounds_continue_from_fewer_and_fewer_ignore_the_later_ones(tmp_path: Path) -> None:
    two = outcome(run(tmp_path / "a", FakeReplay(near_the_best), 2))
    three = outcome(run(tmp_path / "a", FakeReplay(near_the_best), 3))
    assert [trials[: 2 * ROUND] for trials in three] == two
    assert outcome(run(tmp_path / "b", FakeReplay(near_the_best), 3)) == three
    assert outcome(run(tmp_path / "a", FakeReplay(near_the_best, calls=0), 2)) == two


def test_a_loss_that_is_no_number_loses(tmp_path: Path) -> None:
    def odd(budgets: Budgets) -> float:
        return near_the_best(budgets) if np.ptp(budgets.shares) < 0.5 else np.nan

    for study in run(tmp_path / "a", FakeReplay(odd), 2).values():
        assert np.isfinite(study.best.value)


class WorseLater(FakeReplay):
    """Whatever is tried after the first round of so many prompts is bad, at every ratio."""

    def __init__(self, bad: float, *, n_prompts: int):
        super().__init__(near_the_best)
        self.bad = bad
        self.n_prompts = n_prompts

    def losses(self, prompt: Prompt, budgets: list[Budgets]) -> np.ndarray:
        first = len(self.asked) < self.n_prompts
        return super().losses(prompt, budgets) + (0.0 if first else self.bad)


@pytest.mark.parametrize("bad", [100.0, np.inf, np.nan])
def test_a_round_ends_where_all_of_its_trials_are_pruned(tmp_path: Path, bad: float) -> None:
    first = run(tmp_path / "a", FakeReplay(near_the_best), 1)
    replay = WorseLater(bad, n_prompts=len(PROMPTS))
    some = run(tmp_path / "b", replay, 3)
    assert [prompt for prompt, _ in replay.asked] == [*range(len(PROMPTS)), 0, 1, 2, 3, 0, 1, 2, 3]
    for ratio, study in some.items():
        assert study.best.params == first[ratio].best.params
        assert {one.state for one in study.trials[ROUND:]} == {TrialState.PRUNED}
        assert len(study.trials) == 3 * ROUND


@given(
    n_prompts=st.integers(1, 5),
    ratios=st.sets(st.sampled_from([0.3, 0.5, 0.8, 0.95]), min_size=1, max_size=3),
    bad=st.sampled_from([0.0, 1.0, 100.0, np.inf, np.nan]),
)
@settings(max_examples=12, deadline=None)
def test_few_prompts_one_ratio_and_bad_rounds_are_searched_alike(
    tmp_path_factory: pytest.TempPathFactory, n_prompts: int, ratios: set[float], bad: float
) -> None:
    prompts, replay = PROMPTS[:n_prompts], WorseLater(bad, n_prompts=n_prompts)
    for study in run(tmp_path_factory.mktemp("search") / "a", replay, 2, sorted(ratios), prompts).values():
        assert len(study.trials) == 2 * ROUND
        assert {0, 1} <= {one.number for one in study.complete}
        assert all(max(one.intermediate_values) == n_prompts for one in study.complete)
        assert study.best.value == min(one.value for one in study.complete)
        assert study.best.number < ROUND or bad == 0.0 or study.best.value < study.trials[0].value
