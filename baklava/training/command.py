"""`baklava train-reference model=NAME`: train a reference model from its recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from baklava.errors import UserError
from baklava.experiment.compose import check, compose_training
from baklava.training.recipe import Recipe
from baklava.training.train import train


def train_reference(overrides: Sequence[str]) -> None:
    """Train into `training-runs/NAME`, resuming from the last checkpoint. All other overrides change the recipe."""
    models = [text.removeprefix("model=") for text in overrides if text.startswith("model=")]
    if len(models) != 1:
        raise UserError("name one reference model: model=tiny-llama")
    changes = [text for text in overrides if not text.startswith("model=")]
    recipe = check(Recipe, compose_training(models[0], changes), source=f"conf/training/{models[0]}.yaml")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train(recipe, Path("training-runs") / recipe.name, device=device)
