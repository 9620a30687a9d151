"""The BaKlaVa allocation: exact totals, order by importance, and no cache that gains when the total shrinks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_profile import PROFILES, RATIOS, FakeProfile, flat_profile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baklava.allocate import Baklava, Uniform
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.importance import CONTROLS, ESTIMATORS

CLOSE = 1e-9


PART = st.floats(0, 1)
MAPPINGS = st.builds(
    Baklava,
    name=st.just("b"),
    estimator=st.sampled_from(list(ESTIMATORS)),
    pool=st.sampled_from(["mean", "max"]),
    layer_mix=PART | st.just(0.0),
    slope=st.floats(0, 40),
    floor=PART | st.floats(0, 0.1),
    whole=PART | st.just(0.0),
)


class TestShares:
    @given(PROFILES, MAPPINGS, RATIOS)
    def test_mean_is_what_the_ratio_leaves(self, profile: FakeProfile, mapping: Baklava, ratio: float) -> None:
        shares = mapping.shares(profile, ratio)
        assert shares.shape == (profile.n_layers, profile.n_kv_heads)
        assert ((shares >= 0) & (shares <= 1)).all()
        assert abs(shares.mean() - (1 - ratio)) < CLOSE
        Budgets.from_shares(shares, ratio=ratio)  # refuses what is not valid

    @given(PROFILES, MAPPINGS, RATIOS)
    def test_higher_importance_never_gets_less(self, profile: FakeProfile, mapping: Baklava, ratio: float) -> None:
        importance = mapping.importance(profile).ravel()
        shares = mapping.shares(profile, ratio).ravel()
        order = np.argsort(importance, kind="stable")
        higher = np.diff(importance[order]) > 0  # equals may differ: one of them is made whole first
        assert (np.diff(shares[order])[higher] >= -CLOSE).all()

    @given(PROFILES, MAPPINGS, RATIOS, RATIOS)
    @settings(max_examples=300)
    @example(flat_profile([4.0, 3.0, 2.0, 1.0, 0.0, 0.0]), Baklava(name="b", whole=0.5), 0.33, 0.34)
    def test_no_cache_gains_when_the_total_shrinks(
        self, profile: FakeProfile, mapping: Baklava, one: float, another: float
    ) -> None:
        more, less = (mapping.shares(profile, ratio) for ratio in sorted((one, another)))
        assert (more >= less - CLOSE).all()

    @given(PROFILES, MAPPINGS, RATIOS)
    def test_flat_mapping_is_uniform(self, profile: FakeProfile, mapping: Baklava, ratio: float) -> None:
        flat = replace(mapping, slope=0.0, whole=0.0, layer_mix=0.0).shares(profile, ratio)
        assert np.abs(flat - Uniform(name="u").shares(profile, ratio)).max() < CLOSE

    def test_equal_importance_is_uniform_whatever_the_slope(self) -> None:
        shares = Baklava(name="b", slope=9.0).shares(flat_profile([2.0, 2.0, 2.0]), 0.4)
        assert shares == pytest.approx(np.full((1, 3), 0.6))

    def test_steep_slope_fills_caches_in_order(self) -> None:
        shares = Baklava(name="b", slope=32.0, floor=0.0).shares(flat_profile([0.2, 0.9, 0.5, 0.0]), 0.5)
        assert shares == pytest.approx(np.array([[0.0, 1.0, 1.0, 0.0]]), abs=1e-6)

    def test_whole_part_makes_the_most_important_caches_whole(self) -> None:
        mapping = Baklava(name="b", whole=0.5, slope=0.0, floor=0.0)
        # Half of 2.4 makes the second cache whole and a fifth of the fourth; the other 1.2 is spread evenly.
        shares = mapping.shares(flat_profile([1.0, 4.0, 2.0, 3.0]), 0.4)
        assert shares == pytest.approx(np.array([[0.4, 1.0, 0.4, 0.6]]))

    def test_layer_importance_is_averaged_over_prompts_and_mixed_in(self) -> None:
        profile = FakeProfile(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 0.0]]))
        importance = Baklava(name="b", layer_mix=0.25).importance(profile)
        assert importance == pytest.approx(np.array([[0.25, 1.0], [0.75, 0.0]]))

    def test_pooling_is_the_chosen_one(self) -> None:
        profile = flat_profile([1.0, 2.0])
        Baklava(name="b", pool="max").shares(profile, 0.5)
        assert profile.pooled == ["max"]

    def test_estimator_that_was_not_profiled_is_named(self) -> None:
        profile = replace(flat_profile([1.0]), estimators=("value_output_cosine",))
        with pytest.raises(UserError, match="no estimator 'eviction_shift'; it has value_output_cosine"):
            Baklava(name="b", estimator="eviction_shift").shares(profile, 0.5)


class TestCandidates:
    @pytest.mark.parametrize("n", [1, 2, 4, 5, 64])
    def test_at_most_n_per_estimator_each_valid(self, n: int) -> None:
        profile = FakeProfile(np.random.default_rng(0).random((6, 4)), np.random.default_rng(1).random((3, 6)))
        candidates = Baklava(name="b").candidates(profile, n=n, seed=0)
        assert {candidate.estimator for candidate in candidates} == set(ESTIMATORS) - set(CONTROLS)
        for estimator in set(ESTIMATORS) - set(CONTROLS):
            own = [candidate for candidate in candidates if candidate.estimator == estimator]
            assert 1 <= len(own) <= n
            assert len(set(own)) == len(own)
        for candidate in candidates:
            for ratio in (0.3, 0.7, 0.95):
                Budgets.from_shares(candidate.shares(profile, ratio), ratio=ratio)

    def test_depend_on_the_seed_alone(self) -> None:
        profile = flat_profile([1.0, 2.0])
        start = Baklava(name="b")
        assert start.candidates(profile, n=16, seed=3) == start.candidates(profile, n=16, seed=3)
        assert start.candidates(profile, n=16, seed=3) != start.candidates(profile, n=16, seed=4)

    def test_starting_values_come_first(self) -> None:
        start = Baklava(name="b", slope=1.7, floor=0.03)
        profile = replace(flat_profile([1.0, 2.0]), estimators=("eviction_shift", "value_output_cosine"))
        assert start.candidates(profile, n=8, seed=0)[0] == start

    def test_without_search_there_is_nothing_to_choose(self) -> None:
        fixed = Baklava(name="b", search=False)
        assert fixed.candidates(flat_profile([1.0]), n=64, seed=0) == [fixed]
