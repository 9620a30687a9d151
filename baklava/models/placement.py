"""Where the weights of a model lie, and in which quantisation, as arguments of `from_pretrained`."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import AutoQuantizationConfig

from baklava.decoder.placement import device_of
from baklava.errors import UserError
from baklava.experiment.components import ModelConfig


def placement_settings(config: ModelConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained`. Without any, the model is moved to its device once it is loaded."""
    settings: dict[str, Any] = {}
    if config.quantization is not None:
        settings["quantization_config"] = AutoQuantizationConfig.from_dict(dict(config.quantization))
        settings["device_map"] = {"": choose_device(config)}  # quantised there, and never moved
    if config.device_map is not None:
        limits = {int(name) if name.isdigit() else name: int(size) for name, size in config.max_memory.items()}
        settings |= {"device_map": config.device_map, "max_memory": limits or None}
        if config.offload_folder is not None:
            settings["offload_folder"] = str(config.offload_folder)
    return settings


def choose_device(config: ModelConfig) -> str:
    """The device of a model that lies on one. Raises `UserError` for one that does not exist."""
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "auto":
        return "cuda" if n_devices else "cpu"
    if config.device != "cpu" and int(config.device.partition(":")[2] or 0) >= n_devices:
        raise UserError(
            f"models.{config.name}.device: no device {config.device}: there are {n_devices}; set it to auto or cpu"
        )
    return config.device


def free_memory(model: PreTrainedModel, n_layers: int) -> int:
    """Free bytes for KV caches, which lie on the devices of their layers: the device that is full first counts."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    layers = next((layers for layers in lists if len(layers) == n_layers), [model])
    on_device = Counter(map(device_of, layers))
    return min(_free_on(device) * len(layers) // n for device, n in on_device.items())


def _free_on(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
