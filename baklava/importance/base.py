"""What an estimator sees of one attention layer during the profiling pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baklava.decoder.attention_path import AttentionPath

# Positions compared at a time: float32 copies of a whole prompt would take more memory than its prefill.
BLOCK = 4096
EPSILON = 1e-8  # least norm that is divided by


@dataclass(frozen=True)
class HeadView:
    """One layer, one prompt of `T` tokens, `Hq` query heads of dimension `D` that share `Hkv` KV heads.

    `values` `[Hkv, T, D]` and `outputs` `[Hq, T, D]`, in the model's arithmetic: the value vector that a KV cache
    stores for each token and a query head's attention output there, before the output projection; positions at the
    very start left out. The rest is float32, `N` being the number of positions that must look back: `look_back` and
    `evicted` `[Hq, N, D]`, the outputs there with all entries and with only the sinks and a recent window; `far_mass`
    `[Hq, N]`, the attention that falls on the other entries; `scales` `[N, Hq, D]`, what the model multiplies the
    outputs with before it projects them (gates; mostly nothing, `None`); `projected` `[N, hidden]`, what the output
    projection gives there; `layer_importance`, one number: how much the attention block turns the residual stream.

    `layer` is the layer's index in the model, `seed` that of the settings, `path` the way to the residual stream.
    """

    layer: int
    seed: int
    values: Tensor
    outputs: Tensor
    look_back: Tensor
    evicted: Tensor
    far_mass: Tensor
    scales: Tensor | None
    projected: Tensor
    path: AttentionPath
    layer_importance: Tensor

    def residual_shift(self, changes: Tensor) -> Tensor:
        """How the residual stream moves `[Hq, N, hidden]` when one head's output is less by `changes` `[Hq, N, D]`.

        A norm between the attention and the stream sees the change of one head beside the outputs of all others.
        """
        if self.scales is not None:
            changes = changes * self.scales.transpose(0, 1)
        less = changes @ self.path.output_weight(changes.shape[0]).transpose(-1, -2)  # [Hq, N, hidden]
        if self.path.is_linear:
            return self.path.added(less)
        whole = self.path.added(self.projected)
        for head, own in enumerate(less):  # one at a time: a norm makes copies
            less[head] = whole - self.path.added(self.projected - own)
        return less


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """`1 - cos(a, b)` over the last dimension, averaged over the one before: `[..., N, D]` to `[...]`, in float32."""
    n = a.shape[-2]
    total = torch.zeros((), device=a.device)
    for start in range(0, n, BLOCK):
        total = total + _cosines(*(some[..., start : start + BLOCK, :].float() for some in (a, b)))
    return 1.0 - total / n


def turn(before: Tensor, added: Tensor) -> Tensor:
    """`cosine_distance` of vectors `[N, D]` to their sums with what is `added` to them.

    Summed in float32: half precision rounds away most of what an attention block adds to a long residual stream.
    """
    n = before.shape[-2]
    total = torch.zeros((), device=before.device)
    for start in range(0, n, BLOCK):
        one, more = (some[start : start + BLOCK].float() for some in (before, added))
        total = total + _cosines(one, one + more)
    return 1.0 - total / n


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """Summed over the dimension before the last."""
    # Norms before broadcasting: a KV head's values are compared with the outputs of its whole group.
    norms = one.norm(dim=-1).clamp(min=EPSILON) * other.norm(dim=-1).clamp(min=EPSILON)
    return ((one * other).sum(-1) / norms).sum(-1)
