"""The profiling pass against a naive one that builds every attention matrix."""

import inspect
import json
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixed_prompt import SIZES, FixedPrompt
from tiny_models import random_model
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from baklava.calibration.prompts import Calibration, Prompt
from baklava.errors import UserError
from baklava.experiment.components import ModelConfig
from baklava.experiment.jobs import ProfileJob
from baklava.experiment.settings import ProfileConfig
from baklava.importance import ESTIMATORS
from baklava.importance.profile import Profile
from baklava.models.load import LoadedModel
from baklava.profiling.recorder import Recorder
from baklava.profiling.run import profile, profile_prompts

SETTINGS = ProfileConfig(skip_first=3, sinks=2, window=0.2)


def loaded_model() -> LoadedModel:
    return LoadedModel("random", random_model(n_layers=3), tokenizer=None)


def prompts(n: int) -> list[Prompt]:
    return [FixedPrompt("none", index, "", "", "") for index in range(n)]


def cosine_distance(a, b):
    return 1 - torch.nn.functional.cosine_similarity(a, b, dim=-1).mean(-1)


def naive_profile(model, ids):
    """Importance of one prompt from full attention matrices, layer by layer."""
    length, look = len(ids), slice(SIZES[0], None)
    window = max(1, int(SETTINGS.window * length))
    hidden = model.model.embed_tokens(torch.tensor([ids]))
    cos, sin = model.model.rotary_emb(hidden, torch.arange(length)[None])
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    seen = (j <= i) & ((j < SETTINGS.sinks) | (i - j < window))
    importance = {name: [] for name in (*ESTIMATORS, "layer")}
    for index, layer in enumerate(model.model.layers):
        attention, x = layer.self_attn, layer.input_layernorm(hidden)
        q, k, v = (
            project(x).view(1, length, -1, 8).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        scores = q @ k.transpose(-1, -2) * 8**-0.5
        weights = scores.masked_fill(j > i, float("-inf")).softmax(-1)
        out = (weights @ v)[0]  # [Hq, T, D]
        evicted = (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v)[0]
        importance["value_output_cosine"].append(cosine_distance(v[0, :, 3:], out[:, 3:]))
        importance["eviction_shift_cosine"].append(cosine_distance(out[:, look], evicted[:, look]))
        shifts = []
        for head in range(4):
            weight = attention.o_proj.weight[:, head * 8 : head * 8 + 8]
            shifts.append(((out[head, look] - evicted[head, look]) @ weight.T).norm(dim=-1).mean())
        importance["eviction_shift"].append(torch.stack(shifts))
        importance["long_range_mass"].append(weights[0].masked_fill(seen, 0.0).sum(-1)[:, look].mean(-1))
        drawn = [np.random.default_rng([SETTINGS.seed, index, head]).random() for head in range(4)]
        importance["random"].append(torch.tensor(drawn))
        added = attention.o_proj(out.transpose(0, 1).flatten(1))[None]
        importance["layer"].append(cosine_distance(hidden[0, 3:], (hidden + added)[0, 3:]))
        importance["layer_cosine"].append(importance["layer"][-1].expand(4))
        hidden = hidden + added
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return {name: torch.stack(values).detach().numpy() for name, values in importance.items()}


@torch.no_grad()
def test_importance_equals_the_naive_computation():
    loaded = loaded_model()
    measured = profile_prompts(loaded, prompts(2), SETTINGS)
    for index in range(2):
        expected = naive_profile(loaded.model, [*chain(*prompts(2)[index].token_ids(loaded))])
        for name, values in measured.head_importance.items():
            np.testing.assert_allclose(values[index], expected[name], atol=2e-5, err_msg=name)
        np.testing.assert_allclose(measured.layer_importance[index], expected["layer"], atol=2e-5)


def test_a_prompt_is_measured_alike_in_any_company():
    loaded = loaded_model()
    both, second = (profile_prompts(loaded, given, SETTINGS) for given in (prompts(2), prompts(2)[1:]))
    for name in both.head_importance:
        assert (both.head_importance[name][1] == second.head_importance[name][0]).all()


def test_only_the_look_back_positions_of_a_prompt_count():
    loaded = loaded_model()
    [prompt] = prompts(1)
    together = profile_prompts(loaded, [replace(prompt, look_back=(0, 3, 7))], SETTINGS)
    alone = [profile_prompts(loaded, [replace(prompt, look_back=(position,))], SETTINGS) for position in (0, 3, 7)]
    for name in ("eviction_shift", "eviction_shift_cosine", "long_range_mass"):
        mean = np.mean([profile.head_importance[name] for profile in alone], axis=0)
        np.testing.assert_allclose(together.head_importance[name], mean, atol=1e-6)
    everywhere = profile_prompts(loaded, [replace(prompt, look_back=tuple(range(12)))], SETTINGS)
    by_default = profile_prompts(loaded, [prompt], SETTINGS)
    assert (everywhere.head_importance["eviction_shift"] == by_default.head_importance["eviction_shift"]).all()


@pytest.mark.parametrize("look_back", [(), (12,), (-1,)])
def test_a_look_back_position_outside_of_question_and_answer_is_refused(look_back):
    with pytest.raises(UserError, match="look_back must name positions from 0 to 11"):
        profile_prompts(loaded_model(), [replace(prompts(1)[0], look_back=look_back)], SETTINGS)


def test_random_importance_depends_on_seed_layer_and_head_alone():
    loaded, other = loaded_model(), LoadedModel("other", random_model("qwen2", n_layers=3), tokenizer=None)
    first, second = (
        profile_prompts(model, prompts(2), SETTINGS).head_importance["random"] for model in (loaded, other)
    )
    assert (first == second).all()
    assert (first[0] == first[1]).all()
    assert len(np.unique(first[0])) == first[0].size
    seeded = profile_prompts(loaded, prompts(1), SETTINGS.model_copy(update={"seed": 1})).head_importance["random"]
    assert not (seeded[0] == first[0]).any()


def test_the_model_is_left_as_it_was():
    loaded = loaded_model()
    profile_prompts(loaded, prompts(1), SETTINGS)
    hooks = [h for m in loaded.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert hooks == []


def test_layers_with_a_sliding_window_are_left_out():
    loaded = LoadedModel("random", random_model("gemma3"), tokenizer=None)
    profile = profile_prompts(loaded, prompts(2), SETTINGS)
    assert loaded.budgeted_layers == [1]
    assert profile.head_importance["eviction_shift"].shape == (2, 1, 4)
    assert (profile.head_importance["eviction_shift"] > 0).all()
    assert (profile.layer_importance != 0).all() and profile.layer_importance.shape == (2, 1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The estimators that jobs measure, once for each prompt; their model is the random one."""
    model, calls = loaded_model(), []
    record = Recorder.record

    def watched(self: Recorder, ids: torch.Tensor, positions: torch.Tensor, *more: Any) -> None:
        calls.append(tuple(self.heads))
        record(self, ids, positions, *more)

    monkeypatch.setattr(Recorder, "record", watched)
    monkeypatch.setattr("baklava.profiling.run.load_model", lambda _: model)
    return calls


def run_job(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, n_prompts: int = 2, estimators: tuple[str, ...], **settings: float
) -> tuple[bytes, Profile]:
    monkeypatch.setattr(Calibration, "load", lambda _: Calibration(tuple(prompts(n_prompts)), ()))
    job = ProfileJob(
        model=ModelConfig(name="random", path="nowhere/random"),
        profile=SETTINGS.model_copy(update={"estimators": estimators, **settings}),
        prompts=folder / "prompts.json",
        output=folder / "profile.safetensors",
    )
    profile(job)
    return job.output.read_bytes(), Profile.load(job.output)


def test_an_added_estimator_or_prompt_measures_nothing_else(
    measured: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    two, three = ("eviction_shift", "random"), ("layer_cosine", "eviction_shift", "random")
    run_job(tmp_path, monkeypatch, estimators=two)
    run_job(tmp_path, monkeypatch, estimators=three)
    assert measured == [two, two, ("layer_cosine",), ("layer_cosine",)]
    more, _ = run_job(tmp_path, monkeypatch, estimators=three, n_prompts=3)
    assert measured[4:] == [three]
    at_once, expected = run_job(tmp_path / "at_once", monkeypatch, estimators=three, n_prompts=3)
    assert more == at_once
    assert len(measured) == 8
    assert (expected.head_importance["random"][0] == expected.head_importance["random"][2]).all()
    run_job(tmp_path, monkeypatch, estimators=three, window=0.4)
    assert len(measured) == 10


def test_an_estimator_whose_code_changed_is_measured_again(
    measured: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_job(tmp_path, monkeypatch, estimators=("eviction_shift", "random"))
    source = inspect.getsource
    changed = import_module(ESTIMATORS["random"])
    monkeypatch.setattr(inspect, "getsource", lambda module: source(module) + "#" * (module is changed))
    run_job(tmp_path, monkeypatch, estimators=("eviction_shift", "random"))
    assert measured[2:] == [("random",), ("random",)]


def test_scores_of_a_file_are_taken_as_they_are_and_anew_when_it_changes(
    measured: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, other = run_job(tmp_path, monkeypatch, estimators=("random",))
    shape = (other.n_layers, other.n_kv_heads)
    for start in (0.0, 1.0):
        scores = start + np.arange(np.prod(shape)).reshape(shape)
        (tmp_path / "scores.json").write_text(json.dumps(scores.tolist()))
        settings: Any = {"scores": tmp_path / "scores.json"}
        _, profile = run_job(tmp_path, monkeypatch, estimators=("random", "file"), **settings)
        np.testing.assert_allclose(profile.kv_importance("file"), scores)
        assert (profile.head_importance["random"] == other.head_importance["random"]).all()
    assert measured[2:] == [("file",)] * 4


def test_a_killed_profile_continues_after_its_last_prompt(
    measured: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = Recorder.record

    def killed(self: Recorder, *arguments: torch.Tensor) -> None:
        if len(measured) == 2:
            raise KeyboardInterrupt
        record(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            run_job(tmp_path, patch, n_prompts=3, estimators=("random",))
    resumed, _ = run_job(tmp_path, monkeypatch, n_prompts=3, estimators=("random",))
    assert len(measured) == 3
    assert resumed == run_job(tmp_path / "whole", monkeypatch, n_prompts=3, estimators=("random",))[0]
