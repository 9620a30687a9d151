"""Random allocation: the control that every other one has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from baklava.allocation.base import Allocator
from baklava.allocation.water_filling import water_fill

if TYPE_CHECKING:
    from baklava.importance.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Random(Allocator):
    """Shares in proportion to numbers drawn uniformly from [0, 1), capped at 1; they depend on `seed` alone."""

    family: ClassVar[str] = "random"

    seed: Annotated[int, Field(ge=0)] = 0

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        drawn = np.random.default_rng(self.seed).random((profile.n_layers, profile.n_kv_heads))
        return water_fill(drawn.ravel(), total=(1.0 - ratio) * drawn.size, floor=0.0).reshape(drawn.shape)
