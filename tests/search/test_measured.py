"""Measured budgets of a small model are what they say, and never worse than uniform on the search prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import random_model, random_tokens

from baklava.allocation import Baklava, Fitted
from baklava.budgets import Budgets
from baklava.calibration.prompts import Calibration, Prompt
from baklava.errors import UserError
from baklava.experiment.compose import compose
from baklava.experiment.jobs import AllocateJob
from baklava.experiment.paths import ExperimentPaths
from baklava.importance.loss_curves import LossCurves
from baklava.importance.profile import Profile
from baklava.inference.continuation_loss import ContinuationLosses
from baklava.models.load import LoadedModel
from baklava.profiling.loss_curves import measure_rises
from baklava.search.context import SearchContext


class FixedPrompt(Prompt):
    """A prompt whose tokens are given, so that no tokenizer is needed."""

    def token_ids(self, model):
        ids = random_tokens(40, seed=self.index)[0].tolist()
        return ids[:30], ids[30:36], ids[36:]


PROMPTS = tuple(FixedPrompt("none", index, "", "", "") for index in range(3))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    model = LoadedModel("tiny-llama", random_model(), tokenizer=None)  # type: ignore[arg-type]
    monkeypatch.setattr("baklava.models.load.load_model", lambda config: model)
    monkeypatch.setattr(Calibration, "load", lambda path: Calibration(PROMPTS[:1], PROMPTS))
    return model


def job_in(folder: Path, *overrides: str) -> AllocateJob:
    config = compose(["allocator=[uniform,baklava_measured]", "ratios=[0,0.5,0.8]", *overrides])
    return AllocateJob.of(config, ExperimentPaths(folder, "e"), "tiny-llama", "baklava_measured", "streaming_llm")


def profile_of(replay: ContinuationLosses) -> Profile:
    rises, full = measure_rises(replay, PROMPTS, shape=(2, 2), levels=(0.0, 0.3), label="")
    heads = {"eviction_shift": np.random.default_rng(0).random((1, 2, 4)).astype(np.float32)}
    curves = LossCurves("tiny-llama", "streaming_llm", (0.0, 0.3), rises, full)
    return Profile("tiny-llama", 2, heads, np.ones((1, 2), np.float32), {"calibration": "c"}, curves)


def fitted_budgets(job: AllocateJob, profile: Profile) -> Fitted:
    with SearchContext(job, profile) as context:
        return job.allocator.build().fit(context)


def test_kv_heads_of_a_layer_may_share_a_budget(loaded: LoadedModel, tmp_path: Path) -> None:
    job = job_in(tmp_path, "allocators.baklava_measured.granularity=layer", "allocators.baklava_measured.page=4")
    replay = ContinuationLosses(loaded, job.eviction.build(), batch_rows=4, objective=job.search.objective)
    for ratio, budgets in fitted_budgets(job, profile_of(replay)).budgets.items():
        assert (budgets.shares == budgets.shares[:, :1]).all() and budgets.shares.mean() == pytest.approx(1 - ratio)
        assert (budgets.group, budgets.page) == (2, 4)
        again = np.mean([replay.losses(prompt, [replace(budgets, page=1)]) for prompt in PROMPTS])
        assert budgets.provenance["loss"] == pytest.approx(again, abs=1e-9)
        assert budgets.parameters["granularity"] == "layer"


def test_budgets_of_a_model_lose_what_they_say(loaded: LoadedModel, tmp_path: Path) -> None:
    """From curves to budgets, on a random model: what is written is what a replay of its own measures."""
    job = job_in(tmp_path)
    replay = ContinuationLosses(loaded, job.eviction.build(), batch_rows=4, objective=job.search.objective)
    fitted = fitted_budgets(job, profile_of(replay))
    for ratio, budgets in fitted.budgets.items():
        assert budgets.shares.mean() == pytest.approx(1 - ratio, abs=1e-9)
        said = budgets.provenance
        again = np.mean([replay.losses(prompt, [budgets]) for prompt in PROMPTS])
        assert said["loss"] == pytest.approx(again, abs=1e-9)
        uniform = Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=ratio)
        assert said["loss_uniform"] == pytest.approx(
            np.mean([replay.losses(prompt, [uniform]) for prompt in PROMPTS]), abs=1e-9
        )
        assert said["loss"] <= said["loss_start"] <= said["loss_uniform"]
        trials = [trial for trial in fitted.trials if trial.ratio == ratio]
        [chosen] = [trial for trial in trials if trial.chosen]
        assert chosen.loss == min(trial.loss for trial in trials) == said["loss"]
        assert trials[0].loss == said["loss_uniform"]
        assert [trial.number for trial in trials] == list(range(said["n_candidates"]))


def test_what_the_search_finds_can_be_refined(loaded: LoadedModel, tmp_path: Path) -> None:
    job = job_in(tmp_path, "allocators.baklava_measured.start=search", "search.n_rounds=1")
    profile = profile_of(ContinuationLosses(loaded, job.eviction.build(), batch_rows=4))
    with SearchContext(job, profile) as context:
        searched = Baklava(name="baklava").fit(context).budgets
    for ratio, budgets in fitted_budgets(job, profile).budgets.items():
        said = budgets.provenance
        assert said["loss_start"] <= searched[ratio].provenance["loss"] + 1e-9
        assert said["start"] in ("searched", "knapsack", "uniform")
        assert said["loss"] <= said["loss_start"]


@pytest.mark.parametrize("what", ["everything", "what is compressed"])
@pytest.mark.parametrize("start", ["curves", "search"])
def test_losses_that_are_no_numbers_are_one_line(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, start: str
) -> None:
    job = job_in(tmp_path, f"allocators.baklava_measured.start={start}", "search.n_rounds=1")
    profile = profile_of(ContinuationLosses(loaded, job.eviction.build(), batch_rows=4))
    monkeypatch.setattr(
        ContinuationLosses, "losses", lambda self, prompt, budgets: [odd(one, what == "everything") for one in budgets]
    )
    with pytest.raises(UserError, match=r"^model tiny-llama: some losses .* infinite; set .* models\.tiny-llama"):
        fitted_budgets(job, profile)


def odd(budgets: Budgets, everything: bool) -> float:
    return np.nan if everything or budgets.ratio else 1.0


@pytest.mark.parametrize("start", ["curves", "fillings", "search"])
@pytest.mark.parametrize("ratio", [0.5, 0.95])
def test_a_single_kv_cache_keeps_what_the_ratio_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, ratio: float
) -> None:
    """One layer, one KV head, one ratio, one prompt: there is nothing to allocate."""
    model = LoadedModel("tiny-llama", random_model(n_layers=1, n_heads=1, n_kv_heads=1), tokenizer=None)  # type: ignore[arg-type]
    monkeypatch.setattr("baklava.models.load.load_model", lambda config: model)
    monkeypatch.setattr(Calibration, "load", lambda path: Calibration(PROMPTS[:1], PROMPTS[:1]))
    job = job_in(tmp_path, f"allocators.baklava_measured.start={start}", "search.n_rounds=2", f"ratios=[{ratio}]")
    rises, full = measure_rises(
        ContinuationLosses(model, job.eviction.build(), batch_rows=4),
        PROMPTS[:1],
        shape=(1, 1),
        levels=(0.0,),
        label="",
    )
    heads = {"eviction_shift": np.ones((1, 1, 1), np.float32)}
    curves = LossCurves("tiny-llama", "streaming_llm", (0.0,), rises, full)
    profile = Profile("tiny-llama", 1, heads, np.ones((1, 1), np.float32), {}, curves)
    [(found, budgets)] = fitted_budgets(job, profile).budgets.items()
    assert found == ratio
    assert budgets.shares == pytest.approx(1 - ratio)
    assert budgets.provenance["loss"] == pytest.approx(budgets.provenance["loss_uniform"])
