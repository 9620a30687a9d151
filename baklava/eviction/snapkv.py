"""SnapKV: keeps what the last queries attend to (arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baklava.eviction.base import LayerContext
from baklava.eviction.window import KernelSize, Windowed, WindowSize

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
        import torch
        from torch.nn import functional

        from baklava.eviction.observed import received_attention

        n_kv_heads, n_entries = context.keys.shape[1:3]
        window = state.shape[2]
        received = received_attention(state, context)  # [B, Hkv, group, S]
        if window == n_entries:
            return torch.zeros_like(received[:, :, 0])
        before = received[..., :-window].flatten(1, 2) / window  # [B, Hq, S - window]
        pooled = functional.avg_pool1d(before, self.kernel_size, stride=1, padding=self.kernel_size // 2)
        return functional.pad(pooled.unflatten(1, (n_kv_heads, -1)).mean(2), (0, window))
