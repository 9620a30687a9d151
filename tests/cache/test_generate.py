"""Every call that `generate` makes on a cache: as with a `DynamicCache` where nothing is dropped, exact elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from generate_calls import (
    CALLS,
    FAMILIES,
    GREEDY,
    N_NEW,
    PADDING,
    PROMPT,
    TAKES_BACK,
    batch,
    budgets_of,
    generate,
    read_before,
    rows,
    skip_unsupported,
    tiny,
)
from tiny_models import random_tokens
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from baklava import BudgetedCache, Budgets
from baklava.errors import UserError
from baklava.eviction import NAMES as ALL_NAMES
from baklava.eviction import AdaKV, policy_named

NAMES = [name for name in ALL_NAMES if not policy_named(name).repeats]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("call", CALLS)
def test_where_nothing_is_dropped_tokens_are_those_of_a_dynamic_cache(call: str, family: str) -> None:
    skip_unsupported(call, family)
    model = tiny(family)
    made = CALLS[call](model, BudgetedCache(model.config, budgets_of(family, 0.0), "h2o"))
    model.set_attn_implementation("sdpa")
    try:
        assert made == CALLS[call](model, DynamicCache(config=model.config))
    finally:
        model.set_attn_implementation("baklava")


def by_hand(model: PreTrainedModel, cache: BudgetedCache, *parts: Tensor) -> list[int]:
    """Greedy tokens of one row: the parts are read one after another, each followed by new tokens."""
    ids = torch.empty(1, 0, dtype=torch.int64)
    with torch.no_grad():
        for part in parts:
            ids = torch.cat([ids, part], 1)
            for _ in range(N_NEW):
                logits = model(ids[:, cache.get_seq_length() :], past_key_values=cache).logits
                ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids[0].tolist()


def check_counts(cache: BudgetedCache, name: str, budgets: Budgets, lengths: list[int]) -> None:
    """What is kept of each row is the budget of its real tokens; Ada-KV moves it within a layer, or between layers."""
    kept = cache.kept_entries()
    for row, length in enumerate(lengths):
        expected = torch.from_numpy(budgets.entries(length))
        if policy_named(name).needs_all_layers:
            assert kept[:, row].sum() == expected.sum()
        elif isinstance(policy_named(name), AdaKV):
            assert kept[:, row].sum(-1).tolist() == expected.sum(-1).tolist()
        else:
            assert kept[:, row].tolist() == expected.tolist()
    assert kept.shape[1] == len(lengths)


class TestCompressed:
    """Each call with each family and decoding; the policies take turns, so that all are seen with most calls."""

    @pytest.mark.parametrize("decoding", ["grow", "fixed"])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("call", GREEDY)
    def test_tokens_are_those_of_one_pass_and_single_steps(self, call: str, family: str, decoding: Any) -> None:
        if decoding == "fixed" and call in TAKES_BACK:
            pytest.skip("refused")
        skip_unsupported(call, family)
        turn = 2 * (list(GREEDY).index(call) + 3 * FAMILIES.index(family)) + (decoding == "fixed")
        names = [name for name in NAMES if call not in TAKES_BACK or not policy_named(name).needs_all_layers]
        for name in (names[turn % len(names)], names[(turn + 7) % len(names)]):
            model, budgets = tiny(family), budgets_of(family, None, seed=turn)
            whole, made = (BudgetedCache(model, budgets, name, decoding) for _ in range(2))
            expected = by_hand(model, whole, PROMPT)
            assert GREEDY[call](model, made) == [expected]
            check_counts(made, name, budgets, [PROMPT.shape[1]])
            assert made.kept_entries().tolist() == whole.kept_entries().tolist()
            assert made.get_seq_length() == whole.get_seq_length()

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("call", ["prompt lookup", "chunks"])
    def test_every_policy_keeps_what_it_keeps_in_one_pass(self, call: str, name: str) -> None:
        skip_unsupported(call)
        model, budgets = tiny("llama"), budgets_of("llama", None)
        whole, made = (BudgetedCache(model, budgets, name) for _ in range(2))
        by_hand(model, whole, PROMPT)
        if call in TAKES_BACK and policy_named(name).needs_all_layers:
            with pytest.raises(UserError, match="a context is read before anything after it; assisted and prompt"):
                GREEDY[call](model, made)
            return
        GREEDY[call](model, made)
        check_counts(made, name, budgets, [PROMPT.shape[1]])
        for layer, expected in zip(made.budgeted_layers, whole.budgeted_layers, strict=True):
            keys = layer.compressed.entries.keys
            torch.testing.assert_close(keys, expected.compressed.entries.keys, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("decoding", ["grow", "fixed"])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("call", ["two turns", "two turns, new tokens only", "a copy goes on"])
    def test_a_second_turn_goes_on(self, call: str, family: str, decoding: Any) -> None:
        skip_unsupported(call, family)
        model, budgets = tiny(family), budgets_of(family, None)
        whole, made = (BudgetedCache(model.config, budgets, "snapkv", decoding) for _ in range(2))
        expected = by_hand(model, whole, PROMPT, 1 + random_tokens(5, seed=8) % 50)
        assert CALLS[call](model, made) == [expected]
        check_counts(made, "snapkv", budgets, [PROMPT.shape[1]])

    @pytest.mark.parametrize("decoding", ["grow", "fixed"])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(
        ("how", "copies"),
        [({}, 1), ({"prefill_chunk_size": 4}, 1), ({"num_beams": 3, "num_return_sequences": 2}, 3)],
        ids=["greedy", "chunks", "beams"],
    )
    def test_padded_rows_with_budgets_and_policies_of_their_own_equal_rows_alone(
        self, how: dict[str, Any], copies: int, family: str, decoding: Any
    ) -> None:
        skip_unsupported("chunks" if "prefill_chunk_size" in how else "", family)
        model, names = tiny(family), ["ada_snapkv", "tova", "streaming_llm"]
        budgets = [budgets_of(family, None, seed=row) for row in range(3)]
        together = BudgetedCache(model.config, budgets, names, decoding)
        made = batch(**how)(model, together)
        n_sequences = len(made) // 3
        ids, mask = rows()
        for row, (n, name) in enumerate(zip(PADDING, names, strict=True)):
            alone = BudgetedCache(model.config, budgets[row], name, decoding)
            expected = generate(model, alone, ids[row : row + 1, n:], mask[row : row + 1, n:], **how)
            assert [one[n:] for one in made[n_sequences * row : n_sequences * (row + 1)]] == expected
            kept = together.kept_entries()[:, copies * row : copies * (row + 1)]
            assert kept.tolist() == alone.kept_entries().tolist()
            check_counts(alone, name, budgets[row], [ids.shape[1] - n] * copies)

    @pytest.mark.parametrize("decoding", ["grow", "fixed"])
    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
    def test_a_context_read_in_another_mode_serves_generate(self, mode: Callable[[], Any], decoding: Any) -> None:
        model, budgets = tiny("llama"), budgets_of("llama", None)
        caches = [BudgetedCache(model.config, budgets, "snapkv", decoding) for _ in range(2)]
        expected = read_before(torch.no_grad)(model, caches[0])
        assert read_before(mode)(model, caches[1]) == expected
        check_counts(caches[1], "snapkv", budgets, [12])

    def test_logits_of_a_compiled_model(self) -> None:
        model, budgets = tiny("llama"), budgets_of("llama", None)
        compiled = torch.compile(model, backend="eager")
        caches = [BudgetedCache(model.config, budgets, "snapkv") for _ in range(2)]
        with torch.no_grad():
            for part in (PROMPT[:, :12], PROMPT[:, 12:]):
                made, expected = (
                    one(part, past_key_values=cache).logits
                    for one, cache in zip((compiled, model), caches, strict=True)
                )
                torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


def test_another_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its methods have other names, nobody knows how long a prompt is."""
    model = tiny("llama")
    monkeypatch.setattr("baklava.cache.generate_call._NAMES", {})
    with pytest.raises(UserError, match="reads prompts in another way than a BudgetedCache knows"):
        model(PROMPT, past_key_values=BudgetedCache(model.config, budgets_of("llama", 0.5)))
