"""Rotations that depend on the length of a text: one for the whole of it, whatever the model has read before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_entries import kept_by, uniform
from rope_models import BY_LENGTH, LIMIT, ROPES, STATIC, rotating_model
from tiny_models import VOCABULARY, hidden_after, naive_logits, random_tokens
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from baklava import BudgetedCache, fixed_rotation
from baklava.cache.prefill import ContextCache
from baklava.decoder.length_dependent_rope import Switch, switch_of
from baklava.errors import UserError
from baklava.eviction import POLICIES

CASES = [
    *[(family, rope) for family in ("llama", "qwen2", "gemma3") for rope in ROPES],
    ("phi3", "default"),
    ("phi3", "longrope"),
    ("phimoe", "longrope"),
]
CASES_BY_LENGTH = [case for case in CASES if case[1] in BY_LENGTH]
LENGTHS = st.integers(1, 2 * LIMIT)
READ_ONCE = [name for name, policy in POLICIES.items() if not policy().repeats]  # a cache by itself reads nothing twice


def full(family: str) -> Any:
    return uniform(0.0, n_layers=1 if family == "gemma3" else 2)


def one_pass(family: str, rope: str, ids: Tensor) -> Tensor:
    """Logits `[B, T, vocabulary]` of a model of transformers alone that has read nothing before."""
    with torch.inference_mode():
        return rotating_model(rope, family, attention="sdpa")(ids, use_cache=False).logits


class TestSwitch:
    @pytest.mark.parametrize("rope", STATIC)
    def test_there_is_none_where_the_rotation_is_always_the_same(self, rope: str) -> None:
        assert switch_of(rotating_model(rope).config) is None
        assert switch_of(rotating_model(rope, "gemma3").config) is None

    @pytest.mark.parametrize(("family", "rope"), CASES_BY_LENGTH)
    def test_it_is_where_transformers_changes_the_rotation(self, family: str, rope: str) -> None:
        assert switch_of(rotating_model(rope, family).config) == Switch(rope, LIMIT)

    @pytest.mark.parametrize("rope", BY_LENGTH)
    @settings(max_examples=25, deadline=None)
    @given(lengths=st.tuples(LENGTHS, LENGTHS))
    def test_lengths_are_alike_where_their_rotations_are_equal(self, rope: str, lengths: tuple[int, int]) -> None:
        switch = switch_of(rotating_model(rope).config)
        assert switch is not None
        angles = [
            rotating_model(rope).model.rotary_emb(torch.zeros(1), torch.tensor([[1, n - 1]]))[0][0, 0] for n in lengths
        ]
        assert torch.equal(*angles) == (switch.representative(lengths[0]) == switch.representative(lengths[1]))

    def test_layers_that_change_at_different_lengths_are_refused(self) -> None:
        config = rotating_model("longrope", "gemma3").config
        config.rope_parameters["sliding_attention"] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        with pytest.raises(UserError, match="'dynamic' at 128 tokens and 'longrope' at 32 tokens"):
            BudgetedCache(config, full("gemma3"))


class TestPrefill:
    @pytest.mark.parametrize(("family", "rope"), CASES)
    @settings(max_examples=8, deadline=None)
    @given(length=LENGTHS, chunk=st.integers(1, 2 * LIMIT), before=st.lists(LENGTHS, max_size=2))
    def test_chunks_are_one_pass_after_whatever_text(
        self, family: str, rope: str, length: int, chunk: int, before: list[int]
    ) -> None:
        model, ids = rotating_model(rope, family), random_tokens(length)
        with torch.inference_mode():
            for n in before:
                model(random_tokens(n), use_cache=False)
        logits = BudgetedCache(model.config, full(family)).prefill(model, ids, chunk=chunk)
        torch.testing.assert_close(logits, one_pass(family, rope, ids)[:, -1], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("name", READ_ONCE)
    @pytest.mark.parametrize(("family", "rope"), [("llama", "dynamic"), ("phi3", "longrope")])
    def test_every_policy_keeps_the_same_in_chunks(self, family: str, rope: str, name: str) -> None:
        model, policy = rotating_model(rope, family), POLICIES[name]()
        for length in (LIMIT - 4, 2 * LIMIT):  # expected attention also thinks of tokens beyond the limit
            ids, logits = random_tokens(length), {}
            for chunk in (7, length):
                cache = BudgetedCache(model.config, uniform(0.6), policy)
                with torch.inference_mode(), fixed_rotation(model, length + 1):
                    cache.prefill(model, ids, chunk=chunk)
                    logits[chunk] = model(ids.new_ones(1, 1), past_key_values=cache).logits
            torch.testing.assert_close(logits[7], logits[length], rtol=0, atol=1e-12)


class TestFixed:
    @pytest.mark.parametrize(("family", "rope"), CASES_BY_LENGTH)
    @settings(max_examples=6, deadline=None)
    @given(parts=st.lists(st.integers(1, 20), min_size=1, max_size=5), spare=st.integers(0, 5))
    def test_all_steps_are_one_pass_over_the_whole_text(
        self, family: str, rope: str, parts: list[int], spare: int
    ) -> None:
        n = sum(parts)
        model, ids = rotating_model(rope, family), random_tokens(n + spare)
        cache, logits, at = BudgetedCache(model.config, full(family)), [], 0
        with torch.inference_mode(), fixed_rotation(model, n + spare):
            for part in parts:
                logits.append(model(ids[:, at : at + part], past_key_values=cache, use_cache=True).logits)
                at += part
        expected = one_pass(family, rope, ids)[:, :n]
        torch.testing.assert_close(torch.cat(logits, 1), expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("name", READ_ONCE)
    @pytest.mark.parametrize("rope", BY_LENGTH)
    def test_a_compressed_cache_is_a_masked_pass_over_the_whole_text(self, rope: str, name: str) -> None:
        model, ids, budgets, policy = rotating_model(rope), random_tokens(50), uniform(0.5), POLICIES[name]()
        cache = BudgetedCache(model.config, budgets, policy)
        with torch.inference_mode(), fixed_rotation(model, 50):
            cache.prefill(model, ids[:, :30], chunk=11)
            logits = model(ids[:, 30:], past_key_values=cache, use_cache=True).logits
            kept = kept_by(policy, model, ids[:, :30], budgets, rotated_for=50)
        expected = naive_logits(model, ids, hidden_after(kept, 50))[:, 30:]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("family", "rope"), CASES_BY_LENGTH)
    def test_generate_uses_the_cache_that_it_is_given(self, family: str, rope: str) -> None:
        model, ids = rotating_model(rope, family), random_tokens(LIMIT - 4)
        cache = BudgetedCache(model.config, full(family))
        with fixed_rotation(model, LIMIT + 8):
            made = model.generate(ids, past_key_values=cache, **GREEDY, return_dict_in_generate=True)
        assert made.past_key_values is cache
        assert cache.get_seq_length() == LIMIT + 7
        logits = one_pass(family, rope, made.sequences)  # of the whole text: what comes later changes only the rotation
        assert made.sequences[0, LIMIT - 4 :].tolist() == logits[0, LIMIT - 5 : -1].argmax(-1).tolist()

    @pytest.mark.parametrize(("family", "rope"), CASES_BY_LENGTH)
    def test_afterwards_the_model_is_as_new(self, family: str, rope: str) -> None:
        model = rotating_model(rope, family, attention="sdpa")
        for n in (2 * LIMIT, LIMIT, LIMIT - 1):
            with torch.inference_mode():
                with fixed_rotation(model, 3 * LIMIT), fixed_rotation(model, 1):  # the outer one counts
                    model(random_tokens(2 * LIMIT), use_cache=False)
                found = model(random_tokens(n), use_cache=False).logits
            assert torch.equal(found, one_pass(family, rope, random_tokens(n)))

    @pytest.mark.parametrize("rope", BY_LENGTH)
    def test_a_text_may_not_grow_into_another_rotation(self, rope: str) -> None:
        model = rotating_model(rope)
        with torch.inference_mode(), fixed_rotation(model, 20):
            model(random_tokens(LIMIT), use_cache=False)
            with pytest.raises(UserError, match=f"{rope}.*fixed for 20 tokens and is another one for {LIMIT + 1};"):
                model(random_tokens(LIMIT + 1), use_cache=False)

    def test_code_that_is_not_known_is_refused(self) -> None:
        model = rotating_model("longrope")
        del model.model.rotary_emb.rope_type
        with pytest.raises(UserError, match=r"'longrope' depends on the length.*'llama'"), fixed_rotation(model, 20):
            pass


GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": VOCABULARY}  # a token that no text holds


class TestGenerate:
    """Without `fixed_rotation`: as with transformers' cache, or refused; never another cache."""

    @pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 6}])
    @pytest.mark.parametrize(("family", "rope"), CASES_BY_LENGTH)
    def test_across_the_limit(self, family: str, rope: str, how: dict[str, Any]) -> None:
        model, ids = rotating_model(rope, family), random_tokens(4).repeat(1, 7)
        cache = BudgetedCache(model.config, full(family))
        with pytest.raises(UserError, match=f"{rope}.*{LIMIT} tokens.*fixed_rotation"):
            model.generate(ids, past_key_values=cache, **GREEDY, **how)

    @pytest.mark.parametrize(("family", "rope"), CASES_BY_LENGTH)
    def test_a_longer_text_over_a_cache_that_was_read(self, family: str, rope: str) -> None:
        model, ids = rotating_model(rope, family), random_tokens(LIMIT + 8)
        cache = BudgetedCache(model.config, full(family))
        cache.prefill(model, ids[:, :20])
        with pytest.raises(UserError, match=f"{rope}.*fixed_rotation"):
            model.generate(ids, past_key_values=cache, **GREEDY)

    @pytest.mark.parametrize("n", [LIMIT - 13, LIMIT + 1])
    @pytest.mark.parametrize(("family", "rope"), CASES_BY_LENGTH)
    def test_on_one_side_of_the_limit(self, family: str, rope: str, n: int) -> None:
        model, ids = rotating_model(rope, family), random_tokens(n)
        with torch.inference_mode():
            model(random_tokens(2 * LIMIT), use_cache=False)
        cache = BudgetedCache(model.config, full(family))
        if rope == "dynamic" and n > LIMIT:
            with pytest.raises(UserError, match="'dynamic': from 32 tokens on"):
                model.generate(ids, past_key_values=cache, **GREEDY)
            return
        made = model.generate(ids, past_key_values=cache, **GREEDY)
        assert cache.get_seq_length() == n + 11
        plain = rotating_model(rope, family, attention="sdpa")
        assert made.tolist() == generated(plain, ids).tolist()

    @pytest.mark.parametrize(("family", "rope"), [case for case in CASES_BY_LENGTH if case[1] == "longrope"])
    def test_after_a_long_context_that_was_read_in_chunks(self, family: str, rope: str) -> None:
        model, ids = rotating_model(rope, family), random_tokens(LIMIT + 8)
        cache = BudgetedCache(model.config, full(family))
        cache.prefill(model, ids[:, : LIMIT + 1], chunk=9)
        made = model.generate(ids, past_key_values=cache, **GREEDY)
        assert made.tolist() == generated(rotating_model(rope, family, attention="sdpa"), ids).tolist()

    def test_padding_is_not_counted(self) -> None:
        model = rotating_model("longrope", "phi3")
        ids, mask = random_tokens(LIMIT + 10), torch.ones(1, LIMIT + 10, dtype=torch.int64)
        mask[:, :20] = 0
        cache = BudgetedCache(model.config, full("phi3"))
        made = model.generate(ids, attention_mask=mask, past_key_values=cache, **{**GREEDY, "max_new_tokens": 10})
        alone = generated(rotating_model("longrope", "phi3", attention="sdpa"), ids[:, 20:])
        assert made[:, 20:].tolist() == alone[:, :-2].tolist()
        with pytest.raises(UserError, match="longrope"):
            model.generate(
                made, attention_mask=torch.nn.functional.pad(mask, (0, 10), value=1), past_key_values=cache, **GREEDY
            )

    def test_rows_of_other_rotations_do_not_join(self) -> None:
        model = rotating_model("longrope")
        caches = [BudgetedCache(model.config, uniform(0.5)) for _ in range(2)]
        for cache, n in zip(caches, (20, 40), strict=True):
            cache.prefill(model, random_tokens(n))
            with torch.inference_mode():
                model(random_tokens(1), past_key_values=cache)
        with pytest.raises(UserError, match="rotations"):
            caches[0].append_rows(caches[1])

    def test_a_context_for_other_caches_is_watched_too(self) -> None:
        model = rotating_model("longrope")
        context = ContextCache(model.config, [])
        with torch.inference_mode():
            model(random_tokens(20), past_key_values=context)
            with pytest.raises(UserError, match="longrope"):
                model(random_tokens(20), past_key_values=context)


def generated(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model.generate(ids, past_key_values=DynamicCache(config=model.config), **GREEDY)
