"""`BudgetedCache`: exact where nothing is dropped, equal to a masked reference elsewhere, really smaller."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_entries import kept_by, uniform
from tiny_models import CLASSES, WINDOWED, hidden_after, naive_logits, random_model, random_tokens
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from baklava import BudgetedCache, Budgets
from baklava.cache.prefill import ContextCache
from baklava.cache.projections import find_paths
from baklava.errors import UserError
from baklava.eviction import POLICIES, AdaKV, Defensive, LayerAda, StreamingLLM

READ_ONCE = [name for name, policy in POLICIES.items() if not policy().repeats]


def full_budgets(family: str) -> Budgets:
    return uniform(0.0, n_layers=1 if family in WINDOWED else 2)


def random_budgets(seed: int, *, n_layers: int = 2, n_kv_heads: int = 2) -> Budgets:
    rng = np.random.default_rng(seed)
    shares = rng.choice([0.0, 0.1, 0.37, 0.8, 1.0], size=(n_layers, n_kv_heads))
    shares[0, 0] = 0.5  # never all zero
    return Budgets.from_shares(shares)


def run(model: PreTrainedModel, cache: Any, ids: Tensor, *, n_context: int, steps: tuple[int, ...]) -> Tensor:
    """Logits of the context in one pass, then of the rest in steps of the given lengths."""
    parts, at = [], 0
    with torch.inference_mode():
        for n in (n_context, *steps):
            parts.append(model(ids[:, at : at + n], past_key_values=cache, use_cache=True).logits)
            at += n
    return torch.cat(parts, 1)


def padded(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """A batch padded on the left by 0, 3, 6, ... tokens, and its mask."""
    ids = random_tokens(length, rows=rows)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : 3 * row] = 0
    return ids, mask


def run_padded(model: PreTrainedModel, cache: Any, ids: Tensor, mask: Tensor, steps: tuple[int, ...]) -> Tensor:
    """Logits of all steps, those of padding set to zero."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    parts, at = [], 0
    with torch.inference_mode():
        for n in steps:
            parts.append(
                model(
                    ids[:, at : at + n],
                    attention_mask=mask[:, : at + n],
                    position_ids=positions[:, at : at + n],
                    past_key_values=cache,
                    use_cache=True,
                ).logits
            )
            at += n
    return torch.cat(parts, 1).where(mask[:, :at, None].bool(), 0.0)


def plain(family: str, model: PreTrainedModel) -> DynamicCache:
    """Make `model` what it is without us; only eager attention knows soft-capped scores."""
    model.set_attn_implementation("eager" if family == "gemma2" else "sdpa")
    return DynamicCache(config=model.config)


class TestFullShares:
    """Nothing is dropped, so everything must be as with a `DynamicCache`.

    In float32, and sums are taken in another order: 2e-5 is some hundred units in the last place of a logit of 2, where
    random weights as large as these leave a few dozen.
    """

    @pytest.mark.parametrize("family", CLASSES)
    def test_logits_of_prefill_and_steps(self, family: str) -> None:
        model, ids = random_model(family, dtype=torch.float32), random_tokens(40)
        cache = BudgetedCache(model.config, full_budgets(family))
        logits = run(model, cache, ids, n_context=29, steps=(5, 1, 3, 1, 1))
        expected = run(model, plain(family, model), ids, n_context=29, steps=(5, 1, 3, 1, 1))
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)
        assert cache.get_seq_length() == 40

    def test_logits_to_the_last_bits(self) -> None:
        model, ids = random_model(), random_tokens(40)
        logits = run(model, BudgetedCache(model.config, uniform(0.0)), ids, n_context=29, steps=(5, 1, 3, 1, 1))
        torch.testing.assert_close(logits, naive_logits(model, ids), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("family", CLASSES)
    def test_logits_of_a_batch_padded_on_the_left(self, family: str) -> None:
        model = random_model(family, dtype=torch.float32)
        ids, mask = padded(3, 30)
        steps = (22, 4, 1, 2, 1)
        logits = run_padded(model, BudgetedCache(model.config, full_budgets(family)), ids, mask, steps)
        expected = run_padded(model, plain(family, model), ids, mask, steps)
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beams", "sampling"])
    @pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
    def test_generate(self, family: str, how: dict[str, Any], rows: int) -> None:
        model = random_model(family, dtype=torch.float32)
        ids, mask = padded(rows, 20)
        settings = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **how}
        torch.manual_seed(1)
        cache = BudgetedCache(model.config, full_budgets(family))
        made = model.generate(ids, past_key_values=cache, **settings)
        torch.manual_seed(1)
        assert made.tolist() == model.generate(ids, past_key_values=plain(family, model), **settings).tolist()


class TestCompressed:
    @pytest.mark.parametrize("name", READ_ONCE)
    @settings(max_examples=12, deadline=None)
    @given(
        seed=st.integers(0, 10_000),
        n_context=st.integers(1, 33),
        steps=st.lists(st.integers(1, 4), min_size=1, max_size=4),
        n_kv_heads=st.sampled_from([1, 2, 4]),
    )
    def test_logits_of_a_masked_reference(
        self, name: str, seed: int, n_context: int, steps: list[int], n_kv_heads: int
    ) -> None:
        model, policy = random_model(n_kv_heads=n_kv_heads), POLICIES[name]()
        budgets = random_budgets(seed, n_kv_heads=n_kv_heads)
        ids = random_tokens(n_context + sum(steps), seed=seed)
        cache = BudgetedCache(model, budgets, policy)
        logits = run(model, cache, ids, n_context=n_context, steps=tuple(steps))
        kept = kept_by(policy, model, ids[:, :n_context], budgets)
        assert cache.kept_entries()[:, 0].tolist() == kept.sum(-1).tolist()
        expected = naive_logits(model, ids, hidden_after(kept, ids.shape[1]))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("competition", [AdaKV, LayerAda])
    def test_entries_kept_are_those_that_won(self, competition: Any) -> None:
        """DefensiveKV's first parts end at a KV cache's own budget, also in what it keeps when it has won more."""
        policy = competition(inner=Defensive(window_size=3, mass=0.9), floor=0.0)
        model, ids = random_model(), random_tokens(44)
        differ = False
        for seed in range(6):
            budgets = random_budgets(seed)
            cache = BudgetedCache(model, budgets, policy)
            logits = run(model, cache, ids, n_context=40, steps=(3, 1))
            kept = kept_by(policy, model, ids[:, :40], budgets)
            expected = naive_logits(model, ids, hidden_after(kept, 44))
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
            differ |= cache.kept_entries()[:, 0].tolist() != budgets.entries(40).tolist()
        assert differ

    @settings(max_examples=10, deadline=None)
    @given(n_context=st.sampled_from([63, 64, 65, 512, 577, 700]), seed=st.integers(0, 100))
    def test_contexts_of_many_pieces(self, n_context: int, seed: int) -> None:
        model, budgets, policy = random_model(), random_budgets(seed), StreamingLLM()
        ids = random_tokens(n_context + 4, seed=seed)
        logits = run(model, BudgetedCache(model.config, budgets), ids, n_context=n_context, steps=(3, 1))
        hidden = hidden_after(kept_by(policy, model, ids[:, :n_context], budgets), n_context + 4)
        torch.testing.assert_close(logits, naive_logits(model, ids, hidden), rtol=0, atol=1e-9)

    @settings(max_examples=50, deadline=None)
    @given(seed=st.integers(0, 1000), length=st.integers(1, 60), ratio=st.floats(0, 0.999))
    def test_the_total_is_exact(self, seed: int, length: int, ratio: float) -> None:
        model = random_model()
        for budgets in (uniform(ratio), random_budgets(seed)):
            cache = BudgetedCache(model.config, budgets)
            run(model, cache, random_tokens(length), n_context=length, steps=())
            assert cache.kept_entries().sum() == round((1 - budgets.ratio) * 4 * length)
            assert cache.kept_entries()[:, 0].tolist() == budgets.entries(length).tolist()

    def test_a_share_of_zero_leaves_nothing(self) -> None:
        model = random_model()
        cache = BudgetedCache(model.config, Budgets.from_shares([[0.0, 1.0], [0.5, 0.0]]))
        run(model, cache, random_tokens(12), n_context=10, steps=(2,))
        assert cache.kept_entries().tolist() == [[[0, 10]], [[5, 0]]]


class TestMemory:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("n_context", [50, 400])
    def test_evicted_entries_are_really_gone(self, seed: int, n_context: int) -> None:
        model, budgets = random_model(dtype=torch.float32), random_budgets(seed)
        cache = BudgetedCache(model.config, budgets)
        run(model, cache, random_tokens(n_context), n_context=n_context, steps=())
        expected = int(budgets.entries(n_context).sum()) * 2 * 8 * 4  # keys and values, head dimension, float32
        assert cache.kv_bytes() == expected
        assert cache.row_bytes().tolist() == [expected]

    def test_a_layer_is_compressed_before_the_next_one_is_read(self) -> None:
        model, budgets = random_model(n_layers=4), random_budgets(2, n_layers=4)
        cache = BudgetedCache(model.config, budgets)
        held: list[int] = []

        def observer(*_: Any, **__: Any) -> None:  # at the end of each layer's attention
            held.append(cache.kv_bytes())

        with torch.inference_mode():
            model(random_tokens(50), past_key_values=cache, use_cache=True, observer=observer)
        compressed = budgets.entries(50).sum(-1).cumsum() * 2 * 8 * 8
        assert held == compressed.tolist()

    def test_later_tokens_are_not_copied_one_by_one(self) -> None:
        model = random_model()
        cache = BudgetedCache(model.config, uniform(0.5))
        places = set()
        run(model, cache, random_tokens(10), n_context=10, steps=())
        for step in range(200):
            run(model, cache, random_tokens(1, seed=step), n_context=1, steps=())
            places.add((cache.budgeted_layers[0]._suffix.tensors[0].data_ptr(), cache.kv_bytes()))
        assert len(places) <= 4
        assert cache.get_seq_length() == 210
        assert cache.kv_bytes() < 1.35 * 210 * 4 * 2 * 8 * 8

    def test_sliding_windows_stay_whole_and_are_counted(self) -> None:
        model = random_model("gemma2")
        cache = BudgetedCache(model.config, uniform(0.5, n_layers=1))
        run(model, cache, random_tokens(40), n_context=40, steps=())
        assert cache.kept_entries().tolist() == [[[20, 20]]]
        assert cache.layers[0].keys.shape[2] == 6  # the window of 7 without the next token
        assert cache.kv_bytes() == 2 * 20 * 2 * 8 * 8 + cache.layers[0].keys.untyped_storage().nbytes() * 2


class TestFixed:
    """Later tokens overwrite entries, the least wanted first, so that no KV cache exceeds its budget."""

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 1000), n_context=st.integers(1, 20), steps=st.lists(st.integers(1, 9), max_size=8))
    def test_logits_of_a_masked_reference(self, seed: int, n_context: int, steps: list[int]) -> None:
        model, budgets = random_model(), random_budgets(seed)
        ids = random_tokens(n_context + sum(steps), seed=seed)
        cache = BudgetedCache(model.config, budgets, StreamingLLM(n_sink=2), decoding="fixed")
        logits = run(model, cache, ids, n_context=n_context, steps=tuple(steps))
        hidden = sliding(budgets, n_context, steps, n_sink=2)
        torch.testing.assert_close(logits, naive_logits(model, ids, hidden), rtol=0, atol=1e-9)
        assert cache.kv_bytes() == int(budgets.entries(n_context).sum()) * 2 * 8 * 8
        assert cache.get_seq_length() == ids.shape[1]

    @pytest.mark.parametrize("rows", [[2, 0], [0, 0, 2, 1]])
    def test_selected_rows_go_on_as_before(self, rows: list[int]) -> None:
        model, budgets = random_model(), [random_budgets(seed) for seed in range(3)]
        caches = [BudgetedCache(model.config, budgets, decoding="fixed") for _ in range(2)]
        ids = random_tokens(20, rows=3)
        for cache in caches:
            run(model, cache, ids, n_context=12, steps=(3, 1))
        caches[1].select_rows(torch.tensor(rows))
        expected = run(model, caches[0], ids[:, 16:], n_context=1, steps=(2, 1))
        selected = run(model, caches[1], ids[rows, 16:], n_context=1, steps=(2, 1))
        torch.testing.assert_close(selected, expected[rows], rtol=0, atol=1e-9)

    def test_tokens_cannot_be_taken_back(self) -> None:
        model = random_model()
        cache = BudgetedCache(model.config, uniform(0.5), decoding="fixed")
        run(model, cache, random_tokens(12), n_context=10, steps=(2,))
        assert not getattr(cache, "is_croppable", False)  # before 5.16 nobody asks
        with pytest.raises(UserError, match='use decoding="grow"'):
            cache.crop(-1)


def sliding(budgets: Budgets, n_context: int, steps: list[int], *, n_sink: int) -> Tensor:
    """Naive: a step sees the first tokens, as many of the last ones before it as there is room for, and itself."""
    length = n_context + sum(steps)
    hidden = torch.zeros(*budgets.shape, length, length, dtype=torch.bool)
    for layer, row in enumerate(budgets.entries(n_context).tolist()):
        for head, budget in enumerate(row):
            sinks = min(n_sink, budget)
            start = n_context
            for n in steps:
                seen = [*range(sinks), *range(start - (budget - sinks), start)]
                hidden[layer, head, start : start + n, :start] = True
                hidden[layer, head, start : start + n, seen] = False
                start += n
    return hidden


class TestPrefill:
    @pytest.mark.parametrize("name", READ_ONCE)
    @pytest.mark.parametrize("chunk", [1, 7, 24, 100])
    @pytest.mark.parametrize("rows", [1, 3])
    def test_chunks_keep_what_one_pass_keeps(self, name: str, chunk: int, rows: int) -> None:
        model, budgets = random_model(), random_budgets(5)
        ids, mask = padded(rows, 30)
        whole, parts = BudgetedCache(model, budgets, name), BudgetedCache(model.config, budgets, name)
        expected = run_padded(model, whole, ids, mask, (24, 6))
        last = parts.prefill(model, ids[:, :24], mask[:, :24], chunk=chunk)
        torch.testing.assert_close(last, expected[:, 23], rtol=0, atol=1e-9)
        for one, other in zip(whole.budgeted_layers, parts.budgeted_layers, strict=True):
            torch.testing.assert_close(other.compressed.entries.keys, one.compressed.entries.keys, rtol=0, atol=1e-9)
        positions = (mask.cumsum(-1) - 1)[:, 24:]
        logits = model(ids[:, 24:], attention_mask=mask, position_ids=positions, past_key_values=parts).logits
        torch.testing.assert_close(logits, expected[:, 24:], rtol=0, atol=1e-9)

    @pytest.mark.parametrize("family", CLASSES)
    def test_every_family_reads_in_chunks(self, family: str) -> None:
        model, ids = random_model(family), random_tokens(24)
        cache = BudgetedCache(model.config, full_budgets(family))
        last = cache.prefill(model, ids, chunk=7)
        whole = run(model, BudgetedCache(model.config, full_budgets(family)), ids, n_context=24, steps=())
        torch.testing.assert_close(last, whole[:, -1], rtol=0, atol=1e-9)

    def test_generate_goes_on_from_a_compressed_context(self) -> None:
        model, budgets, ids = random_model(), random_budgets(4), random_tokens(30)
        cache = BudgetedCache(model.config, budgets)
        cache.prefill(model, ids[:, :22], chunk=8)
        settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        made = model.generate(ids, past_key_values=cache, **settings)
        kept = kept_by(StreamingLLM(), model, ids[:, :22], budgets)
        for n in range(30, 36):
            logits = naive_logits(model, made[:, :n], hidden_after(kept, n))
            assert logits[0, -1].argmax() == made[0, n]

    def test_a_cache_that_holds_something_is_refused(self) -> None:
        model = random_model()
        cache = BudgetedCache(model.config, uniform(0.5))
        cache.prefill(model, random_tokens(5))
        with pytest.raises(UserError, match="holds a context already"):
            cache.prefill(model, random_tokens(5))


class TestRows:
    def test_padded_rows_with_budgets_of_their_own_equal_rows_alone(self) -> None:
        model, all_budgets = random_model(), [random_budgets(seed) for seed in range(3)]
        ids, mask = padded(3, 30)
        logits = run_padded(model, BudgetedCache(model.config, all_budgets), ids, mask, (24, 5, 1))
        for row, budgets in enumerate(all_budgets):
            start = 3 * row
            alone = BudgetedCache(model.config, budgets)
            expected = run(model, alone, ids[row : row + 1, start:], n_context=24 - start, steps=(5, 1))
            torch.testing.assert_close(logits[row, start:], expected[0], rtol=0, atol=1e-9)
            assert alone.kept_entries().sum() == round((1 - budgets.ratio) * 4 * (24 - start))

    @pytest.mark.parametrize("name", READ_ONCE)
    def test_many_rows_from_one_context_equal_rows_alone(self, name: str) -> None:
        model, all_budgets = random_model(), [random_budgets(seed) for seed in range(5)]
        context, question = random_tokens(30), random_tokens(6, seed=9)
        policies = [POLICIES[name]()] * 4 + [StreamingLLM(n_sink=1)]
        full = ContextCache(model.config, policies, paths=find_paths(model, policies))
        with torch.inference_mode():
            model(context, past_key_values=full)
            together = BudgetedCache.from_context(model.config, full, all_budgets, policies)
            logits = model(question.expand(5, -1), past_key_values=together).logits
        for row, budgets in enumerate(all_budgets):
            alone = BudgetedCache(model, budgets, policies[row])
            expected = run(model, alone, torch.cat([context, question], 1), n_context=30, steps=(6,))[:, 30:]
            torch.testing.assert_close(logits[row : row + 1], expected, rtol=0, atol=1e-9)
            assert together.kept_entries()[:, row].tolist() == alone.kept_entries()[:, 0].tolist()

    def test_rows_that_share_a_context_equal_rows_with_copies_of_it(self) -> None:
        """Also those that are selected later; only what is not whole takes memory of its own."""
        model, question, step = random_model(), random_tokens(6, seed=9, rows=4), random_tokens(1, seed=3, rows=3)
        full = ContextCache(model.config, [StreamingLLM()])
        shares = np.ones((4, 2, 2))
        shares[1, 0, 1], shares[2, 1], shares[3] = 0.3, [0.5, 0.0], 0.2
        budgets = [Budgets.from_shares(one) for one in shares]
        rows = torch.tensor([0, 0, 1, 0])
        with torch.inference_mode():
            model(random_tokens(30, rows=2), past_key_values=full)
            caches = [
                BudgetedCache.from_context(model.config, full, budgets, contexts=rows, share=share)
                for share in (False, True)
            ]
            entries = [sum(len(layer.compressed.entries.keys) for layer in one.budgeted_layers) for one in caches]
            logits = [model(question, past_key_values=one).logits for one in caches]
            for one in caches:
                one.select_rows(torch.tensor([3, 1, 1]))
            later = [model(step, past_key_values=one).logits for one in caches]
        assert entries == [4 * 120 - 21 - 45 - 96, 9 + 15 + 24]
        assert caches[0].kept_entries().tolist() == caches[1].kept_entries().tolist()
        torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(later[1], later[0], rtol=0, atol=1e-9)

    def test_a_shared_context_is_never_overwritten(self) -> None:
        model = random_model()
        full = ContextCache(model.config, [StreamingLLM()])
        with torch.inference_mode():
            model(random_tokens(30), past_key_values=full)
        with pytest.raises(UserError, match='use "grow"'):
            BudgetedCache.from_context(model.config, full, uniform(0.5), decoding="fixed", share=True)

    def test_rows_from_one_context_share_its_sliding_windows(self) -> None:
        model = random_model("gemma3")
        context, question = random_tokens(30), random_tokens(6, seed=9)
        full = ContextCache(model.config, [StreamingLLM()])
        budgets = [uniform(ratio, n_layers=1) for ratio in (0.2, 0.6)]
        with torch.inference_mode():
            model(context, past_key_values=full)
            for _ in range(2):  # the context can be used again
                together = BudgetedCache.from_context(model.config, full, budgets)
                logits = model(question.expand(2, -1), past_key_values=together).logits
        for row, one in enumerate(budgets):
            ids = torch.cat([context, question], 1)
            expected = run(model, BudgetedCache(model.config, one), ids, n_context=30, steps=(6,))[:, 30:]
            torch.testing.assert_close(logits[row : row + 1], expected, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("rows", [[2, 0], [1], [0, 0, 2, 1]])
    def test_selected_rows_go_on_as_before(self, rows: list[int]) -> None:
        model, budgets = random_model(), [random_budgets(seed) for seed in range(3)]
        ids = random_tokens(36, rows=3)
        cache = BudgetedCache(model.config, budgets)
        run(model, cache, ids, n_context=30, steps=(4,))
        expected = run(model, cache, ids[:, 34:35], n_context=1, steps=())[rows]
        cache.crop(-1)
        cache.select_rows(torch.tensor(rows))
        torch.testing.assert_close(
            run(model, cache, ids[rows, 34:35], n_context=1, steps=()), expected, rtol=0, atol=1e-9
        )

    def test_repeated_rows_go_on_alike(self) -> None:
        model, ids = random_model(), random_tokens(20, rows=2)
        cache = BudgetedCache(model.config, random_budgets(3))
        run(model, cache, ids, n_context=16, steps=(3,))
        cache.batch_repeat_interleave(2)
        logits = run(model, cache, ids[[0, 0, 1, 1], 19:], n_context=1, steps=())
        assert cache.kept_entries().shape == (2, 4, 2)
        torch.testing.assert_close(logits[0], logits[1])
        torch.testing.assert_close(logits[2], logits[3])
        assert not torch.allclose(logits[1], logits[2])


def test_reset_forgets_everything() -> None:
    model, ids = random_model(), random_tokens(25)
    cache = BudgetedCache(model.config, random_budgets(1))
    first = run(model, cache, ids, n_context=20, steps=(5,))
    cache.reset()
    assert (cache.get_seq_length(), cache.kv_bytes()) == (0, 0)
    torch.testing.assert_close(run(model, cache, ids, n_context=20, steps=(5,)), first)


class TestRefusals:
    def test_budgets_of_another_shape(self) -> None:
        with pytest.raises(UserError, match=r"\[3, 2\].*the model is \[2, 2\]"):
            BudgetedCache(random_model().config, uniform(0.5, n_layers=3))

    def test_budgets_for_layers_with_a_sliding_window(self) -> None:
        with pytest.raises(UserError, match=r"\[2, 2\].*the model is \[1, 2\]"):
            BudgetedCache(random_model("gemma2").config, uniform(0.5))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"eviction": "nope"}, "unknown eviction policy 'nope'; known: .*streaming_llm"),
            ({"decoding": "shrink"}, "unknown decoding 'shrink'; known: grow, fixed"),
            ({"eviction": [StreamingLLM()] * 2}, "one eviction policy for all rows or one per row"),
        ],
    )
    def test_unknown_choices(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            BudgetedCache(random_model().config, uniform(0.5), **settings)

    def test_a_model_with_another_attention(self) -> None:
        model = random_model(attention="sdpa")
        with pytest.raises(UserError, match="set_attn_implementation"):
            run(model, BudgetedCache(model.config, uniform(0.5)), random_tokens(5), n_context=5, steps=())

    def test_another_batch_size(self) -> None:
        model = random_model()
        cache = BudgetedCache(model.config, uniform(0.5))
        run(model, cache, random_tokens(8, rows=2), n_context=8, steps=())
        with pytest.raises(UserError, match="holds 2 rows and was given 3"):
            run(model, cache, random_tokens(1, rows=3), n_context=1, steps=())

    def test_more_rows_than_budgets(self) -> None:
        model = random_model()
        cache = BudgetedCache(model.config, [uniform(0.5), uniform(0.2)])
        with pytest.raises(UserError, match="budgets for 2 rows, but the batch has 3"):
            run(model, cache, random_tokens(8, rows=3), n_context=8, steps=())

    def test_padding_on_the_right(self) -> None:
        model, ids = random_model(), random_tokens(6, rows=2)
        mask = torch.ones_like(ids)
        mask[0, 4:] = 0
        with pytest.raises(UserError, match="padded on the left"):
            model(ids, attention_mask=mask, past_key_values=BudgetedCache(model.config, uniform(0.5)))

    def test_cropping_into_the_context(self) -> None:
        model = random_model()
        cache = BudgetedCache(model.config, uniform(0.5))
        run(model, cache, random_tokens(12), n_context=10, steps=(2,))
        with pytest.raises(UserError, match="only 2 came after"):
            cache.crop(-3)

    def test_a_model_in_which_no_layer_sees_all_tokens(self) -> None:
        config = random_model("mistral").config
        config.sliding_window = 8
        with pytest.raises(UserError, match="nothing to budget"):
            BudgetedCache(config, uniform(0.5))


@pytest.mark.parametrize("policy", ["streaming_llm", "lava"])
def test_memory_is_free_at_once(policy: str) -> None:
    """No cycle keeps the tensors of a cache that nobody holds any more, until Python looks for cycles."""
    model, ids = random_model("llama"), random_tokens(60)
    cache = BudgetedCache(model, uniform(0.5), policy)
    run(model, cache, ids, n_context=50, steps=(1, 1))
    layer = weakref.ref(cache.layers[0])
    gc.disable()
    try:
        del cache
        assert layer() is None
    finally:
        gc.enable()
