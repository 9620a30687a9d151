"""Quantised entries: bounded errors, the bytes that were promised, and rows rearranged as without bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from kept_entries import uniform
from tiny_models import random_model, random_tokens
from torch import Tensor
from transformers import PreTrainedModel

from baklava import BudgetedCache, Budgets
from baklava.budgets.bits import EntrySize, Packing, parse_bits
from baklava.cache.attention.precision import MAX_CONVERTED_CPU
from baklava.cache.attention.ragged_attention import ragged_attention
from baklava.cache.quantised import Quantised
from baklava.cache.ragged_storage import RaggedEntries
from baklava.cache.row_settings import RowSettings
from baklava.errors import UserError

DIMS = (8, 8)
MIXED = [[2, 16], [4, 8]]  # [L, Hkv]
# Of attention to random entries, relative to its own size.
MAX_ERROR = {8: 0.01, 4: 0.15, 2: 0.9}


def random_vectors(*shape: int, seed: int = 0) -> Tensor:
    """With outlier channels and offsets, as keys have them."""
    random = torch.Generator().manual_seed(seed)
    width = torch.logspace(-2, 1, shape[-1])
    return torch.randn(*shape, generator=random) * width + 3 * width * torch.randn(shape[-1], generator=random)


def read(model: PreTrainedModel, cache: Any, ids: Tensor, n_context: int) -> Tensor:
    """Logits of what comes after a context: three tokens, then one at a time."""
    with torch.inference_mode():
        cache.prefill(model, ids[:, :n_context])
        parts = [model(ids[:, n_context : n_context + 3], past_key_values=cache).logits]
        parts += [model(ids[:, at : at + 1], past_key_values=cache).logits for at in range(n_context + 3, ids.shape[1])]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("span", [0, 16])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_number_is_off_by_half_a_step_at_most(bits: int, span: int) -> None:
    vectors = random_vectors(5, 32, 64)
    quantised = Quantised.of(vectors, bits, span)
    step = quantised.scale.float() if span == 0 else quantised.scale.float().repeat_interleave(span, -1)
    lost = vectors.abs().max() * 2**-11 + 2**bits * step * 2**-11  # of zero point and scale in float16
    assert ((quantised.dequantise() - vectors).abs() <= step / 2 + lost).all()
    assert quantised.codes.nbytes == vectors.numel() * bits // 8
    twice = Quantised.of(quantised.dequantise(), bits, span)
    torch.testing.assert_close(twice.dequantise(), quantised.dequantise(), rtol=0, atol=float(lost.max()))


def test_equal_and_tiny_numbers_are_stored_as_they_are() -> None:
    same = torch.full((1, 32, 16), 0.25)
    assert (Quantised.of(same, 2, 0).dequantise() == same).all()
    assert (Quantised.of(same * 1e-9, 4, 16).dequantise().abs() < 1e-7).all()


@pytest.mark.parametrize("span", [0, 16])
def test_what_is_written_is_off_by_half_a_step_and_the_others_stay(span: int) -> None:
    old = Quantised.of(random_vectors(3, 32, 32), 4, span)
    before = old.dequantise()
    inside = before[1, 5] * 0.5 + before[1, 6] * 0.5
    written = old.write(torch.tensor([1, 2]), torch.tensor([7, 0]), torch.stack([inside, before[2, 0] + 500]))
    now, step = written.dequantise(), written.scale.float()
    assert ((now[1, 7] - inside).abs() <= 0.51 * (step[1, 0] if span == 0 else step[1, 7].repeat_interleave(16))).all()
    assert ((now[2, 0] - before[2, 0] - 500).abs() <= 0.51 * step[2, 0].max() + 0.5).all()
    others = torch.ones(3, 32, dtype=torch.bool)
    others[1, 7] = others[2, 0] = False
    if span == 0:  # the third group's range grew
        assert ((now[2] - before[2])[1:].abs() <= 0.51 * step[2] + 0.5).all()
        others[2] = False
    torch.testing.assert_close(now[others], before[others], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("pair", "n_queries"), [((8, 8), 1), ((4, 4), 1), ((2, 2), 2), ((4, 2), 20), ((16, 4), 2), ((4, 16), 20)]
)
def test_attention_is_that_to_the_exact_entries_within_what_the_bits_allow(
    pair: tuple[int, int], n_queries: int
) -> None:
    counts, length, dim = [0, 3, 36, 700, 1300, 65], 1300, 32
    random = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 2, 3, length, dim, generator=random)
    kept = torch.rand(6, length, generator=random).argsort(-1) < torch.tensor(counts)[:, None]
    query = torch.randn(2, 9, n_queries, dim, generator=random)
    suffix = torch.randn(2, 2, 3, max(4, n_queries), dim, generator=random)
    bits = torch.tensor(pair).expand(6, 2).clone()
    bits[4] = 16
    rows = torch.arange(2)

    def attend(entries: RaggedEntries, dtype: torch.dtype) -> Tensor:
        return ragged_attention(query.to(dtype), entries, *suffix.to(dtype), scaling=dim**-0.5)

    exact = attend(RaggedEntries.gather(keys.double(), values.double(), rows, kept), torch.float64)
    packed = RaggedEntries.gather(keys, values, rows, kept, bits=bits)
    result = attend(packed, torch.float32)
    error = (result - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.max() < MAX_ERROR[min(pair)]
    assert (error[1, 3:6] < 1e-5).all()  # KV cache 4, at 16 bits
    assert error[0, 0:6].max() < 1e-5  # too few entries for a group
    assert error[1, 0:3].max() > 1e-4  # what is compared is quantised
    dequantised = attend(RaggedEntries.gather(keys.double(), values.double(), rows, kept, bits=bits), torch.float64)
    torch.testing.assert_close(result.double(), dequantised, rtol=1e-4, atol=1e-5)


def test_no_more_than_a_block_is_expanded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, everything = random_vectors(1, 4, 8192, 64), torch.ones(4, 8192, dtype=torch.bool)
    rows = torch.zeros(1, dtype=torch.int64)
    entries = RaggedEntries.gather(keys, keys, rows, everything, bits=torch.full((4, 2), 4))
    sizes: list[int] = []
    numbers = Quantised.numbers

    def counted(quantised: Quantised, n: int, dtype: torch.dtype) -> Iterator[Tensor]:
        for block in numbers(quantised, n, dtype):
            sizes.append(block.numel())
            yield block

    monkeypatch.setattr(Quantised, "numbers", counted)
    ragged_attention(keys[:, :, :1], entries, keys[:, :, :1], keys[:, :, :1], scaling=0.1)
    assert max(sizes) <= MAX_CONVERTED_CPU < sum(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decoding", ["grow", "fixed"])
def test_sixteen_bits_change_no_bit(decoding: Any, dtype: torch.dtype) -> None:
    model, ids = random_model(dtype=dtype), random_tokens(90)
    plain = read(model, BudgetedCache(model.config, uniform(0.5), decoding=decoding), ids, 80)
    sixteen = BudgetedCache(model.config, uniform(0.5), decoding=decoding, bits=(16, 16))
    assert torch.equal(read(model, sixteen, ids, 80), plain)


@pytest.mark.parametrize("bits", [8, (4, 2), MIXED])
@pytest.mark.parametrize("decoding", ["grow", "fixed"])
def test_bytes_are_those_of_codes_scales_and_exact_entries(decoding: Any, bits: Any) -> None:
    model, ids = random_model(dtype=torch.float32), random_tokens(150)
    packing = Packing(group=16, sinks=2, newest=5)
    cache = BudgetedCache(model.config, uniform(0.3), decoding=decoding, bits=bits, packing=packing)
    cache.prefill(model, ids)
    per_cache = parse_bits(bits, (2, 2))
    computed = packing.cache_bytes(cache.kept_entries()[:, 0].numpy(), per_cache, DIMS, 4).sum()
    assert cache.kv_bytes() == cache.row_bytes().sum() == computed
    assert computed < 105 * 4 * 2 * 8 * 4 * 0.8
    if decoding == "fixed":
        with torch.inference_mode():
            model(ids[:, :9], past_key_values=cache)
        assert cache.kv_bytes() == computed


@pytest.mark.parametrize("policy", ["streaming_llm", "ada_snapkv", "layer_ada_snapkv"])
def test_heads_that_compete_in_different_bits_stay_within_the_bytes(policy: str) -> None:
    """Less than a group below them; bits that differ move nothing where nobody competes."""
    model, ids = random_model(dtype=torch.float32), random_tokens(400)
    budgets = Budgets.from_shares([[0.9, 0.2], [0.5, 0.6]], bits=MIXED)
    cache = BudgetedCache(model.config, budgets, policy)
    cache.prefill(model, ids)
    size, bits = EntrySize(dims=DIMS, itemsize=4), parse_bits(MIXED, (2, 2))
    own = size.packing.cache_bytes(budgets.entries(400, size), bits, DIMS, 4)
    stored = size.packing.cache_bytes(cache.kept_entries()[:, 0].numpy(), bits, DIMS, 4)
    assert cache.kv_bytes() == stored.sum()
    assert own.sum() - 2 * 32 * size.n_bytes < stored.sum() <= own.sum()
    assert (stored != own).any() == (policy != "streaming_llm")
    if policy == "ada_snapkv":
        assert (stored.sum(1) <= own.sum(1)).all()


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("bits", [2, 4, (4, 2), MIXED])
def test_winners_that_fill_the_context_stay_within_the_bytes(bits: Any, itemsize: int) -> None:
    """Up to 31 of their entries fill no group, and so take more bytes than those that the losers give up."""
    length = 515
    for ratio in (0.7, 0.82, 0.9, 0.95):
        relative = EntrySize().relative(parse_bits(bits, (2, 2))).mean()
        share = min(1.0, (1 - ratio) / relative)
        settings = RowSettings.of(Budgets.from_shares(np.full((2, 2), share), ratio=ratio, bits=bits), "knorm", 0)
        settings.quantise(None, None, shape=(2, 2), dim=64)
        before = torch.stack([settings.counts(layer, [length], itemsize) for layer in range(2)])
        moved = before.flatten().clone()
        for winner in range(4):  # one after another takes all that it can hold
            taken = min(length, int(moved[winner:].sum())) - moved[winner]
            for loser in range(3, winner, -1):
                given = min(taken, moved[loser])
                moved[loser] -= given
                moved[winner] += given
                taken -= given
            counts = settings.within_bytes(moved.view(before.shape), before, [length])
            per_cache = parse_bits(bits, (2, 2))
            own, stored = (
                settings.packing.cache_bytes(some[:, 0].numpy(), per_cache, (64, 64), itemsize).sum()
                for some in (before, counts)
            )
            assert stored <= own
            assert stored > own - 32 * 128 * itemsize or counts[counts > 0].eq(length).all()
            assert (counts[moved.view(before.shape) == 0] == 0).all()


def test_logits_move_with_the_bits() -> None:
    model, ids = random_model(dtype=torch.float32), random_tokens(140)
    exact = read(model, BudgetedCache(model.config, uniform(0.2)), ids, 128)
    errors = [
        float((read(model, BudgetedCache(model.config, uniform(0.2), bits=bits), ids, 128) - exact).norm())
        for bits in (8, 4, 2)
    ]
    assert 0 < errors[0] < errors[1] / 4 < errors[2] / 8


def test_rows_are_selected_joined_and_copied_with_their_codes() -> None:
    model, ids = random_model(dtype=torch.float32), random_tokens(100, rows=3)
    budgets = [uniform(0.2), uniform(0.5), uniform(0.0)]

    def cache_of(rows: list[int]) -> BudgetedCache:
        cache = BudgetedCache(model.config, [budgets[row] for row in rows], bits=MIXED)
        cache.prefill(model, ids[rows, :90])
        model(ids[rows, 90:92], past_key_values=cache)
        return cache

    with torch.inference_mode():
        joined = cache_of([0, 1])
        joined.append_rows(cache_of([2]))
        joined = copy.deepcopy(joined)
        joined.select_rows(torch.tensor([2, 0, 0]))
        logits = model(ids[[2, 0, 0], 92:93], past_key_values=joined).logits
        for row, original in enumerate([2, 0, 0]):
            alone = model(ids[[original], 92:93], past_key_values=cache_of([original])).logits
            torch.testing.assert_close(logits[row], alone[0], rtol=0, atol=1e-5)
        joined.crop(-1)
        again = model(ids[[2, 0, 0], 92:93], past_key_values=joined).logits
    torch.testing.assert_close(again, logits)


def test_a_ring_overwrites_packed_entries() -> None:
    """With the ring once around, all that is left of the context are its sinks."""
    model, ids = random_model(dtype=torch.float32), random_tokens(180)
    given: dict[str, Any] = {"budgets": uniform(0.4), "decoding": "fixed"}
    caches = [BudgetedCache(model.config, bits=bits, **given) for bits in (8, 16)]
    with torch.inference_mode():
        for cache in caches:
            cache.prefill(model, ids[:, :100])
            for at in range(100, 179):
                model(ids[:, at : at + 1], past_key_values=cache)
        quantised, exact = (model(ids[:, 179:], past_key_values=cache).logits for cache in caches)
    assert (quantised - exact).norm() < 0.05 * exact.norm()
    assert not torch.equal(quantised, exact)


def test_short_contexts_keep_every_bit() -> None:
    model, ids = random_model(dtype=torch.float32), random_tokens(60)
    cache = BudgetedCache(model.config, uniform(0.0), bits=2, compress_above=50)
    assert torch.equal(read(model, cache, ids, 50), read(model, BudgetedCache(model.config, uniform(0.0)), ids, 50))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 3}, "bits must be 16, 8, 4 or 2, got 3"),
        ({"bits": (4, 4, 4)}, "one or a pair per KV cache"),
        ({"bits": "four"}, "got 'four'"),
        ({"bits": [[4], [4, 4]]}, "got rows of unequal length"),
        ({"bits": np.full((3, 2, 2), 4)}, r"got int64 of shape \[3, 2, 2\]"),
        ({"bits": 4, "packing": {"group": 64}}, r"such as Packing\(group=32\), got dict"),
        ({"bits": 4, "packing": Packing(group=16)}, None),
        ({"bits": np.full((2, 2, 2), 4)}, None),
    ],
)
def test_bits_that_cannot_be_are_one_line(given: dict[str, Any], message: str | None) -> None:
    model = random_model()
    if message is None:
        BudgetedCache(model.config, uniform(0.5), **given)
        return
    with pytest.raises(UserError, match=message) as error:
        BudgetedCache(model.config, uniform(0.5), **given)
    assert "\n" not in str(error.value)


def test_packings_that_cannot_be_are_one_line() -> None:
    with pytest.raises(UserError, match="group must be a power of two"):
        Packing(group=20)
    with pytest.raises(UserError, match="sinks must be a whole number"):
        Packing(sinks=-1)
    with pytest.raises(UserError, match="group 32 does not divide the head dimension 80"):
        Packing().check_dim(80)


def test_numbers_beyond_float16_are_refused() -> None:
    with pytest.raises(UserError, match="beyond 65,504"):
        Quantised.of(torch.full((1, 32, 8), 1e5), 4, 8)


def test_budgets_of_no_entries_have_no_groups() -> None:
    model, ids = random_model(dtype=torch.float32), random_tokens(100)
    cache = BudgetedCache(model.config, Budgets.from_shares([[0.0, 1.0], [0.02, 0.5]]), bits=4)
    assert read(model, cache, ids, 90).isfinite().all()


@pytest.mark.parametrize("eviction", ["streaming_llm", "adakv"])
def test_budgets_with_bits_are_bytes(eviction: str) -> None:
    model, ids = random_model(dtype=torch.float32), random_tokens(500)
    bits = MIXED if eviction == "streaming_llm" else 4
    budgets = Budgets.from_shares([[0.9, 0.5], [0.3, 0.4]], bits=bits)
    cache = BudgetedCache(model.config, budgets, eviction)
    cache.prefill(model, ids)
    total = (1 - budgets.ratio) * 4 * 500 * 2 * 8 * 4
    assert cache.kv_bytes() <= total
    assert cache.kv_bytes() > total - (1 if eviction == "streaming_llm" else 3) * 36 * 2 * 8 * 4  # a layer competes
    assert len(set(cache.kept_entries().flatten().tolist())) > 1
    with pytest.raises(UserError, match="the budgets say already"):
        BudgetedCache(model.config, budgets, eviction, bits=4)
