"""Expected attention: Gaussian queries from before the rotation, rotated to positions to come."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from layer_contexts import CONFIG, HEAD_DIM, kept, random_layer, scores_of
from torch import Tensor

from baklava.errors import UserError
from baklava.eviction import ExpectedAttention
from baklava.eviction.base import LayerContext


def rotation(position: int) -> Tensor:
    """The matrix `[D, D]` that turns dimensions `i` and `i + D / 2` by `position * theta^(-2i / D)`."""
    half = HEAD_DIM // 2
    matrix = torch.zeros(HEAD_DIM, HEAD_DIM, dtype=torch.float64)
    for i in range(half):
        angle = torch.tensor(position * 10000.0 ** (-2 * i / HEAD_DIM), dtype=torch.float64)
        matrix[i, i] = matrix[i + half, i + half] = angle.cos()
        matrix[i, i + half], matrix[i + half, i] = -angle.sin(), angle.sin()
    return matrix


def rotated(queries: Tensor) -> Tensor:
    return torch.stack([queries[:, :, t] @ rotation(t).T for t in range(queries.shape[2])], dim=2)


def naive(queries: Tensor, context: LayerContext, policy: ExpectedAttention) -> Tensor:
    """Scores `[B, Hkv, S - n_sink]` from the queries before their rotation, one query head at a time."""
    n_entries, first = context.keys.shape[2], policy.n_sink
    average = sum(rotation(n_entries + t) for t in range(policy.n_future_positions)) / policy.n_future_positions
    scores = torch.zeros_like(context.keys[:, :, first:, 0])
    for row in range(queries.shape[0]):
        for head in range(queries.shape[1]):
            own = queries[row, head, first:]
            keys = context.keys[row, head // 2, first:]
            exponent = keys @ (average @ own.mean(0)) * context.scaling
            if policy.use_covariance:
                covariance = average @ torch.cov(own.T, correction=0) @ average.T
                exponent += context.scaling**2 / 2 * torch.stack([key @ covariance @ key for key in keys])
            if context.softcap is not None:
                exponent = context.softcap * torch.tanh(exponent / context.softcap)
            scores[row, head // 2] += exponent.softmax(-1) / 2
    if policy.use_vnorm:
        scores = (scores + policy.epsilon) * context.values[:, :, first:].norm(dim=-1)
    return scores


@pytest.mark.parametrize(
    "policy",
    [
        ExpectedAttention(),
        ExpectedAttention(n_future_positions=1, n_sink=0),
        ExpectedAttention(use_covariance=False),
        ExpectedAttention(use_vnorm=False),
        ExpectedAttention(epsilon=0.3),
    ],
    ids=str,
)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_scores_are_the_naive_ones(policy: ExpectedAttention, softcap: float | None) -> None:
    queries, context = random_layer(20, rows=2, softcap=softcap)
    scores = scores_of(policy, rotated(queries), context, chunks=[3, 2, 15])
    expected = naive(queries, context, policy)
    torch.testing.assert_close(scores[..., policy.n_sink :], expected, rtol=1e-3, atol=1e-6)  # angles in float32


def test_covariance_survives_a_mean_that_dwarfs_it() -> None:
    policy = ExpectedAttention(n_sink=0)
    queries, context = random_layer(200, dtype=torch.float32)
    queries += 1000.0
    state = None
    for chunk in range(4):
        end = 50 * (chunk + 1)
        part = replace(context, keys=context.keys[:, :, :end])
        state = policy.observe(state, rotated(queries.double())[:, :, end - 50 : end], part)
    assert state is not None
    exact = torch.stack([torch.cov(one.T.double(), correction=0) for one in queries[0]])
    torch.testing.assert_close(state.scatter[0] / state.count, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("n_entries", [1, 3, 4])
def test_context_of_sinks_alone_is_kept_from_its_start(n_entries: int) -> None:
    policy = ExpectedAttention(n_sink=4)
    scores = scores_of(policy, *random_layer(n_entries))
    for budget in range(n_entries + 1):
        assert kept(policy, scores, budget)[0].tolist() == [list(range(budget))] * 3


def test_model_of_unknown_rotation_is_refused() -> None:
    queries, context = random_layer(10)
    config = type(CONFIG)()
    config.model_type = "mystery"
    with pytest.raises(UserError, match=r"'mystery'.*supported: .*llama"):
        ExpectedAttention().observe(None, queries, replace(context, config=config))
