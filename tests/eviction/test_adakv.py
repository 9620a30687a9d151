"""Ada-KV: KV heads compete for a layer's budget, above a floor, with the layer's total unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from competition import INNER, naive_winners
from hypothesis import given
from hypothesis import strategies as st
from layer_contexts import kept, random_layer, scores_and_order_of, scores_of
from pydantic import TypeAdapter, ValidationError

from baklava.eviction import H2O, TOVA, AdaKV, Knorm, SnapKV


@st.composite
def layers(draw: st.DrawFn) -> tuple[AdaKV, int, list[list[int]], int]:
    """A policy, the length of a context, budgets of up to three rows, and a seed."""
    policy = AdaKV(inner=draw(st.sampled_from(INNER)), floor=draw(st.sampled_from([0.0, 0.2, 0.5, 1.0])))
    n_entries = draw(st.integers(1, 12))
    row = st.lists(st.integers(0, n_entries), min_size=3, max_size=3)
    return policy, n_entries, draw(st.lists(row, min_size=1, max_size=3)), draw(st.integers(0, 100))


@given(layers())
def test_totals_stay_floors_hold_and_the_best_entries_win(layer: tuple[AdaKV, int, list[list[int]], int]) -> None:
    policy, n_entries, budgets, seed = layer
    scores = scores_of(policy, *random_layer(n_entries, rows=len(budgets), seed=seed))
    counts = policy.distribute(scores, scores, torch.tensor(budgets)).tolist()
    for row, (own, won) in enumerate(zip(budgets, counts, strict=True)):
        assert sum(won) == sum(own)
        assert all(int(policy.floor * budget) <= n <= n_entries for budget, n in zip(own, won, strict=True))
        assert all(n > 0 for budget, n in zip(own, won, strict=True) if budget and policy.floor)
        assert won == naive_winners(scores[row], own, policy.inner, policy.floor)


def test_attention_kept_is_no_less_than_with_equal_budgets() -> None:
    inner = SnapKV(window_size=4)
    scores = scores_of(inner, *random_layer(60))[0]
    counts = AdaKV(inner=inner, floor=0.0).distribute(scores[None], scores[None], torch.full((1, 3), 15))[0].tolist()

    def attention(budgets: Sequence[int]) -> float:
        return sum(float(scores[head, kept(inner, scores[head], n)].sum()) for head, n in enumerate(budgets))

    assert counts != [15, 15, 15]
    assert attention(counts) > attention([15, 15, 15])


def test_whole_floor_leaves_the_budgets_as_they_are() -> None:
    policy = AdaKV(inner=Knorm(), floor=1.0)
    budgets = torch.tensor([[3, 0, 20], [7, 7, 7]])
    assert torch.equal(policy.distribute(*scores_and_order_of(policy, *random_layer(20, rows=2)), budgets), budgets)


def test_protected_entries_of_one_head_come_before_high_scores_of_another() -> None:
    policy = AdaKV(inner=SnapKV(window_size=4), floor=0.0)
    scores = torch.zeros(1, 2, 20)
    scores[0, 0] = 1e6
    assert policy.distribute(scores, scores, torch.tensor([[5, 5]])).tolist() == [[6, 4]]


def test_inner_policy_is_given_by_name_by_mapping_or_as_it_is() -> None:
    build = TypeAdapter(AdaKV).validate_python
    assert build({"inner": "h2o"}) == AdaKV(inner=H2O())
    assert build({"inner": {"family": "snapkv", "window_size": 8}}) == AdaKV(inner=SnapKV(window_size=8))
    assert build({"inner": TOVA(), "floor": 0.1}) == AdaKV(inner=TOVA(), floor=0.1)


@pytest.mark.parametrize(
    ("inner", "complaint"),
    [
        ("fifo", "unknown eviction policy 'fifo'; known here: "),
        ("adakv", "unknown eviction policy 'adakv'; known here: "),
        ({"window_size": 8}, "unknown eviction policy None; known here: "),
        ({"family": "snapkv", "window_size": 0}, "greater than or equal to 1"),
        ({"family": "snapkv", "n_sink": 4}, "nexpected keyword"),
        (3, "a policy's name or a mapping with its family and parameters is needed, got 3"),
        (None, "got None"),
    ],
    ids=str,
)
def test_mistakes_in_the_inner_policy_are_refused(inner: object, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint) as error:
        TypeAdapter(AdaKV).validate_python({"inner": inner})
    assert error.value.errors()[0]["loc"][0] == "inner"
