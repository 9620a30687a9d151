"""The estimator that has contexts repeated, against a single pass that builds every attention matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fixed_prompt import FixedPrompt
from tiny_models import random_model
from torch import Tensor

from baklava.experiment.settings import ProfileConfig
from baklava.models.load import LoadedModel
from baklava.profiling.run import profile_prompts

INSTRUCTION = [5, 9, 3]
BOTH = ProfileConfig(estimators=("eviction_shift", "reconstruction"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setattr(LoadedModel, "encode", lambda self, text: INSTRUCTION)
    return LoadedModel("random", random_model(n_layers=3), tokenizer=None)  # type: ignore[arg-type]


def naive(loaded: LoadedModel, context: list[int]) -> Tensor:
    """The largest weight `[L, Hkv]` from a token of the repetition to an entry of the context that is no sink."""
    seen: list[tuple[Tensor, Tensor]] = []

    def observer(module: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor, **_: Any) -> None:
        seen.append((query[0], key[0].repeat_interleave(2, 0)))

    n = len(context)
    with torch.inference_mode():
        loaded.model(torch.tensor([[*context, *INSTRUCTION, *context]]), use_cache=False, observer=observer)
    highest = []
    for query, key in seen:
        scores = query @ key.transpose(-1, -2) * 8**-0.5
        weights = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        highest.append(weights[:, n:, 4:n].amax((1, 2)).unflatten(0, (2, 2)).amax(1))
    return torch.stack(highest)


def test_the_largest_attention_of_a_repetition_is_the_naive_one_and_changes_no_other_estimator(
    loaded: LoadedModel,
) -> None:
    prompt = FixedPrompt("none", 0, "", "", "")
    context, _, _ = prompt.token_ids(loaded)
    measured = profile_prompts(loaded, [prompt, replace(prompt, index=1)], BOTH)
    expected = naive(loaded, context).float()
    found = torch.from_numpy(measured.head_importance["reconstruction"][0])
    torch.testing.assert_close(found, expected.repeat_interleave(2, 1), atol=1e-5, rtol=1e-5)
    assert found.unique().numel() == 6
    alone = profile_prompts(loaded, [prompt], ProfileConfig(estimators=("eviction_shift",)))
    assert (alone.head_importance["eviction_shift"] == measured.head_importance["eviction_shift"][:1]).all()
