"""Training: what it begins with, and that a killed run ends where an uninterrupted one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from baklava import reference_model_path
from baklava.errors import UserError
from baklava.training import train as training
from baklava.training.recipe import Recipe

STANDING_STILL = {"steps": 1, "decay_steps": 1, "learning_rate": 1e-12}


def recipe(repository: Path, **changes: Any) -> Recipe:
    """That of tiny-llama-long, with one short stage."""
    values = yaml.safe_load((repository / "conf/training/tiny-llama-long.yaml").read_text(encoding="utf-8"))
    short = {"stages": [{"length": 32, "rows": 1, "mix": {"repetition": 1.0}}], "save_every": 1}
    return Recipe.model_validate({**values, **short, **changes})


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_begins_with_the_weights_of_the_model_that_the_recipe_names(repository: Path, tmp_path: Path) -> None:
    still = {"cycles": [STANDING_STILL], "final_learning_rate": 1e-12, "weight_decay": 0.0}
    training.train(recipe(repository, **still), tmp_path / "named")
    training.train(recipe(repository, **still, begin_with=""), tmp_path / "none")
    expected = weights(reference_model_path("tiny-llama"))
    named, none = weights(tmp_path / "named" / "model"), weights(tmp_path / "none" / "model")
    assert named.keys() == none.keys() == expected.keys()
    assert all(torch.equal(named[name], expected[name].bfloat16()) for name in named)
    assert not all(torch.equal(none[name], expected[name].bfloat16()) for name in none)


def test_weights_of_another_shape_are_refused(repository: Path, tmp_path: Path) -> None:
    architecture = recipe(repository).architecture.model_copy(update={"hidden_size": 64})
    other = recipe(repository).model_copy(update={"architecture": architecture})
    with pytest.raises(UserError, match="recipe tiny-llama-long: begin_with: tiny-llama has another architecture"):
        training.train(other, tmp_path)


def test_a_killed_training_goes_on_from_its_checkpoint(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(repository, cycles=[{"steps": 3, "decay_steps": 1, "learning_rate": 1e-3}])
    training.train(made, tmp_path / "whole")
    step, calls = training._step, []

    def killed_at_the_third(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(training, "_step", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        training.train(made, tmp_path / "killed")
    training.train(made, tmp_path / "killed")
    assert len(calls) == 4  # not from the start
    whole, killed = weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
