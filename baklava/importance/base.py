"""What an estimator sees of one attention layer during the profiling pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baklava.decoder.attention_path import AttentionPath

# Positions compared at a time: float32 copies of a long prompt would take more memory than its prefill.
BLOCK = 4096
MIN_NORM = 1e-8  # shorter vectors count as this long, so that no norm of 0 is divided by


@dataclass(frozen=True)
class HeadView:
    """One layer during one prompt of `T` tokens: `Hq` query heads of dimension `D` share `Hkv` KV heads.

    In the model's dtype, without the positions at the very start of the prompt:

    - `values` `[Hkv, T, D]`: the value vector that a KV cache stores for each token.
    - `outputs` `[Hq, T, D]`: the attention output of each query head, before the output projection.

    In float32, at the `N` context-dependent positions only (those that predict tokens which need the context):

    - `full` `[Hq, N, D]`: the outputs with all entries.
    - `evicted` `[Hq, N, D]`: the outputs with only the sinks and a recent window.
    - `far_mass` `[Hq, N]`: the attention that falls on all other entries.
    - `scales` `[N, Hq, D]`: what the model multiplies the outputs with before it projects them, for example gates;
      None where it multiplies them with nothing.
    - `projected` `[N, hidden]`: what the output projection returns.

    `layer_importance` is a scalar: the cosine distance between the residual stream before and after the attention.
    `scores` `[Hq]` are those of `profile.scores` for this layer, None where there is no such file. `reconstruction`
    `[Hq]` is the largest attention to an entry while the context is repeated, None where it is not.
    `layer` is the layer's index in the model, `seed` that of the settings, `path` leads from the heads to the stream.
    """

    layer: int
    seed: int
    values: Tensor
    outputs: Tensor
    full: Tensor
    evicted: Tensor
    far_mass: Tensor
    scales: Tensor | None
    projected: Tensor
    path: AttentionPath
    layer_importance: Tensor
    scores: Tensor | None = None
    reconstruction: Tensor | None = None

    def residual_shift(self, changes: Tensor) -> Tensor:
        """How the residual stream moves `[Hq, N, hidden]` when `changes` `[Hq, N, D]` are taken from one head's output.

        Each head is changed alone. A norm between the attention and the stream sees it beside all unchanged heads.
        """
        if self.scales is not None:
            changes = changes * self.scales.transpose(0, 1)
        shift = changes @ self.path.output_weight(changes.shape[0]).transpose(-1, -2)  # [Hq, N, hidden]
        if self.path.is_linear:
            return self.path.added(shift)
        unchanged = self.path.added(self.projected)
        for head, removed in enumerate(shift):  # head by head: a norm makes copies
            shift[head] = unchanged - self.path.added(self.projected - removed)
        return shift


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """`1 - cos(a, b)` over the last dimension, averaged over the one before: `[..., N, D]` to `[...]`, in float32."""
    n = a.shape[-2]
    total = torch.zeros((), device=a.device)
    for start in range(0, n, BLOCK):
        block = slice(start, start + BLOCK)
        total = total + _sum_cosines(a[..., block, :].float(), b[..., block, :].float())
    return 1.0 - total / n


def cosine_distance_to_sum(before: Tensor, added: Tensor) -> Tensor:
    """`cosine_distance(before, before + added)` of vectors `[N, D]`, with the sum in float32.

    Half precision would round away most of what an attention block adds to a residual stream of large norm.
    """
    n = before.shape[-2]
    total = torch.zeros((), device=before.device)
    for start in range(0, n, BLOCK):
        block = slice(start, start + BLOCK)
        stream = before[block].float()
        total = total + _sum_cosines(stream, stream + added[block].float())
    return 1.0 - total / n


def _sum_cosines(a: Tensor, b: Tensor) -> Tensor:
    """`cos(a, b)` over the last dimension, summed over the one before."""
    # Norms before broadcasting: a KV head's values are compared with the outputs of its whole group.
    norms = a.norm(dim=-1).clamp(min=MIN_NORM) * b.norm(dim=-1).clamp(min=MIN_NORM)
    return ((a * b).sum(-1) / norms).sum(-1)
