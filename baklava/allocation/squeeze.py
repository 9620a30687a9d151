"""SqueezeAttention: layers whose attention changes little keep less (arXiv 2404.04793, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from baklava.allocation.base import Allocator
from baklava.allocation.water_filling import water_fill

if TYPE_CHECKING:
    from baklava.importance.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Squeeze(Allocator):
    """Layers in three groups by the cosine between what enters and leaves their attention block.

    The group whose cosine is largest keeps `p` of the mean share, and what it gives up is spread evenly over the other
    layers. Where these would keep more than everything, the remainder goes back to the group. The groups are optimal
    (least squares), where the paper runs k-means; with fewer than three different cosines there are fewer groups.
    The authors' code has no default for `p`: their examples leave 0.38 (0.08 of 0.21) and 0.63 (0.25 of 0.4).
    """

    family: ClassVar[str] = "squeeze"

    p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        importance = profile.layer_importance.mean(0).astype(np.float64)  # 1 - cosine, [L]
        squeezed = importance <= smallest_group(importance, n_groups=3)
        n = len(importance)
        others = (n - squeezed.sum() * self.p) / max(1, n - squeezed.sum())
        layers = water_fill(np.where(squeezed, self.p, others), total=(1.0 - ratio) * n, floor=0.0)
        return np.repeat(layers[:, None], profile.n_kv_heads, axis=1)


def smallest_group(values: NDArray[np.float64], *, n_groups: int) -> float:
    """The largest value of the first of `n_groups` groups of neighbours with the least sum of squared distances."""
    distinct, counts = np.unique(values, return_counts=True)
    n_groups = min(n_groups, len(distinct))
    sums = np.concatenate([[0.0], np.cumsum(counts * distinct)])
    squares = np.concatenate([[0.0], np.cumsum(counts * distinct**2)])
    sizes = np.concatenate([[0], np.cumsum(counts)])

    def spread(start: int, end: int) -> float:
        total = sums[end] - sums[start]
        return float(squares[end] - squares[start] - total**2 / (sizes[end] - sizes[start]))

    def cost(cuts: tuple[int, ...]) -> float:
        bounds = (0, *cuts, len(distinct))
        return sum(spread(start, end) for start, end in pairwise(bounds))

    best = min(combinations(range(1, len(distinct)), n_groups - 1), key=cost)
    return float(distinct[(*best, len(distinct))[0] - 1])
