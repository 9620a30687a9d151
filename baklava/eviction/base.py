"""The interface of an eviction policy: it scores entries, and never touches storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from baklava.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from baklava.decoder.attention_path import AttentionPath
    from baklava.eviction.held import HeldEntries


@dataclass(frozen=True)
class LayerContext:
    """The context of one layer, as far as it has been read: `S` entries at positions 0 to `S - 1`.

    `keys` and `values` `[B, Hkv, S, D]` are as the cache stores them, keys with their positions. `scaling` multiplies
    query-key products; `softcap` bounds them (Gemma 2) if the model does so. No entry is padding. Where the rotation
    depends on the length of a text, it is that of texts of `rotated_for` tokens
    (see `baklava.decoder.length_dependent_rope`). `path` leads from the heads to the residual stream; it is there for
    policies that need the output projection.
    """

    keys: Tensor
    values: Tensor
    scaling: float
    softcap: float | None
    layer_index: int
    config: PreTrainedConfig
    rotated_for: int | None = None
    path: AttentionPath | None = None

    def output_weight(self) -> Tensor:
        """The output projection of each query head `[Hq, hidden, D]`, in float32 whatever the model stores."""
        if self.path is None:
            raise UserError("an eviction policy weighs values by the output projection, which it was not given")
        return self.path.output_weight(self.path.example.shape[-1] // self.values.shape[-1]).detach()


@dataclass(frozen=True, kw_only=True)
class EvictionPolicy:
    """Decides which entries a KV cache keeps within its budget: those of highest score.

    A subclass lives in a file of its own; its fields are its hyper-parameters. Unknown parameters are refused.
    A context is read in one pass or in chunks: `observe` sees the queries of each, `score` comes at the end.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    family: ClassVar[str]

    # A policy may go over one of a lower level: 0 scores, 1 scores anew, 2 lets KV caches compete.
    level: ClassVar[int] = 0

    @property
    def needs_projection(self) -> bool:
        """Whether scores or their order ask the context for the output projection."""
        return False

    @property
    def needs_all_layers(self) -> bool:
        """Whether KV caches of all layers compete, so that none can be cut before the last layer has been read."""
        return False

    @property
    def ignores_budgets(self) -> bool:
        """Whether nothing is left of an allocator's budgets but their sum, so that all allocators give the same."""
        return False

    @property
    def repeats(self) -> bool:
        """Whether the context is read a second time before `score` (`kvzip.py`, `baklava.inference.repetition`)."""
        return False

    def protected_first(self, budget: int) -> int:
        """Return how many entries at the start (attention sinks) outrank all others; the earliest ranks first."""
        return 0

    def protected_last(self, budget: int) -> int:
        """Return how many entries at the end outrank all but the sinks; the latest ranks first."""
        return 0

    def observe(self, state: Any, queries: Tensor, context: LayerContext) -> Any:
        """Add to `state` what `score` needs of the queries `[B, Hq, Q, D]` of the last `Q` entries read.

        `state` is what the previous chunk returned, `None` at first. Many policies need nothing of the queries.
        """
        return state

    def score(self, context: LayerContext, state: Any) -> Tensor:
        """Score all entries of the context, `[B, Hkv, S]`, pooled over each GQA group; the highest are kept."""
        raise NotImplementedError

    def score_and_order(self, context: LayerContext, state: Any) -> tuple[Tensor, Tensor]:
        """The scores, and those by which each KV cache ranks its own entries, both `[B, Hkv, S]`; mostly the same.

        This is the place for rules such as "half of the budget by another score", written as one order
        (`merge_orders`): what a budget keeps, a larger one keeps as well. KV caches compete by the first.
        """
        scores = self.score(context, state)
        return scores, scores

    def bids(self, scores: Tensor, order: Tensor, budget: int) -> Tensor:
        """Scores `[N, S]` by which KV caches compete that have this budget of their own, from `score_and_order`."""
        return scores

    @property
    def ranks_by_bids(self) -> bool:
        """Whether a KV cache also ranks its own entries by its bids, in place of the order."""
        return False

    def distribute(self, scores: Tensor, order: Tensor, budgets: Tensor) -> Tensor:
        """Decide how many entries each KV cache keeps, `[B, Hkv]`, from its budget and `score_and_order` `[B, Hkv, S]`.

        The sum over a layer's KV heads must not change. Most policies keep the budgets as they are.
        """
        return budgets

    def distribute_over_layers(self, scores: Sequence[Tensor], orders: Sequence[Tensor], budgets: Tensor) -> Tensor:
        """Decide how many entries each KV cache of one row keeps, `[L, Hkv]`, from all layers' scores, each `[Hkv, S]`.

        For policies that need all layers; the sum of the budgets `[L, Hkv]` must not change.
        """
        return budgets

    @property
    def rescores_every(self) -> int | None:
        """After how many tokens entries are scored anew where later tokens overwrite others; None: never."""
        return None

    @property
    def adds_scores(self) -> bool:
        """Whether `rescore` adds to the scores of the context (`HeldEntries.scores`)."""
        return False

    def n_queries(self, n_new: int) -> int:
        """How many of the last queries `rescore` needs, `n_new` tokens after the last time."""
        return 0

    def rescore(self, held: HeldEntries, queries: Tensor, query_positions: Tensor) -> Tensor:
        """Score what KV caches hold, `[C, N]`; what has the lowest score is overwritten next.

        `queries` `[C, group, Q, D]` are those of the last tokens after the context, at `query_positions` `[C, Q]`.
        `protected_first` and `protected_last` apply to what is held. For policies with `rescores_every`.
        """
        raise NotImplementedError


def raise_protected(scores: Tensor, policy: EvictionPolicy, budget: int) -> Tensor:
    """Raise the scores `[..., S]` of entries that the policy protects above all others; in float32 at least."""
    import torch

    n = scores.shape[-1]
    raised = scores.to(torch.promote_types(scores.dtype, torch.float32), copy=True)
    highest = raised.amax(-1, keepdim=True) + 1.0
    position = torch.arange(n, device=scores.device, dtype=raised.dtype)
    if last := min(policy.protected_last(budget), n):
        raised[..., n - last :] = highest + position[n - last :]
    if first := min(policy.protected_first(budget), n):
        raised[..., :first] = highest + (2 * n - position[:first])
    return raised
