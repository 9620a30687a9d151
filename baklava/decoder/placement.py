"""The devices on which a model computes, wherever its weights lie while it does not."""

from __future__ import annotations

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module computes. Weights that are offloaded come there with every pass (accelerate)."""
    for part in module.modules():
        if (device := getattr(getattr(part, "_hf_hook", None), "execution_device", None)) is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return next(module.parameters()).device
