"""Dividing a GPU's memory: what is promised to fit fits, and a little more would not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baklava.models.memory import KV_OVERHEAD, Workload, activation_bytes, divide_memory
from baklava.models.shape import ModelShape

LLAMA_3_8B = ModelShape(
    n_layers=32,
    n_windowed=0,
    window=0,
    n_q_heads=32,
    n_kv_heads=8,
    head_dim=128,
    window_numbers=8 * 128,
    hidden=4096,
    intermediate=14336,
    vocabulary=128256,
)
GIB = 2**30
WORK = Workload(context=32768, new_tokens=256, batch=8, rows=1, chunk=1024)


def test_kv_caches_are_two_vectors_per_layer_head_and_token() -> None:
    """Llama-3-8B: 128 KiB per token in 16-bit arithmetic, so 4 GiB for 32,768 tokens."""
    division = divide_memory(LLAMA_3_8B, WORK, available=9 * GIB, itemsize=2)
    assert division.kv_full == 8 * 4 * GIB


@given(
    available=st.integers(1, 80 * GIB),
    context=st.integers(1, 200_000),
    batch=st.integers(1, 16),
    rows=st.integers(1, 4),
    chunk=st.integers(1, 8192),
    all_layers=st.booleans(),
)
def test_what_fits_fits_and_more_would_not(
    available: int, context: int, batch: int, rows: int, chunk: int, all_layers: bool
) -> None:
    work = Workload(context, new_tokens=100, batch=batch, rows=min(rows, batch), chunk=chunk, all_layers=all_layers)
    division = divide_memory(LLAMA_3_8B, work, available=available, itemsize=2)
    sequence = context * 32 * LLAMA_3_8B.kv_bytes_per_token(2)

    def peak(share: float) -> float:
        compressed = KV_OVERHEAD * share * sequence
        decoding = batch * compressed + activation_bytes(LLAMA_3_8B, batch, itemsize=2, rows=batch)
        n_compressed = batch - work.rows if division.chunked or all_layers else batch
        return division.unbudgeted + max(decoding, n_compressed * compressed + division.reading)

    if 0 < division.share < 1:
        assert peak(division.share * (1 - 1e-6)) <= available * (1 + 1e-9)
        assert peak(division.share * (1 + 1e-6)) >= available * (1 - 1e-9)
        assert -1e-9 <= division.ratio - (1 - division.share) <= 0.001 + 1e-9
    elif division.share >= 1:
        assert division.ratio == 0
    else:
        assert division.ratio == 1


def test_chunks_are_taken_where_they_leave_more() -> None:
    """A pass needs activations for all tokens of a sequence, chunks its whole KV cache."""
    short = replace(WORK, context=4096, batch=1)
    assert not divide_memory(LLAMA_3_8B, short, available=GIB, itemsize=2).chunked
    assert divide_memory(LLAMA_3_8B, replace(WORK, batch=8), available=16 * GIB, itemsize=2).chunked
    thin = replace(LLAMA_3_8B, intermediate=1, n_q_heads=8, hidden=64)  # so little to activate that a pass is cheaper
    assert not divide_memory(thin, WORK, available=16 * GIB, itemsize=2).chunked


def test_where_all_layers_wait_reading_takes_no_less_than_the_full_caches() -> None:
    one = replace(WORK, batch=1, context=4096)
    plain, waiting = (
        divide_memory(LLAMA_3_8B, replace(one, all_layers=waits), available=GIB, itemsize=2) for waits in (False, True)
    )
    assert plain.kv_full <= waiting.reading > plain.reading
    assert plain.kv_full > plain.reading


def test_more_memory_never_needs_a_higher_ratio() -> None:
    ratios = [divide_memory(LLAMA_3_8B, WORK, available=n * GIB, itemsize=2).ratio for n in range(1, 60)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] == 1
    assert ratios[-1] == 0


def test_layers_with_a_window_take_the_window_only() -> None:
    hybrid = replace(LLAMA_3_8B, n_layers=16, n_windowed=16, window=1024)
    division = divide_memory(hybrid, replace(WORK, new_tokens=0), available=20 * GIB, itemsize=2)
    assert division.kv_full == 8 * 2 * GIB
    assert division.unbudgeted == 8 * 16 * 1024 * hybrid.kv_bytes_per_token(2)


@pytest.mark.parametrize("rows", [1, 3])
def test_activations_grow_with_tokens_and_logits_with_rows(rows: int) -> None:
    small, large = (activation_bytes(LLAMA_3_8B, n, itemsize=2, rows=rows) for n in (1000, 2000))
    logits = rows * 128256 * 6
    assert large - logits == 2 * (small - logits)
    assert small - logits == 1000 * 2 * (2 * 4096 + 3 * 14336)  # the MLP is the widest part
