"""The BaKlaVa allocation: exact totals, order by importance, and no cache that gains when the total shrinks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import optuna
import pytest
from fake_profiles import PROFILES, RATIOS, FakeProfile, flat_profile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baklava.allocation import Baklava, Uniform
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


class TestSearchSpace:
    @given(PROFILES, MAPPINGS, RATIOS, st.integers(0, 2**32 - 1))
    @settings(max_examples=50)
    def test_every_point_gives_valid_shares(
        self, profile: FakeProfile, mapping: Baklava, ratio: float, seed: int
    ) -> None:
        space = mapping.space(profile)
        sampler = optuna.samplers.RandomSampler(seed=seed)
        point = optuna.create_study(sampler=sampler).ask(space).params
        for one in (point, *mapping.starts(profile)):
            assert one.keys() == space.keys()
            assert all(space[name]._contains(space[name].to_internal_repr(value)) for name, value in one.items())
            Budgets.from_shares(mapping.at(one).shares(profile, ratio), ratio=ratio)

    @given(PROFILES, MAPPINGS, RATIOS)
    @settings(max_examples=50)
    def test_uniform_and_the_configured_mapping_come_first(
        self, profile: FakeProfile, mapping: Baklava, ratio: float
    ) -> None:
        first, second, *_ = (mapping.at(point) for point in mapping.starts(profile))
        assert (first.shares(profile, ratio) == Uniform(name="u").shares(profile, ratio)).all()
        if mapping.estimator not in CONTROLS and (mapping.slope == 0 or mapping.slope > 0.001):
            assert np.abs(second.shares(profile, ratio) - mapping.shares(profile, ratio)).max() < 1e-6

    def test_every_estimator_but_the_control_is_tried_first_with_the_configured_values(self) -> None:
        mapping = Baklava(name="b", slope=1.7, floor=0.03)
        found = [mapping.at(point) for point in mapping.starts(flat_profile([1.0, 2.0]))]
        expected = [replace(mapping, estimator=name) for name in ESTIMATORS if name not in CONTROLS]
        assert all(one in found for one in expected)
        assert not any(getattr(one, "estimator", "") in CONTROLS for one in found)

    def test_configured_values_beyond_the_usual_range_are_part_of_it(self) -> None:
        space = Baklava(name="b", slope=100.0, floor=0.2).space(flat_profile([1.0, 2.0]))
        assert space["steepness"].high == pytest.approx(np.log2(101.0))
        assert space["floor"].high == 0.2
        assert space["whole"].high == 0.95

    def test_an_estimator_that_was_not_profiled_is_left_out(self) -> None:
        profile = replace(flat_profile([1.0, 2.0]), estimators=("value_output_cosine", "random"))
        mapping = Baklava(name="b", estimator="eviction_shift")
        assert {point["estimator"] for point in mapping.starts(profile)} == {"value_output_cosine"}
        with pytest.raises(UserError, match="allocator b: the profile holds no estimator to search among, only random"):
            mapping.space(replace(profile, estimators=("random",)))

    def test_search_can_be_switched_off(self) -> None:
        assert Baklava(name="b").searches
        assert not Baklava(name="b", search="none").searches
