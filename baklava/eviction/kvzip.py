"""KVzip: entries that the model needs to repeat the context (arXiv 2505.23416)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from baklava.errors import UserError
from baklava.eviction.base import EvictionPolicy, LayerContext

if TYPE_CHECKING:
    from torch import Tensor


NEEDS_REPETITION = (
    "eviction policy 'kvzip' has the context repeated, which needs tokenizer and tokens: evaluations and searches "
    "do it (baklava.inference.batch.prefill), a BudgetedCache by itself cannot"
)
MAX_LOSS = 1.0  # nats per token of a repetition; one that goes well costs next to none, one above has failed


@dataclass(frozen=True, kw_only=True)
class KVzip(EvictionPolicy):
    """Scores an entry by the largest attention that it gets while the model repeats the context; all KV caches compete.

    After the context the model reads `instruction` and the context once more, in parts of `chunk` tokens, each after
    the full cache alone. Later parts follow `go_on` and the last `overlap` tokens of the part before. A token of the
    repetition divides its attention among the first `n_sink` entries, the entries of the part that it repeats, and the
    repetition so far; the score of an entry is the maximum over those tokens and the GQA group. Sinks are protected.
    With `weighed` (KVzip+, named `kvzip_plus`) the attention is first multiplied by `||W_o v_j||_2 / ||h_i||_2`, with
    `h_i` as it enters the attention.

    The budget of the model goes to its best entries in whichever KV cache, above the fraction `floor` of each one's own
    (see `LayerAda`), so all layers are needed in full until the second reading ends: there is no gain in the prefill's
    peak, and the prefill takes about four times as long. A `BudgetedCache` by itself never reads twice and refuses
    this policy; `baklava.inference.batch.prefill` does it.

    Definition, chunks and sinks are those of kvpress 0.5.5, with other words for the instructions and no chat template
    between them and the repetition. What stands before the context in a chat template is scored here, too. There the
    competition has no floor, as here by default, but sinks compete with the highest score instead of being protected.
    """

    family: ClassVar[str] = "kvzip"
    level: ClassVar[int] = 2

    weighed: bool = False
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    n_sink: Annotated[int, Field(ge=0)] = 4
    chunk: Annotated[int, Field(ge=1)] = 2048
    overlap: Annotated[int, Field(ge=0)] = 8
    instruction: Annotated[str, Field(min_length=1)] = "\n\nWrite the whole text above once more, word for word:\n"
    go_on: Annotated[str, Field(min_length=1)] = "\n\nWrite the text above once more, word for word, from here on: "

    @property
    def needs_projection(self) -> bool:
        return self.weighed

    @property
    def needs_all_layers(self) -> bool:
        return True

    @property
    def ignores_budgets(self) -> bool:
        return self.floor == 0

    @property
    def repeats(self) -> bool:
        return True

    def protected_first(self, budget: int) -> int:
        return self.n_sink

    def observe_repetition(
        self, queries: Tensor, repetition: tuple[Tensor, Tensor], context: LayerContext, part: slice, hidden: Tensor
    ) -> Tensor:
        """Score the entries in `part`, `[B, Hkv, n]`, by the queries `[B, Hq, Q, D]` of the tokens that repeat them.

        `repetition` holds keys and values of those `Q` tokens, `hidden` `[B, Q, hidden]` what enters their attention.
        """
        import torch

        from baklava.eviction.observed import weights_of_head

        n_sinks = min(self.n_sink, part.start)
        keys, values = (
            torch.cat([old[:, :, :n_sinks], old[:, :, part], new], 2)
            for old, new in zip((context.keys, context.values), repetition, strict=True)
        )
        seen = replace(context, keys=keys, values=values)
        own = slice(n_sinks, n_sinks + part.stop - part.start)
        n_kv_heads = keys.shape[1]
        by_head = []
        for head in range(n_kv_heads):
            weights = weights_of_head(queries, seen, head)[..., own]  # [B, group, Q, n]
            if self.weighed:
                weight = context.output_weight().to(weights.dtype).unflatten(0, (n_kv_heads, -1))[head]
                written = values[:, head, own].to(weights.dtype)[:, None] @ weight.transpose(-1, -2)
                lengths = torch.linalg.vector_norm(written, dim=-1)[:, :, None]  # [B, group, 1, n]
                stream = torch.linalg.vector_norm(hidden, dim=-1, dtype=weights.dtype)[:, None, :, None]
                weights = weights * lengths / stream
            by_head.append(weights.amax((1, 2)))
        return torch.stack(by_head, 1)

    def score(self, context: LayerContext, state: Tensor | None) -> Tensor:
        if state is None:
            raise UserError(NEEDS_REPETITION)
        return state

    def distribute_over_layers(self, scores: Sequence[Tensor], orders: Sequence[Tensor], budgets: Tensor) -> Tensor:
        from baklava.eviction.compete import compete_across_layers

        return compete_across_layers(scores, orders, budgets, self, floor=self.floor)
