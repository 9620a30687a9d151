"""Every file of an experiment has one place below its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baklava.experiment.paths import ExperimentPaths, ratio_name

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True)
RATIOS = st.floats(0, 1, exclude_max=True)


def paths(layout: ExperimentPaths, model: str, other: str, ratio: float) -> list[Path]:
    """One path of every kind."""
    return [
        layout.prompts(model),
        layout.profile(model),
        layout.curves(model, other),
        layout.budgets(model, other, other, ratio),
        layout.search_trace(model, other, other),
        layout.search_losses(model, other, other),
        layout.search_cost(model, other, other),
        layout.records(model, other),
        layout.summary_csv,
        layout.summary_parquet,
        layout.headline,
        layout.claims,
        layout.validation(model, other),
        layout.figures,
        layout.figure(other),
        layout.tracked,
        layout.log(other, model),
    ]


@given(NAMES, NAMES, NAMES, RATIOS)
def test_paths_stay_inside_the_experiment(experiment: str, model: str, other: str, ratio: float) -> None:
    results = Path("/somewhere/results")
    root = results / experiment
    for path in paths(ExperimentPaths(results, experiment), model, other, ratio):
        assert path.resolve().is_relative_to(root)
        assert path.resolve() != root


@given(NAMES, NAMES, RATIOS)
def test_kinds_of_files_never_meet(model: str, other: str, ratio: float) -> None:
    some = paths(ExperimentPaths(Path("results"), "e"), model, other, ratio)
    assert len(set(some)) == len(some)


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_models_never_share_a_file(models: list[str]) -> None:
    layout = ExperimentPaths(Path("results"), "e")
    one, another = models
    own = {layout.prompts, layout.profile, lambda model: layout.log("profile", model)}
    assert all(path(one) != path(another) for path in own)


def test_log_of_a_name_with_dots_keeps_them() -> None:
    assert ExperimentPaths(Path("results"), "e").log("profile", "qwen2.5-7b") == Path(
        "results/e/logs/profile/qwen2.5-7b.log"
    )


def test_wildcards_stay_as_they_are() -> None:
    layout = ExperimentPaths(Path("results"), "e")
    assert layout.budgets("{model}", "{allocator}", "{eviction}", "{ratio}") == Path(
        "results/e/budgets/{model}/{allocator}/{eviction}/{ratio}.json"
    )


@pytest.mark.parametrize(("ratio", "name"), [(0.7, "0.7"), (1e-05, "1e-05"), (0.0, "0"), (0.125, "0.125")])
def test_ratio_reads_as_one_would_write_it(ratio: float, name: str) -> None:
    assert ratio_name(ratio) == name
    assert ExperimentPaths(Path("r"), "e").budgets("m", "a", "p", ratio).name == f"{name}.json"
