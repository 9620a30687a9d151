"""Estimators of a model in half precision give what float64 arithmetic makes of the same queries, keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import random_model, random_tokens
from torch import Tensor

from baklava.cache.attention.backend import HALVES
from baklava.experiment.settings import ProfileConfig
from baklava.models.load import LoadedModel
from baklava.profiling.recorder import Recorder

LENGTH = 60
LOOK = torch.tensor([20, 41, 42, 58])
NAMES = ("eviction_shift", "eviction_shift_cosine", "long_range_mass", "value_output_cosine")


def naive(settings: ProfileConfig, query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """From `[Hq, T, D]` in float64, KV heads repeated; `weight` `[Hq, hidden, D]`."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    window = max(1, int(settings.window * LENGTH))
    seen = (j <= i) & ((j < settings.sinks) | (i - j < window))
    weights = scores.masked_fill(j > i, float("-inf")).softmax(-1)
    whole, evicted = weights @ value, scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value
    shift = (whole - evicted)[:, LOOK] @ weight.transpose(-1, -2)
    cosines = [
        torch.cosine_similarity(a, b, dim=-1).mean(-1)
        for a, b in ((whole[:, LOOK], evicted[:, LOOK]), (value[:, 4:], whole[:, 4:]))
    ]
    return {
        "eviction_shift": shift.norm(dim=-1).mean(-1),
        "eviction_shift_cosine": 1 - cosines[0],
        "long_range_mass": weights.masked_fill(seen, 0.0).sum(-1)[:, LOOK].mean(-1),
        "value_output_cosine": 1 - cosines[1],
    }


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
def test_estimators_are_those_of_exact_arithmetic(sharpness: float, dtype: torch.dtype) -> None:
    """With sharp attention many heads lose next to nothing by eviction: less than a rounding of their outputs."""
    model = random_model(n_layers=3, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(sharpness)
    loaded = LoadedModel("random", model.to(dtype), tokenizer=None)  # type: ignore[arg-type]
    settings = ProfileConfig(estimators=NAMES, window=0.3)
    recorder = Recorder(loaded, settings)
    shown: list[tuple[Tensor, Tensor, Tensor]] = []

    def observer(module: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor, **_: Any) -> None:
        shown.append((query[0], key[0].repeat_interleave(2, 0), value[0].repeat_interleave(2, 0)))

    ids = random_tokens(LENGTH)
    with torch.inference_mode():
        model(ids, use_cache=False, observer=observer)
    with recorder.attached():
        recorder.record(ids, LOOK)
    for index, tensors in enumerate(shown):
        weight = model.model.layers[index].self_attn.o_proj.weight.double().unflatten(1, (4, 8)).transpose(0, 1)
        expected = naive(settings, *(tensor.double() for tensor in tensors), weight)
        for name in NAMES[:3]:
            measured = recorder.heads[name][index].double()
            torch.testing.assert_close(measured, expected[name], rtol=1e-3, atol=2e-6, msg=f"{name}, layer {index}")
        # Of the outputs as the model rounds them, which turns each by less than the square of a rounding.
        measured = recorder.heads["value_output_cosine"][index].double()
        torch.testing.assert_close(measured, expected["value_output_cosine"], rtol=0, atol=1e-3)
