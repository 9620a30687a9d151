"""Attention over ragged entries equals one softmax over all that a query may see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baklava.cache.attention import ragged_attention as module
from baklava.cache.attention.ragged_attention import ragged_attention
from baklava.cache.ragged_storage import RaggedEntries


def random_case(
    seed: int, *, batch: int, n_kv_heads: int, group: int, n_queries: int, n_suffix: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Query, context keys and values `[B, Hkv, T, D]`, kept of them `[B * Hkv, T]`, and suffix `[2, B, Hkv, M, D]`."""
    random = torch.Generator().manual_seed(seed)
    length = 1300
    query = torch.randn(batch, n_kv_heads * group, n_queries, 8, generator=random, dtype=dtype)
    context = torch.randn(2, batch, n_kv_heads, length, 8, generator=random, dtype=dtype)
    suffix = torch.randn(2, batch, n_kv_heads, n_suffix, 8, generator=random, dtype=dtype)
    lengths = torch.tensor([0, 1, 5, 64, 100, 577, 1300])
    counts = lengths[torch.randint(len(lengths), (batch * n_kv_heads,), generator=random)]
    kept = torch.rand(batch * n_kv_heads, length, generator=random).argsort(-1) < counts[:, None]
    return query, context[0], context[1], kept, suffix


def naive(
    query: Tensor, keys: Tensor, values: Tensor, kept: Tensor, suffix: Tensor, *, scaling: float, softcap: float | None
) -> Tensor:
    """In float64, head by head and query by query."""
    batch, n_heads, n_queries, _ = query.shape
    n_kv_heads, n_suffix = suffix.shape[2:4]
    output = torch.empty(query.shape, dtype=torch.float64)
    for row in range(batch):
        for head in range(n_heads):
            kv = head // (n_heads // n_kv_heads)
            mine = kept[row * n_kv_heads + kv]
            for i in range(n_queries):
                seen = n_suffix - n_queries + i + 1
                k = torch.cat([keys[row, kv, mine], suffix[0, row, kv, :seen]]).double()
                v = torch.cat([values[row, kv, mine], suffix[1, row, kv, :seen]]).double()
                scores = k @ query[row, head, i].double() * scaling
                if softcap is not None:
                    scores = softcap * (scores / softcap).tanh()
                output[row, head, i] = scores.softmax(-1) @ v
    return output


def attend(case: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], **settings: float | None) -> Tensor:
    query, keys, values, kept, suffix = case
    entries = RaggedEntries.gather(keys, values, torch.arange(keys.shape[0]), kept)
    return ragged_attention(query, entries, suffix[0], suffix[1], **settings)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    n_kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 2, 7]),
    n_queries=st.integers(1, 4),
    more_suffix=st.integers(0, 70),
    softcap=st.sampled_from([None, 1.5]),
)
def test_equals_a_naive_softmax(
    seed: int, batch: int, n_kv_heads: int, group: int, n_queries: int, more_suffix: int, softcap: float | None
) -> None:
    case = random_case(
        seed,
        batch=batch,
        n_kv_heads=n_kv_heads,
        group=group,
        n_queries=n_queries,
        n_suffix=n_queries + more_suffix,
        dtype=torch.float64,
    )
    expected = naive(*case, scaling=0.3, softcap=softcap)
    torch.testing.assert_close(attend(case, scaling=0.3, softcap=softcap), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    case = random_case(3, batch=2, n_kv_heads=2, group=2, n_queries=2, n_suffix=5, dtype=dtype)
    output = attend(case, scaling=0.35, softcap=None)
    assert output.dtype == dtype
    expected = naive(*case, scaling=0.35, softcap=None)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=tolerance)


def test_long_questions_are_split_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(5, batch=2, n_kv_heads=2, group=2, n_queries=9, n_suffix=12, dtype=torch.float64)
    whole = attend(case, scaling=0.3, softcap=None)
    monkeypatch.setattr(module, "MAX_SCORES", 20_000)
    torch.testing.assert_close(attend(case, scaling=0.3, softcap=None), whole, rtol=0, atol=1e-12)


def test_scores_far_beyond_the_range_of_exp_stay_finite() -> None:
    query, keys, values, kept, suffix = random_case(
        7, batch=1, n_kv_heads=2, group=2, n_queries=2, n_suffix=3, dtype=torch.float32
    )
    output = attend((query * 1e4, keys, values, kept, suffix), scaling=1.0, softcap=None)
    expected = naive(query * 1e4, keys, values, kept, suffix, scaling=1.0, softcap=None)
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_query_that_may_look_at_nothing_gives_zeros_and_disturbs_no_other() -> None:
    """Padding before a question, under a KV cache without entries."""
    query, suffix = torch.randn(1, 2, 2, 4), torch.randn(2, 1, 1, 2, 4)
    nothing = RaggedEntries.gather(suffix[0], suffix[1], torch.tensor([0]), torch.zeros(1, 2, dtype=torch.bool))
    mask = torch.tensor([[[[False, False], [False, True]]]])
    output = ragged_attention(query, nothing, suffix[0], suffix[1], scaling=0.5, mask=mask)
    assert (output[:, :, 0] == 0).all()
    torch.testing.assert_close(output[0, :, 1], suffix[1, 0, 0, 1].expand(2, -1))
