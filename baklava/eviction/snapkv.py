"""SnapKV: keeps what the last queries attend to (arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baklava.eviction.base import LayerContext
from baklava.eviction.window import KernelSize, Windowed, WindowSize, average_neighbours, score_before_window

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SnapKV(Windowed):
    """Scores an entry by the attention it gets from the last `window_size` queries, smoothed over its neighbours.

    It takes the mean over the window's queries, average pooling over `kernel_size` entries, and the mean over the GQA
    group. The window itself is protected, so that a context no longer than it is kept from its end. The paper sums
    over the window, which ranks alike, and leaves GQA open; group mean, average pooling and the defaults are as in
    kvpress 0.5.5, which keeps arbitrary entries of the window, not the latest ones, when a budget is smaller than it.
    They are also those of the authors' class (64, 5, average); their runs on LongBench have a window of 32 and the
    maximum over 7 entries.
    """

    family: ClassVar[str] = "snapkv"

    window_size: WindowSize = 64
    kernel_size: KernelSize = 5

    def score(self, context: LayerContext, state: Tensor) -> Tensor:
        n_kv_heads = context.keys.shape[1]

        def pooled(before: Tensor) -> Tensor:
            return average_neighbours(before, self.kernel_size).unflatten(1, (n_kv_heads, -1)).mean(2)

        return score_before_window(context, state, pooled)
