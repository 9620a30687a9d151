"""PyramidKV: lower layers keep more, in even steps (arXiv 2406.02069, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from baklava.allocation.base import Allocator

if TYPE_CHECKING:
    from baklava.importance.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Pyramid(Allocator):
    """Shares that fall evenly from the first layer to the last, which keeps `1 / beta` of the mean share.

    Only the shape of the profile matters. Where the first layer would keep more than everything it keeps everything,
    and the last layer what makes the mean right, as in the authors' code. Their code adds the recent window (8 entries
    in their runs) to each layer's budget; here it is included in the budget, and a matter of the eviction policy.

    `beta` 20 is the authors' default and kvpress 0.5.5's. kvpress gives all layers the same where the last would keep
    fewer entries than SnapKV's window (of 4,096 tokens, at any ratio above 0.69); here shares do not depend on lengths.
    """

    family: ClassVar[str] = "pyramid"

    beta: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 20.0

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        mean = 1.0 - ratio
        first = min(1.0, (2.0 - 1.0 / self.beta) * mean)
        down = np.linspace(0.0, 1.0, profile.n_layers) if profile.n_layers > 1 else np.full(1, 0.5)
        layers = first + (2.0 * mean - 2.0 * first) * down  # [L]
        return np.repeat(layers[:, None], profile.n_kv_heads, axis=1)
