"""Expected attention: what future queries would attend to if they are like those so far (arXiv 2510.00636)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from baklava.eviction.base import EvictionPolicy, LayerContext

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1024  # queries or entries that are in float32 at a time


@dataclass(frozen=True)
class QueryMoments:
    """Moments of `count` queries per head before their rotation: mean `[B, Hq, D]`, scatter matrix `[B, Hq, D, D]`.

    The scatter is centred, since the mean of queries with a bias dwarfs their spread.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, queries: Tensor) -> QueryMoments:
        mean = queries.mean(2)
        centred = queries - mean[:, :, None]
        return cls(queries.shape[2], mean, centred.transpose(-1, -2) @ centred)

    def merge(self, other: QueryMoments) -> QueryMoments:
        count = self.count + other.count
        shift = other.mean - self.mean
        between = shift[..., :, None] * shift[..., None, :] * (self.count * other.count / count)
        return QueryMoments(count, self.mean + shift * (other.count / count), self.scatter + other.scatter + between)


@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(EvictionPolicy):
    """Scores an entry by the attention that it can expect of the next `n_future_positions` queries.

    Queries are taken as normally distributed, with the mean `m` and covariance `C` that the context's own had before
    their rotation, and rotated by the average over the future positions. With the scaling `s`, an entry then expects
    `exp(s k.m + s^2 k'Ck / 2)`, which a softmax over the entries turns into weights; their mean over the GQA group,
    plus `epsilon`, is multiplied by the norm of the value vector. The first `n_sink` entries are protected and left out
    of all this.

    Defaults are those of kvpress 0.5.5, written by the paper's authors, but for `epsilon`: 1e-2, as in the entry
    "expected_attention" of their leaderboard (which is `ada_expected_attention` here); their class has 0. With 0, an
    entry that expects no attention scores 0 whatever its value vector, and SmolLM2-135M at r = 0.5 answers
    none of ten needle prompts, in kvpress too; with 1e-2 it answers eight.

    In kvpress 0.5.5 the queries come from the hidden states; here the rotation of the queries is undone, for the
    model types in `baklava.decoder.rotary`. kvpress ignores soft-capped logits; here the cap bounds the expected
    exponent.
    """

    family: ClassVar[str] = "expected_attention"

    n_future_positions: Annotated[int, Field(ge=1)] = 512
    n_sink: Annotated[int, Field(ge=0)] = 4
    use_covariance: bool = True
    use_vnorm: bool = True
    epsilon: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1e-2

    def protected_first(self, budget: int) -> int:
        return self.n_sink

    def observe(self, state: QueryMoments | None, queries: Tensor, context: LayerContext) -> QueryMoments | None:
        import torch

        from baklava.decoder.rotary import rotary_of

        rotary = rotary_of(context.config, context.layer_index, context.rotated_for)
        n_entries, n_queries = context.keys.shape[2], queries.shape[2]
        exact = torch.promote_types(queries.dtype, torch.float32)
        positions = torch.arange(n_entries - n_queries, n_entries, device=queries.device)
        n_left_out = int((positions < self.n_sink).sum())
        for block, at in zip(
            queries[:, :, n_left_out:].split(BLOCK, dim=2), positions[n_left_out:].split(BLOCK), strict=True
        ):
            if at.numel():
                moments = QueryMoments.of(rotary.undo(block.to(exact), at))
                state = moments if state is None else state.merge(moments)
        return state

    def score(self, context: LayerContext, state: QueryMoments | None) -> Tensor:
        import torch
        from torch.nn import functional

        exact = torch.promote_types(context.keys.dtype, torch.float32)
        if state is None:  # the context has only sinks
            return context.keys.new_zeros(context.keys.shape[:3], dtype=exact)
        mean, covariance = self._future(context, state)
        keys = context.keys[:, :, self.n_sink :].split(BLOCK, dim=2)
        exponents = [_exponents(block.to(exact), mean, covariance, context.scaling) for block in keys]
        exponent = torch.cat(exponents, dim=-1)  # [B, Hkv, group, S - n_sink]
        # The exponent is quadratic in the scores: for the largest of bfloat16 it overflows float32.
        exponent = exponent.nan_to_num(nan=torch.finfo(exact).max)
        if context.softcap is not None:
            exponent = context.softcap * torch.tanh(exponent / context.softcap)
        scores = exponent.softmax(-1).mean(2)
        if self.use_vnorm:
            length = torch.linalg.vector_norm(context.values[:, :, self.n_sink :], dim=-1, dtype=exact)
            scores = (scores + self.epsilon) * length
        return functional.pad(scores, (self.n_sink, 0))

    def _future(self, context: LayerContext, state: QueryMoments) -> tuple[Tensor, Tensor | None]:
        """Compute the mean `[B, Hkv, group, D]` and covariance `[B, Hkv, group, D, D]` of future queries."""
        import torch

        from baklava.decoder.rotary import rotary_of

        rotary = rotary_of(context.config, context.layer_index, context.rotated_for)
        n_kv_heads, n_entries = context.keys.shape[1:3]
        positions = torch.arange(n_entries, n_entries + self.n_future_positions, device=context.keys.device)
        mean = rotary.average(state.mean[:, :, None], positions)[:, :, 0].unflatten(1, (n_kv_heads, -1))
        if not self.use_covariance:
            return mean, None
        half = rotary.average(state.scatter / state.count, positions).transpose(-1, -2)  # R C = (C R')'
        return mean, rotary.average(half, positions).unflatten(1, (n_kv_heads, -1))


def _exponents(keys: Tensor, mean: Tensor, covariance: Tensor | None, scaling: float) -> Tensor:
    """Compute `s k.m + s^2 k'Ck / 2` of entries `[B, Hkv, S, D]` per query head, `[B, Hkv, group, S]`."""
    linear = scaling * (mean @ keys.transpose(-1, -2))
    if covariance is None:
        return linear
    shared = keys[:, :, None]  # [B, Hkv, 1, S, D]
    return linear + 0.5 * scaling**2 * ((shared @ covariance) * shared).sum(-1)
