"""A model that does not fit one device: weights on the CPU and on disk give what weights in one place give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_prompt import FixedPrompt
from pydantic import ValidationError
from small_experiment import write_model
from torch import Tensor

from baklava.budgets import Budgets
from baklava.cache.budgeted import BudgetedCache
from baklava.experiment.components import ModelConfig
from baklava.experiment.settings import ProfileConfig
from baklava.models.files import model_identity
from baklava.models.load import LoadedModel, load_model
from baklava.profiling.run import profile_prompts

HEAD = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
PLACES: dict[str, dict[str, Any]] = {
    "auto": {"device_map": "auto"},
    "auto, and the rest on disk": {"device_map": "auto", "max_memory": {"cpu": "600KiB"}},
    "a layer on disk": {"device_map": {**HEAD, "model.layers.0": "cpu", "model.layers.1": "disk"}},
    "embedding and layers on disk": {"device_map": {**HEAD, "model.embed_tokens": "disk", "model.layers": "disk"}},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = write_model(tmp_path_factory.mktemp("models") / "model")
    return ModelConfig(name="m", path=str(folder), dtype="float32", device="cpu")


def compressed_logits(loaded: LoadedModel) -> Tensor:
    """Logits of a question after a context of which a part is left."""
    ids = torch.randint(4096, (2, 48), generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([[0.1, 0.5], [0.9, 0.3]]).numpy()
    cache = BudgetedCache(loaded.model.config, Budgets(shares, ratio=0.55), "snapkv")
    with torch.inference_mode():
        cache.prefill(loaded.model, ids[:, :40])
        return loaded.model(ids[:, 40:], past_key_values=cache).logits


@pytest.mark.parametrize("place", PLACES)
def test_the_model_is_the_same_wherever_its_weights_lie(place: str, plain: ModelConfig, tmp_path: Path) -> None:
    spread = ModelConfig(
        **{**plain.model_dump(), "device": "auto", "offload_folder": tmp_path / "weights", **PLACES[place]}
    )
    loaded, expected = load_model(spread), load_model(plain)
    assert any(parameter.is_meta for parameter in loaded.model.parameters()) == (place != "auto")
    assert loaded.device == torch.device("cpu")
    assert loaded.free_memory() > 0
    assert torch.equal(compressed_logits(loaded), compressed_logits(expected))
    prompts = [FixedPrompt("none", 0, "", "", "")]
    profile, wanted = (profile_prompts(model, prompts, ProfileConfig()) for model in (loaded, expected))
    for name, values in wanted.head_importance.items():
        assert values == pytest.approx(profile.head_importance[name], rel=1e-3, abs=1e-6)
    assert model_identity(spread) == model_identity(plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_memory": {0: "1GiB"}}, "max_memory has no effect without a device_map"),
        ({"offload_folder": "weights"}, "offload_folder has no effect without a device_map"),
        ({"gpus": 2}, "gpus: 2 are of no use without a device_map"),
        ({"device": "cuda:1", "device_map": "auto"}, "device: cuda:1 and a device_map exclude each other"),
        ({"device_map": "auto", "max_memory": {0: "much"}}, "expected a size such as 24GiB"),
        ({"quantization": {"load_in_4bit": True}}, "quantization: quant_method is missing"),
        ({"path": "m.gguf", "quantization": {"quant_method": "torchao"}}, "a GGUF file has its own"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**{"name": "m", "path": "ORG/NAME", **settings})


def test_settings_that_are_not_used_are_in_no_job() -> None:
    """Else every job of an experiment from before there were such settings would be another one."""
    new = {"gpus", "device_map", "max_memory", "offload_folder", "quantization"}
    assert new.isdisjoint(ModelConfig(name="m", path="ORG/NAME").model_dump(mode="json"))
    used = ModelConfig(name="m", path="ORG/NAME", gpus=2, device_map="auto", max_memory={0: "1GiB"})  # type: ignore
    assert ModelConfig.model_validate_json(used.model_dump_json()) == used


def test_a_quantised_model_is_another_one() -> None:
    plain, settings = ModelConfig(name="m", path="ORG/NAME"), {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert model_identity(plain) == {"content": None, "path": "ORG/NAME", "dtype": "bfloat16"}
    quantised = ModelConfig(name="m", path="ORG/NAME", quantization=settings)
    assert model_identity(quantised) == {**model_identity(plain), "quantization": settings}
