"""KeyDiff keeps the keys that point away from the others."""

from __future__ import annotations

import torch
from layer_contexts import kept, random_layer, scores_of

from baklava.eviction import KeyDiff


def test_scores_are_the_naive_ones() -> None:
    queries, context = random_layer(15, rows=2)
    scores = scores_of(KeyDiff(), queries, context)
    for row in range(2):
        for head in range(3):
            keys = context.keys[row, head]
            anchor = sum(key / key.norm() for key in keys) / 15
            expected = torch.stack([-(key @ anchor) / (key.norm() * anchor.norm()) for key in keys])
            torch.testing.assert_close(scores[row, head], expected)


def test_the_odd_key_out_is_kept() -> None:
    queries, context = random_layer(15)
    context.keys[...] = context.keys[:, :, :1] + 0.1 * context.keys
    context.keys[:, :, 6] *= -1.0
    assert kept(KeyDiff(), scores_of(KeyDiff(), queries, context), 1).flatten().tolist() == [6] * 3


def test_lengths_of_keys_do_not_matter() -> None:
    queries, context = random_layer(15)
    before = scores_of(KeyDiff(), queries, context)
    context.keys.mul_(torch.arange(1, 16)[:, None])
    torch.testing.assert_close(scores_of(KeyDiff(), queries, context), before)
