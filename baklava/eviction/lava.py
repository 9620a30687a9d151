"""LAVa: layers get budgets by the entropy of their scores, and heads compete within each (arXiv 2509.09754)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from baklava.eviction.base import LayerContext
from baklava.eviction.window import KernelSize, Windowed, WindowSize, score_before_window

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Lava(Windowed):
    """Scores an entry by the mean attention of the last `window_size` queries, times the longest value of its KV cache.

    Attention to the entries before the window is averaged over the window's queries; each entry then takes the maximum
    of `kernel_size` neighbours, and that of its GQA group. It is multiplied by `max over j of ||v_j||_1`, which
    puts the heads of a layer on one scale. The window is protected.

    Beyond the windows, the budget of the model is divided among layers in proportion to the entropy of each one's
    scores, over all its heads and entries: where attention is spread, more is kept. The heads of a layer then compete
    for its part (see `AdaKV`), each sure of the fraction `floor` of an even split. Nothing is left of an allocator's
    budgets but their sum. All layers must be scored before any is cut, as in `LayerAda`.

    Definition and defaults are those of the authors' code. There earlier layers are cut, and cut again as each further
    layer gets its part; here once, with the same parts at the end. There counts are rounded, and the floor is mixed
    with the outcome of the competition; here the total is exact, the floor bounds the outcome, and what a layer has no
    entries for goes to the others. kvpress 0.5.5 has no such method.
    """

    family: ClassVar[str] = "lava"
    level: ClassVar[int] = 2

    window_size: WindowSize = 32
    kernel_size: KernelSize = 7
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2

    @property
    def needs_all_layers(self) -> bool:
        return True

    @property
    def ignores_budgets(self) -> bool:
        return True

    def score(self, context: LayerContext, state: Tensor) -> Tensor:
        import torch

        n_kv_heads = context.keys.shape[1]

        def weighted(before: Tensor) -> Tensor:
            highest = torch.nn.functional.max_pool1d(before, self.kernel_size, stride=1, padding=self.kernel_size // 2)
            values = context.values[:, :, : before.shape[-1]]
            lengths = torch.linalg.vector_norm(values, ord=1, dim=-1, dtype=before.dtype)
            return highest.unflatten(1, (n_kv_heads, -1)).amax(2) * lengths.amax(-1, keepdim=True)

        return score_before_window(context, state, weighted)

    def distribute_over_layers(self, scores: Sequence[Tensor], orders: Sequence[Tensor], budgets: Tensor) -> Tensor:
        import torch

        from baklava.eviction.compete import compete

        n_heads, n_entries = scores[0].shape
        window = min(self.window_size, n_entries)
        total = int(budgets.sum())
        # Where the total is more than all windows hold, each layer gets one entry more with its windows.
        in_windows = _divide(total, [1.0] * len(scores), [n_heads * window] * len(scores))
        entropies = [_entropy(layer[:, : n_entries - window]) for layer in scores]
        before = _divide(total - sum(in_windows), entropies, [n_heads * n_entries - part for part in in_windows])
        counts = []
        for layer, part in zip(scores, map(sum, zip(in_windows, before, strict=True)), strict=True):
            even = _divide(part, [1.0] * n_heads, [n_entries] * n_heads)
            counts.append(compete(layer, layer, even, self, floor=self.floor).to(budgets))
        return torch.stack(counts)


def _entropy(scores: Tensor) -> float:
    """The entropy of scores as a distribution, in nats."""
    import torch

    shares = scores.double() / scores.double().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(shares).sum())


def _divide(total: int, weights: Sequence[float], room: Sequence[int]) -> list[int]:
    """Divide a total in proportion to weights, none above its room; exact, by largest remainders.

    A total beyond all room leaves each at most one above its own.
    """
    parts = [0.0] * len(weights)
    unfilled = list(range(len(weights)))
    left = total
    while unfilled and left > 0:
        own = [weights[i] for i in unfilled]
        own = own if sum(own) > 0 else [1.0] * len(own)
        wanted = {i: left * weight / sum(own) for i, weight in zip(unfilled, own, strict=True)}
        full = [i for i in unfilled if wanted[i] >= room[i]]
        if not full:
            parts = [wanted.get(i, part) for i, part in enumerate(parts)]
            break
        for i in full:
            parts[i] = room[i]
        left -= sum(room[i] for i in full)
        unfilled = [i for i in unfilled if i not in full]
    counts = [int(part) for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda i: counts[i] - parts[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
