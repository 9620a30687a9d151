"""R-KV: important entries that are not redundant, chosen anew while a reasoning model writes (arXiv 2505.24133)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from baklava.eviction.base import LayerContext
from baklava.eviction.window import KernelSize, WindowedDecoding, WindowSize

if TYPE_CHECKING:
    from torch import Tensor

    from baklava.eviction.held import HeldEntries

MAX_SIMILARITIES = 2**24  # held at a time


@dataclass(frozen=True, kw_only=True)
class RKV(WindowedDecoding):
    """Scores an entry by `weight * importance - (1 - weight) * redundancy`, at the end of the context and every `every`
    tokens after it.

    Importance is the attention from the last `window_size` queries to what came before them: the highest logit of the
    GQA group, its softmax, the mean over the queries, and the highest of `kernel_size` neighbours. Redundancy is the
    mean cosine similarity of an entry's key with all others, after a softmax over the entries; of the keys that are
    similar to one (above `threshold`), its latest does not count as redundant. The window is protected.

    Defaults are those of the authors' code (README: a weight of 0.1); it keeps new tokens in a buffer of 128 beside the
    budget, where here they are part of it, so `every` is less. There a key without a similar one counts as if its
    similarity to the first entry were 0; here nothing is left out. It needs `decoding` "fixed"; with "grow" only the
    context is compressed so. Similarities are computed in blocks. kvpress 0.5.5 has no R-KV.
    """

    family: ClassVar[str] = "r_kv"

    window_size: WindowSize = 8
    kernel_size: KernelSize = 7
    weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.07
    threshold: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.5

    def score(self, context: LayerContext, state: Tensor) -> Tensor:
        import torch

        from baklava.eviction.held import HeldEntries

        batch, n_kv_heads, n_entries, _ = context.keys.shape
        position = torch.arange(n_entries, device=context.keys.device).expand(batch * n_kv_heads, -1)
        scores = torch.zeros_like(position, dtype=torch.float32)
        keys, values = context.keys.flatten(0, 1), context.values.flatten(0, 1)
        held = HeldEntries(keys, values, position, scores, context.scaling, context.softcap)
        queries = state.unflatten(1, (n_kv_heads, -1)).flatten(0, 1)  # [C, group, Q, D]
        return self.rescore(held, queries, position[:, n_entries - state.shape[2] :]).unflatten(0, (batch, n_kv_heads))

    def rescore(self, held: HeldEntries, queries: Tensor, query_positions: Tensor) -> Tensor:
        importance = self._importance(held, queries, query_positions)
        return self.weight * importance - (1.0 - self.weight) * self._redundancy(held)

    def _importance(self, held: HeldEntries, queries: Tensor, query_positions: Tensor) -> Tensor:
        from torch.nn import functional

        from baklava.eviction.held import softmax

        before = held.before(query_positions)[:, None]  # [C, 1, N]
        logits = held.logits(queries, query_positions).amax(1).masked_fill_(~before, float("-inf"))  # [C, Q, N]
        received = softmax(logits).mean(1, keepdim=True)
        pooled = functional.max_pool1d(received, self.kernel_size, stride=1, padding=self.kernel_size // 2)
        return (pooled * before)[:, 0]

    def _redundancy(self, held: HeldEntries) -> Tensor:
        import torch
        from torch.nn import functional

        exact = torch.promote_types(held.keys.dtype, torch.float32)
        keys = functional.normalize(held.keys.to(exact), dim=-1) * ~held.missing[..., None]
        n_caches, n_entries, _ = keys.shape
        index = torch.arange(n_entries, device=keys.device)
        total = torch.zeros(n_caches, n_entries, dtype=exact, device=keys.device)
        step = max(1, MAX_SIMILARITIES // (n_caches * n_entries))
        for start in range(0, n_entries, step):
            own = index[start : start + step]
            similar = torch.bmm(keys[:, own], keys.transpose(-1, -2))  # [C, q, N]
            similar[:, own - start, own] = 0.0
            above = (similar > self.threshold) & ~held.missing[:, None] & (index != own[:, None])
            latest = torch.where(above, index, -1).amax(-1, keepdim=True)  # entries are in the order of the text
            total += torch.where(index == latest, 0.0, similar).sum(1)
        n_held = (~held.missing).sum(-1, keepdim=True).clamp(min=1)
        return (total / n_held).masked_fill_(held.missing, float("-inf")).softmax(-1).nan_to_num(0.0)
