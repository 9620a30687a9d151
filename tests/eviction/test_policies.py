"""What holds for every eviction policy, whatever it looks at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from large_scores import BIAS
from layer_contexts import N_KV_HEADS, kept, order_of, random_layer, rows_of, scores_and_order_of, scores_of
from pydantic import TypeAdapter, ValidationError

from baklava.cache.attention.backend import HALVES
from baklava.errors import UserError
from baklava.eviction import (
    H2O,
    POLICIES,
    AdaKV,
    Critical,
    Defensive,
    DropKV,
    EvictionPolicy,
    ExpectedAttention,
    LayerAda,
    SnapKV,
    StreamingLLM,
    policy_named,
)

CONF = Path(__file__).parents[2] / "conf" / "eviction"
EVERY = [
    *(policy for family in POLICIES.values() if not (policy := family()).repeats),
    StreamingLLM(n_sink=0),
    SnapKV(window_size=3, kernel_size=1),
    H2O(recent=0.0),
    ExpectedAttention(n_sink=0, n_future_positions=3, use_covariance=False, use_vnorm=False),
    ExpectedAttention(epsilon=0.1),
    AdaKV(inner=H2O()),
    AdaKV(inner=ExpectedAttention(), floor=0.0),
    AdaKV(inner=StreamingLLM(), floor=1.0),
    Critical(inner=H2O(), first=0.0),
    AdaKV(inner=Defensive(window_size=3, mass=0.5), floor=0.0),
    DropKV(window_size=3, kernel_size=1),
    LayerAda(inner=Critical(inner=H2O()), floor=0.0),
    AdaKV(inner=Critical(inner=StreamingLLM(), first=1.0)),
]
every_policy = pytest.mark.parametrize("policy", EVERY, ids=str)
LENGTHS = [1, 2, 3, 5, 9, 70]


@every_policy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("n_entries", LENGTHS)
def test_every_entry_has_a_score(
    policy: EvictionPolicy, n_entries: int, softcap: float | None, dtype: torch.dtype
) -> None:
    queries, context = random_layer(n_entries, rows=2, dtype=dtype, softcap=softcap)
    for values in scores_and_order_of(policy, queries, context):
        assert values.shape == (2, N_KV_HEADS, n_entries)
        assert values.isfinite().all()
        assert values.dtype in (torch.float32, torch.float64)


@every_policy
@pytest.mark.parametrize("chunks", [[70], [69, 1], [1, 69], [2, 3, 30, 5, 30], [1] * 70], ids=len)
def test_scores_do_not_depend_on_chunks(policy: EvictionPolicy, chunks: list[int]) -> None:
    queries, context = random_layer(70, rows=2)
    torch.testing.assert_close(scores_of(policy, queries, context, chunks=chunks), scores_of(policy, queries, context))


@every_policy
def test_scores_of_a_row_do_not_depend_on_the_others(policy: EvictionPolicy) -> None:
    queries, context = random_layer(70, rows=3)
    together = scores_and_order_of(policy, queries, context)
    for row in range(3):
        alone = slice(row, row + 1)
        for all_rows, one in zip(
            together, scores_and_order_of(policy, queries[alone], rows_of(context, alone)), strict=True
        ):
            torch.testing.assert_close(all_rows[alone], one)


@every_policy
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_observing_and_scoring_leave_their_inputs_alone(policy: EvictionPolicy, dtype: torch.dtype) -> None:
    queries, context = random_layer(30, dtype=dtype)
    before = [tensor.clone() for tensor in (queries, context.keys, context.values)]
    scored = scores_and_order_of(policy, queries, context, chunks=[20, 10])
    scored_before = [tensor.clone() for tensor in scored]
    policy.distribute(*scored, torch.full((1, N_KV_HEADS), 7))
    assert all(map(torch.equal, before, (queries, context.keys, context.values)))
    assert all(map(torch.equal, scored, scored_before))


@every_policy
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("softcap", [None, 50.0])
@pytest.mark.parametrize("by", [0.0, BIAS])
def test_half_precision_is_scored_in_float32(
    policy: EvictionPolicy, by: float, softcap: float | None, dtype: torch.dtype
) -> None:
    """Whatever the scores, entries rank as in float32 arithmetic on the same numbers."""
    queries, context = random_layer(90, rows=2, dtype=dtype, softcap=softcap)
    large = torch.tensor([0.0] * 6 + [by] * 2, dtype=dtype)
    context = replace(context, keys=context.keys + large)
    queries = queries + large
    exact = replace(context, keys=context.keys.float(), values=context.values.float())
    for chunks in ([90], [50, 1, 39]):
        scored = scores_and_order_of(policy, queries, context, chunks=chunks)
        expected = scores_and_order_of(policy, queries.float(), exact, chunks=chunks)
        assert all(map(torch.equal, scored, expected))


@every_policy
@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 6e4), (torch.bfloat16, 1e18)], ids=str)
@pytest.mark.parametrize("softcap", [None, 50.0])
def test_scores_up_to_the_limit_of_the_format_are_numbers(
    policy: EvictionPolicy, softcap: float | None, dtype: torch.dtype, size: float
) -> None:
    queries, context = random_layer(60, dtype=torch.float64, softcap=softcap)
    context = replace(context, keys=(context.keys.sign() * size).to(dtype), values=context.values.to(dtype))
    scores = order_of(policy, (queries.sign() * size).to(dtype), context)
    assert scores.isfinite().all()
    assert kept(policy, scores, 20).shape == (1, N_KV_HEADS, 20)


@every_policy
@pytest.mark.parametrize("n_entries", LENGTHS)
def test_protected_entries_are_kept(policy: EvictionPolicy, n_entries: int) -> None:
    scores = order_of(policy, *random_layer(n_entries))
    for budget in range(1, n_entries + 1):
        n_first = min(policy.protected_first(budget), budget)
        n_last = min(policy.protected_last(budget), budget - n_first)
        expected = {*range(n_first), *range(n_entries - n_last, n_entries)}
        for row in kept(policy, scores, budget)[0].tolist():
            assert expected <= set(row)
            assert len(set(row)) == budget


@every_policy
def test_a_layer_keeps_what_its_budgets_add_up_to(policy: EvictionPolicy) -> None:
    budgets = torch.tensor([[10, 10, 10], [40, 0, 3], [40, 40, 40], [0, 0, 0]])
    counts = policy.distribute(*scores_and_order_of(policy, *random_layer(40, rows=4)), budgets)
    assert counts.shape == budgets.shape
    assert counts.dtype == budgets.dtype
    assert counts.sum(1).tolist() == [30, 43, 120, 0]
    assert bool((counts >= 0).all() and (counts <= 40).all())


@every_policy
def test_all_layers_keep_what_their_budgets_add_up_to(policy: EvictionPolicy) -> None:
    layers = [scores_and_order_of(policy, *random_layer(40, seed=layer)) for layer in range(3)]
    scores, orders = [layer[0] for layer, _ in layers], [layer[0] for _, layer in layers]
    for budgets in ([[10, 10, 10]] * 3, [[40, 0, 3], [0, 0, 0], [40, 40, 1]], [[0, 0, 0]] * 3, [[40, 40, 40]] * 3):
        counts = policy.distribute_over_layers(scores, orders, torch.tensor(budgets))
        assert counts.sum() == sum(map(sum, budgets))
        assert bool((counts >= 0).all() and (counts <= 40).all())
        if not policy.needs_all_layers:
            assert counts.tolist() == budgets


@every_policy
def test_keys_of_length_zero_do_no_harm(policy: EvictionPolicy) -> None:
    queries, context = random_layer(12)
    context.keys.zero_()
    context.values.zero_()
    assert order_of(policy, queries, context).isfinite().all()


@pytest.mark.parametrize("family", POLICIES)
def test_defaults_are_valid_and_unknown_parameters_refused(family: str) -> None:
    adapter = TypeAdapter(POLICIES[family])
    assert adapter.validate_python({}) == POLICIES[family]()
    with pytest.raises(ValidationError, match="nonsense"):
        adapter.validate_python({"nonsense": 1})


def test_every_policy_has_its_own_file_and_a_choice_in_conf() -> None:
    files = {path.stem for path in (Path(__file__).parents[2] / "baklava" / "eviction").glob("*.py")}
    chosen = {yaml.safe_load(path.read_text())["family"] for path in CONF.glob("*.yaml")}
    assert set(POLICIES) <= files
    assert set(POLICIES) == chosen


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_choice_in_conf_is_the_policy_of_that_name(path: Path) -> None:
    """So that the name in the path of a budgets file is what `BudgetedCache(eviction=...)` takes."""
    values = yaml.safe_load(path.read_text())
    assert values.pop("name") == path.stem
    family = values.pop("family")
    assert policy_named(path.stem) == TypeAdapter(POLICIES[family]).validate_python(values)


def test_ada_kv_goes_over_every_other_policy_by_name() -> None:
    for family in (name for name, policy in POLICIES.items() if policy.level < AdaKV.level):
        assert policy_named(f"ada_{family}") == AdaKV(inner=POLICIES[family]())
    assert policy_named("layer_ada_critical_tova") == LayerAda(inner=Critical(inner=POLICIES["tova"]()))
    for name in (
        "ada_adakv",
        "critical_adakv",
        "critical_ada_snapkv",
        "layer_ada_ada_tova",
        "ada_kvzip",
        "critical_nope",
        "ada_",
    ):
        with pytest.raises(UserError, match=rf"unknown eviction policy '{name}'; known: ada_critical_snapkv, .*tova"):
            policy_named(name)
