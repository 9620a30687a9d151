# Shared by all rules: the checked configuration, the paths, and what this machine offers.
import atexit
import math
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable
from functools import cache
from itertools import product
from pathlib import Path

from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake.jobs import Job as SnakemakeJob
from snakemake.logging import logger

from baklava.cli import main as baklava
from baklava.errors import UserError, is_refusal
from baklava.experiment.jobs import VALIDATION, Job
from baklava.experiment.ownership import claim_results, describe_replaced
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.snakemake_config import overrides_of, packed
from baklava.experiment.stages import STAGES
from baklava.experiment.threads import threads_of
from baklava.models.files import model_fingerprint
from baklava.preflight import planned_experiment
from baklava.report.figure_list import list_figures
from baklava.system.devices import JOBS_PER_GPU, list_visible_devices
from baklava.tracking.address import fingerprint_store

# `--config experiment=NAME overrides="KEY=VALUE ..."`. A mistake ends the run with one line; an exception of Snakemake's
# would come with lines of this file.
typed = list(workflow.config_settings.config_args or ())
try:
    overrides = overrides_of(config, typed, workflow.config_settings.config)
    experiment = planned_experiment(overrides)
except (UserError, OSError) as error:
    raise SystemExit(f"error: {error}") from None
workflow.config_settings.config_args = packed(typed, overrides)  # for jobs on a cluster, which read this file again
paths = ExperimentPaths(experiment.results, experiment.name)
if workflow.is_main_process and (replaced := describe_replaced(experiment)):
    print(replaced, file=sys.stderr)
targets = []  # what `snakemake` makes when nothing else is asked for; the rules' files add theirs


def any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in names)


wildcard_constraints:
    model=any_of(experiment.models),
    task=any_of(experiment.tasks),
    allocator=any_of(experiment.allocators),
    eviction=any_of(experiment.evictions),
    shard=r"\d+",


def job(stage: str, wildcards=None) -> Job:
    """The job of a stage that a rule's wildcards name."""
    names = {} if wildcards is None else dict(wildcards.items())
    return STAGES[stage].job_class.named(experiment, paths, names)


def job_file(stage: str) -> Callable:
    """The file with the same, which the command reads, written unless this is a dry run. Another job has another name."""

    def file(wildcards) -> str:
        needed = job(stage, wildcards)
        path = paths.job(stage, needed.fingerprint)
        if workflow.executor_plugin is not None and not (workflow.dryrun or workflow.touch or path.exists()):
            needed.save(path)
        return str(path)

    return file


def gpus(wildcards) -> int:
    """GPUs that a job takes that loads this model; none where there is none, here or on a cluster."""
    model = experiment.models[wildcards.model]
    return model.gpus if HAS_GPUS and model.device != "cpu" else 0


def gpus_of_search(wildcards) -> int:
    """The same for budgets: none where they follow from the profile, for which no model is loaded."""
    return gpus(wildcards) * experiment.allocators[wildcards.allocator].build().searches


def memory(stage: str) -> Callable:
    """What a job of this stage asks for in MB, more with every attempt: the last one may have died for want of it."""
    return lambda wildcards, attempt: attempt * experiment.resources_of(stage).mem_mb


def minutes(stage: str) -> int:
    """The same at every attempt: a job that asks for more than its partition grants would wait forever."""
    return experiment.resources_of(stage).runtime


def cpu_threads(stage: str) -> int:
    """CPU threads of a job of this stage. On a cluster, the profile says how many (set-threads)."""
    cores = workflow.resource_settings.cores
    return threads_of(stage, experiment, 1 if cores is None or workflow.remote_exec else cores)


@cache  # a model has many jobs
def fingerprint_of(model: str) -> str | None:
    return model_fingerprint(experiment.models[model])


def model_files(wildcards) -> str | None:
    """Stands for the files of the model, so that other weights make again what was made with them."""
    return fingerprint_of(wildcards.model)


def is_everything(asked) -> bool:
    """Whether the whole workflow was asked for, and not some targets or a part of the way to them."""
    return not (set(asked.targets) - {"all"} or asked.until or asked.omit_from or asked.batch)


def show_results() -> None:
    """End with the table, and with what the claims came to, where the whole workflow was asked for."""
    if is_everything(workflow.dag_settings):
        baklava(["table", str(paths.root)])
        if experiment.claims.enabled:
            print(paths.log("claims").read_text(encoding="utf-8"))


def show_results_anyway(record) -> bool:
    """A filter of Snakemake's log, which calls no `onsuccess` where it has nothing to do, but says so."""
    if record.msg == NOTHING_TO_BE_DONE_MSG and not workflow.dryrun:
        atexit.register(show_results)
    return True


logger.addFilter(show_results_anyway)

# Jobs find the `baklava` of the Python that runs Snakemake.
os.environ.update(PATH=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]))

# A job that ended with one line for the user would end with it again: only other failures are retried.
SnakemakeJob.restart_times = property(lambda job: 0 if any(map(is_refusal, job.log)) else job.rule.restart_times)

# As many GPU jobs at once as there are devices, each on one of its own (baklava/system/devices.py), or as `--resources gpu=N`
# says, as the profile of a cluster does: a login node has no device, and the jobs that it submits do.
DEVICES = len(list_visible_devices())
HAS_GPUS = DEVICES > 0 or "gpu" in workflow.global_resources
if DEVICES > 0 and workflow.is_main_process:
    if "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", DEVICES)
    slots = workflow.global_resources["gpu"]
    os.environ[JOBS_PER_GPU] = str(max(1, math.ceil(getattr(slots, "value", slots) / DEVICES)))
