"""What an allocator is: it turns a profile and a ratio into shares (how MUCH each KV cache keeps)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from baklava.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Allocator:
    """Interface of an allocator; the fields of a subclass are its parameters. Unknown parameters are refused."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    family: ClassVar[str]

    name: str

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        """Shares `[n_layers, n_kv_heads]` in [0, 1] with mean `1 - ratio`."""
        raise NotImplementedError

    def candidates(self, profile: Profile, *, n: int, seed: int) -> Sequence[Allocator]:
        """The allocators among which the parameter search chooses; most have nothing to search."""
        return [self]
