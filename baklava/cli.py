"""The command line: one command per stage, each taking Hydra overrides."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from baklava.errors import UserError


@dataclass(frozen=True)
class Stage:
    """A stage of the chain: its job class and the function that runs one.

    Of stages that load a model, the field of the job with the output beside which the use of the machine is kept.
    """

    job: str
    run: str
    summary: str
    output: str | None = None


STAGES = {
    "calibrate": Stage("CalibrateJob", "baklava.calibration.run:calibrate", "write the calibration prompts", "prompts"),
    "profile": Stage(
        "ProfileJob", "baklava.profiling.run:profile", "estimate the importance of every KV cache", "output"
    ),
    "curves": Stage(
        "CurvesJob",
        "baklava.profiling.loss_curves:measure_curves",
        "measure the loss as each KV cache alone keeps less",
        "output",
    ),
    "allocate": Stage("AllocateJob", "baklava.search.run:allocate", "search and write the memory budgets", "trace"),
    "evaluate": Stage(
        "EvaluateJob", "baklava.evaluation.run:evaluate", "answer the tasks with every budget", "records"
    ),
    "merge": Stage("MergeJob", "baklava.evaluation.merge:merge", "put the records of shards together"),
    "measure": Stage(
        "MeasureJob", "baklava.evaluation.speed:measure", "memory and speed of every budget by itself", "output"
    ),
    "validate": Stage(
        "ValidateJob", "baklava.validation.run:validate", "judge the profile and every estimator's ranking", "regret"
    ),
    "summarize": Stage(
        "SummarizeJob", "baklava.analysis.summary:summarize", "one row per cell, and the headline figures"
    ),
    "claims": Stage("ClaimsJob", "baklava.claims.run:claims", "judge the bars that an allocator is held to"),
    "report": Stage("ReportJob", "baklava.report.plots:report", "draw the figures"),
    "page": Stage("PageJob", "baklava.report.page:page", "write one page with interactive figures"),
    "track": Stage("TrackJob", "baklava.tracking.track:track", "project the results into MLflow"),
}


def _load(reference: str) -> object:
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


# Exit status where some of the work failed and the rest was done.
PARTLY_FAILED = 3


def _run_stage(name: str, overrides: Sequence[str], job: str | None, changes: Mapping[str, object]) -> int:
    """Run a stage's jobs, with changes to their fields; returns how many pieces of work failed without ending it."""
    from baklava.experiment import jobs
    from baklava.experiment.ownership import claim_results
    from baklava.experiment.paths import ExperimentPaths
    from baklava.experiment.schema import check, compose
    from baklava.preflight import check_ready
    from baklava.system.malloc import keep_freed_memory

    stage = STAGES[name]
    job_class = getattr(jobs, stage.job)
    if job is not None:
        import json

        if overrides:
            raise UserError(f"--job: a job is complete, so it takes no override such as {overrides[0]!r}")
        try:
            values = json.loads(job)
        except (ValueError, RecursionError) as error:
            raise UserError(f"--job: not JSON ({error})") from None
        work = [check(job_class, values, source="--job")]
    else:
        config = compose(overrides)
        check_ready(config, overrides, models=stage.output is not None)
        claim_results(config, overrides)
        work = list(getattr(jobs, f"{name}_jobs")(config, ExperimentPaths(config.results, config.name)))
    run: Callable[[object], int | None] = _load(stage.run)  # type: ignore[assignment]
    work = [one.model_copy(update=changes) for one in work]
    if stage.output is not None:
        keep_freed_memory()
    with _gpu_of(work) as gpu:
        if gpu is not None:
            print(f"baklava {name}: GPU {gpu}", file=sys.stderr, flush=True)
        return sum(_run_recorded(run, one, stage.output) or 0 for one in work)


def _run_recorded(run: Callable[[object], int | None], job: object, output: str | None) -> int | None:
    if output is None:
        return run(job)
    from baklava.system.usage import recorded, usage_file

    with recorded(usage_file(getattr(job, output))):
        return run(job)


def _gpu_of(work: Sequence[object]) -> AbstractContextManager[str | None]:
    """Hold the GPU that jobs with a model compute on, if any; one for all of them, as CUDA is initialised once."""
    from baklava.system.devices import own_gpu

    models = {one.model.name: one.model.device for one in work if hasattr(one, "model")}
    gpus = {device.replace("auto", "cuda") for device in models.values()} - {"cpu"}
    if len(gpus) > 1:
        raise UserError(
            f"device: {models}: one command computes on one GPU; run it for one model at a time, model=NAME"
        )
    return own_gpu(gpus.pop() if gpus else "cpu")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="baklava",
        description="Decide how much memory each KV cache of an LLM deserves.",
        epilog="Every command takes Hydra overrides, e.g. `baklava profile model=tiny-llama calibration.length=512`. "
        "The whole chain at once: `snakemake --cores all`.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, stage in STAGES.items():
        command = commands.add_parser(name, help=stage.summary, description=stage.summary.capitalize() + ".")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides of conf/config.yaml")
        command.add_argument("--job", metavar="JSON", help="run this one job; how the workflow calls the command")
        if name == "track":
            command.add_argument("--rebuild", action="store_true", help="make all runs again, not only what changed")
    plan = commands.add_parser(
        "plan",
        help="the ratio and the budgets that fit a memory cap",
        description="Work out what weights, activations and KV caches take, and the ratio that fits a memory cap: "
        "`baklava plan model=llama-3-8b plan.gpu_memory=24GiB plan.context=32768 plan.batch=8`. With "
        "plan.allocator=NAME and a profile, write the budgets for it.",
    )
    plan.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides; see `plan` in config.yaml")
    table = commands.add_parser("table", help="print the results of an experiment", description="Print the results.")
    table.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    table.add_argument("--format", choices=("text", "markdown", "latex"), default="text", help="default: text")
    score = commands.add_parser(
        "score",
        help="score predictions made elsewhere",
        description="Score predictions made elsewhere: one line with the metric's name and the mean score in [0, 1].",
    )
    score.add_argument("--task", required=True, metavar="NAME", help="a file of conf/task, e.g. longbench/hotpotqa")
    score.add_argument(
        "--predictions",
        required=True,
        type=Path,
        metavar="FILE",
        help="JSONL with the fields prediction and answers (a list); all_classes for the metric classification; "
        "length for the classes of length of LongBench-E",
    )
    train = commands.add_parser(
        "train-reference", help="train a reference model", description="Train a reference model."
    )
    train.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="model=NAME, then overrides of conf/training/NAME.yaml"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on standard error and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        if options.command in STAGES:
            changes: dict[str, object] = {"rebuild": True} if getattr(options, "rebuild", False) else {}
            n_failed = _run_stage(options.command, options.overrides, options.job, changes)
            if n_failed:
                print(f"baklava {options.command}: {n_failed} samples failed; the others are done", file=sys.stderr)
                return PARTLY_FAILED
        elif options.command == "table":
            _load("baklava.report.table:print_table")(options.overrides, options.format)  # type: ignore[operator]
        elif options.command == "plan":
            _load("baklava.search.plan:plan")(options.overrides)  # type: ignore[operator]
        elif options.command == "score":
            _load("baklava.evaluation.score:score")(options.task, options.predictions)  # type: ignore[operator]
        else:
            _load("baklava.training.command:train_reference")(options.overrides)  # type: ignore[operator]
    except UserError as error:
        print(f"baklava {options.command}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, no space, ...
        print(f"baklava {options.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"baklava {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0
