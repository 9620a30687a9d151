"""What goes to PyTorch's FlashAttention and what is made of its answer; FlashAttention itself needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from large_scores import LargeStep, every_half
from ragged_steps import Case, Step
from torch import Tensor

from baklava.cache.attention import ragged_attention

varlen = pytest.importorskip("torch.nn.attention.varlen")


def sequence_by_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`varlen_attn` for one head: outputs `[T_q, 1, D]` and log-sum-exps. It rounds weights and outputs, no scores."""
    assert return_aux.lse and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert len(cu_seq_q) == len(cu_seq_k)
    assert (cu_seq_q.diff() == max_q).all() and int(cu_seq_k.diff().max()) <= max_k
    assert int(cu_seq_q[-1]) == len(query) and int(cu_seq_k[-1]) == len(key) == len(value)
    parts = []
    for i in range(len(cu_seq_q) - 1):
        one = slice(int(cu_seq_k[i]), int(cu_seq_k[i + 1]))
        scores = query[cu_seq_q[i] : cu_seq_q[i + 1], 0].float() @ key[one, 0].float().T * scale
        highest = scores.amax(-1, keepdim=True)
        weights = (scores - highest).exp()
        weighted = weights.to(value.dtype).float() @ value[one, 0].float() / weights.sum(-1, keepdim=True)
        parts.append((weighted.to(value.dtype), scores.logsumexp(-1)))
    return torch.cat([part[0] for part in parts])[:, None], torch.cat([part[1] for part in parts])[None]


@pytest.mark.parametrize("lengths", [(0, 0, 0, 0), (3000, 0, 70, 5), (0, 512, 64, 1100)])
@pytest.mark.parametrize("n_queries", [1, 4])
def test_equals_full_attention(lengths: tuple[int, ...], n_queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", sequence_by_sequence)
    monkeypatch.setattr(ragged_attention, "choose_backend", lambda *_: "varlen")
    step = Step.of(Case(2, lengths, n_queries=n_queries), "cpu")
    output = ragged_attention.ragged_attention(step.query, step.entries, *step.suffix, scaling=step.case.scaling)
    torch.testing.assert_close(output.double(), step.expected(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", every_half, ids=str)
@pytest.mark.parametrize(("dim", "group"), [(32, 1), (64, 8), (128, 4), (256, 7)])
def test_half_precision_is_as_exact_as_fused_attention(
    dim: int, group: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", sequence_by_sequence)
    monkeypatch.setattr(ragged_attention, "choose_backend", lambda *_: "varlen")
    step = LargeStep.of(dim, group, dtype, "cpu")
    output = ragged_attention.ragged_attention(step.query, step.entries, *step.suffix, scaling=dim**-0.5)
    assert output.dtype == dtype
    assert step.error(output) <= 1.5 * step.error(step.fused())
