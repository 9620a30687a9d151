"""What KV caches hold while the model writes, for policies that score entries anew every few tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeldEntries:
    """The entries of `C` KV caches of one layer, at most `N` each, in the order of the text.

    `keys` and `values` `[C, N, D]` are as the cache stores them. `positions` `[C, N]` count tokens of the row; where a
    cache has fewer than `N` entries, they are -1 at its end. `scores` `[C, N]` are those of the last time, 0 for
    entries that came since. `scaling` multiplies query-key products, `softcap` bounds them.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    scores: Tensor
    scaling: float
    softcap: float | None

    @property
    def missing(self) -> Tensor:
        """`[C, N]`, true where a cache has no entry."""
        return self.positions < 0

    def logits(self, queries: Tensor, query_positions: Tensor) -> Tensor:
        """Logits `[C, group, Q, N]` of queries `[C, group, Q, D]` at positions `[C, Q]`, -inf for what they don't see.

        In float32 at least.
        """
        exact = torch.promote_types(queries.dtype, torch.float32)
        packed = queries.to(exact).flatten(1, 2) * self.scaling  # a group is one product
        logits = torch.bmm(packed, self.keys.to(exact).transpose(-1, -2)).unflatten(1, queries.shape[1:3])
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        hidden = self.missing[:, None] | (self.positions[:, None] > query_positions[:, :, None])  # [C, Q, N]
        return logits.masked_fill_(hidden[:, None], float("-inf"))

    def weights(self, queries: Tensor, query_positions: Tensor) -> Tensor:
        """Attention weights, shaped as the logits; a query of which nothing is left to see gives none."""
        return softmax(self.logits(queries, query_positions))

    def before(self, query_positions: Tensor) -> Tensor:
        """`[C, N]`, true for entries from before all queries at positions `[C, Q]`."""
        return ~self.missing & (self.positions < query_positions.amin(-1, keepdim=True))


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension; where all logits are -inf, zeros."""
    return logits.softmax(-1).nan_to_num_(0.0)
