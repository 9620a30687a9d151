# Shared by all rules: the checked configuration, the paths, and what this machine offers.
import math
import os
import re
import sysconfig
from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path

from baklava.experiment import jobs
from baklava.experiment.schema import ExperimentConfig, compose
from baklava.system.devices import JOBS_PER_GPU, visible_devices
from baklava.errors import UserError
from baklava.report.figure_list import report_figures
from baklava.experiment.paths import ExperimentPaths
from baklava.models.files import model_fingerprint
from baklava.experiment.ownership import claim_results
from baklava.preflight import check_patterns, check_ready
from baklava.experiment.snakemake_config import overrides_of, packed
from baklava.tracking.address import store_fingerprint


def composed_experiment(settings: dict[str, object]) -> tuple[ExperimentConfig, list[str]]:
    """The experiment, and the overrides, that `--config experiment=NAME overrides="KEY=VALUE ..."` asks for.

    A mistake ends the run with one line; an exception of Snakemake's would come with lines of this file.
    """
    try:
        overrides = overrides_of(settings, typed, workflow.config_settings.config)
        composed = compose(overrides)
        check_ready(composed, overrides)
        check_patterns(composed.results)
        return composed, overrides
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in names)


def gpus(wildcards) -> int:
    """GPUs that a job of this model takes; none where there is none."""
    return int(DEVICES > 0 and experiment.models[wildcards.model].device != "cpu")


@cache  # a model has many jobs
def fingerprint_of(model: str) -> str | None:
    return model_fingerprint(experiment.models[model])


def model_files(wildcards) -> str | None:
    """Stands for the files of the model, so that other weights make again what was made with them."""
    return fingerprint_of(wildcards.model)


def curves_of(wildcards) -> list[Path]:
    """The measured curves, where the allocator needs them."""
    method = (wildcards.model, wildcards.allocator, wildcards.eviction)
    curves = jobs.AllocateJob.of(experiment, layout, *method).curves
    return [] if curves is None else [curves]


def evaluate_job(wildcards):
    """The job of a model and task, or of one of its shards."""
    return jobs.EvaluateJob.of(
        experiment, layout, wildcards.model, wildcards.task, index=int(wildcards.get("shard", 0))
    )


def merge_job(wildcards):
    return jobs.MergeJob.of(experiment, layout, wildcards.model, wildcards.task)


def validate_job(wildcards):
    return jobs.ValidateJob.of(experiment, layout, wildcards.model)


def whole(job):
    """The parameter of a rule without wildcards; as a text it would be searched for braces."""
    return lambda wildcards: job.model_dump_json()


def memory(stage: str):
    """What a job of this stage asks for in MB, more with every attempt: the last one may have died for want of it."""
    return lambda wildcards, attempt: attempt * getattr(experiment.resources, stage).mem_mb


def minutes(stage: str) -> int:
    """The same at every attempt: a job that asks for more than its partition grants would wait forever."""
    return getattr(experiment.resources, stage).runtime


typed = list(workflow.config_settings.config_args or ())
experiment, overrides = composed_experiment(config)
workflow.config_settings.config_args = packed(typed, overrides)  # for jobs on a cluster, which read this file again
layout = ExperimentPaths(experiment.results, experiment.name)

# Jobs find the `baklava` of the Python that runs Snakemake.
os.environ.update(PATH=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]))

# As many GPU jobs at once as there are devices, each on one of its own (baklava/system/devices.py), or as `--resources gpu=N`
# says. Without any device there is no limit, so a login node can submit GPU jobs.
DEVICES = len(visible_devices())
if DEVICES > 0 and workflow.is_main_process:
    if "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", DEVICES)
    slots = workflow.global_resources["gpu"]
    os.environ[JOBS_PER_GPU] = str(max(1, math.ceil(getattr(slots, "value", slots) / DEVICES)))


wildcard_constraints:
    model=any_of(experiment.models),
    task=any_of(experiment.tasks),
    allocator=any_of(experiment.allocators),
    eviction=any_of(experiment.evictions),
    shard=r"\d+",


# Every figure of the report; each is written as SVG and PNG.
FIGURES = report_figures(experiment)

targets = [layout.summary_csv, layout.headline, layout.page, *(layout.figure(figure.name) for figure in FIGURES)]
if experiment.claims.enabled:
    targets += [layout.claims, layout.claims.with_suffix(".md")]
if experiment.validation.enabled:
    targets += [layout.validation(model, "regret") for model in experiment.models]
if experiment.measure.enabled:
    targets += [layout.measurements(model) for model in experiment.models]
if experiment.tracking.enabled:
    targets.append(layout.tracked)
