"""Estimators on a model of which it is known by construction which KV caches retrieve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted_model import LOCAL, N_KV_HEADS, N_LAYERS, RETRIEVAL, planted_model, planted_prompts

from baklava.allocation import Allocator, Baklava, BaklavaMeasured, Duo, Uniform
from baklava.budgets import Budgets
from baklava.eviction import StreamingLLM
from baklava.experiment.settings import ProfileConfig
from baklava.importance.loss_curves import LossCurves
from baklava.importance.profile import Profile
from baklava.inference.continuation_loss import ContinuationLosses
from baklava.models.load import LoadedModel
from baklava.profiling.loss_curves import measure_rises
from baklava.profiling.run import profile_prompts

# Sinks and a window, as the profile simulates them: a share of 0.15 of 80 entries.
LITTLE = 0.15


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return planted_model()


@pytest.fixture(scope="module")
def profile(loaded: LoadedModel) -> Profile:
    return profile_prompts(loaded, planted_prompts(4), ProfileConfig())


def losses(loaded: LoadedModel, *budgets: Budgets) -> np.ndarray:
    """Mean loss of the answers over a few prompts, under each of the budgets."""
    replay = ContinuationLosses(loaded, StreamingLLM(), batch_rows=8)
    return np.mean([replay.losses(prompt, budgets) for prompt in planted_prompts(4)], axis=0)


def whole_for(chosen: set[tuple[int, int]]) -> Budgets:
    shares = np.full((N_LAYERS, N_KV_HEADS), LITTLE)
    for cache in chosen:
        shares[cache] = 1.0
    return Budgets.from_shares(shares)


def best(profile: Profile, estimator: str, n: int) -> set[tuple[int, int]]:
    importance = profile.kv_importance(estimator)
    order = np.argsort(-importance.ravel(), kind="stable")[:n]
    return {divmod(int(index), N_KV_HEADS) for index in order}


def test_the_planted_kv_caches_are_all_that_the_model_needs(loaded: LoadedModel) -> None:
    every = {(layer, head) for layer in range(N_LAYERS) for head in range(N_KV_HEADS)}
    full, planted, others = losses(loaded, whole_for(every), whole_for(RETRIEVAL), whole_for(every - RETRIEVAL))
    assert full < 0.1
    assert planted == pytest.approx(full, abs=0.05)
    assert others > 2.0


@pytest.mark.parametrize("estimator", ["eviction_shift", "eviction_shift_cosine", "long_range_mass"])
def test_estimators_that_look_at_eviction_rank_the_planted_kv_caches_first(profile: Profile, estimator: str) -> None:
    assert best(profile, estimator, len(RETRIEVAL)) == RETRIEVAL


def test_the_cosine_of_value_and_output_ranks_local_heads_higher(profile: Profile) -> None:
    """A head that copies the token before does not output its own value either, and it does so at every position."""
    ahead = {cache for cache, offset in LOCAL.items() if offset > 0}
    assert best(profile, "value_output_cosine", len(ahead)) == ahead


@pytest.mark.parametrize("allocator", [Baklava(name="b", search="none", slope=8.0, floor=0.1), Duo(name="d")], ids=str)
def test_allocators_that_follow_them_keep_what_uniform_loses(
    loaded: LoadedModel, profile: Profile, allocator: Allocator
) -> None:
    """Two of six KV caches whole and a tenth of the others: ratio 0.6."""
    allocated, uniform = losses(
        loaded,
        *(Budgets.from_shares(method.shares(profile, 0.6), ratio=0.6) for method in (allocator, Uniform(name="u"))),
    )
    assert allocated < 0.1
    assert uniform > 2.0


def test_measured_importance_ranks_the_planted_kv_caches_first(loaded: LoadedModel) -> None:
    replay = ContinuationLosses(loaded, StreamingLLM(), batch_rows=32)
    shape = (N_LAYERS, N_KV_HEADS)
    rises, full = measure_rises(replay, planted_prompts(4), shape=shape, levels=(0.0, LITTLE, 0.5), label="")
    importance = LossCurves("planted", "streaming_llm", (0.0, LITTLE, 0.5), rises, full).importance()
    order = np.argsort(-importance.ravel(), kind="stable")
    assert {divmod(int(index), N_KV_HEADS) for index in order[: len(RETRIEVAL)]} == RETRIEVAL


def test_the_knapsack_over_measured_curves_keeps_what_uniform_loses(loaded: LoadedModel, profile: Profile) -> None:
    levels = (0.0, LITTLE, 0.5)
    replay = ContinuationLosses(loaded, StreamingLLM(), batch_rows=32)
    rises, full = measure_rises(replay, planted_prompts(4), shape=(N_LAYERS, N_KV_HEADS), levels=levels, label="")
    known = replace(profile, curves=LossCurves("planted", "streaming_llm", levels, rises, full))
    allocated, uniform = losses(
        loaded,
        *(
            Budgets.from_shares(method.shares(known, 0.6), ratio=0.6)
            for method in (BaklavaMeasured(name="m", floor=0.1), Uniform(name="u"))
        ),
    )
    assert allocated < 0.1
    assert uniform > 2.0
