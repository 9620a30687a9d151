"""What every static allocator promises, whatever the profile and the ratio."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_profiles import PROFILES, RATIOS, FakeProfile, profiles
from hypothesis import given, settings
from hypothesis import strategies as st

from baklava.allocation import ALLOCATORS, Allocator, BudgetsFile, budgets_of
from baklava.budgets import Budgets

CLOSE = 1e-9

# Parameters other than the defaults, drawn for each family.
PARAMETERS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "baklava": {
        "slope": st.floats(0, 40),
        "floor": st.floats(0, 1),
        "whole": st.floats(0, 1),
        "layer_mix": st.floats(0, 1),
    },
    "baklava_measured": {"floor": st.floats(0, 1)},
    "budgets_file": {},
    "duo": {"streaming": st.floats(0, 0.99), "pool": st.sampled_from(["mean", "max"])},
    "headkv": {"beta": st.floats(1, 20), "pool": st.sampled_from(["mean", "max"])},
    "lu_curve": {},
    "pyramid": {"beta": st.floats(1, 100)},
    "random": {"seed": st.integers(0, 9)},
    "squeeze": {"p": st.floats(0, 1)},
    "uniform": {},
}

# What the file says may give a KV cache more when the total shrinks.
NOT_MONOTONE = {"lu_curve"}
# The others look at a KV cache's place besides its importance.
BY_IMPORTANCE_ALONE = ["baklava", "baklava_measured", "duo", "headkv", "squeeze", "uniform"]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curves")


def allocator(family: str, profile: FakeProfile, curves: Path, data: st.DataObject) -> Allocator:
    parameters = {name: data.draw(values, label=name) for name, values in PARAMETERS[family].items()}
    if family == "budgets_file":
        return budgets_file(profile, curves)
    if family == "lu_curve":
        path = curves / f"{profile.n_layers}x{profile.n_kv_heads}.npy"
        if not path.exists():
            np.save(path, np.random.default_rng(0).random((99, profile.n_layers, profile.n_kv_heads)))
        parameters = {"curve": str(path)}
    return ALLOCATORS[family](name=family, **parameters)


def budgets_file(profile: FakeProfile, folder: Path) -> BudgetsFile:
    """Proportions of which some are so large that they do not fit."""
    path = folder / f"{profile.n_layers}x{profile.n_kv_heads}.json"
    proportions = np.random.default_rng(0).random((profile.n_layers, profile.n_kv_heads)) ** 4
    places = np.ndenumerate(proportions / proportions.sum())
    path.write_text(json.dumps({f"L{layer}H{head}": value for (layer, head), value in places}))
    return BudgetsFile(name="budgets_file", path=str(path), format="compaction")


def test_every_family_is_tested() -> None:
    assert PARAMETERS.keys() == ALLOCATORS.keys()


@pytest.mark.parametrize("family", ALLOCATORS)
class TestEveryAllocator:
    @given(profile=PROFILES, ratio=RATIOS, data=st.data())
    def test_shares_are_shares_and_their_mean_is_what_the_ratio_leaves(
        self, family: str, curves: Path, profile: FakeProfile, ratio: float, data: st.DataObject
    ) -> None:
        shares = allocator(family, profile, curves, data).shares(profile, ratio)
        assert shares.shape == (profile.n_layers, profile.n_kv_heads)
        assert ((shares >= 0) & (shares <= 1)).all()
        assert abs(shares.mean() - (1 - ratio)) < CLOSE

    @given(profile=PROFILES, ratio=RATIOS, n_entries=st.integers(0, 3000), data=st.data())
    def test_budgets_add_up_exactly_for_every_length(
        self, family: str, curves: Path, profile: FakeProfile, ratio: float, n_entries: int, data: st.DataObject
    ) -> None:
        shares = allocator(family, profile, curves, data).shares(profile, ratio)
        entries = Budgets.from_shares(shares, ratio=ratio).entries(n_entries)
        assert entries.sum() == round((1 - ratio) * shares.size * n_entries)
        assert ((entries >= 0) & (entries <= n_entries)).all()
        assert np.abs(entries - shares * n_entries).max() <= 1 + 1e-6

    @given(profile=PROFILES, one=RATIOS, another=RATIOS, data=st.data())
    def test_no_cache_gains_when_the_total_shrinks(
        self, family: str, curves: Path, profile: FakeProfile, one: float, another: float, data: st.DataObject
    ) -> None:
        if family in NOT_MONOTONE:
            pytest.skip("its docstring says so")
        chosen = allocator(family, profile, curves, data)
        more, less = (chosen.shares(profile, ratio) for ratio in sorted((one, another)))
        assert (more >= less - CLOSE).all()

    @given(profile=PROFILES, ratio=RATIOS, data=st.data())
    def test_equal_input_gives_equal_shares(
        self, family: str, curves: Path, profile: FakeProfile, ratio: float, data: st.DataObject
    ) -> None:
        chosen = allocator(family, profile, curves, data)
        assert (chosen.shares(profile, ratio) == replace(chosen).shares(profile, ratio)).all()

    @given(profile=PROFILES, ratio=RATIOS, n_entries=st.integers(0, 3000), page=st.integers(1, 40), data=st.data())
    @settings(max_examples=50)
    def test_groups_share_budgets_of_whole_blocks_and_totals_are_exact(
        self,
        family: str,
        curves: Path,
        profile: FakeProfile,
        ratio: float,
        n_entries: int,
        page: int,
        data: st.DataObject,
    ) -> None:
        sizes = [size for size in range(1, profile.n_kv_heads + 1) if profile.n_kv_heads % size == 0]
        size = data.draw(st.sampled_from(sizes))
        free = allocator(family, profile, curves, data)
        granularity = "layer" if size == profile.n_kv_heads else f"group:{size}"
        budgets = budgets_of(replace(free, granularity=granularity, page=page), profile, ratio)  # type: ignore[arg-type]
        grouped = free.shares(profile, ratio).reshape(-1, size)  # type: ignore[arg-type]
        np.testing.assert_allclose(budgets.shares.reshape(-1, size), grouped.mean(1, keepdims=True) + 0 * grouped)
        entries = budgets.entries(n_entries).reshape(-1, size)
        n_blocks = -(-n_entries // page)
        blocks = -(-entries // page)
        assert (entries == entries[:, :1]).all()
        assert ((entries % page == 0) | (entries == n_entries)).all()
        assert blocks.sum() == size * round((1 - ratio) * len(grouped) * n_blocks)

    def test_nothing_is_removed_at_ratio_0(self, family: str, curves: Path) -> None:
        profile = FakeProfile(np.random.default_rng(0).random((5, 3)), np.random.default_rng(1).random((2, 5)))
        if family == "lu_curve":
            np.save(curves / "5x3.npy", np.zeros((99, 5, 3)))
        parameters = {"curve": str(curves / "5x3.npy")} if family == "lu_curve" else {}
        made = ALLOCATORS[family](name=family, **parameters)
        shares = (budgets_file(profile, curves) if family == "budgets_file" else made).shares(profile, 0.0)
        assert np.abs(shares - 1).max() < CLOSE


@pytest.mark.parametrize("family", BY_IMPORTANCE_ALONE)
@given(profile=profiles(distinct=True), ratio=RATIOS, data=st.data())
@settings(max_examples=50)
def test_a_permuted_profile_gives_permuted_shares(
    family: str, curves: Path, profile: FakeProfile, ratio: float, data: st.DataObject
) -> None:
    """Layers among each other, and the KV heads of a layer; equal ones have no order that could stay."""
    layers = data.draw(st.permutations(range(profile.n_layers)))
    heads = data.draw(st.permutations(range(profile.n_kv_heads)))
    permuted = FakeProfile(profile.head[layers][:, heads], profile.layer_importance[:, layers])
    chosen = allocator(family, profile, curves, data)
    if getattr(chosen, "layer_mix", 0):
        chosen = replace(chosen, layer_mix=0.0)  # mixed importance may have equals where that of the heads has none
    before, after = chosen.shares(profile, ratio), chosen.shares(permuted, ratio)
    np.testing.assert_allclose(after, before[layers][:, heads], atol=1e-6)
