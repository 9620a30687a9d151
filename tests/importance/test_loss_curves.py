"""Curves of a small model against one KV cache at a time in a naive attention; files that do not fit are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import hidden_after, naive_logits, random_model, random_tokens

import baklava.importance.loss_curves
from baklava.calibration.run import Calibration, Prompt
from baklava.errors import UserError
from baklava.experiment.jobs import CurvesJob
from baklava.experiment.schema import CurvesConfig, EvictionConfig, ModelConfig
from baklava.importance.loss_curves import LossCurves, measure_curves, one_alone
from baklava.importance.profile import Profile
from baklava.inference.continuation_loss import ContinuationLosses
from baklava.models.load import LoadedModel

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
    rises, full = measure_curves(replay, PROMPTS, shape=SHAPE, levels=LEVELS, label="")
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
    monkeypatch.setattr(baklava.importance.loss_curves, "load_model", lambda _: loaded)
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
        baklava.importance.loss_curves.curves(job)
    assert not job.output.exists()
    baklava.importance.loss_curves.curves(job)
    assert asked == [0, 1, 2, 2]
    rises, _ = measure_curves(
        ContinuationLosses(loaded, POLICY.build(), batch_rows=32), PROMPTS, shape=SHAPE, levels=LEVELS, label=""
    )
    np.testing.assert_array_equal(LossCurves.load(job.output, profile("random"), POLICY).rises, rises)


@pytest.mark.parametrize(("n_entries", "level", "kept"), [(1000, 0.02, 20), (37, 0.4, 15), (10, 0.0, 0)])
def test_one_kv_cache_alone_shrinks(n_entries: int, level: float, kept: int) -> None:
    entries = one_alone((3, 2), (1, 0), level).entries(n_entries)
    assert entries[1, 0] == kept
    assert np.delete(entries.ravel(), 2).tolist() == [n_entries] * 5


def curves(**changes: object) -> LossCurves:
    rises = np.random.default_rng(0).random((4, len(LEVELS), *SHAPE)).astype(np.float32)
    meta = {"policy": POLICY.model_dump(mode="json"), "calibration": "c"}
    return replace(LossCurves("m", "streaming_llm", LEVELS, rises, np.ones(4, np.float32), meta), **changes)


def profile(model: str = "m", n_layers: int = 2, n_kv_heads: int = 2) -> Profile:
    return Profile(model, n_kv_heads, {"e": np.ones((1, n_layers, 4), np.float32)}, np.ones((1, n_layers), np.float32))


def test_mean_standard_error_and_importance() -> None:
    rises = np.zeros((4, 2, 1, 1), np.float32)
    rises[:, 0, 0, 0] = [1.0, 2.0, 3.0, 6.0]
    rises[:, 1, 0, 0] = 1.0
    some = curves(rises=rises, levels=(0.0, 0.5))
    assert some.mean()[:, 0, 0].tolist() == [3.0, 1.0]
    assert some.standard_error()[:, 0, 0] == pytest.approx([np.std([1, 2, 3, 6], ddof=1) / 2, 0.0])
    assert some.importance().tolist() == [[2.0]]
    assert np.isnan(curves(rises=rises[:1], levels=(0.0, 0.5)).standard_error()).all()


class TestFile:
    def test_saved_curves_come_back(self, tmp_path: Path) -> None:
        before = curves()
        before.save(tmp_path / "c.safetensors")
        after = LossCurves.load(tmp_path / "c.safetensors", profile(), POLICY)
        assert (after.rises == before.rises).all()
        assert (after.full == before.full).all()
        assert (after.model, after.eviction, after.levels, after.meta) == ("m", "streaming_llm", LEVELS, before.meta)

    def test_a_missing_file_names_the_command(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"c\.safetensors: no such file of curves; make it with `baklava curves`"):
            LossCurves.load(tmp_path / "c.safetensors", profile(), POLICY)

    @pytest.mark.parametrize("keep", [0, 5, 60, -1])
    def test_a_truncated_file_is_refused_by_name(self, tmp_path: Path, keep: int) -> None:
        path = tmp_path / "c.safetensors"
        curves().save(path)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(UserError, match=r"c\.safetensors: not a readable file of curves"):
            LossCurves.load(path, profile(), POLICY)

    def test_a_profile_is_no_file_of_curves(self, tmp_path: Path) -> None:
        profile().save(tmp_path / "p.safetensors")
        with pytest.raises(UserError, match=r"p\.safetensors: not a readable file of curves"):
            LossCurves.load(tmp_path / "p.safetensors", profile(), POLICY)

    @pytest.mark.parametrize("other", [profile("another"), profile(n_layers=3), profile(n_kv_heads=4)], ids=str)
    def test_curves_of_another_model_are_refused(self, tmp_path: Path, other: Profile) -> None:
        curves().save(tmp_path / "c.safetensors")
        with pytest.raises(UserError, match=r"c\.safetensors: curves of m, .* do not go with the profile of"):
            LossCurves.load(tmp_path / "c.safetensors", other, POLICY)

    def test_curves_of_another_policy_are_refused(self, tmp_path: Path) -> None:
        curves().save(tmp_path / "c.safetensors")
        other = EvictionConfig(name="streaming_llm", family="streaming_llm", n_sink=4)
        with pytest.raises(UserError, match=r"c\.safetensors: curves of the eviction policy streaming_llm"):
            LossCurves.load(tmp_path / "c.safetensors", profile(), other)
