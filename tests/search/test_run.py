"""`baklava allocate` with a search, on a model of which it is known which KV caches retrieve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_model import RETRIEVAL, planted_model, planted_prompts

from baklava.allocation.baklava import REFINE_ABOVE
from baklava.allocation.fitted import MAPPING
from baklava.budgets import Budgets
from baklava.calibration.prompts import Calibration
from baklava.experiment.components import AllocatorConfig, EvictionConfig, ModelConfig
from baklava.experiment.jobs import AllocateJob
from baklava.experiment.settings import ProfileConfig, SearchConfig
from baklava.importance.profile import Profile
from baklava.inference.continuation_loss import ContinuationLosses
from baklava.models.load import LoadedModel
from baklava.profiling.run import profile_prompts
from baklava.search.run import allocate
from baklava.search.study import ROUND
from baklava.search.trace import parameters, read_trace

RATIOS = (0.4, 0.6)
PROMPTS = planted_prompts(6)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return planted_model()


@pytest.fixture(scope="module")
def profile(loaded: LoadedModel) -> Profile:
    return profile_prompts(loaded, PROMPTS[:2], ProfileConfig())


@pytest.fixture
def loads(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per time that a search loads its model, which is the planted one with its prompts."""
    counted = []

    def load_model(_: ModelConfig) -> LoadedModel:
        counted.append(1)
        return loaded

    monkeypatch.setattr("baklava.models.load.load_model", load_model)
    monkeypatch.setattr(Calibration, "load", lambda _: Calibration((), tuple(PROMPTS[2:])))
    return counted


def job(folder: Path, profile: Profile, **changed: Any) -> AllocateJob:
    path = folder / "profile.safetensors"
    profile.save(path)
    values = {
        "model": ModelConfig(name="planted", path="nowhere/planted"),
        "allocator": AllocatorConfig(name="baklava", family="baklava"),
        "eviction": EvictionConfig(family="streaming_llm", name="streaming_llm"),
        "search": SearchConfig(n_rounds=2),
        "prompts": folder / "prompts.json",
        "profile": path,
        "curves": None,
        "budgets": {ratio: folder / f"{ratio}.json" for ratio in RATIOS},
        "trace": folder / "trace.parquet",
        "losses": folder / "a.losses",
        "cost": folder / "cost.json",
    }
    return AllocateJob(**{**values, **changed})


def written(one: AllocateJob) -> list[bytes]:
    return [path.read_bytes() for path in (*one.budgets.values(), one.trace)]


@pytest.fixture
def searched(tmp_path: Path, profile: Profile, loads: list[int]) -> AllocateJob:
    one = job(tmp_path, profile)
    allocate(one)
    return one


def test_the_search_keeps_what_the_model_needs(searched: AllocateJob) -> None:
    budgets = Budgets.load(searched.budgets[0.6])
    assert budgets.provenance["loss"] < 0.1 < 2.0 < budgets.provenance["loss_uniform"]
    assert budgets.provenance["loss"] == pytest.approx(budgets.provenance["loss_full"], abs=0.05)
    assert all(budgets.shares[cache] > 0.6 for cache in RETRIEVAL)
    assert budgets.allocator == "baklava" and budgets.parameters["mapping"] == "baklava"


def test_the_same_search_writes_the_same_bytes(searched: AllocateJob, profile: Profile, tmp_path: Path) -> None:
    again = job(tmp_path / "again", profile)
    allocate(again)
    assert written(again) == written(searched)


def test_a_finished_search_loads_no_model_and_writes_the_same_bytes(searched: AllocateJob, loads: list[int]) -> None:
    before = written(searched)
    for path in (*searched.budgets.values(), searched.trace):
        path.unlink()
    cost = searched.cost.read_bytes()
    allocate(searched)
    assert written(searched) == before
    assert searched.cost.read_bytes() == cost
    assert len(loads) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"eviction": EvictionConfig(family="streaming_llm", name="streaming_llm", n_sink=2)},
        {"allocator": AllocatorConfig(name="baklava", family="baklava", slope=3.0)},
        {"model": ModelConfig(name="planted", path="nowhere/planted", dtype="float32")},
        {"search": SearchConfig(n_rounds=2, seed=1)},
        {"search": SearchConfig(n_rounds=3)},
    ],
    ids=str,
)
def test_what_determines_losses_or_trials_is_searched_anew(
    searched: AllocateJob, loads: list[int], changed: dict[str, Any]
) -> None:
    allocate(searched.model_copy(update=changed))
    assert len(loads) == 2


def test_another_profile_never_goes_on_with_an_old_search(
    searched: AllocateJob, profile: Profile, loads: list[int], tmp_path: Path
) -> None:
    before = written(searched)
    heads = {**profile.head_importance, "eviction_shift": profile.head_importance["eviction_shift"] + np.float32(1e-6)}
    allocate(job(tmp_path, replace(profile, head_importance=heads)))
    assert len(loads) == 2
    allocate(job(tmp_path, profile))  # as it was
    assert len(loads) == 2
    assert written(searched) == before


def with_ratios(one: AllocateJob, *ratios: float) -> AllocateJob:
    return one.model_copy(update={"budgets": {ratio: one.trace.parent / f"{ratio}.json" for ratio in ratios}})


def test_an_added_ratio_is_searched_alone_from_the_best_mappings_of_the_others(
    searched: AllocateJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, trials = {path: path.read_bytes() for path in searched.budgets.values()}, read_trace(searched.trace)
    cost = json.loads(searched.cost.read_text())
    for path in before:
        path.unlink()  # as Snakemake does before it runs a job again
    asked: set[float] = set()
    losses = ContinuationLosses.losses

    def watched(self: ContinuationLosses, prompt: Any, budgets: list[Budgets]) -> Any:
        asked.update(one.ratio for one in budgets)
        return losses(self, prompt, budgets)

    monkeypatch.setattr(ContinuationLosses, "losses", watched)
    more = with_ratios(searched, 0.4, 0.5, 0.6)
    allocate(more)
    assert asked == {0.5}  # the full cache's loss is in the store
    assert {path: path.read_bytes() for path in before} == before
    trace = read_trace(more.trace)
    assert trace["ratio"].unique().tolist() == [0.4, 0.5, 0.6]
    assert trace[trace["ratio"] != 0.5].to_dict("list") == trials.to_dict("list")
    names = parameters(trace)
    tried = trace.loc[trace["ratio"] == 0.5, names].to_dict("records")
    assert all(point in tried for point in trials.loc[trials["chosen"], names].to_dict("records"))
    total = json.loads(more.cost.read_text())
    assert total["n_trials"] == cost["n_trials"] + 2 * ROUND == len(trace)
    assert total["seconds"] > cost["seconds"]
    asked.clear()
    allocate(more)
    allocate(with_ratios(searched, 0.5))
    allocate(searched)
    assert not asked and {path: path.read_bytes() for path in before} == before
    assert json.loads(searched.cost.read_text()) == cost


def test_what_still_loses_is_refined(tmp_path: Path, profile: Profile, loads: list[int]) -> None:
    given: dict[str, Any] = {"budgets": {0.9: tmp_path / "0.9.json"}, "search": SearchConfig(n_rounds=1)}
    plain = AllocatorConfig(name="baklava", family="baklava", refine=0)
    allocate(job(tmp_path, profile, allocator=plain, **given))
    before = Budgets.load(tmp_path / "0.9.json")
    assert before.provenance["loss"] > before.provenance["loss_full"] + REFINE_ABOVE
    assert json.loads((tmp_path / "cost.json").read_text())["n_refined"] == 0
    allocate(job(tmp_path, profile, **given))
    assert len(loads) == 2  # to refine, not to search again
    after = Budgets.load(tmp_path / "0.9.json")
    assert after.provenance["loss_searched"] == pytest.approx(before.provenance["loss"], abs=1e-6)
    assert after.provenance["loss"] < before.provenance["loss"] - 0.01
    assert after.parameters["refined"].startswith("round ")
    assert after.shares.mean() == pytest.approx(0.1, abs=1e-9)
    assert json.loads((tmp_path / "cost.json").read_text())["n_refined"] == 1
    trace = read_trace(tmp_path / "trace.parquet")
    assert trace["trial"].tolist() == list(range(len(trace)))
    assert (trace["move"] == MAPPING).tolist() == [True] * ROUND + [False] * (len(trace) - ROUND)
    [chosen] = trace[trace["chosen"]].to_dict("records")
    assert (chosen["move"], chosen["loss"]) == (after.parameters["refined"], after.provenance["loss"])
    assert chosen["loss"] == trace["loss"][trace["complete"]].min()
    assert chosen["estimator"] == after.parameters["estimator"]


@pytest.mark.parametrize("n_prompts", [0, 2, 5, 9])
def test_a_killed_search_continues_after_its_last_prompt(
    profile: Profile, loads: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_prompts: int
) -> None:
    losses = ContinuationLosses.losses
    asked: list[tuple[int, int]] = []
    remaining = n_prompts

    def killed(self, prompt, budgets):
        nonlocal remaining
        if not remaining:
            raise KeyboardInterrupt
        remaining -= 1
        asked.append((prompt.index, len(budgets)))
        return losses(self, prompt, budgets)

    monkeypatch.setattr(ContinuationLosses, "losses", killed)
    whole, resumed = (job(tmp_path / name, profile) for name in "ab")
    with pytest.raises(KeyboardInterrupt):
        allocate(resumed)
    remaining = 1000
    allocate(resumed)
    asked_in_two = asked.copy()
    asked.clear()
    allocate(whole)
    assert written(resumed) == written(whole)
    assert asked_in_two == asked  # nothing is measured twice


def test_a_killed_refinement_continues(
    tmp_path: Path, profile: Profile, loads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (
        job(tmp_path / name, profile, budgets={0.9: tmp_path / name / "0.9.json"}, search=SearchConfig(n_rounds=1))
        for name in "ab"
    )
    for one in (whole, killed):  # searched, so that only the refinement is left
        allocate(one.model_copy(update={"allocator": AllocatorConfig(name="baklava", family="baklava", refine=0)}))
    losses, calls, kill_at = ContinuationLosses.losses, [], [-1]

    def counted(*arguments):
        calls.append(1)
        if len(calls) == kill_at[0]:
            raise KeyboardInterrupt
        return losses(*arguments)

    monkeypatch.setattr(ContinuationLosses, "losses", counted)
    allocate(whole)
    n_calls = len(calls)
    kill_at[0] = n_calls + 10
    with pytest.raises(KeyboardInterrupt):
        allocate(killed)
    allocate(killed)
    assert written(killed) == written(whole)
    assert len(calls) == 2 * n_calls + 1
    n_loads, seconds = len(loads), json.loads(whole.cost.read_text())["seconds"]
    allocate(whole)  # nothing is measured again, and what it cost is known
    assert (len(loads), len(calls)) == (n_loads, 2 * n_calls + 1)
    assert json.loads(whole.cost.read_text())["seconds"] == seconds


def test_the_trace_has_a_row_per_trial(searched: AllocateJob) -> None:
    trace = read_trace(searched.trace)
    assert trace.groupby("ratio").size().to_dict() == dict.fromkeys(RATIOS, 2 * ROUND)
    assert parameters(trace) == ["estimator", "pool", "layer_mix", "steepness", "floor", "whole"]
    for ratio, rows in trace.groupby("ratio"):
        budgets = Budgets.load(searched.budgets[ratio])
        [chosen] = rows[rows["chosen"]].to_dict("records")
        assert chosen["loss"] == rows[rows["complete"]]["loss"].min() == budgets.provenance["loss"]
        assert chosen["estimator"] == budgets.parameters["estimator"]
        assert 2 ** chosen["steepness"] - 1 == pytest.approx(budgets.parameters["slope"])
        assert rows["loss"].iloc[0] == budgets.provenance["loss_uniform"]
        assert set(rows["loss_full"]) == {budgets.provenance["loss_full"]}
        assert (rows["complete"] == (rows["n_prompts"] == 4)).all()


def test_the_cost_is_written_beside_the_trace(searched: AllocateJob) -> None:
    cost = json.loads(searched.cost.read_text())
    assert cost["prefills"] == pytest.approx(cost["seconds"] / cost["prefill_seconds"])
    assert cost["n_trials"] == 2 * ROUND * len(RATIOS)
    assert cost["n_replays"] == read_trace(searched.trace)["n_prompts"].sum()


def test_without_a_search_there_is_an_empty_trace_and_nothing_else(
    tmp_path: Path, profile: Profile, loads: list[int]
) -> None:
    for allocator in (
        AllocatorConfig(name="uniform", family="uniform"),
        AllocatorConfig(name="baklava", family="baklava", search=False),
    ):
        one = job(tmp_path, profile, allocator=allocator)
        allocate(one)
        assert read_trace(one.trace).empty
        assert Budgets.load(one.budgets[0.6]).allocator == allocator.name
        assert not one.losses.exists() and not one.cost.exists()
    assert loads == []


def test_an_experiment_that_compresses_nothing_searches_nothing(
    tmp_path: Path, profile: Profile, loads: list[int]
) -> None:
    one = job(tmp_path, profile, budgets={})
    allocate(one)
    assert read_trace(one.trace).empty
    assert loads == []
