"""How many positions a model has: its files and the loaded model agree, whatever scales its rotation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_experiment import write_model

from baklava.errors import UserError
from baklava.experiment.components import ModelConfig
from baklava.models.files import check_model
from baklava.models.load import load_model

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}


@pytest.mark.parametrize(
    ("n_positions", "rope", "reached"),
    [
        (512, None, 512),
        (512, {"rope_type": "default"}, 512),
        (512, {"rope_type": "linear", "factor": 4.0}, 2048),
        (512, {"rope_type": "dynamic", "factor": 2.0}, 1024),
        (512, {"rope_type": "yarn", "factor": 4.0}, 2048),
        (512, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        (2048, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        (
            4096,
            {
                "rope_type": "llama3",
                "factor": 4.0,
                "original_max_position_embeddings": 512,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            4096,
        ),
        (1024, {**LONGROPE, "original_max_position_embeddings": 512}, 1024),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_files_and_the_loaded_model_reach_as_far(
    key: str, n_positions: int, rope: dict[str, Any] | None, reached: int, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", max_position_embeddings=n_positions)
    values = json.loads((folder / "config.json").read_text())
    theta = values.pop("rope_parameters")["rope_theta"]
    values |= {key: rope and {**rope, "rope_theta": theta}}
    (folder / "config.json").write_text(json.dumps(values))
    model = ModelConfig(name="m", path=str(folder), dtype="float32", device="cpu")
    assert load_model(model).n_positions == reached
    check_model(model, {"evaluate.length": reached})
    with pytest.raises(UserError, match=f"{reached + 1} tokens are more than the {reached} positions of model m"):
        check_model(model, {"evaluate.length": reached + 1})
