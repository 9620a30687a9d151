"""`BudgetedCache`: exact where nothing is dropped, equal to a masked reference elsewhere, really smaller."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CLASSES, naive_logits, random_model, random_tokens
from transformers.cache_utils import DynamicCache

from baklava import BudgetedCache, Budgets
from baklava.attention import RaggedEntries, Run, ragged_attention
from baklava.errors import UserError
from baklava.eviction import StreamingLLM


def uniform(ratio: float, *, n_layers: int = 2, n_kv_heads: int = 2) -> Budgets:
    return Budgets.uniform(n_layers=n_layers, n_kv_heads=n_kv_heads, ratio=ratio)


def random_budgets(seed: int, *, n_layers: int = 2, n_kv_heads: int = 2) -> Budgets:
    rng = np.random.default_rng(seed)
    shares = rng.choice([0.0, 0.1, 0.37, 0.8, 1.0], size=(n_layers, n_kv_heads))
    shares[0, 0] = 0.5  # never all zero
    return Budgets.from_shares(shares)


def dropped_by_streaming_llm(budgets: Budgets, n_context: int, n_sink: int = 4) -> torch.Tensor:
    """Naive: the first `n_sink` and the last entries stay."""
    dropped = torch.ones(*budgets.shape, n_context, dtype=torch.bool)
    for layer, row in enumerate(budgets.entries(n_context)):
        for head, n in enumerate(row):
            sinks = min(n_sink, n)
            dropped[layer, head, :sinks] = False
            if n > sinks:
                dropped[layer, head, n_context - (n - sinks) :] = False
    return dropped


def run(model, cache, ids, *, n_context: int, steps: tuple[int, ...]) -> torch.Tensor:
    """Logits of the context in one pass, then of the rest in steps of the given lengths."""
    parts, at = [], 0
    with torch.inference_mode():
        for n in (n_context, *steps):
            parts.append(model(ids[:, at : at + n], past_key_values=cache, use_cache=True).logits)
            at += n
    return torch.cat(parts, 1)


@pytest.mark.parametrize("family", CLASSES)
def test_full_shares_give_the_logits_of_a_dynamic_cache(family):
    model, ids = random_model(family), random_tokens(40)
    full = BudgetedCache(model.config, uniform(0.0))
    logits = run(model, full, ids, n_context=29, steps=(5, 1, 3, 1, 1))
    model.set_attn_implementation("sdpa")
    expected = run(model, DynamicCache(config=model.config), ids, n_context=29, steps=(5, 1, 3, 1, 1))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert full.get_seq_length() == 40


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_context=st.integers(1, 33),
    steps=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    n_kv_heads=st.sampled_from([1, 2, 4]),
)
def test_any_shares_give_the_logits_of_a_masked_reference(seed, n_context, steps, n_kv_heads):
    model = random_model(n_kv_heads=n_kv_heads)
    budgets = random_budgets(seed, n_kv_heads=n_kv_heads)
    ids = random_tokens(n_context + sum(steps), seed=seed)
    logits = run(model, BudgetedCache(model.config, budgets), ids, n_context=n_context, steps=tuple(steps))
    expected = naive_logits(model, ids, dropped_by_streaming_llm(budgets, n_context))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


def test_kept_entries_are_the_budgets_exactly():
    model, budgets = random_model(), random_budgets(3)
    cache = BudgetedCache(model.config, budgets)
    run(model, cache, random_tokens(31), n_context=31, steps=())
    assert cache.kept_entries().tolist() == budgets.entries(31)[:, None].tolist()
    assert cache.kept_entries().sum() == round((1 - budgets.ratio) * 4 * 31)


def test_evicted_entries_are_really_gone():
    model, budgets = random_model(dtype=torch.float32), uniform(0.75)
    cache = BudgetedCache(model.config, budgets)
    run(model, cache, random_tokens(400), n_context=400, steps=())
    entry = 2 * 8 * 4  # keys and values of one entry, head dimension 8, float32
    assert cache.kv_bytes() == 400 * entry
    assert cache.row_bytes().tolist() == [400 * entry]


def test_growth_copies_now_and_then_and_keeps_the_count():
    model = random_model()
    cache = BudgetedCache(model.config, uniform(0.5))
    run(model, cache, random_tokens(110), n_context=10, steps=(1,) * 100)
    keys, _ = cache.budgeted_layers[0].tail
    assert keys.shape[2] == 100
    assert cache.get_seq_length() == 110
    assert cache.budgeted_layers[0].allocated_bytes() < 3 * 110 * 2 * 2 * 8 * 8


def test_rows_with_budgets_of_their_own_equal_rows_alone():
    model = random_model()
    all_budgets = [random_budgets(seed) for seed in range(5)]
    context, question = random_tokens(30), random_tokens(6, seed=9)
    full = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(context, past_key_values=full)
        together = BudgetedCache.from_prefill(model.config, full, all_budgets)
        logits = model(question.expand(5, -1), past_key_values=together).logits
    for row, budgets in enumerate(all_budgets):
        alone = BudgetedCache(model.config, budgets)
        expected = run(model, alone, torch.cat([context, question], 1), n_context=30, steps=(6,))[:, 30:]
        torch.testing.assert_close(logits[row : row + 1], expected, rtol=0, atol=1e-9)
        assert together.kept_entries()[:, row].tolist() == alone.kept_entries()[:, 0].tolist()


@pytest.mark.parametrize("rows", [[2, 0], [1], [0, 0, 2, 1]])
def test_selected_rows_go_on_as_before(rows):
    model = random_model()
    budgets = [random_budgets(seed) for seed in range(3)]
    full = DynamicCache(config=model.config)
    question, word = random_tokens(4, seed=1), random_tokens(1, seed=2)
    with torch.inference_mode():
        model(random_tokens(30), past_key_values=full)
        cache = BudgetedCache.from_prefill(model.config, full, budgets)
        model(question.expand(3, -1), past_key_values=cache)
        expected = model(word.expand(3, -1), past_key_values=cache).logits[rows]
        cache.crop(-1)
        cache.select_rows(torch.tensor(rows))
        logits = model(word.expand(len(rows), -1), past_key_values=cache).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}])
def test_generate_with_full_shares_equals_plain_generate(how):
    model, prompt = random_model(), random_tokens(20)
    cache = BudgetedCache(model.config, uniform(0.0))
    made = model.generate(prompt, past_key_values=cache, max_new_tokens=12, do_sample=False, **how)
    model.set_attn_implementation("sdpa")
    assert made.tolist() == model.generate(prompt, max_new_tokens=12, do_sample=False, **how).tolist()


def test_reset_forgets_everything():
    model, ids = random_model(), random_tokens(25)
    cache = BudgetedCache(model.config, random_budgets(1))
    first = run(model, cache, ids, n_context=20, steps=(5,))
    cache.reset()
    assert cache.get_seq_length() == 0
    torch.testing.assert_close(run(model, cache, ids, n_context=20, steps=(5,)), first)


def test_sinks_and_the_latest_entries_survive():
    scores = StreamingLLM(n_sink=2).score(torch.zeros(1, 1, 6, 4), torch.zeros(1, 1, 6, 4))
    assert scores[0, 0].argsort(descending=True).tolist() == [0, 1, 5, 4, 3, 2]


def test_a_head_without_entries_sees_the_tail_only():
    query, tail = torch.randn(1, 2, 1, 4), torch.randn(1, 1, 3, 4)
    nothing = ragged_attention(query, RaggedEntries([], tail, tail), scaling=0.5)
    expected = (query[0, :, 0] @ tail[0, 0].T * 0.5).softmax(-1) @ tail[0, 0]
    torch.testing.assert_close(nothing[0, :, 0], expected)
    run_ = Run(torch.tensor([0]), tail[0] * 2, tail[0])
    both = ragged_attention(query, RaggedEntries([run_], tail, tail), scaling=0.5)
    keys, values = torch.cat([tail[0, 0] * 2, tail[0, 0]]), torch.cat([tail[0, 0], tail[0, 0]])
    torch.testing.assert_close(both[0, :, 0], (query[0, :, 0] @ keys.T * 0.5).softmax(-1) @ values)


def test_budgets_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"\[3, 2\].*the model is \[2, 2\]"):
        BudgetedCache(random_model().config, uniform(0.5, n_layers=3))


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="unknown eviction policy 'nope'"):
        BudgetedCache(random_model().config, uniform(0.5), eviction="nope")


def test_a_model_with_another_attention_is_refused():
    model = random_model(attention="sdpa")
    with pytest.raises(UserError, match="set_attn_implementation"):
        run(model, BudgetedCache(model.config, uniform(0.5)), random_tokens(5), n_context=5, steps=())


def test_another_batch_size_is_refused():
    model = random_model()
    cache = BudgetedCache(model.config, uniform(0.5))
    run(model, cache, random_tokens(8, rows=2), n_context=8, steps=())
    with pytest.raises(UserError, match="holds 2 rows and was given 3"):
        run(model, cache, random_tokens(1, rows=3), n_context=1, steps=())


def test_a_padded_batch_is_refused():
    model, ids = random_model(), random_tokens(6, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with pytest.raises(UserError, match="padded"):
        model(ids, attention_mask=mask, past_key_values=BudgetedCache(model.config, uniform(0.5)))


def test_cropping_into_the_context_is_refused():
    model = random_model()
    cache = BudgetedCache(model.config, uniform(0.5))
    run(model, cache, random_tokens(12), n_context=10, steps=(2,))
    with pytest.raises(UserError, match="only 2 came after"):
        cache.crop(-3)
