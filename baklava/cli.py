"""The command line: one command per stage, each taking Hydra overrides."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from baklava import __version__
from baklava.errors import UserError
from baklava.experiment.stages import STAGES, load

if TYPE_CHECKING:
    from baklava.experiment.jobs import Job

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_SETTINGS = "Hydra overrides of conf/config.yaml; or a results folder alone, e.g. results/demo"
# Exit status where some of the work failed and the rest was done.
PARTLY_FAILED = 3


def _run_stage(name: str, overrides: Sequence[str], job_json: str | None, changes: Mapping[str, object]) -> int:
    """Run a stage's jobs, with changes to their fields; returns how many samples failed without ending a job."""
    from baklava.experiment.compose import check
    from baklava.experiment.from_folder import experiment_of
    from baklava.experiment.ownership import claim_results, describe_replaced
    from baklava.experiment.paths import ExperimentPaths
    from baklava.preflight import check_ready
    from baklava.system.malloc import keep_freed_memory

    stage = STAGES[name]
    job_class = stage.job_class
    if job_json is not None:
        if overrides:
            raise UserError(f"--job: a job is complete, so it takes no override such as {overrides[0]!r}")
        jobs = [check(job_class, _parsed(job_json), source="--job")]
    else:
        config, overrides = experiment_of(overrides)
        check_ready(config, overrides, models=job_class.loads_model())
        if replaced := describe_replaced(config):
            print(f"baklava {name}: {replaced}", file=sys.stderr, flush=True)
        claim_results(config, overrides)
        jobs = list(job_class.all(config, ExperimentPaths(config.results, config.name)))
    run: Callable[[Job], int | None] = load(stage.run)
    if job_class.loads_model():
        keep_freed_memory()
    with _gpu_of(jobs) as gpu:
        if gpu is not None:
            print(f"baklava {name}: GPU {gpu}", file=sys.stderr, flush=True)
        return sum(_run_recorded(run, job.model_copy(update=changes)) or 0 for job in jobs)


def _parsed(job: str) -> object:
    """The job in a file, or written out. A text of JSON ends otherwise than the name of a file."""
    import json

    if job.endswith(".json") and not Path(job).is_file():
        raise UserError(f"--job: {job}: no such job; the workflow writes it when it runs")
    try:
        return json.loads(Path(job).read_text(encoding="utf-8") if job.endswith(".json") else job)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--job: not JSON ({error})") from None


def _run_recorded(run: Callable[[Job], int | None], job: Job) -> int | None:
    if job.usage_beside is None:
        return run(job)
    from baklava.system.usage import record_usage, usage_path

    with record_usage(usage_path(getattr(job, job.usage_beside))):
        return run(job)


def _gpu_of(jobs: Sequence[Job]) -> AbstractContextManager[str | None]:
    """Hold the GPUs that jobs with a model compute on, if any; the same for all, as CUDA is initialised once."""
    from baklava.system.devices import reserve_gpu

    models = {job.model.name: job.model.device for job in jobs if hasattr(job, "model")}
    gpus = {device.replace("auto", "cuda") for device in models.values()} - {"cpu"}
    if len(gpus) > 1:
        raise UserError(
            f"device: {models}: one command computes on one GPU; run it for one model at a time, model=NAME"
        )
    n = max((job.model.gpus for job in jobs if hasattr(job, "model")), default=1)
    return reserve_gpu(gpus.pop() if gpus else "cpu", n)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="baklava",
        description="Decide how much memory each KV cache of an LLM deserves.",
        epilog="Every command takes Hydra overrides, e.g. `baklava profile name=mine model=tiny-llama "
        "calibration.length=512`. Results go to results/<name>/. "
        "The whole chain at once: `baklava run experiment=demo`.",
    )
    parser.add_argument("--version", action="version", version=f"baklava {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_stages(commands)
    _add_other_commands(commands)
    _add_conversions(commands)
    return parser


def _add_stages(commands: _Commands) -> None:
    for name, stage in STAGES.items():
        command = commands.add_parser(name, help=stage.summary, description=stage.summary.capitalize() + ".")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=_SETTINGS)
        command.add_argument("--job", metavar="FILE", help="run this one job; how the workflow calls the command")
        command.add_argument("--log", metavar="FILE", type=Path, help="write what it says there, in whole lines")
        if name == "track":
            command.add_argument("--rebuild", action="store_true", help="make all runs again, not only what changed")


def _add_other_commands(commands: _Commands) -> None:
    """Commands that are no stage; each carries the function that runs it."""
    run = commands.add_parser(
        "run",
        help="run the workflow: every stage of an experiment",
        usage="baklava run [-h] [KEY=VALUE ...] [-- SNAKEMAKE OPTIONS]",
        description="Run the workflow on all cores, by default with experiment=demo. What comes after -- goes to "
        "Snakemake: `baklava run experiment=demo -- --dry-run`, `... -- --profile profiles/slurm`.",
    )
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides of conf/config.yaml")
    run.set_defaults(
        run=lambda options: load("baklava.experiment.run_workflow:run_workflow")(options.overrides, options.snakemake)
    )
    plan = commands.add_parser(
        "plan",
        help="the ratio and the budgets that fit a memory cap",
        description="Work out what weights, activations and KV caches take, and the ratio that fits a memory cap: "
        "`baklava plan model=llama-3-8b plan.gpu_memory=24GiB plan.context=7k plan.batch=16`. With "
        "plan.allocator=NAME, name the experiment's budgets that fit, or make some.",
    )
    plan.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides; see `plan` in config.yaml")
    plan.set_defaults(run=lambda options: load("baklava.search.plan:plan")(options.overrides))
    table = commands.add_parser("table", help="print the results of an experiment", description="Print the results.")
    table.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=_SETTINGS)
    table.add_argument("--format", choices=("text", "markdown", "latex"), default="text", help="default: text")
    table.set_defaults(run=lambda options: load("baklava.report.table:print_table")(options.overrides, options.format))
    new = commands.add_parser(
        "new",
        help="keep an experiment's settings in a file",
        description="Write settings to conf/experiment/NAME.yaml, for `experiment=NAME` from then on: "
        "`baklava new mine model=my-model evaluate.length=8k`.",
    )
    new.add_argument("name", metavar="NAME", help="of the experiment, its file and its results folder")
    new.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="its settings; experiment=OTHER begins with those"
    )
    new.set_defaults(
        run=lambda options: load("baklava.experiment.new:write_experiment")(options.name, options.overrides)
    )
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
    score.set_defaults(
        run=lambda options: load("baklava.evaluation.score_predictions:score")(options.task, options.predictions)
    )
    train = commands.add_parser(
        "train-reference", help="train a reference model", description="Train a reference model."
    )
    train.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="model=NAME, then overrides of conf/training/NAME.yaml"
    )
    train.set_defaults(run=lambda options: load("baklava.training.command:train_reference")(options.overrides))


def _add_conversions(commands: _Commands) -> None:
    """Budgets from and to the files of other projects."""
    imports = commands.add_parser(
        "import",
        help="make budgets of another project's file",
        description="Read budgets from another project's file: `baklava import gates.tsv --from duo --ratio 0.5 "
        "--context 32768 --output budgets.json`. docs/deploy.md says what each format needs.",
    )
    imports.add_argument("file", type=Path, metavar="FILE")
    imports.add_argument(
        "--from", required=True, dest="format", metavar="FORMAT", help="json, duo, compaction, tangram, lu-kv"
    )
    imports.add_argument("--ratio", type=float, help="fraction of the KV entries that is removed")
    imports.set_defaults(
        run=lambda options: load("baklava.allocation.formats.convert:import_budgets")(
            options.file, options.format, options.output, _format_options(options, "ratio")
        )
    )
    export = commands.add_parser(
        "export",
        help="write budgets for another project",
        description="Write budgets for a server or another project, and say what its format cannot express: "
        "`baklava export --budgets 0.7.json --to trtllm-windows --context 32768 --output windows.json`.",
    )
    export.add_argument("--budgets", required=True, type=Path, metavar="FILE")
    export.add_argument(
        "--to",
        required=True,
        dest="format",
        metavar="FORMAT",
        help="json, duo, compaction, tangram, trtllm-windows, vllm-layer-types, kvpress",
    )
    export.add_argument(
        "--check",
        nargs="*",
        metavar="KEY=VALUE",
        help="answer samples with the budgets and with what the format makes of them, and print both scores; e.g. "
        "--check model=tiny-llama task=vt evaluate.n_samples=32",
    )
    export.set_defaults(run=_export)
    for command in (imports, export):
        command.add_argument("--output", required=True, type=Path, metavar="OUT")
        command.add_argument("--context", type=int, metavar="TOKENS", help="where windows are numbers of tokens")
        command.add_argument("--sinks", type=int, metavar="TOKENS", help="first tokens that stay")
        command.add_argument("--window", type=int, metavar="TOKENS", help="last tokens that stay")


def _export(options: argparse.Namespace) -> None:
    given = (options.budgets, options.format, options.output, _format_options(options))
    if options.check is None:
        load("baklava.allocation.formats.convert:export_budgets")(*given)
    else:
        load("baklava.validation.rounding:export_checked")(*given, options.check)


def _format_options(options: argparse.Namespace, *more: str) -> object:
    names = (*more, "context", "sinks", "window")
    return load("baklava.allocation.formats:Options")(**{name: getattr(options, name) for name in names})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on standard error and exit status 2."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    end = typed.index("--") if typed[:1] == ["run"] and "--" in typed else len(typed)
    options = _parser().parse_args(typed[:end], argparse.Namespace(snakemake=typed[end + 1 :], log=None))
    if options.log is None:
        return _run(options)
    from baklava.system.job_log import last_lines, output_to

    with output_to(options.log):
        try:
            status = _run(options)
        except Exception:
            traceback.print_exc()
            status = 1
    if status:
        print(last_lines(options.log), file=sys.stderr)
    return status


def _run(options: argparse.Namespace) -> int:
    try:
        if options.command in STAGES:
            changes: dict[str, object] = {"rebuild": True} if getattr(options, "rebuild", False) else {}
            n_failed = _run_stage(options.command, options.overrides, options.job, changes)
            if n_failed:
                print(f"baklava {options.command}: {n_failed} samples failed; the others are done", file=sys.stderr)
                return PARTLY_FAILED
        else:
            options.run(options)
    except UserError as error:
        line = str(error).replace("\n", "\\n")  # of a file's name
        print(f"baklava {options.command}: error: {line}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, no space, ...
        print(f"baklava {options.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"baklava {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0
