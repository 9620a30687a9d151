"""Uniform allocation: every KV cache keeps the same share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from baklava.allocation.base import Allocator

if TYPE_CHECKING:
    from baklava.importance.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Uniform(Allocator):
    """The baseline that every method is compared with."""

    family: ClassVar[str] = "uniform"

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        return np.full((profile.n_layers, profile.n_kv_heads), 1.0 - ratio)
