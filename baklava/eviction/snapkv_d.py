"""SnapKV while the model writes: every few tokens, what the last queries attend to stays (arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baklava.eviction.snapkv import SnapKV
from baklava.eviction.window import WindowedDecoding, average_neighbours

if TYPE_CHECKING:
    from torch import Tensor

    from baklava.eviction.held import HeldEntries


@dataclass(frozen=True, kw_only=True)
class SnapKVDecoding(SnapKV, WindowedDecoding):
    """`snapkv` at the end of the context, and again every `every` tokens after it, over all that is held by then.

    It needs `decoding` "fixed"; with "grow" it is `snapkv`. Queries are those after the context, up to the last
    `window_size`; their entries are protected. Otherwise scores are those of `snapkv`. This is the baseline that papers
    on decode-time eviction call SnapKV (arXiv 2505.24133, which compresses every 128 tokens). kvpress 0.5.5's
    `DecodingPress(SnapKVPress())` rotates all queries of the window as the last one, and averages over neighbours in
    the order of earlier scores, not of the text; with a window and a kernel of 1 both agree.
    """

    family: ClassVar[str] = "snapkv_d"

    def rescore(self, held: HeldEntries, queries: Tensor, query_positions: Tensor) -> Tensor:
        received = held.weights(queries, query_positions).mean(2)  # [C, group, N]
        before = received * held.before(query_positions)[:, None]
        return average_neighbours(before, self.kernel_size).mean(1)
