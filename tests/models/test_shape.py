"""Sizes of a checkpoint from its metadata: those of the loaded model, without a weight being read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from baklava.errors import UserError
from baklava.experiment.components import ModelConfig
from baklava.models import reference_model_path
from baklava.models.load import load_model
from baklava.models.shape import read_shape
from baklava.models.weights import weight_bytes


def config(path: str | Path, dtype: str = "float32") -> ModelConfig:
    return ModelConfig(name="m", path=str(path), dtype=dtype, device="cpu")


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_of_the_loaded_model(name: str, dtype: str) -> None:
    given = config(f"reference:{name}", dtype)
    model = load_model(given).model
    assert all(parameter.dtype == getattr(torch, dtype) for parameter in model.parameters())
    assert weight_bytes(given) == sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2"])
def test_the_shape_is_that_of_the_loaded_model(name: str) -> None:
    given = config(f"reference:{name}")
    loaded, shape = load_model(given), read_shape(given)
    assert (shape.n_layers, shape.n_windowed) == (loaded.n_layers, 0)
    assert (shape.n_q_heads, shape.n_kv_heads) == (loaded.n_q_heads, loaded.n_kv_heads)
    projection = loaded.model.model.layers[0].self_attn.k_proj.weight
    assert shape.kv_bytes_per_token(4) == 2 * projection.shape[0] * 4


def header(path: Path, **tensors: tuple[str, list[int]]) -> None:
    """A safetensors file that ends after its header."""
    values = {name: {"dtype": kind, "shape": shape, "data_offsets": [0, 0]} for name, (kind, shape) in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **values}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def test_only_headers_are_read_and_shards_add_up(tmp_path: Path) -> None:
    header(tmp_path / "model-1.safetensors", a=("BF16", [1000, 1000]), b=("F32", [7]))
    header(tmp_path / "model-2.safetensors", c=("F16", [3, 5]))
    assert weight_bytes(config(tmp_path, "bfloat16")) == 2 * (1_000_000 + 7 + 15)
    assert weight_bytes(config(tmp_path, "float32")) == 4 * (1_000_000 + 7 + 15)


def test_quantised_weights_stay_as_they_are_stored(tmp_path: Path) -> None:
    header(tmp_path / "m.safetensors", a=("I8", [100]), b=("F8_E4M3", [100]), c=("I32", [100]), d=("BOOL", [100]))
    assert weight_bytes(config(tmp_path, "bfloat16")) == 100 + 100 + 400 + 100


def test_layers_with_a_window_are_told_apart(tmp_path: Path) -> None:
    values = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        "sliding_window": 512,
        "head_dim": 32,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    shape = read_shape(config(tmp_path))
    assert (shape.n_layers, shape.n_windowed, shape.window, shape.head_dim) == (1, 5, 512, 32)


class TestMistakes:
    def test_no_weights_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"model m: .* has no safetensors files"):
            weight_bytes(config(tmp_path))

    @pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
    def test_a_broken_file_is_named(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "m.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"m\.safetensors: not a readable safetensors file"):
            weight_bytes(config(tmp_path))

    def test_a_folder_without_config_is_named(self, tmp_path: Path) -> None:
        shutil.copy(reference_model_path("tiny-llama") / "model.safetensors", tmp_path)
        with pytest.raises(UserError, match="model m: cannot read the config of"):
            read_shape(config(tmp_path))
