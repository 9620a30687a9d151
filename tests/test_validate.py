"""Consistency of importance: what made-up profiles of known agreement come out as."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from baklava.profile import Profile
from baklava.validate import COLUMNS, consistency, rank_agreement, top_overlap

L, HKV, GROUP = 5, 4, 2


def profile(**head_importance: np.ndarray) -> Profile:
    """From importance per KV cache `[P, L, Hkv]`, shared by the query heads of each."""
    heads = {name: np.repeat(values, GROUP, -1).astype(np.float32) for name, values in head_importance.items()}
    n_prompts = len(next(iter(heads.values())))
    return Profile("made-up", HKV, heads, np.zeros((n_prompts, L), np.float32))


def agreement(name: str, values: np.ndarray) -> dict[str, tuple[float, float]]:
    table = consistency([profile(**{name: values})])
    return {row.between: (row.spearman, row.top_overlap) for row in table.itertuples()}


RANKED = np.random.default_rng(0).permutation(L * HKV).reshape(1, L, HKV).astype(float)


def test_prompts_that_rank_alike_agree_whatever_the_scale() -> None:
    assert agreement("e", np.concatenate([RANKED, RANKED**3, 2 * RANKED, RANKED + 5])) == {
        "prompts": (pytest.approx(1.0), 1.0),
        "halves": (pytest.approx(1.0), 1.0),
    }


def test_prompts_that_rank_the_other_way_round_disagree() -> None:
    assert agreement("e", np.concatenate([RANKED, -RANKED])) == {
        "prompts": (pytest.approx(-1.0), 0.0),
        "halves": (pytest.approx(-1.0), 0.0),
    }


def test_halves_can_agree_where_prompts_do_not() -> None:
    """Noise of single prompts averages out."""
    noise = np.random.default_rng(1).normal(0, 8, (40, L, HKV))
    found = agreement("e", RANKED + noise)
    assert found["halves"][0] > found["prompts"][0] + 0.3
    assert found["halves"][1] > found["prompts"][1]


def test_agreement_is_the_mean_over_pairs_of_prompts() -> None:
    some = np.concatenate([RANKED, RANKED, -RANKED])  # pairs: 1, -1, -1
    assert agreement("e", some)["prompts"] == (pytest.approx(-1 / 3), pytest.approx(1 / 3))


def test_the_top_is_a_part_of_all_kv_caches() -> None:
    one = np.arange(20.0)
    other = np.where(one >= 17, -one, one)  # the best three of six become the worst
    assert top_overlap(np.stack([one, other]), top=0.3) == pytest.approx(3 / 6)
    assert top_overlap(np.stack([one, other]), top=0.15) == 0.0
    assert top_overlap(np.stack([one, other]), top=1.0) == 1.0


def test_a_single_prompt_has_nothing_to_agree_with() -> None:
    table = consistency([profile(e=RANKED)])
    assert table[["spearman", "top_overlap"]].isna().all(axis=None)
    assert table["n_prompts"].tolist() == [1, 1]


def test_equal_importance_everywhere_has_no_ranking() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(rank_agreement(np.ones((3, 4, 2))))
        assert rank_agreement(np.stack([np.ones(6), np.arange(6), np.arange(6)])) == pytest.approx(1.0)


def test_the_table_has_a_row_per_model_estimator_and_comparison_and_types() -> None:
    some = [profile(a=np.concatenate([RANKED, RANKED]), b=np.concatenate([RANKED, RANKED])) for _ in range(2)]
    table = consistency(some)
    assert table["estimator"].tolist() == ["a", "a", "b", "b"] * 2
    assert table["between"].tolist() == ["prompts", "halves"] * 4
    assert {name: str(kind) for name, kind in table.dtypes.items()} == COLUMNS
    assert {name: str(kind) for name, kind in consistency([]).dtypes.items()} == COLUMNS
