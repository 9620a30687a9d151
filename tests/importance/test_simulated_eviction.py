"""The simulated eviction against whole matrices of attention, and in blocks of any size."""

from __future__ import annotations

import pytest
import torch

from baklava.importance import simulated_eviction

N_HEADS, N_KV_HEADS, LENGTH, DIM = 6, 2, 40, 8
POSITIONS = torch.tensor([3, 11, 12, 30, 39])


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(n, LENGTH, DIM, generator=generator) for n in (N_HEADS, N_KV_HEADS, N_KV_HEADS))
    return 3 * query, key, value


def simulated(sinks: int, window: int, softcap: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = tensors()
    return simulated_eviction.simulate_eviction(
        query[:, POSITIONS], key, value, POSITIONS, sinks=sinks, window=window, scaling=0.3, softcap=softcap
    )


def naive(sinks: int, window: int, softcap: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = tensors()
    key, value = (tensor.repeat_interleave(N_HEADS // N_KV_HEADS, 0) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) * 0.3
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    seen = (j <= i) & ((j < sinks) | (i - j < window))
    weights = scores.masked_fill(j > i, float("-inf")).softmax(-1)
    evicted = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value
    return evicted[:, POSITIONS], weights.masked_fill(seen, 0.0).sum(-1)[:, POSITIONS]


@pytest.mark.parametrize(("sinks", "window"), [(0, 1), (2, 5), (4, 40), (40, 1)])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize(("max_scores", "together"), [(1, 1), (300, 2), (2**25, 1), (2**25, 2)])
def test_equals_the_naive_computation_in_blocks_of_any_size(
    sinks: int, window: int, softcap: float | None, max_scores: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated_eviction, "MAX_SCORES", max_scores)
    monkeypatch.setattr(simulated_eviction, "_n_together", lambda *_: together)
    for measured, expected in zip(simulated(sinks, window, softcap), naive(sinks, window, softcap), strict=True):
        torch.testing.assert_close(measured, expected, atol=1e-5, rtol=1e-5)


def test_a_window_over_everything_evicts_nothing() -> None:
    query, key, value = tensors()
    evicted, far_mass = simulated(0, LENGTH)
    full = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(evicted, full[:, POSITIONS], atol=1e-5, rtol=1e-5)
    assert far_mass.max() < 1e-6
