"""Undoes a model's own rotary position embedding, and averages it over positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from baklava.decoder.length_dependent_rope import hold_rotation
from baklava.errors import UserError

# Model types for which the tests show that undoing the rotation gives the original queries.
SUPPORTED = (
    "cohere",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "stablelm",
    "starcoder2",
)


@dataclass(frozen=True)
class Rotary:
    """The rotation of one layer's queries and keys; made by `rotary_of`.

    It uses transformers' own modules for the model, so that scaled frequencies, partial rotation and the order of
    dimensions are right by construction. `layer_type` is set where frequencies depend on it (Gemma 3).
    """

    embedding: nn.Module
    apply: Callable[..., tuple[Tensor, Tensor]]
    layer_type: str | None

    def undo(self, rotated: Tensor, positions: Tensor) -> Tensor:
        """Return queries `[B, H, Q, D]` at `positions` `[Q]` as they were before the rotation."""
        cos, sin = self._angles(rotated, positions)
        scale = cos.square() + sin.square()  # 1, except for YaRN and LongRoPE, which also scale
        return self._rotate(rotated, cos / scale, -sin / scale)

    def average(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Rotate each of the vectors `[B, H, N, D]` to all of `positions`, and average over them."""
        cos, sin = self._angles(vectors, positions)
        return self._rotate(vectors, cos.mean(1, keepdim=True), sin.mean(1, keepdim=True))

    def _angles(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines `[1, Q, rotated dimensions]`."""
        return _call_embedding(self.embedding.to(like.device), like, positions[None], self.layer_type)

    def _rotate(self, vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotated, fixed = vectors[..., : cos.shape[-1]], vectors[..., cos.shape[-1] :]
        return torch.cat([self.apply(rotated, rotated, cos, sin)[0], fixed], dim=-1)


def _call_embedding(
    embedding: nn.Module, like: Tensor, positions: Tensor, layer_type: str | None
) -> tuple[Tensor, Tensor]:
    kind = {} if layer_type is None else {"layer_type": layer_type}
    return embedding(like, positions, **kind)


def rotary_of(config: PreTrainedConfig, layer_index: int, length: int | None = None) -> Rotary:
    """Build the rotary embedding of a layer, for texts of `length` tokens where that matters.

    Raises `UserError` for a model type that is not among `SUPPORTED`.
    """
    if config.model_type not in SUPPORTED:
        raise UserError(
            f"the rotary embedding of {config.model_type!r} models is not known here; supported: {', '.join(SUPPORTED)}"
        )
    modeling = import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    name = type(config).__name__.removesuffix("Config").removesuffix("Text")
    embedding = getattr(modeling, f"{name}RotaryEmbedding")(config)
    by_type = "layer_type" in inspect.signature(embedding.forward).parameters
    layer_type = config.layer_types[layer_index] if by_type else None
    if length is not None:
        hold_rotation(
            embedding, length, lambda positions: _call_embedding(embedding, torch.zeros(1), positions, layer_type)
        )
    return Rotary(embedding, modeling.apply_rotary_pos_emb, layer_type)
