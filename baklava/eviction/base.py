"""What an eviction policy is: it scores entries, and never touches storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EvictionPolicy:
    """Decides which entries a KV cache keeps within its budget: those of highest score.

    A subclass lives in a file of its own; its fields are its hyper-parameters. Unknown parameters are refused.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    family: ClassVar[str]

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """Scores `[B, Hkv, T]` of the entries with `keys` and `values` `[B, Hkv, T, D]`; higher is kept."""
        raise NotImplementedError
