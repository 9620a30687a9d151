"""Random importance: the control that every estimator has to beat."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from baklava.importance.base import HeadView


def importance(view: HeadView) -> Tensor:
    """A random number per query head, `[Hq]`, in [0, 1), that depends on the seed, the layer and the head alone."""
    drawn = [np.random.default_rng([view.seed, view.layer, head]).random() for head in range(view.outputs.shape[0])]
    return torch.tensor(drawn)
