"""What a cache refuses: one `UserError`, before anything is computed, after which it serves the right call."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from generate_calls import PROMPT, assistant, batch, budgets_of, generate, looked_up, one, rows, tiny
from tiny_models import random_model
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from baklava import BudgetedCache
from baklava.decoder.releases import CHUNKS_NEW_TOKENS, CROPS_TO_LENGTH, TAKES_NEW_TOKENS_ONLY
from baklava.errors import UserError
from baklava.eviction import AdaKV

# Up to 5.22, a pass of tokens that were read before begins, and its mask is refused.
BY_THE_MASK = "" if CHUNKS_NEW_TOKENS else "|the attention mask shows"
by_the_mask = pytest.mark.skipif(not TAKES_NEW_TOKENS_ONLY, reason="generate of this transformers fails by itself")


def new_cache(decoding: Any = "grow", ratio: float = 0.5, family: str = "llama") -> BudgetedCache:
    return BudgetedCache(tiny(family).config, budgets_of(family, ratio), decoding=decoding)


def filled(decoding: Any = "grow", n: int = 12, family: str = "llama") -> BudgetedCache:
    cache = new_cache(decoding, family=family)
    cache.prefill(tiny(family), PROMPT[:, :n])
    return cache


class TestRefusals:
    """One `UserError`, and the cache is as it was: it serves the right call afterwards."""

    @pytest.mark.parametrize("how", [looked_up(3), {"assistant_model": "llama"}])
    def test_tokens_that_fixed_decoding_cannot_take_back(self, how: dict[str, Any]) -> None:
        cache = new_cache("fixed")
        if "assistant_model" in how:
            how = {"assistant_model": assistant("llama")}
        with pytest.raises(UserError, match=r'take tokens back.*use decoding="grow"'):
            one(**how)(tiny("llama"), cache)
        assert cache.get_seq_length() == 0

    def test_assisted_decoding_that_would_read_the_context_again(self) -> None:
        cache, expected = filled(), one()(tiny("llama"), filled())
        with pytest.raises(UserError, match=f"read the whole prompt again{BY_THE_MASK}"):
            one(**looked_up(3))(tiny("llama"), cache)
        assert one()(tiny("llama"), cache) == expected

    @by_the_mask
    def test_a_prompt_with_nothing_new(self) -> None:
        cache = filled(n=17)
        with pytest.raises(UserError, match=f"was given 17 tokens, and the cache has read 17{BY_THE_MASK}"):
            one()(tiny("llama"), cache)

    @by_the_mask
    def test_new_tokens_whose_mask_does_not_tell_of_the_others(self) -> None:
        for n in (5, 12, 1):
            with pytest.raises(UserError, match=f"the cache has read 12; give{BY_THE_MASK}"):
                generate(tiny("llama"), filled(), PROMPT[:, -n:], torch.ones(1, n))

    def test_no_cache_and_a_cache(self) -> None:
        with pytest.raises(UserError, match=r"use_cache=False\) does not go with a cache"):
            one(use_cache=False)(tiny("llama"), new_cache())

    def test_beams_of_a_context_that_was_read_once(self) -> None:
        with pytest.raises(UserError, match=r"holds 1 rows and was given 3; .*batch_repeat_interleave\(3\)"):
            one(num_beams=3)(tiny("llama"), filled())

    def test_budgets_for_other_rows_than_the_batch_has(self) -> None:
        model, budgets = tiny("llama"), [budgets_of("llama", 0.5)] * 2
        with pytest.raises(UserError, match="budgets for 2 rows, but the batch has 9"):
            batch(num_beams=3)(model, BudgetedCache(model.config, budgets))

    @pytest.mark.parametrize("chunk", [None, 5])
    @pytest.mark.parametrize("hole", [slice(15, 17), slice(4, 6)], ids=["right", "middle"])
    def test_padding_anywhere_but_on_the_left(self, hole: slice, chunk: int | None) -> None:
        ids = PROMPT.repeat(2, 1)
        mask = torch.ones_like(ids)
        mask[0, hole] = 0
        refused = "padded on the left, without gaps" if TAKES_NEW_TOKENS_ONLY else "counts the positions .* wrongly"
        for family in ("llama", "gemma3"):
            with pytest.raises(UserError, match=refused if chunk else "padded on the left, without gaps"):
                generate(tiny(family), new_cache(family=family), ids, mask, prefill_chunk_size=chunk)
            with pytest.raises(UserError, match="padded on the left, without gaps"):
                new_cache(family=family).prefill(tiny(family), ids, mask)

    def test_a_row_of_padding(self) -> None:
        ids, mask = PROMPT.repeat(2, 1), torch.ones(2, 17)
        mask[1] = 0
        with pytest.raises(UserError, match="row 1 of the batch is padding only"):
            new_cache().prefill(tiny("llama"), ids, mask)

    def test_a_mask_of_another_shape(self) -> None:
        with pytest.raises(UserError, match=r"must be \[batch, length\] \[1, 17\], got \[1, 12\]"):
            new_cache().prefill(tiny("llama"), PROMPT, torch.ones(1, 12))
        with pytest.raises(UserError, match=r"token ids \[batch, length\], got \[17\]"):
            new_cache().prefill(tiny("llama"), PROMPT[0])

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (torch.ones(1, 5), "shows 5 positions, and 17 are read"),
            (torch.cat([torch.zeros(1, 2), torch.ones(1, 15)], 1), "another context than was read"),
            (torch.cat([torch.ones(1, 4), torch.zeros(1, 2), torch.ones(1, 11)], 1), "another context than was read"),
            (torch.zeros(1, 1, 5, 17), "not a ready-made attention mask"),
        ],
        ids=["too short", "more padding", "a gap", "4D"],
    )
    def test_a_later_mask_that_shows_another_context(self, mask: Tensor, message: str) -> None:
        model, cache = tiny("llama"), filled()
        with torch.no_grad():
            with pytest.raises(UserError, match=message):
                model(PROMPT[:, 12:], attention_mask=mask, past_key_values=cache)
            logits = model(PROMPT[:, 12:], past_key_values=cache).logits
            expected = model(PROMPT[:, 12:], past_key_values=filled()).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)

    @pytest.mark.parametrize("decoding", ["grow", "fixed"])
    def test_a_padded_context_and_no_mask(self, decoding: Any) -> None:
        model, cache, (ids, mask) = tiny("llama"), new_cache(decoding), rows()
        cache.prefill(model, ids, mask)
        with pytest.raises(UserError, match="read with padding, the tokens after it come without"):
            model(ids[:, :1], past_key_values=cache)

    def test_padding_after_the_context(self) -> None:
        """Grows with gaps that the mask hides; a fixed cache would keep them."""
        model, mask = tiny("llama"), torch.ones(1, 17)
        mask[0, 14] = 0
        positions = (mask.cumsum(-1) - 1)[:, 12:].long()
        with torch.no_grad():
            logits = model(
                PROMPT[:, 12:], attention_mask=mask, position_ids=positions, past_key_values=filled()
            ).logits[:, -1]
            kept = torch.tensor([[12, 13, 15, 16]])
            expected = model(PROMPT[:, kept[0]], past_key_values=filled()).logits[:, -1]
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
            with pytest.raises(UserError, match='"fixed" takes no padding after the context'):
                model(PROMPT[:, 12:15], attention_mask=mask[:, :15], past_key_values=filled("fixed"))

    def test_another_dtype(self) -> None:
        with pytest.raises(UserError, match=r"holds torch\.float64 and was given torch\.float32"):
            random_model(dtype=torch.float32)(PROMPT[:, :1], past_key_values=filled())

    def test_gradients_through_what_was_read_without(self) -> None:
        cache = new_cache()
        with torch.inference_mode():
            tiny("llama")(PROMPT, past_key_values=cache)
        with pytest.raises(UserError, match=r"read under torch\.inference_mode"):
            tiny("llama")(PROMPT[:, :1], past_key_values=cache)

    def test_training_with_checkpoints_leaves_the_cache_out(self) -> None:
        """From 5.24 on only where gradients are computed; without them the cache is read as in any other model."""
        model, cache = random_model().train(), new_cache()
        model.gradient_checkpointing_enable()
        model(PROMPT, past_key_values=cache)
        with pytest.raises(UserError, match=r"read 17 tokens without its cache; .*model\.eval"):
            model(PROMPT[:, :1], past_key_values=cache)
        if "is_grad_enabled" in inspect.getsource(GradientCheckpointingLayer):
            assert one()(model, new_cache()) == one()(random_model(), new_cache())
            return
        with pytest.raises(UserError, match="read 17 tokens without its cache"):
            one()(model, new_cache())
        with pytest.raises(UserError, match="without its cache"):
            new_cache().prefill(model, PROMPT)

    def test_a_copy_sees_that_the_attention_was_changed(self) -> None:
        model = random_model()
        cache = BudgetedCache(model.config, budgets_of("llama", 0.5))
        cache.prefill(model, PROMPT)
        copied = copy.deepcopy(cache)
        model.set_attn_implementation("sdpa")
        with pytest.raises(UserError, match="needs the attention 'baklava'"):
            model(PROMPT[:, :1], past_key_values=copied)

    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_a_pass_that_broke_off(self, family: str) -> None:
        model, cache = random_model(family), new_cache(family=family)

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        hook = model.model.layers[1].register_forward_pre_hook(stop)
        chunks = {"prefill_chunk_size": 5} if TAKES_NEW_TOKENS_ONLY else {}
        for read in (lambda: one(**chunks)(model, cache), lambda: model(PROMPT, past_key_values=cache)):
            with pytest.raises(KeyboardInterrupt):
                read()
            cache_before = cache.get_seq_length()
            assert cache_before > 0
            hook.remove()
            with pytest.raises(UserError, match=r"broke off .* call reset\(\)"):
                model(PROMPT, past_key_values=cache)
            cache.reset()
            hook = model.model.layers[1].register_forward_pre_hook(stop)
        hook.remove()
        assert one()(model, cache) == one()(model, new_cache(family=family))

    @pytest.mark.skipif(not CHUNKS_NEW_TOKENS, reason="the prompt would be read again")
    def test_a_context_that_generate_did_not_read_to_its_end(self) -> None:
        model, cache, passes = random_model(), new_cache(), []

        def stop(*_: Any) -> None:
            passes.append(1)
            if len(passes) == 3:
                raise KeyboardInterrupt

        hook = model.model.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            one(prefill_chunk_size=5)(model, cache)
        hook.remove()
        with pytest.raises(UserError, match=r"only 10 of 17 tokens of the context were read; call reset\(\)"):
            model(PROMPT[:, 10:], past_key_values=cache)
        expected = one()(model, new_cache())
        assert one(prefill_chunk_size=5)(model, cache) == expected  # the same prompt goes on

    def test_cropping_what_is_not_there(self) -> None:
        cache = filled()
        refused = "none came after" if CROPS_TO_LENGTH else r"negative number: use crop\(-3\)"
        for n, message in ((3, refused), (-1, "none came after")):
            with pytest.raises(UserError, match=message):
                cache.crop(n)
        cache.crop(0)
        new_cache().crop(-4)  # nothing was read, as with a DynamicCache
        windows = filled(family="gemma3")
        tiny("gemma3")(PROMPT[:, 12:], past_key_values=windows)
        with pytest.raises(UserError, match="sliding windows of this model have dropped the tokens before; "):
            windows.crop(-1)
        assert {layer.get_seq_length() for layer in windows.layers} == {17}

    def test_what_a_cache_that_read_nothing_keeps(self) -> None:
        with pytest.raises(UserError, match="holds no compressed context"):
            new_cache().kept_entries()
        with pytest.raises(UserError, match="no new tokens"):
            tiny("llama")(PROMPT[:, :0], past_key_values=new_cache())

    def test_a_policy_that_weighs_values_without_the_model(self) -> None:
        model = tiny("llama")
        cache = BudgetedCache(model.config, budgets_of("llama", 0.5), "ada_critical_snapkv")
        with pytest.raises(
            UserError, match=r"'adakv' weighs values by the output projection: .*BudgetedCache\(model, "
        ):
            model(PROMPT, past_key_values=cache)
        assert cache.get_seq_length() == 0

    def test_a_policy_that_reads_twice(self) -> None:
        model = tiny("llama")
        with pytest.raises(UserError, match=r"'kvzip' has the context repeated, .* a BudgetedCache by itself cannot"):
            model(PROMPT, past_key_values=BudgetedCache(model, budgets_of("llama", 0.5), "kvzip_plus"))

    @pytest.mark.parametrize(
        ("budgets", "eviction", "message"),
        [
            ("budgets.json", "snapkv", "Budgets.load reads a file"),
            (None, AdaKV, "a policy, or one per row, got <class"),
            (None, None, "a policy, or one per row, got None"),
            (None, "nope", "unknown eviction policy 'nope'; known: ada_critical_snapkv, .*tova"),
        ],
    )
    def test_other_budgets_and_policies(self, budgets: Any, eviction: Any, message: str) -> None:
        with pytest.raises(UserError, match=message):
            BudgetedCache(tiny("llama").config, budgets or budgets_of("llama", 0.5), eviction)
