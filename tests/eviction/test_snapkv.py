"""SnapKV scores by the pooled attention of the window, which it keeps."""

from __future__ import annotations

import pytest
import torch
from layer_contexts import kept, naive_attention, random_layer, scores_of
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from baklava.eviction import SnapKV
from baklava.eviction.base import LayerContext


def naive(queries: Tensor, context: LayerContext, *, window: int, kernel: int) -> Tensor:
    """Scores of the entries before the window `[B, Hkv, S - window]`, entry by entry."""
    seen = naive_attention(queries, context)[:, :, -window:, :-window].mean(2)  # [B, Hq, n]
    pooled = torch.zeros_like(seen)
    for t in range(seen.shape[-1]):
        start, end = max(0, t - kernel // 2), t + kernel // 2 + 1
        pooled[..., t] = seen[..., start:end].sum(-1) / kernel  # beyond the edges there is no attention
    return pooled.unflatten(1, (context.keys.shape[1], -1)).mean(2)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("kernel", [1, 5, 9])
@pytest.mark.parametrize("window", [1, 4, 19])
def test_scores_are_the_naive_ones(window: int, kernel: int, softcap: float | None) -> None:
    queries, context = random_layer(20, rows=2, softcap=softcap)
    scores = scores_of(SnapKV(window_size=window, kernel_size=kernel), queries, context, chunks=[11, 6, 3])
    expected = naive(queries, context, window=window, kernel=kernel)
    torch.testing.assert_close(scores[..., :-window], expected)


@pytest.mark.parametrize("n_entries", [1, 3, 8])
def test_context_no_longer_than_the_window_is_kept_from_its_end(n_entries: int) -> None:
    policy = SnapKV(window_size=8)
    scores = scores_of(policy, *random_layer(n_entries))
    for budget in range(n_entries + 1):
        assert kept(policy, scores, budget)[0].tolist() == [list(range(n_entries - budget, n_entries))] * 3


def test_state_holds_the_window_alone() -> None:
    queries, context = random_layer(50)
    state = SnapKV(window_size=4).observe(None, queries, context)
    assert state.untyped_storage().nbytes() == 4 * 6 * 8 * 8  # window * heads * dimension * bytes


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be odd, got 4"):
        TypeAdapter(SnapKV).validate_python({"kernel_size": 4})
