"""A folder that holds a checkpoint twice: the weights count once, and what is not loaded is in nobody's way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_experiment import write_model

from baklava.errors import UserError
from baklava.experiment.components import ModelConfig
from baklava.models.files import check_model, model_fingerprint
from baklava.models.load import load_model
from baklava.models.weights import find_unused_copies, find_weight_files, weight_bytes

SINGLE, SHARDED = "model.safetensors", "model.safetensors.index.json"


def config(folder: Path) -> ModelConfig:
    return ModelConfig(name="m", path=str(folder), dtype="float32", device="cpu")


def add_shards(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    ordered = sorted(weights)
    halves = {f"model-0000{i + 1}-of-00002.safetensors": ordered[i::2] for i in range(2)}
    for file, names in halves.items():
        save_file({name: weights[name] for name in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in halves.items() for name in names}}
    (folder / SHARDED).write_text(json.dumps(index))


def add_pytorch(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def add_consolidated(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """As Mistral's repositories have them, with names of their own."""
    renamed = {name.replace("model.", ""): values for name, values in weights.items()}
    save_file(renamed, folder / "consolidated.safetensors")
    (folder / "original").mkdir()
    torch.save(renamed, folder / "original" / "consolidated.00.pth")


def add_nothing(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    pass


COPIES = [add_nothing, add_shards, add_pytorch, add_consolidated]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "single")


@pytest.fixture(scope="module")
def sharded(single: Path) -> Path:
    folder = single.with_name("sharded")
    shutil.copytree(single, folder)
    add_shards(folder, load_file(folder / SINGLE))
    (folder / SINGLE).unlink()
    return folder


@pytest.mark.parametrize("first", ["single", "sharded"])
@pytest.mark.parametrize("add", COPIES)
def test_weights_count_once(
    first: str, add: Callable[..., None], request: pytest.FixtureRequest, single: Path, tmp_path: Path
) -> None:
    alone: Path = request.getfixturevalue(first)
    folder = tmp_path / "twice"
    shutil.copytree(alone, folder)
    add(folder, load_file(single / SINGLE))
    check_model(config(folder), {})
    loaded = load_model(config(folder)).model
    assert weight_bytes(config(folder)) == sum(parameter.nbytes for parameter in loaded.parameters())
    assert [path.name for path in find_weight_files(folder)] == [path.name for path in find_weight_files(alone)]
    if not (add is add_shards and first == "sharded"):
        assert model_fingerprint(config(folder)) == model_fingerprint(config(alone))
    for path in find_unused_copies(folder):
        path.write_bytes(b"damaged")
    check_model(config(folder), {})
    assert weight_bytes(config(folder)) == weight_bytes(config(alone))


def test_other_weights_of_what_is_loaded_are_noticed(sharded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(sharded, folder)
    shard = find_weight_files(folder)[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert model_fingerprint(config(folder)) != model_fingerprint(config(sharded))


class TestMistakes:
    @pytest.fixture
    def folder(self, sharded: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(sharded, tmp_path / "model"))

    @pytest.mark.parametrize("link", [False, True])
    def test_a_shard_that_is_missing_is_named(self, folder: Path, link: bool) -> None:
        shard = find_weight_files(folder)[1]
        shard.unlink()
        if link:
            shard.symlink_to(folder / "pruned")
        with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: missing, or a link to nothing"):
            check_model(config(folder), {})
        with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: not a readable"):
            weight_bytes(config(folder))

    @pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "\xff"])
    def test_a_broken_index_is_named(self, folder: Path, text: str) -> None:
        (folder / SHARDED).write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=r"model\.safetensors\.index\.json: not a readable index of weights"):
            check_model(config(folder), {})
