"""TOVA scores by what the last query sees, the same for all heads of a layer."""

from __future__ import annotations

import pytest
import torch
from layer_contexts import kept, naive_attention, random_layer, scores_of

from baklava.eviction import TOVA


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_scores_are_the_last_querys_attention_averaged_over_all_heads(softcap: float | None) -> None:
    queries, context = random_layer(20, rows=2, softcap=softcap)
    expected = naive_attention(queries, context)[:, :, -1].mean(1)
    for chunks in ([20], [19, 1], [4, 16]):
        scores = scores_of(TOVA(), queries, context, chunks=chunks)
        for head in range(3):
            torch.testing.assert_close(scores[:, head], expected)


def test_last_entry_is_kept_even_if_nobody_looks_at_it() -> None:
    queries, context = random_layer(20)
    context.keys[:, :, -1] = -100.0 * queries[:, ::2, -1]
    assert bool((kept(TOVA(), scores_of(TOVA(), queries, context), 1) == 19).all())
