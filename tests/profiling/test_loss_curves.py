"""Loss curves of a small model against one KV cache at a time in a naive attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import hidden_after, naive_logits, random_model, random_tokens

import baklava.profiling.loss_curves
from baklava.calibration.prompts import Calibration, Prompt
from baklava.experiment.components import EvictionConfig, ModelConfig
from baklava.experiment.jobs import CurvesJob
from baklava.experiment.settings import CurvesConfig
from baklava.importance.loss_curves import LossCurves
from baklava.importance.profile import Profile
from baklava.inference.continuation_loss import ContinuationLosses
from baklava.models.load import LoadedModel
from baklava.profiling.loss_curves import measure_rises, shrink_alone

N_CONTEXT, N_QUESTION, N_ANSWER = 24, 5, 4
LEVELS = (0.0, 0.1, 0.25, 0.5)
SHAPE = (2, 2)
POLICY = EvictionConfig(name="streaming_llm", family="streaming_llm", n_sink=3)


class FixedPrompt(Prompt):
    """A prompt whose tokens are given, so that no tokenizer is needed."""

    def token_ids(self, model):
        ids = random_tokens(N_CONTEXT + N_QUESTION + N_ANSWER, seed=self.index)[0].tolist()
        return ids[:N_CONTEXT], ids[N_CONTEXT:-N_ANSWER], ids[-N_ANSWER:]


PROMPTS = [FixedPrompt("none", index, "", "", "") for index in range(3)]


def naive_loss(loaded: LoadedModel, prompt: Prompt, cache: tuple[int, int], level: float) -> float:
    """Of the answer, in one pass that hides from later tokens what the one KV cache has evicted."""
    kept = torch.ones(*SHAPE, N_CONTEXT, dtype=torch.bool)
    n = round(level * N_CONTEXT)
    position = torch.arange(N_CONTEXT)
    kept[cache] = (position < min(n, 3)) | (position >= N_CONTEXT - max(0, n - 3))
    ids = torch.tensor([[token for part in prompt.token_ids(loaded) for token in part]])
    logits = naive_logits(loaded.model, ids, hidden_after(kept, ids.shape[1]))[0, -N_ANSWER - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[0, -N_ANSWER:]).item()


@pytest.mark.parametrize("batch_rows", [3, 32])
def test_curves_equal_one_kv_cache_at_a_time(batch_rows: int) -> None:
    loaded = LoadedModel("random", random_model(), tokenizer=None)
    replay = ContinuationLosses(loaded, POLICY.build(), batch_rows=batch_rows)
    rises, full = measure_rises(replay, PROMPTS, shape=SHAPE, levels=LEVELS, label="")
    assert rises.shape == (len(PROMPTS), len(LEVELS), *SHAPE)
    for p, prompt in enumerate(PROMPTS):
        assert full[p] == pytest.approx(naive_loss(loaded, prompt, (0, 0), 1.0), abs=1e-5)
        for k, level in enumerate(LEVELS):
            for cache in np.ndindex(SHAPE):
                expected = naive_loss(loaded, prompt, cache, level) - full[p]
                assert rises[p, k, *cache] == pytest.approx(expected, abs=1e-5)
    assert np.abs(rises).max() > 0.01  # there is something to compare


def test_a_killed_measurement_goes_on_after_the_last_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = LoadedModel("random", random_model(), tokenizer=None)
    monkeypatch.setattr(baklava.profiling.loss_curves, "load_model", lambda _: loaded)
    monkeypatch.setattr(Calibration, "load", lambda _: Calibration((PROMPTS[0],), tuple(PROMPTS[1:])))
    losses, asked = ContinuationLosses.losses, []

    def killed_at_the_third(replay, prompt, budgets):
        asked.append(prompt.index)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return losses(replay, prompt, budgets)

    monkeypatch.setattr(ContinuationLosses, "losses", killed_at_the_third)
    job = CurvesJob(
        model=ModelConfig(name="random", path="nowhere/random"),
        eviction=POLICY,
        curves=CurvesConfig(levels=LEVELS),
        prompts=tmp_path / "prompts.json",
        output=tmp_path / "c.safetensors",
    )
    with pytest.raises(KeyboardInterrupt):
        baklava.profiling.loss_curves.measure_curves(job)
    assert not job.output.exists()
    baklava.profiling.loss_curves.measure_curves(job)
    assert asked == [0, 1, 2, 2]
    rises, _ = measure_rises(
        ContinuationLosses(loaded, POLICY.build(), batch_rows=32), PROMPTS, shape=SHAPE, levels=LEVELS, label=""
    )
    profile = Profile("random", 2, {"e": np.ones((1, 2, 4), np.float32)}, np.ones((1, 2), np.float32))
    curves = LossCurves.load(job.output, profile, POLICY.model_dump(mode="json"))
    np.testing.assert_array_equal(curves.rises, rises)


@pytest.mark.parametrize(("n_entries", "level", "kept"), [(1000, 0.02, 20), (37, 0.4, 15), (10, 0.0, 0)])
def test_one_kv_cache_alone_shrinks(n_entries: int, level: float, kept: int) -> None:
    entries = shrink_alone((3, 2), (1, 0), level).entries(n_entries)
    assert entries[1, 0] == kept
    assert np.delete(entries.ravel(), 2).tolist() == [n_entries] * 5
