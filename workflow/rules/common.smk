# Shared by all rules: the checked configuration, the paths, and what this machine offers.
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from baklava import jobs
from baklava.config import ExperimentConfig, compose
from baklava.errors import UserError
from baklava.figures import report_figures
from baklava.layout import Layout
from baklava.ownership import claim_results
from baklava.ready import check_ready


def composed_experiment(settings: dict[str, object]) -> tuple[ExperimentConfig, list[str]]:
    """The experiment, and the overrides, that `--config experiment=NAME overrides="KEY=VALUE ..."` asks for.

    A mistake ends the run with one line; an exception of Snakemake's would come with lines of this file.
    """
    unknown = sorted(set(settings) - {"experiment", "overrides"})
    if unknown:
        raise SystemExit(f'error: --config {unknown[0]}: known keys are experiment and overrides="KEY=VALUE ..."')
    # At the spaces before each KEY=, so that a value may hold spaces too.
    some = re.split(r"\s+(?=~|\+*[\w.@/-]+=)", str(settings.get("overrides") or "").strip())
    overrides = [f"experiment={settings.get('experiment', 'demo')}", *filter(None, some)]
    try:
        composed = compose(overrides)
        check_ready(composed, overrides)
        return composed, overrides
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in names)


def cuda_devices() -> int:
    """How many CUDA devices jobs on this machine see; asking torch would cost seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return sum(device.strip() not in ("", "-1") for device in visible.split(","))
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def gpus(wildcards) -> int:
    """GPUs that a job of this model takes; none where there is none."""
    return int(DEVICES > 0 and experiment.models[wildcards.model].device != "cpu")


experiment, overrides = composed_experiment(config)
layout = Layout(experiment.results, experiment.name)

# Jobs find the `baklava` of the Python that runs Snakemake.
os.environ.update(PATH=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]))

# As many GPU jobs at once as there are devices. Without any there is no limit, so a login node can submit GPU jobs.
DEVICES = cuda_devices()
if DEVICES > 0 and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", DEVICES)


wildcard_constraints:
    model=any_of(experiment.models),
    task=any_of(experiment.tasks),
    allocator=any_of(experiment.allocators),
    eviction=any_of(experiment.evictions),


# Every figure of the report; each is written as SVG and PNG.
FIGURES = report_figures(experiment)

targets = [layout.summary_csv, layout.headline, layout.page, *(layout.figure(figure.name) for figure in FIGURES)]
if experiment.measure.enabled:
    targets += [layout.measurements(model) for model in experiment.models]
if experiment.tracking.enabled:
    targets.append(layout.tracked)
