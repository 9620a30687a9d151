"""Jobs: each stage's slice of the configuration, and files that no two jobs write."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baklava.allocation import Uniform
from baklava.errors import UserError
from baklava.experiment import jobs
from baklava.experiment.components import AllocatorConfig
from baklava.experiment.compose import check, compose
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.stages import STAGES

EXPERIMENTS = (
    [],
    ["experiment=demo"],
    ["experiment=claims"],
    ["experiment=smoke", "name=other", "results=/elsewhere/my results"],
    ["model=[tiny-llama,qwen2.5-7b]", "task=[vt]", "ratios=[0.25,0.5,0.125]"],
    ["allocator=[uniform,baklava_measured]", "eviction=[streaming_llm,snapkv]"],
    ["evaluate.shards=3"],
    ["allocator=[uniform,baklava_measured]", "eviction=[streaming_llm,lava]"],
)


def all_jobs(config: ExperimentConfig) -> dict[str, list[jobs.Job]]:
    paths = ExperimentPaths(config.results, config.name)
    return {name: list(stage.job_class.all(config, paths)) for name, stage in STAGES.items()}


def outputs(job: Any) -> list[Path]:
    """The files and folders that a job writes."""
    match job:
        case jobs.CalibrateJob():
            return [job.prompts]
        case jobs.ProfileJob() | jobs.CurvesJob() | jobs.MeasureJob() | jobs.TrackJob():
            return [job.output]
        case jobs.AllocateJob():
            return [*job.budgets.values(), job.trace, job.losses, job.cost]
        case jobs.EvaluateJob() | jobs.MergeJob():
            return [job.records, job.timings]
        case jobs.SummarizeJob():
            return [job.csv, job.parquet, job.headline, job.timings_csv]
        case jobs.ValidateJob():
            return [job.consistency, job.ranking, job.regret]
        case jobs.ClaimsJob():
            return [job.output, job.markdown]
        case jobs.ReportJob():
            return [job.figures]
        case jobs.PageJob():
            return [job.output, job.headline_table]
    raise AssertionError(f"what does {type(job).__name__} write?")


@pytest.fixture(params=EXPERIMENTS, ids=str)
def config(request: pytest.FixtureRequest) -> ExperimentConfig:
    return compose(request.param)


def test_every_job_survives_a_round_trip_through_json(config: ExperimentConfig) -> None:
    for some in all_jobs(config).values():
        for job in some:
            assert type(job).model_validate_json(job.model_dump_json()) == job


def test_no_two_jobs_write_the_same_file(config: ExperimentConfig) -> None:
    written = Counter(path for some in all_jobs(config).values() for job in some for path in outputs(job))
    assert [path for path, times in written.items() if times > 1] == []


def test_everything_written_lies_in_the_folder_of_the_experiment(config: ExperimentConfig) -> None:
    root = config.results / config.name
    for some in all_jobs(config).values():
        for job in some:
            assert all(path.is_relative_to(root) and path != root for path in outputs(job))


def test_stages_read_what_earlier_stages_write(config: ExperimentConfig) -> None:
    chain = all_jobs(config)
    written = {stage: {path for job in some for path in outputs(job)} for stage, some in chain.items()}
    for job in chain["profile"]:
        assert job.prompts in written["calibrate"]
    for job in chain["allocate"]:
        assert job.prompts in written["calibrate"]
        assert job.profile in written["profile"]
        assert job.curves is None or job.curves in written["curves"]
    for job in chain["evaluate"]:
        assert {cell.path for cell in job.cells} <= written["allocate"]
    [summarize], [report], [page], [track] = (chain[stage] for stage in ("summarize", "report", "page", "track"))
    assert {*summarize.records, *summarize.timings} == (written["merge"] or written["evaluate"])
    assert track.timings == summarize.timings
    parts = {path for job in chain["merge"] for path in (*job.records_of_shards, *job.timings_of_shards)}
    assert parts == (written["evaluate"] if chain["merge"] else set())
    assert {report.summary, report.headline, track.summary, track.headline} <= written["summarize"]
    assert set(report.profiles.values()) == written["profile"]
    assert set(report.budgets) == set(track.budgets)
    assert set(report.budgets) | set(report.traces) <= written["allocate"]
    assert track.figures == report.figures
    shared = jobs.ResultFiles.model_fields
    assert page.model_dump(include=set(shared)) == report.model_dump(include=set(shared))


def test_policies_that_ignore_budgets_are_neither_searched_for_nor_validated() -> None:
    config = compose(["experiment=smoke", "allocator=[uniform,baklava]", "eviction=[streaming_llm,kvzip]"])
    chain = all_jobs(config)
    allocated = [(job.allocator.name, job.eviction.name) for job in chain["allocate"]]
    assert allocated == [("uniform", "streaming_llm"), ("uniform", "kvzip"), ("baklava", "streaming_llm")]
    [validate] = chain["validate"]
    assert set(validate.evictions) == set(validate.curves) == {cell.eviction for cell in validate.cells}
    assert set(validate.evictions) == {"streaming_llm"}


def test_what_is_measured_and_needle_grids_are_drawn() -> None:
    assert all_jobs(compose())["report"][0].measurements == {}
    chain = all_jobs(compose(["task=[vt,needle_grid]", "measure.enabled=true"]))
    [report] = chain["report"]
    assert set(report.measurements.values()) == {job.output for job in chain["measure"]}
    grids = {job.records for job in chain["evaluate"] if job.task.name == "needle_grid"}
    assert {path for tasks in report.needle_grids.values() for path in tasks.values()} == grids


def test_there_is_one_job_per_model_task_and_method() -> None:
    chain = all_jobs(compose(["experiment=demo", "ratios=[0,0.5,0.8]"]))
    models, tasks, methods = 2, 3, 2
    assert {stage: len(some) for stage, some in chain.items()} == {
        "calibrate": models,
        "profile": models,
        "curves": models,
        "allocate": models * methods,
        "evaluate": models * tasks,
        "merge": 0,
        "measure": models,
        "summarize": 1,
        "validate": models,
        "claims": 1,
        "report": 1,
        "page": 1,
        "track": 1,
    }
    assert [len(job.budgets) for job in chain["allocate"]] == [2] * (models * methods)
    assert [len(job.cells) for job in chain["evaluate"]] == [2 * methods] * (models * tasks)


@given(n_samples=st.integers(0, 300), n_shards=st.integers(1, 40))
def test_shards_are_all_samples_in_order_and_of_about_equal_size(n_samples: int, n_shards: int) -> None:
    shards = [jobs.Shard(index=index, of=n_shards).samples(n_samples) for index in range(n_shards)]
    assert [sample for shard in shards for sample in shard] == list(range(n_samples))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


class TestWhatAChangeReaches:
    """A rule runs again where its job changes, so a job holds nothing that it does not need."""

    @staticmethod
    def reached(*overrides: str) -> set[str]:
        before, after = all_jobs(compose()), all_jobs(compose(overrides))
        return {stage for stage in STAGES if before[stage] != after[stage]}

    def test_a_ratio_profiles_nothing_again(self) -> None:
        assert self.reached("ratios=[0,0.3,0.5,0.6,0.7,0.8,0.9]") == {
            "allocate",
            "evaluate",
            "measure",
            "validate",
            "report",
            "page",
            "track",
        }

    @settings(max_examples=10)
    @given(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True))
    def test_no_set_of_ratios_does(self, percents: list[int]) -> None:
        assert not self.reached(f"ratios={[percent / 100 for percent in percents]}") & {"calibrate", "profile"}

    def test_evaluation_settings_allocate_nothing_again(self) -> None:
        assert self.reached("evaluate.seed=7", "evaluate.n_samples=8") == {"evaluate"}

    def test_measuring_is_apart_from_answering(self) -> None:
        assert self.reached("measure.batch=4") == {"measure"}

    def test_the_decoding_is_measured_too(self) -> None:
        assert self.reached("evaluate.decoding=fixed") == {"evaluate", "measure"}
        assert "decoding" not in all_jobs(compose())["measure"][0].model_dump_json()  # measured before it was a field

    def test_summary_settings_evaluate_nothing_again(self) -> None:
        assert self.reached("summary.confidence=0.9") == {"summarize", "claims"}

    def test_bars_evaluate_nothing_again(self) -> None:
        assert self.reached("claims.lossless_at=[0.5]") == {"claims"}

    def test_curves_are_read_where_they_are_needed_alone(self) -> None:
        assert self.reached("curves.levels=[0,0.5]") == {"curves"}
        config = compose(["allocator=[uniform,baklava,baklava_measured]"])
        assert [job.curves is not None for job in all_jobs(config)["allocate"]] == [False, False, True]

    def test_what_jobs_ask_of_a_cluster_changes_none(self) -> None:
        assert self.reached("resources.evaluate.mem_mb=64000", "resources.profile.runtime=5") == set()

    def test_search_settings_profile_nothing_again(self) -> None:
        assert self.reached("search.seed=1") == {"allocate"}

    def test_tracking_computes_nothing_again(self) -> None:
        assert self.reached("tracking=none") == {"track"}

    def test_another_task_leaves_other_tasks_alone(self) -> None:
        before = all_jobs(compose(["task=[vt]"]))["evaluate"]
        after = all_jobs(compose(["task=[vt,niah_multivalue]"]))["evaluate"]
        assert before[0] in after

    def test_another_model_leaves_other_models_alone(self) -> None:
        before, after = all_jobs(compose(["model=tiny-llama"])), all_jobs(compose(["model=[tiny-qwen2,tiny-llama]"]))
        for stage in ("calibrate", "profile", "allocate", "evaluate"):
            assert all(job in after[stage] for job in before[stage])


class TestCheck:
    def test_a_wrong_job_is_one_line_that_names_the_key(self) -> None:
        job = all_jobs(compose())["profile"][0].model_dump(mode="json")
        with pytest.raises(UserError, match=r"^--job: profile\.window: .* \(got 7\)$"):
            check(jobs.ProfileJob, {**job, "profile": {**job["profile"], "window": 7}}, source="--job")

    def test_a_job_of_another_stage_is_refused(self) -> None:
        job = all_jobs(compose())["profile"][0].model_dump(mode="json")
        with pytest.raises(UserError, match=r"^--job: calibration: Field required; and 2 more$"):
            check(jobs.CalibrateJob, job, source="--job")


def test_variables_of_a_chat_template_are_no_reason_to_profile_again() -> None:
    settings = ["experiment=demo", "measure.enabled=true", "validate.enabled=true"]
    plain = all_jobs(compose(settings))
    thinking = all_jobs(compose([*settings, "+models.tiny-llama.chat_template_kwargs={enable_thinking: false}"]))
    assert [stage for stage in STAGES if plain[stage] != thinking[stage]] == ["evaluate", "page"]


def test_constraints_that_constrain_nothing_leave_jobs_as_they_are() -> None:
    plain = {"name": "a", "family": "uniform"}
    assert AllocatorConfig(**plain, granularity="head", page=1).model_dump() == plain
    assert AllocatorConfig(**plain, granularity="group:4", page=16).build() == Uniform(
        name="a", granularity="group:4", page=16
    )
    with pytest.raises(ValueError, match="granularity"):
        AllocatorConfig(**plain, granularity="group:0")
