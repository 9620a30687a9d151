"""The recipe of a reference model: architecture, curriculum and optimiser, as plain typed data."""

from __future__ import annotations

import random
from typing import Literal

from pydantic import Field

from baklava.experiment.fields import FrozenModel
from baklava.training.documents import Mark


class CurriculumStage(FrozenModel):
    """One stage of the curriculum: it ends when the running answer accuracy passes `until` or after `at_most` steps."""

    length: int = Field(ge=16)
    rows: int = Field(ge=1)
    mix: dict[str, float]
    until: float = Field(default=1.1, description="above 1: only the number of steps ends the stage")
    at_most: int = 1_000_000
    doubled: float = Field(default=0.0, ge=0, le=1, description="fraction of the steps at twice the length")


class Architecture(FrozenModel):
    """Shape of the model, in the words of a transformers configuration."""

    family: Literal["llama", "qwen2"]
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    attention_bias: bool = Field(default=False, description="biases of q, k, v and o; Llama only, Qwen2 has its own")
    max_position_embeddings: int = 4096
    rope_theta: float = 10_000.0


class Cycle(FrozenModel):
    """Steps of one rise and fall of the learning rate; a second cycle continues with a trained model."""

    steps: int = Field(ge=1)
    decay_steps: int = Field(default=450, ge=1)
    learning_rate: float = 2e-3


class Recipe(FrozenModel):
    """Everything that determines the weights, up to floating-point arithmetic."""

    name: str
    seed: int
    architecture: Architecture
    begin_with: str = Field(
        default="", description="reference model of the same shape whose weights training begins with"
    )
    stages: tuple[CurriculumStage, ...]
    cycles: tuple[Cycle, ...] = Field(min_length=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup_steps: int = 100
    final_learning_rate: float = 1e-4
    weight_decay: float = 0.05
    background_weight: float = 0.1
    background_fraction: float = Field(default=0.25, description="fraction of the background tokens that have a loss")
    answer_weight: float = 5.0
    choice_weight: float = 20.0
    clip_norm: float = 1.0
    save_every: int = 100

    @property
    def steps(self) -> int:
        return sum(cycle.steps for cycle in self.cycles)

    def learning_rate_at(self, step: int) -> float:
        """Each cycle has a linear warm-up, a constant rate, then a linear fall over its last `decay_steps`."""
        for cycle in self.cycles:
            if step < cycle.steps or cycle is self.cycles[-1]:
                break
            step -= cycle.steps
        left = cycle.steps - step
        if left < cycle.decay_steps:
            return (
                self.final_learning_rate + (cycle.learning_rate - self.final_learning_rate) * left / cycle.decay_steps
            )
        return cycle.learning_rate * min(1.0, (step + 1) / self.warmup_steps)

    def draw_weight(self, mark: Mark, rng: random.Random) -> float:
        """Draw the weight of a token's loss; it is 0 for background tokens that are left out."""
        if mark == Mark.BACKGROUND:
            kept = rng.random() < self.background_fraction
            return self.background_weight / self.background_fraction if kept else 0.0
        return self.choice_weight if mark == Mark.CHOICE else self.answer_weight
