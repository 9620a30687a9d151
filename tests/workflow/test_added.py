"""What is added to a finished experiment is computed; what was there stays, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from small_experiment import NAME, overrides, write_model

from baklava.cli import main
from baklava.importance.profile import Profile

STAGES = ("calibrate", "profile", "allocate", "evaluate")
N_SAMPLES = 3
CELLS = ["sample", "allocator", "eviction", "ratio"]
TWO = "profile.estimators=[eviction_shift,layer_cosine]"


@dataclass(frozen=True)
class Results:
    """The files of an experiment at one moment."""

    budgets: dict[str, bytes]
    records: pd.DataFrame  # by sample and cell
    n_new: int  # answers that were added to the store
    profile: Profile

    @classmethod
    def read(cls, root: Path, n_before: int) -> Results:
        [records], [store], [profile] = (
            sorted(root.glob(pattern))
            for pattern in ("records/*/*.parquet", "store/*/*.lines", "profile/*.safetensors")
        )
        return cls(
            {str(path.relative_to(root)): path.read_bytes() for path in root.glob("budgets/**/*.json")},
            pd.read_parquet(records).set_index(CELLS).sort_index(),
            len(store.read_bytes().splitlines()) - 1 - n_before,
            Profile.load(profile),
        )


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Results]:
    """Run the stages, with settings beside those of the small experiment; all calls share a results folder."""
    folder = tmp_path_factory.mktemp("added")
    settings = overrides(write_model(folder / "model"), f"results={folder}", TWO)
    n_before = 0

    def run(*more: str) -> Results:
        nonlocal n_before
        for stage in STAGES:
            assert main([stage, *settings, *more]) == 0, stage
        results = Results.read(folder / NAME, n_before)
        n_before += results.n_new
        return results

    return run


@pytest.fixture(scope="module")
def before(experiment: Callable[..., Results]) -> Results:
    return experiment()


@pytest.mark.parametrize(
    ("added", "new_budgets", "new_answers"),
    [
        ("ratios=[0.5,0.6,0.8]", 2, 2 * N_SAMPLES),
        ("allocator=[uniform,baklava,pyramid]", 2, 2 * N_SAMPLES),
        ("eviction=[streaming_llm,snapkv]", 4, 4 * N_SAMPLES),
        (f"evaluate.n_samples={N_SAMPLES + 2}", 0, 2 * (1 + 4)),
    ],
    ids=["ratio", "allocator", "policy", "sample"],
)
def test_an_addition_computes_what_is_new(
    experiment: Callable[..., Results], before: Results, added: str, new_budgets: int, new_answers: int
) -> None:
    after = experiment(added)
    assert after.budgets.items() >= before.budgets.items()
    assert len(after.budgets) >= len(before.budgets) + new_budgets
    pd.testing.assert_frame_equal(after.records.loc[before.records.index], before.records)
    assert len(after.records) == len(before.records) + new_answers
    assert 0 < after.n_new <= new_answers  # methods that chose equal budgets share their answers


def test_an_added_estimator_leaves_the_others_as_they_are(experiment: Callable[..., Results], before: Results) -> None:
    after = experiment("profile.estimators=[eviction_shift,layer_cosine,long_range_mass]", "allocator=uniform")
    known = before.profile.head_importance
    assert {*after.profile.head_importance} == {*known, "long_range_mass"}
    assert all((after.profile.head_importance[name] == values).all() for name, values in known.items())
    assert after.budgets.items() >= {name: file for name, file in before.budgets.items() if "uniform" in name}.items()
