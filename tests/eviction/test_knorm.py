"""Knorm keeps the shortest keys."""

from __future__ import annotations

import torch
from layer_contexts import kept, random_layer, scores_of

from baklava.eviction import Knorm


def test_scores_are_the_lengths_of_the_keys_negated() -> None:
    queries, context = random_layer(15, rows=2)
    torch.testing.assert_close(scores_of(Knorm(), queries, context), -(context.keys**2).sum(-1).sqrt())


def test_shortest_keys_are_kept() -> None:
    queries, context = random_layer(15)
    context.keys[:, :, [2, 7]] *= 0.01
    assert kept(Knorm(), scores_of(Knorm(), queries, context), 2)[0].tolist() == [[2, 7]] * 3


def test_lengths_that_bfloat16_cannot_tell_apart_are_told_apart() -> None:
    queries, context = random_layer(2, dtype=torch.bfloat16)
    context.keys[...] = 1.0
    context.keys[:, :, 1, 0] = 1.0078125  # the next number after 1; the lengths round to the same bfloat16
    assert kept(Knorm(), scores_of(Knorm(), queries, context), 1).flatten().tolist() == [0] * 3
