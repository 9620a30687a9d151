"""`baklava allocate` with a search, on a model of which it is known which KV caches retrieve."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from planted_model import BEGIN, RETRIEVAL, planted_model, planted_prompts

from baklava.allocation.fitted import GROWN
from baklava.analysis.card_scores import add_scores
from baklava.analysis.headline import Headline, MethodFigures, ModelFigures, RatioFigures
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

CONF = Path(__file__).parents[2] / "conf"
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
        "allocator": AllocatorConfig(name="baklava", family="baklava", search="mapping"),
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
        {"allocator": AllocatorConfig(name="baklava", family="baklava", search="mapping", slope=3.0)},
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
    others = trace[trace["ratio"] != 0.5].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, trials, check_exact=True)
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


def growing(folder: Path, profile: Profile, **changed: Any) -> AllocateJob:
    return job(folder, profile, allocator=AllocatorConfig(name="baklava", family="baklava"), **changed)


@pytest.mark.parametrize("eviction", ["defensive", "critical_snapkv", "kvzip"])
def test_a_search_runs_under_policies_that_weigh_values_or_read_twice(
    eviction: str, tmp_path: Path, profile: Profile, loads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadedModel, "encode", lambda self, text: [BEGIN])  # the instruction to repeat
    policy = yaml.safe_load((CONF / "eviction" / f"{eviction}.yaml").read_text(encoding="utf-8"))
    grown = AllocatorConfig(name="baklava", family="baklava", refine=0)
    one = with_ratios(job(tmp_path, profile, allocator=grown, eviction=EvictionConfig(**policy)), 0.6)
    allocate(one)
    budgets = Budgets.load(one.budgets[0.6])
    assert budgets.shares.mean() == pytest.approx(0.4)
    assert budgets.provenance["loss"] <= budgets.provenance["loss_uniform"] + 1e-6
    if eviction == "kvzip":  # KV caches compete for the total, however it is divided
        assert budgets.provenance["loss"] == pytest.approx(budgets.provenance["loss_uniform"], abs=1e-6)


def test_shares_grow_where_the_model_needs_them(
    tmp_path: Path, profile: Profile, loads: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    one = growing(tmp_path / "planted" / "baklava" / "streaming_llm", profile)
    allocate(one)
    light, heavy = (Budgets.load(one.budgets[ratio]) for ratio in RATIOS)
    assert all(heavy.shares[cache] > 0.6 for cache in RETRIEVAL)
    assert (light.shares >= heavy.shares - 1e-12).all()
    assert heavy.provenance["loss"] < 0.1 < 2.0 < heavy.provenance["loss_uniform"]
    assert heavy.provenance["held_back"] < 0.1 < 2.0 < heavy.provenance["held_back_uniform"]
    assert heavy.provenance["loss_full"] == pytest.approx(0.0, abs=1e-5)  # a divergence from itself
    trace = read_trace(one.trace)
    assert trace.groupby("ratio")["move"].agg(list).to_dict() == {ratio: ["uniform", GROWN] for ratio in RATIOS}
    assert trace["held_back"].notna().all()
    assert json.loads(one.cost.read_text())["prefills"] > 0
    check_card(one, tmp_path)
    before = written(one)
    allocate(one.model_copy(update={"search": one.search.model_copy(update={"max_prefills": 4})}))
    assert "planted baklava/streaming_llm: stopped by search.max_prefills=4; " in capsys.readouterr().err
    moves = read_trace(one.trace).groupby("ratio")["move"].agg(list).to_dict()
    assert moves == {ratio: ["uniform", "grown, capped"] for ratio in RATIOS}
    allocate(one)
    assert written(one) == before


def check_card(one: AllocateJob, folder: Path) -> None:
    """The card names every file with its digest, and takes the scores of a summary in the place of old ones."""
    card = folder / "planted" / "baklava" / "streaming_llm" / "README.md"
    written = card.read_text()
    for ratio, path in one.budgets.items():
        assert f"| {ratio:g} | {path.name} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |" in written
    assert "base_model: nowhere/planted\n" in written
    assert written.endswith("## Scores\n\nNot evaluated yet.\n")
    figures = dict.fromkeys(("score", "full", "delta_full", "kv_bytes"), 0.5)
    around = dict.fromkeys(("ci_low", "delta_full_low"), 0.25) | dict.fromkeys(("ci_high", "delta_full_high"), 0.75)
    unknown = dict.fromkeys(
        ("uniform", "delta_uniform", "delta_uniform_low", "delta_uniform_high", "gain_over_uniform")
    )
    row = RatioFigures(ratio=0.9, lossless=None, uniform_is_zero=False, **figures, **around, **unknown)
    method = MethodFigures(allocator="baklava", eviction="streaming_llm", largest_lossless_ratio=None, ratios=(row,))
    model = ModelFigures(n={}, full=0.5, full_low=0.5, full_high=0.5, kv_bytes_full=1.0, methods=(method,))
    headline = Headline(margin=0.0, confidence=0.9, n_bootstrap=1, seed=0, models={"planted": model})
    for _ in range(2):
        add_scores(folder, headline)
        assert card.read_text().startswith(written.removesuffix("Not evaluated yet.\n"))
        assert card.read_text().count("| 0.9 | 0.500 [0.250, 0.750] | 0.500 | +0.500 [+0.250, +0.750] |\n") == 1


def test_a_ratio_that_is_added_takes_its_budgets_from_the_same_path(
    tmp_path: Path, profile: Profile, loads: list[int]
) -> None:
    first, together = growing(tmp_path / "a", profile), growing(tmp_path / "b", profile)
    allocate(first)
    before = written(first)
    more = with_ratios(first, 0.4, 0.5, 0.6)
    allocate(more)
    assert written(first)[:-1] == before[:-1]  # the budgets; the trace has got more rows
    allocate(with_ratios(together, 0.4, 0.5, 0.6))
    assert (tmp_path / "a" / "0.5.json").read_bytes() == (tmp_path / "b" / "0.5.json").read_bytes()


def test_growth_that_was_killed_continues(
    tmp_path: Path, profile: Profile, loads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, killed = (growing(tmp_path / name, profile) for name in "ab")
    influence, calls, kill_at = ContinuationLosses.influence, [], [-1]

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == kill_at[0]:
            raise KeyboardInterrupt
        return influence(*arguments)

    monkeypatch.setattr(ContinuationLosses, "influence", counted)
    allocate(complete)
    n_calls = len(calls)
    kill_at[0] = n_calls + 5
    with pytest.raises(KeyboardInterrupt):
        allocate(killed)
    allocate(killed)
    assert written(killed) == written(complete)
    assert len(calls) == 2 * n_calls + 1


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


def test_growth_takes_the_width_that_loses_least_at_the_same_bytes(
    tmp_path: Path, profile: Profile, loads: list[int]
) -> None:
    """At 2 bits the same bytes hold several times as many entries; which loses less, all prompts decide.

    Bits per KV cache are taken where those looked at and those held back agree.
    """

    def loss(budgets: Budgets) -> float:
        return 0.75 * budgets.provenance["loss"] + 0.25 * budgets.provenance["held_back"]

    chosen = {}
    for widths, per_cache in (([16], False), ([2], False), ([16, 2], False), ([16, 2], True)):
        folder = tmp_path / f"{widths}{per_cache}"
        folder.mkdir()
        allocator = AllocatorConfig(name="baklava", family="baklava", refine=0, widths=widths, per_cache=per_cache)
        one = job(folder, profile, allocator=allocator, search=SearchConfig())
        allocate(one)
        chosen[(*widths, per_cache) if per_cache else tuple(widths)] = [
            Budgets.load(path) for path in one.budgets.values()
        ]
    for budgets, exact, coarse in zip(chosen[16, 2], chosen[16,], chosen[2,], strict=True):
        losses = {one.width: loss(one) for one in (exact, coarse)}
        assert budgets.width == min(losses, key=losses.__getitem__)
        assert loss(budgets) == min(losses.values())
        assert coarse.shares.mean() > exact.shares.mean()
    for own, budgets in zip(chosen[16, 2, True], chosen[16, 2], strict=True):
        assert own.ratio == budgets.ratio and own.parameters["per_cache"] is True
        assert own.provenance["loss"] <= budgets.provenance["loss"]
        assert own.provenance["held_back"] <= budgets.provenance["held_back"]
