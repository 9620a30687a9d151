"""What the workflow plans to do, seen through dry runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baklava.experiment.compose import compose
from baklava.experiment.jobs import AllocateJob, ReportJob
from baklava.experiment.ownership import claim_results
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.stages import STAGES
from baklava.models import reference_model_path
from baklava.report.figure_list import list_figures
from baklava.tracking.address import VARIABLE

Snakemake = Callable[..., Any]
AFTER_SUMMARY = {"summarize": 1, "report": 1, "page": 1, "track": 1}
EVERYTHING = {"calibrate": 1, "profile": 1, "allocate": 2, "evaluate": 2, **AFTER_SUMMARY}


def test_a_job_per_model_method_and_task(snakemake: Snakemake, tmp_path: Path) -> None:
    assert snakemake(tmp_path, "-n").planned == EVERYTHING


def test_each_model_has_its_own_jobs(snakemake: Snakemake, tmp_path: Path) -> None:
    planned = snakemake(tmp_path, "-n", overrides="model=[tiny-llama,qwen2.5-7b]").planned
    per_model = {rule: 2 * EVERYTHING[rule] for rule in ("calibrate", "profile", "allocate", "evaluate")}
    assert planned == {**EVERYTHING, **per_model}


def test_curves_are_measured_once_per_policy_where_an_allocator_needs_them(
    snakemake: Snakemake, tmp_path: Path
) -> None:
    overrides = "allocator=[uniform,baklava,baklava_measured] eviction=[streaming_llm,snapkv]"
    assert snakemake(tmp_path, "-n", overrides=overrides).planned == {**EVERYTHING, "allocate": 6, "curves": 2}


def test_rules_are_called_as_the_commands(snakemake: Snakemake, tmp_path: Path) -> None:
    overrides = (
        "validate.enabled=true claims.enabled=true measure.enabled=true evaluate.shards=2 "
        "allocator=[uniform,baklava,baklava_measured]"
    )
    assert set(snakemake(tmp_path, "-n", overrides=overrides).planned) == set(STAGES)


def test_a_run_that_replaces_other_results_says_so(snakemake: Snakemake, tmp_path: Path) -> None:
    claim_results(compose(["experiment=smoke", f"results={tmp_path / 'results'}"]), ["experiment=smoke"])
    (tmp_path / "results/smoke/summary.parquet").touch()
    said = "results/smoke holds results with models.tiny-llama = tiny-llama, now none: this run replaces"
    assert said in snakemake(tmp_path, "-n", overrides="model=tiny-qwen2").output
    assert "holds results with" not in snakemake(tmp_path, "-n").output


def test_tracking_can_be_left_out(snakemake: Snakemake, tmp_path: Path) -> None:
    planned = snakemake(tmp_path, "-n", overrides="tracking=none").planned
    assert planned == {rule: count for rule, count in EVERYTHING.items() if rule != "track"}


def test_shards_are_jobs_of_their_own_and_put_together(snakemake: Snakemake, tmp_path: Path) -> None:
    planned = snakemake(tmp_path, "-n", overrides="evaluate.shards=3").planned
    assert planned == {**EVERYTHING, "evaluate": 6, "merge": 2}


def test_the_catalog_finds_the_same_workflow(snakemake: Snakemake, repository: Path, tmp_path: Path) -> None:
    run = snakemake(tmp_path, "-n", "--snakefile", str(repository / "workflow" / "Snakefile"))
    assert {rule: count for rule, count in run.planned.items() if rule != "default"} == EVERYTHING


def test_validation_takes_curves_and_claims_are_judged_once(snakemake: Snakemake, tmp_path: Path) -> None:
    overrides = "validate.enabled=true claims.enabled=true model=[tiny-llama,tiny-qwen2] eviction=[streaming_llm,h2o]"
    planned = snakemake(tmp_path, "-n", overrides=overrides).planned
    assert (planned["validate"], planned["curves"], planned["claims"]) == (2, 4, 1)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ("evaluate.n_samples=0", "evaluate.n_samples"),
        ("evaluate.samples=3", "evaluate.samples"),
        ("+evaluate.samples=3", "evaluate.samples"),
        ("ratios=[0, 1.0]", "ratios.1"),
        ("name=../elsewhere", "name"),
        ("model=gpt-9", "model/gpt-9"),
        ("experiment=nothing", "experiment/nothing"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(
    snakemake: Snakemake, tmp_path: Path, overrides: str, named: str
) -> None:
    run = snakemake(tmp_path, "-n", overrides=overrides)
    lines = [line for line in run.output.splitlines() if not line.startswith("Using ")]
    assert run.status != 0
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert named in lines[0]


def test_an_unknown_setting_of_snakemakes_config_is_refused(snakemake: Snakemake, tmp_path: Path) -> None:
    run = snakemake(tmp_path, "-n", experimnet="demo")
    assert run.status != 0
    assert "error: --config experimnet" in run.output


def finish(snakemake: Snakemake, folder: Path, **config: str) -> Path:
    """Make Snakemake take a folder for a finished experiment=smoke; its files are empty."""
    experiment = compose(["experiment=smoke"])
    layout = ExperimentPaths(experiment.results, experiment.name)
    report = ReportJob.of(experiment, layout)
    allocate = [
        AllocateJob.of(experiment, layout, model, allocator, eviction)
        for model in experiment.models
        for allocator in experiment.allocators
        for eviction in experiment.evictions
    ]
    files = [
        *(layout.prompts(model) for model in experiment.models),
        *report.profiles.values(),
        *(job.trace for job in allocate),
        *report.budgets,
        *(layout.records(model, task) for model in experiment.models for task in experiment.tasks),
        *(layout.timings(model, task) for model in experiment.models for task in experiment.tasks),
        layout.summary_csv,
        layout.summary_parquet,
        layout.headline,
        layout.timings_csv,
        *(layout.figures / f"{figure.name}.{kind}" for figure in list_figures(experiment) for kind in ("svg", "png")),
        layout.page,
        layout.headline_table,
        layout.tracked,
    ]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    run = snakemake(folder, "--cores", "1", "--touch", "--forceall", **config)
    assert run.status == 0, run.output
    return folder


@pytest.fixture(scope="module")
def finished(snakemake: Snakemake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(snakemake, tmp_path_factory.mktemp("finished"))


def test_a_finished_experiment_has_nothing_to_do(snakemake: Snakemake, finished: Path) -> None:
    run = snakemake(finished, "--cores", "1")
    assert run.status == 0
    assert "Nothing to be done" in run.output


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("summary.margin=0.05", AFTER_SUMMARY),
        ("resources.evaluate.mem_mb=64000", {}),
        ("evaluate.n_samples=8", {"evaluate": 2, **AFTER_SUMMARY}),
        ("ratios=[0,0.5,0.7,0.8]", {"allocate": 2, "evaluate": 2, **AFTER_SUMMARY}),
        ("ratios=[0,0.8]", {"allocate": 2, "evaluate": 2, **AFTER_SUMMARY}),
        ("search.n_rounds=3", {"allocate": 2, "evaluate": 2, **AFTER_SUMMARY}),
        ("task=[niah_single_1,vt,niah_multikey_1]", {"evaluate": 1, **AFTER_SUMMARY}),
        ("profile.window=0.2", {rule: count for rule, count in EVERYTHING.items() if rule != "calibrate"}),
        ("calibration.n_profile=3", EVERYTHING),
        ("tracking.uri=http://127.0.0.1:5000", {"track": 1}),
    ],
)
def test_a_change_reruns_what_depends_on_it(
    snakemake: Snakemake, finished: Path, overrides: str, expected: dict[str, int]
) -> None:
    assert snakemake(finished, "-n", overrides=overrides).planned == expected


def test_other_weights_rerun_what_was_made_with_the_model(snakemake: Snakemake, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(reference_model_path("tiny-llama"), model)
    settings = {"overrides": f"models.tiny-llama.path={model}"}
    folder, weights = finish(snakemake, tmp_path / "work", **settings), model / "model.safetensors"
    before = weights.stat()
    os.utime(weights)  # as a copy from elsewhere is: the same weights at another time
    assert snakemake(folder, "-n", **settings).planned == {}
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert snakemake(folder, "-n", **settings).planned == EVERYTHING


def test_another_store_is_tracked_to_again_and_no_password_is_kept(
    snakemake: Snakemake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "https://me:geheim1@tracking.example")
    finish(snakemake, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"geheim1" in path.read_bytes()]
    monkeypatch.setenv(VARIABLE, "https://me:geheim2@tracking.example")
    assert snakemake(tmp_path, "-n").planned == {}
    monkeypatch.setenv(VARIABLE, "https://me:geheim1@other.example")
    assert snakemake(tmp_path, "-n").planned == {"track": 1}
    monkeypatch.delenv(VARIABLE)
    assert snakemake(tmp_path, "-n").planned == {"track": 1}
