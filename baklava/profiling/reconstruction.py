"""Has a model repeat the context of a calibration prompt, and sees which KV caches it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from baklava.eviction import KVzip
from baklava.inference.batch import prefill
from baklava.models.load import LoadedModel

POLICY = KVzip()


def measure_reconstruction(loaded: LoadedModel, context: Sequence[int]) -> Tensor:
    """The highest score of any entry under `kvzip`, `[L, Hq]`; query heads that share a KV cache have it in common.

    Sinks are left out: every head looks at them, whatever it reads.
    """
    cache: Any = prefill(loaded, [context], [POLICY]).cache
    layers = [cache.layers[i].scores(POLICY)[0].scores[0] for i in loaded.budgeted_layers]  # [Hkv, S]
    highest = torch.stack(
        [scores[:, min(POLICY.n_sink, len(context) - 1) :].amax(-1).to(loaded.device) for scores in layers]
    )
    return highest.repeat_interleave(loaded.n_q_heads // loaded.n_kv_heads, dim=1)
