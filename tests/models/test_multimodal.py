"""Checkpoints whose decoder is in `text_config` go through the chain as that decoder alone does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralForCausalLM,
    PreTrainedModel,
)

from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.evaluation.engine import Engine
from baklava.evaluation.samples import CellSpec
from baklava.eviction import POLICIES
from baklava.experiment.components import ModelConfig
from baklava.experiment.settings import EvaluateConfig, ProfileConfig
from baklava.models import reference_model_path
from baklava.models.load import LoadedModel, load_model
from baklava.models.shape import read_shape
from baklava.models.weights import weight_bytes
from baklava.profiling.run import profile_prompts
from baklava.tasks import NeedleInHaystack

VOCABULARY = 4104
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
HYBRID = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}
TOKENS = {"boi_token_index": VOCABULARY - 2, "eoi_token_index": VOCABULARY - 1, "mm_tokens_per_image": 4}
IMAGE = {"image_token_index": VOCABULARY - 3}
# A model that transformers also counts as one of text, and one that it does not.
MODELS: dict[str, tuple[Any, Any, Any]] = {
    "gemma3": (
        Gemma3ForConditionalGeneration,
        Gemma3Config(text_config={**TEXT, **HYBRID}, vision_config=VISION, **IMAGE, **TOKENS),
        Gemma3ForCausalLM,
    ),
    "mistral3": (
        Mistral3ForConditionalGeneration,
        Mistral3Config(
            text_config={"model_type": "mistral", "sliding_window": None, **TEXT},
            vision_config={"model_type": "pixtral", **VISION},
            **IMAGE,
        ),
        MistralForCausalLM,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    """A checkpoint that was loaded, and its decoder alone."""
    model_class, config, text_class = MODELS[request.param]
    torch.manual_seed(0)
    whole: PreTrainedModel = model_class(config).eval()
    folder = tmp_path_factory.mktemp(request.param)
    whole.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference_model_path("tiny-llama") / name, folder)
    loaded = load_model(settings(folder))
    text = text_class(config.text_config).eval()
    text.model.load_state_dict(whole.get_decoder().state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    text.set_attn_implementation("baklava")
    return loaded, replace(loaded, model=text)


def settings(folder: Path) -> ModelConfig:
    return ModelConfig(name="m", path=str(folder), dtype="float32", device="cpu")


def test_its_shape_is_read_without_weights(pair: tuple[LoadedModel, LoadedModel]) -> None:
    loaded, alone = pair
    given = settings(Path(loaded.model.config._name_or_path))
    shape = read_shape(given)
    assert (shape.n_layers, shape.n_q_heads, shape.n_kv_heads) == (loaded.n_layers, 4, 2)
    assert (loaded.n_layers, loaded.has_windows, loaded.n_positions) == (alone.n_layers, alone.has_windows, 512)
    assert weight_bytes(given) == sum(parameter.nbytes for parameter in loaded.model.parameters())


def test_its_profile_is_the_decoders(pair: tuple[LoadedModel, LoadedModel]) -> None:
    prompts = [Prompt("t", i, "the quick brown fox jumps over " * 4, "what? ", "the dog") for i in range(2)]
    profile, expected = (profile_prompts(model, prompts, ProfileConfig()) for model in pair)
    assert (profile.layer_importance == expected.layer_importance).all()
    for name, heads in expected.head_importance.items():
        assert (profile.head_importance[name] == heads).all()


def test_its_answers_are_the_decoders(pair: tuple[LoadedModel, LoadedModel]) -> None:
    task = NeedleInHaystack(name="needle", max_new_tokens=5)
    shape = {"n_layers": pair[0].n_layers, "n_kv_heads": 2}
    budgets = Budgets.uniform(**shape, ratio=0.5)
    cells = [CellSpec.full(**shape), CellSpec("uniform", "snapkv", 0.5, budgets, POLICIES["snapkv"]())]
    answers: list[list[dict[str, Any]]] = []
    for loaded in pair:
        engine = Engine(loaded, task, EvaluateConfig(n_samples=1, length=200))
        sample = task.sample(split="train", seed=0, index=0, length=200, count_tokens=loaded.count_tokens)
        records = [record for finished in engine.answer([engine.encode(sample, cells)]) for record in finished]
        answers.append([record.to_store() | {"seconds": 0.0} for record in records])
    assert answers[0] == answers[1]
    assert {record["kept_entries"] / record["total_entries"] for record in answers[0]} == {1.0, 0.5}
