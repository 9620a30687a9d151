"""Contexts of at most `compress_above` tokens are kept whole, row by row; longer ones are compressed as without it."""

from __future__ import annotations

import pytest
import torch
from kept_entries import uniform
from tiny_models import random_model, random_tokens
from transformers.cache_utils import DynamicCache

from baklava import BudgetedCache
from baklava.budgets import COMPRESS_ABOVE
from baklava.cache.prefill import ContextCache
from baklava.errors import UserError
from baklava.eviction import POLICIES
from baklava.experiment.compose import compose

ENTRY_BYTES = 2 * 8 * 8  # key and value, head dimension, float64


@pytest.mark.parametrize("eviction", ["streaming_llm", "adakv", "h2o"])
@pytest.mark.parametrize(("length", "kept"), [(29, 29), (30, 30), (31, 9), (200, 60)])
def test_a_context_is_compressed_above_so_many_tokens_and_kept_whole_up_to_them(
    eviction: str, length: int, kept: int
) -> None:
    model, ids = random_model(), random_tokens(length)
    cache = BudgetedCache(model.config, uniform(0.7), POLICIES[eviction](), compress_above=30)
    cache.prefill(model, ids, chunk=16)
    assert cache.kept_entries().sum().item() == pytest.approx(4 * kept, abs=2)
    assert cache.kv_bytes() == cache.kept_entries().sum().item() * ENTRY_BYTES
    assert cache.get_seq_length() == length


def test_each_row_of_a_batch_counts_its_own_tokens() -> None:
    model, ids = random_model(), random_tokens(100, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :70] = 0
    cache = BudgetedCache(model.config, uniform(0.7), compress_above=30)
    cache.prefill(model, ids, mask)
    assert cache.kept_entries().tolist() == [[[30, 30], [30, 30]]] * 2  # of 100 tokens, and all 30
    alone = BudgetedCache(model.config, uniform(0.7), compress_above=29)
    alone.prefill(model, ids[1:, 70:])
    assert alone.kept_entries().tolist() == [[[9, 9]]] * 2


def test_a_short_prompt_is_answered_as_by_the_full_cache() -> None:
    model, ids = random_model(), random_tokens(30)
    given = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cache = BudgetedCache(model.config, uniform(0.9), compress_above=30)
    answer = model.generate(ids, past_key_values=cache, **given)
    model.set_attn_implementation("sdpa")
    assert answer.tolist() == model.generate(ids, past_key_values=DynamicCache(config=model.config), **given).tolist()


def test_a_context_read_before_is_kept_whole_too() -> None:
    model, ids = random_model(), random_tokens(30)
    context = ContextCache(model.config, [POLICIES["streaming_llm"]()])
    with torch.inference_mode():
        model(ids, past_key_values=context)
    kept = [
        BudgetedCache.from_context(model.config, context, uniform(0.5), compress_above=above).kept_entries().sum()
        for above in (29, 30)
    ]
    assert kept == [4 * 15, 4 * 30]


def test_the_default_is_that_of_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compose([]).evaluate.compress_above == COMPRESS_ABOVE > 0
    monkeypatch.setattr("baklava.cache.row_settings.COMPRESS_ABOVE", COMPRESS_ABOVE)  # tests have another
    model = random_model()
    for length, kept in ((COMPRESS_ABOVE, COMPRESS_ABOVE), (COMPRESS_ABOVE + 2, COMPRESS_ABOVE // 2 + 1)):
        cache = BudgetedCache(model.config, uniform(0.5))
        cache.prefill(model, random_tokens(length))
        assert cache.kept_entries().unique().tolist() == [kept]


@pytest.mark.parametrize("above", [-1, 1.5, "256", True])
def test_what_is_no_number_of_tokens_is_refused(above: object) -> None:
    with pytest.raises(UserError, match=r"^compress_above is a number of tokens, 0 or more, got "):
        BudgetedCache(random_model().config, uniform(0.5), compress_above=above)  # type: ignore[arg-type]
