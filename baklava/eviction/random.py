"""Random: the control that every policy has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from baklava.eviction.base import EvictionPolicy, LayerContext

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Random(EvictionPolicy):
    """Keeps random entries, different ones in each KV cache.

    They depend only on the seed, the layer and the length of the context: rows of a batch keep the same entries.
    """

    family: ClassVar[str] = "random"

    seed: Annotated[int, Field(ge=0)] = 0

    def score(self, context: LayerContext, state: Any) -> Tensor:
        import numpy as np
        import torch

        batch, n_kv_heads, n_entries, _ = context.keys.shape
        # Drawn on the CPU, where equal seeds give equal numbers whatever the device.
        drawn = np.random.default_rng([self.seed, context.layer_index]).random((n_kv_heads, n_entries))
        scores = torch.from_numpy(drawn).to(context.keys.device, torch.float32)
        return scores.expand(batch, -1, -1)  # [B, Hkv, S]
