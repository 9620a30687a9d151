"""`baklava validate` on a reference model with a made-up profile: what it compares, and what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_results import importance

from baklava.allocation import Uniform, budgets_of
from baklava.calibration.run import calibrate
from baklava.experiment.compose import compose
from baklava.experiment.jobs import VALIDATION, CalibrateJob, ValidateJob
from baklava.experiment.paths import ExperimentPaths
from baklava.importance.loss_curves import LossCurves
from baklava.importance.profile import Profile
from baklava.system.parquet import read_parquet
from baklava.validation.regret import COLUMNS as REGRET
from baklava.validation.run import validate

MODEL = "tiny-llama"
OVERRIDES = [
    *("calibration.length=512", "calibration.n_profile=1", "calibration.n_search=2", "ratios=[0,0.5]"),
    *("allocator=uniform", "eviction=[streaming_llm,snapkv]", "validate.lengths=[448,512]", "validate.n_prompts=1"),
    "profile.estimators=[eviction_shift,random]",
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> ValidateJob:
    """A finished validation."""
    config = compose([f"results={tmp_path_factory.mktemp('results')}", *OVERRIDES])
    layout = ExperimentPaths(config.results, config.name)
    job = ValidateJob.of(config, layout, MODEL)
    calibrate(CalibrateJob.of(config, layout, MODEL))
    heads = np.repeat(importance(MODEL), 2, axis=1)[None].astype(np.float32)  # [1, L, Hq]
    profile = Profile(
        MODEL, 4, {"eviction_shift": heads, "random": 1 - heads}, np.ones((1, 6), np.float32), meta={"path": "made up"}
    )
    profile.save(job.profile)
    for eviction, path in job.curves.items():
        rises = importance(MODEL)[None, None].astype(np.float32)  # [1, 1, L, Hkv]
        meta = {"policy": job.evictions[eviction].model_dump(mode="json")}
        LossCurves(MODEL, eviction, (0.0,), rises, np.ones(1, np.float32), meta).save(path)
    for cell in job.cells:
        budgets_of(Uniform(name="uniform"), profile, cell.ratio).save(cell.path)
    validate(job)
    return job


def table(path: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def test_every_set_and_every_length_is_compared_with_every_other(job: ValidateJob) -> None:
    rows = [row for row in table(job.consistency) if row["estimator"] == "eviction_shift"]
    assert [(row["between"], row["pair"]) for row in rows] == [
        ("prompts", ""),
        ("halves", ""),
        ("sets", "ruler - text"),
        ("sets", "ruler - mixed"),
        ("sets", "text - mixed"),
        ("lengths", "448 - 512"),
    ]
    assert all(-1 <= row["spearman"] <= 1 and 0 <= row["top_overlap"] <= 1 for row in rows[2:])
    assert {row["spearman"] for row in rows[2:]} != {1.0}  # other prompts are others


def test_the_control_agrees_with_itself_whatever_the_prompts(job: ValidateJob) -> None:
    rows = [row for row in table(job.consistency) if row["estimator"] == "random" and row["pair"]]
    assert [(row["spearman"], row["top_overlap"]) for row in rows] == [(pytest.approx(1.0), 1.0)] * 4


def test_the_profile_is_ranked_against_the_curves_of_every_policy(job: ValidateJob) -> None:
    agreements = {(row["eviction"], row["estimator"]): row["spearman"] for row in table(job.ranking)}
    assert agreements == {
        (eviction, estimator): pytest.approx(expected)
        for eviction in ("streaming_llm", "snapkv")
        for estimator, expected in (("eviction_shift", 1.0), ("random", -1.0))
    }


def test_policies_are_compared_by_their_curves_and_not_by_uniform_budgets(job: ValidateJob) -> None:
    rows = [(row["ranking"], row["pair"], row["spearman"]) for row in table(job.policies)]
    assert rows == [("measured importance", "streaming_llm - snapkv", pytest.approx(1.0))]


def test_regret_is_against_the_experiments_methods_on_the_search_prompts(job: ValidateJob) -> None:
    rows = read_parquet(job.regret, REGRET, schema=1, what="regret", hint="").to_pylist()
    assert [(row["eviction"], row["ratio"], row["estimator"]) for row in rows] == [
        (eviction, 0.5, estimator)
        for eviction in ("streaming_llm", "snapkv")
        for estimator in ("eviction_shift", "random", "measured")
    ]
    for row in rows:
        assert (row["best"], row["n_prompts"]) == ("uniform", 2)
        assert row["regret"] == pytest.approx(row["loss"] - row["loss_best"])
    by = {(row["eviction"], row["estimator"]): row["loss"] for row in rows}
    assert by["snapkv", "measured"] == by["snapkv", "eviction_shift"]  # the same ranking
    assert by["snapkv", "measured"] != by["streaming_llm", "measured"]


def test_every_table_has_a_figure_beside_it(job: ValidateJob) -> None:
    folder = job.regret.parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{what}.{kind}" for what in VALIDATION for kind in ("parquet", "png", "svg")
    )
    for what in VALIDATION:
        assert (folder / f"{what}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (folder / f"{what}.svg").read_text(encoding="utf-8")
