"""Consistency of importance: what made-up profiles of known agreement come out as."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from baklava.importance.profile import Profile
from baklava.validation.consistency import COLUMNS, compare_profiles, compare_prompts

L, HKV, GROUP = 5, 4, 2
TOP = 0.3


def profile(**head_importance: np.ndarray) -> Profile:
    """From importance per KV cache `[P, L, Hkv]`, shared by the query heads of each."""
    heads = {name: np.repeat(values, GROUP, -1).astype(np.float32) for name, values in head_importance.items()}
    n_prompts = len(next(iter(heads.values())))
    return Profile("made-up", HKV, heads, np.zeros((n_prompts, L), np.float32))


def agreement(name: str, values: np.ndarray) -> dict[str, tuple[float, float]]:
    rows = compare_prompts(profile(**{name: values}), top=TOP)
    return {row["between"]: (row["spearman"], row["top_overlap"]) for row in rows}


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
    agreements = agreement("e", RANKED + noise)
    assert agreements["halves"][0] > agreements["prompts"][0] + 0.3
    assert agreements["halves"][1] > agreements["prompts"][1]


def test_agreement_is_the_mean_over_pairs_of_prompts() -> None:
    rankings = np.concatenate([RANKED, RANKED, -RANKED])  # pairs: 1, -1, -1
    assert agreement("e", rankings)["prompts"] == (pytest.approx(-1 / 3), pytest.approx(1 / 3))


def test_a_single_prompt_has_nothing_to_agree_with() -> None:
    rows = list(compare_prompts(profile(e=RANKED), top=TOP))
    assert np.isnan([row[name] for row in rows for name in ("spearman", "top_overlap")]).all()
    assert [row["n_prompts"] for row in rows] == [1, 1]


def test_profiles_are_compared_pair_by_pair_on_the_mean_of_their_prompts() -> None:
    noise = np.random.default_rng(0).normal(0, 3, (4, L, HKV))
    noise -= noise.mean(0)  # nothing is left of it in the mean
    profiles = {"a": profile(e=RANKED + noise), "b": profile(e=RANKED), "c": profile(e=-RANKED)}
    rows = list(compare_profiles(profiles, between="sets", top=TOP))
    assert {row["pair"]: (row["spearman"], row["top_overlap"]) for row in rows} == {
        "a - b": (pytest.approx(1.0), 1.0),
        "a - c": (pytest.approx(-1.0), 0.0),
        "b - c": (pytest.approx(-1.0), 0.0),
    }
    assert {(row["estimator"], row["between"], row["n_prompts"]) for row in rows} == {("e", "sets", 1)}


def test_rows_have_the_columns_of_the_file() -> None:
    twice = profile(a=np.concatenate([RANKED, RANKED]), b=np.concatenate([RANKED, RANKED]))
    rows = [
        *compare_prompts(twice, top=TOP),
        *compare_profiles({"x": twice, "y": twice}, between="lengths", top=TOP),
    ]
    assert [(row["estimator"], row["between"]) for row in rows] == [
        ("a", "prompts"),
        ("a", "halves"),
        ("b", "prompts"),
        ("b", "halves"),
        ("a", "lengths"),
        ("b", "lengths"),
    ]
    assert all(list(row) == COLUMNS.names for row in rows)
    pa.Table.from_pylist(rows, schema=COLUMNS)
