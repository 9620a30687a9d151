"""In bfloat16 and float16 a cache is no further from float32 than PyTorch's fused attention is, whatever the path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from large_scores import BIAS, distance, every_half, large_tensors, qwen2
from tiny_models import random_tokens
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import DynamicCache, PreTrainedModel

from baklava import BudgetedCache, Budgets
from baklava.cache.attention.dense import dense_attention
from baklava.cache.attention.ragged_attention import ragged_attention
from baklava.cache.ragged_storage import RaggedEntries
from baklava.eviction import StreamingLLM
from baklava.inference.batch import BatchState, compress_rows, prefill
from baklava.models.load import LoadedModel

FLOOR = 2e-3  # of a total variation; distances below tell nothing
N_CONTEXT, N_ALL = 40, 48
IDS = random_tokens(N_ALL, seed=1)
WHOLE = Budgets.uniform(n_layers=1, n_kv_heads=1, ratio=0.0)
STREAMING = StreamingLLM()


@torch.no_grad()
def read_on(model: PreTrainedModel, cache: DynamicCache | BudgetedCache, start: int) -> Tensor:
    """Logits of the tokens after `start`, one by one."""
    return torch.cat([model(IDS[:, i : i + 1], past_key_values=cache).logits for i in range(start, N_ALL)], 1)


@torch.no_grad()
def one_pass(model: PreTrainedModel, cache: DynamicCache | BudgetedCache) -> Tensor:
    """Logits of a context read at once, then of one token after another."""
    context = model(IDS[:, :N_CONTEXT], past_key_values=cache).logits
    return torch.cat([context, read_on(model, cache, N_CONTEXT)], 1)


def chunked(model: PreTrainedModel) -> Tensor:
    cache = BudgetedCache(model.config, WHOLE)
    cache.prefill(model, IDS[:, :N_CONTEXT], chunk=11)
    return read_on(model, cache, N_CONTEXT)


def rows_of(model: PreTrainedModel, length: int, n: int, *, share: bool) -> BatchState:
    loaded = LoadedModel("random", model, None)  # type: ignore[arg-type]
    context = prefill(loaded, [IDS[0, :length].tolist()], [STREAMING])
    return compress_rows(loaded, context, [WHOLE] * n, [STREAMING] * n, share=share)


@torch.inference_mode()
def rows(model: PreTrainedModel, *, share: bool, together: bool = False) -> Tensor:
    """The second of three rows of one context; its tokens together or one by one."""
    loaded = LoadedModel("random", model, None)  # type: ignore[arg-type]
    sequences = rows_of(model, N_CONTEXT, 3, share=share)
    after = IDS[0, N_CONTEXT:].tolist()
    parts = [after] if together else [[token] for token in after]
    return torch.cat([sequences.read(loaded, [part] * 3, logits_to_keep=len(part))[1:2] for part in parts], 1)


@torch.inference_mode()
def joined(model: PreTrainedModel, *, share: bool) -> Tensor:
    """A row that another one, of a shorter context, joined after two tokens."""
    loaded = LoadedModel("random", model, None)  # type: ignore[arg-type]
    first, second = (rows_of(model, length, 1, share=share) for length in (N_CONTEXT, N_CONTEXT - 9))
    logits = [first.read(loaded, [IDS[0, N_CONTEXT : N_CONTEXT + 2].tolist()], logits_to_keep=2)]
    second.read(loaded, [IDS[0, N_CONTEXT - 9 : N_CONTEXT].tolist()], logits_to_keep=1)
    first.append_rows(second)
    for i in range(N_CONTEXT + 2, N_ALL):
        logits.append(first.read(loaded, [IDS[0, i : i + 1].tolist()] * 2, logits_to_keep=1)[:1])
    return torch.cat(logits, 1)


PATHS: dict[str, Callable[[PreTrainedModel], Tensor]] = {
    "one pass": lambda model: one_pass(model, BudgetedCache(model.config, WHOLE)),
    "chunks": chunked,
    "rows": lambda model: rows(model, share=False),
    "shared": lambda model: rows(model, share=True),
    "shared, several tokens": lambda model: rows(model, share=True, together=True),
    "joined": lambda model: joined(model, share=False),
    "joined, shared": lambda model: joined(model, share=True),
}


@pytest.mark.parametrize("dtype", every_half, ids=str)
@pytest.mark.parametrize(
    ("dim", "group", "window"),
    [(32, 1, None), (64, 2, None), (128, 4, None), (256, 7, None), (64, 8, None), (64, 4, 7), (128, 7, 7)],
)
def test_next_tokens_are_no_further_from_float32_than_with_fused_attention(
    dim: int, group: int, window: int | None, dtype: torch.dtype
) -> None:
    half, exact = qwen2(dim, group, dtype, window)
    exact.set_attn_implementation("sdpa")
    half.set_attn_implementation("sdpa")
    reference = one_pass(exact, DynamicCache(config=exact.config))
    fused = one_pass(half, DynamicCache(config=half.config))
    half.set_attn_implementation("baklava")
    for name, path in PATHS.items():
        logits = path(half)
        n = logits.shape[1]
        limit = max(1.5 * distance(fused[:, -n:], reference[:, -n:]), FLOOR)
        assert distance(logits, reference[:, -n:]) <= limit, name


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(every_half),
    dim=st.sampled_from([32, 64, 128, 256]),
    group=st.sampled_from([1, 2, 4, 7, 8]),
    length=st.sampled_from([1, 63, 64, 700]),
    n_queries=st.integers(1, 3),
    by=st.sampled_from([0.0, 5.0, BIAS]),
    share=st.booleans(),
    softcap=st.sampled_from([None, 30.0]),
    seed=st.integers(0, 99),
)
def test_steps_over_entries_are_those_of_float32_rounded_once(
    dtype: torch.dtype,
    dim: int,
    group: int,
    length: int,
    n_queries: int,
    by: float,
    share: bool,
    softcap: float | None,
    seed: int,
) -> None:
    n_kv_heads, n_suffix = 2, n_queries + 6
    query, _ = large_tensors(1, n_kv_heads * group, n_queries, dim, dtype=dtype, seed=seed, by=by)
    _, key = large_tensors(1, n_kv_heads, length + n_suffix, dim, dtype=dtype, seed=seed + 1, by=by)
    value = torch.randn(key.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

    def attend(*tensors: Tensor) -> Tensor:
        q, k, v = tensors
        everything = torch.ones(n_kv_heads, length, dtype=torch.bool)
        context = k[:, :, :length], v[:, :, :length]
        entries = RaggedEntries.gather(*context, torch.zeros(1, dtype=torch.int64), everything, share=share)
        suffix = k[:, :, length:], v[:, :, length:]
        return ragged_attention(q, entries, *suffix, scaling=dim**-0.5, softcap=softcap)

    exact = attend(query.float(), key.float(), value.float())
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(attend(query, key, value).float(), exact, rtol=step, atol=step / 100)


@pytest.mark.parametrize("dtype", every_half, ids=str)
@pytest.mark.parametrize("n_queries", [1, 5, 12])
def test_soft_capped_scores_of_a_prompt_are_those_of_float32(n_queries: int, dtype: torch.dtype) -> None:
    query, _ = large_tensors(2, 4, n_queries, 64, dtype=dtype, seed=0, by=3.0)
    key, value = large_tensors(2, 2, 12, 64, dtype=dtype, seed=1, by=3.0)
    output, exact = (
        dense_attention(*(one.to(to) for one in (query, key, value)), scaling=0.125, softcap=50.0)
        for to in (dtype, torch.float32)
    )
    assert output.dtype == dtype
    torch.testing.assert_close(output, exact.to(dtype))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 2.0**15), (torch.bfloat16, 2.0**60)], ids=str)
@pytest.mark.parametrize("softcap", [None, 50.0])
@pytest.mark.parametrize("share", [False, True])
def test_scores_up_to_the_limit_of_the_format_give_numbers(
    dtype: torch.dtype, size: float, softcap: float | None, share: bool
) -> None:
    # Powers of two, whose products float32 sums without rounding: equal scores are equal in any order.
    query, key = (size * torch.ones(1, 2, 90, 64).to(dtype) for _ in range(2))
    query[:, :, 1::3] *= -1
    key[:, :, ::2] *= 0.5
    value = torch.randn(1, 2, 90, 64).to(dtype)
    entries = RaggedEntries.gather(
        key[:, :, :80], value[:, :, :80], torch.tensor([0]), torch.ones(2, 80, dtype=torch.bool), share=share
    )
    step = ragged_attention(query[:, :, 80:], entries, key[:, :, 80:], value[:, :, 80:], scaling=0.125, softcap=softcap)
    whole = dense_attention(query, key, value, scaling=0.125, softcap=softcap)
    assert whole.isfinite().all()
    torch.testing.assert_close(step, whole[:, :, 80:], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", every_half, ids=str)
def test_long_shared_contexts_are_read_in_parts_without_a_difference(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key = large_tensors(1, 2, 300, 32, dtype=dtype, seed=4)
    value = torch.randn(key.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    entries = RaggedEntries.gather(
        key[:, :, :290], value[:, :, :290], torch.tensor([0]), torch.ones(2, 290, dtype=torch.bool), share=True
    )
    suffix = key[:, :, 290:], value[:, :, 290:]
    whole = ragged_attention(query[:, :, -2:], entries, *suffix, scaling=32**-0.5)
    monkeypatch.setattr("baklava.cache.attention.precision.MAX_CONVERTED_CPU", 32 * 70)
    parts = ragged_attention(query[:, :, -2:], entries, *suffix, scaling=32**-0.5)
    torch.testing.assert_close(parts, whole)
    expected = sdpa(*(one.double() for one in (query, key, value)), is_causal=True)[:, :, -2:]
    torch.testing.assert_close(parts, expected.to(dtype), rtol=0.02, atol=0.02)
