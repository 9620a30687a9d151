"""The run of one model: its curves over the ratio, what its jobs took, its profile and its figures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open

from baklava.analysis.headline import Headline, ModelFigures
from baklava.errors import UserError
from baklava.evaluation.records import FULL
from baklava.experiment.jobs import VALIDATION, TrackJob
from baklava.experiment.paths import ExperimentPaths
from baklava.system.usage import SUFFIX, read_usage
from baklava.tracking.cell_run import method_name
from baklava.tracking.run import Dataset, MetricPoint, Run, key_of

STAGE = "summarize"
OF_ONE_MODEL = ("importance_", "budgets_")  # figures whose name ends with the model's; folders have one of each model
STAGES_WITH_USAGE = ("calibration", "profile", "search", "records", "measurements")


def model_run(
    job: TrackJob,
    model: str,
    headline: Headline,
    *,
    cells: pd.DataFrame,
    figures: Iterable[Path],
    usage: Mapping[str, Path],
) -> Run:
    """`cells` are the model's rows of the summary, `usage` the files of its jobs by name."""
    numbers, profile = headline.models[model], job.profiles[model]
    about, calibration = _profiled(job, model, profile)
    lossless = {
        f"largest_lossless_ratio/{method_name(one.allocator, one.eviction)}": one.largest_lossless_ratio
        for one in numbers.methods
    }
    scores = {f"score_full/{row['task']}": row["score"] for _, row in cells[cells["allocator"] == FULL].iterrows()}
    return Run(
        key=key_of("model", model),
        name=model,
        tags={"stage": STAGE, "experiment": job.experiment, "model": model},
        params={
            "experiment": job.experiment,
            "model": model,
            **about,
            **{name: str(getattr(headline, name)) for name in ("margin", "confidence", "n_bootstrap")},
        },
        metrics={"score_full": numbers.full, "kv_bytes_full": numbers.kv_bytes_full, **scores, **lossless},
        curves={**_means(numbers), **_tasks(cells), **_usage(usage)},
        datasets=(calibration,),
        artifacts=(
            ("", job.headline),
            ("profile", profile),
            *((_beside(job.figures, path), path) for path in figures),
            *(("validation", path) for path in validation_figures(job, model)),
        ),
    )


def figures_of(model: str, folder: Path, figures: Iterable[Path]) -> list[Path]:
    """The model's own figures, and those of all models: `name`, `name_<model>` or `name/<model>/...` in the folder."""
    own = {prefix + model for prefix in OF_ONE_MODEL}

    def wanted(name: str, *below: str) -> bool:
        return below[0] == model if below else name in own or not name.startswith(OF_ONE_MODEL)

    return [path for path in figures if wanted(*path.relative_to(folder).with_suffix("").parts)]


def validation_figures(job: TrackJob, model: str) -> list[Path]:
    """Those that are there: an experiment need not validate its profiles."""
    layout = ExperimentPaths(job.results, job.experiment)
    paths = [layout.validation(model, what).with_suffix(kind) for what in VALIDATION for kind in (".svg", ".png")]
    return [path for path in paths if path.is_file()]


def _beside(folder: Path, path: Path) -> str:
    """Where an artifact goes, so that it lies among the others as its file does."""
    return path.parent.relative_to(folder.parent).as_posix()


def usage_files(root: Path) -> dict[str, dict[str, Path]]:
    """Per model, the files that its jobs left behind, by the job's name: `records.vt`."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for stage in STAGES_WITH_USAGE:
        for path in sorted((root / stage).rglob(f"[!.]*{SUFFIX}")):
            model, *rest = path.relative_to(root / stage).as_posix().removesuffix(SUFFIX).split("/")
            found[model][".".join((stage, *rest))] = path
    return dict(found)


def step(ratio: float) -> int:
    """Steps are whole numbers: percent of the entries removed."""
    return round(100 * ratio)


def _means(numbers: ModelFigures) -> dict[str, tuple[MetricPoint, ...]]:
    """Per method, the mean over the tasks with its interval, and the KV bytes, from the full cache on."""
    curves = {}
    for one in numbers.methods:
        method = method_name(one.allocator, one.eviction)
        columns = {
            "score": (numbers.full, [ratio.score for ratio in one.ratios]),
            "score_low": (numbers.full_low, [ratio.ci_low for ratio in one.ratios]),
            "score_high": (numbers.full_high, [ratio.ci_high for ratio in one.ratios]),
            "kv_bytes": (numbers.kv_bytes_full, [ratio.kv_bytes for ratio in one.ratios]),
        }
        steps = [0, *(step(ratio.ratio) for ratio in one.ratios)]
        for name, (full, values) in columns.items():
            curves[f"{name}/{method}"] = tuple(map(MetricPoint, steps, [full, *values]))
    return curves


def _tasks(cells: pd.DataFrame) -> dict[str, tuple[MetricPoint, ...]]:
    """Per task and method, the score."""
    curves = {}
    for task, rows in cells.groupby("task"):
        full = rows[rows["allocator"] == FULL]
        for (allocator, eviction), some in rows[rows["allocator"] != FULL].groupby(["allocator", "eviction"]):
            points = pd.concat([full, some]).sort_values("ratio")
            curves[f"score.{task}/{method_name(str(allocator), str(eviction))}"] = tuple(
                MetricPoint(step(ratio), score) for ratio, score in zip(points["ratio"], points["score"], strict=True)
            )
    return curves


def _usage(files: Mapping[str, Path]) -> dict[str, tuple[MetricPoint, ...]]:
    """What each job took over time, under the prefix that MLflow shows as system metrics; steps are seconds."""
    curves: dict[str, list[MetricPoint]] = defaultdict(list)
    for job, path in files.items():
        rows = read_usage(path)
        for row in rows:
            seconds = round(row["time"] - rows[0]["time"])
            for name, value in row.items():
                if name != "time":
                    curves[f"system/{job}/{name}"].append(MetricPoint(seconds, value, row["time"]))
    return {name: tuple(points) for name, points in curves.items()}


def _profiled(job: TrackJob, model: str, profile: Path) -> tuple[dict[str, str], Dataset]:
    """What the header of the profile says of the model, and the calibration prompts as a data set.

    The header is read without the library's own reader, which needs torch.
    """
    try:
        with safe_open(str(profile), framework="np") as file:
            header: dict[str, Any] = json.loads(file.metadata()["profile"])
            n_prompts = file.get_slice("layer_importance").get_shape()[0]
    except FileNotFoundError:
        raise UserError(f"{profile}: no such profile; make it with `baklava profile`") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{profile}: not a readable profile ({' '.join(str(error).split())})") from None
    about = {f"model_{name}": header[name] for name in ("path", "revision", "dtype") if header.get(name) is not None}
    about |= header.get("versions", {})
    prompts = Dataset(
        name=f"calibration {job.calibration}",
        digest=str(header.get("calibration", "unknown")),
        context="calibration",
        source=str(ExperimentPaths(job.results, job.experiment).prompts(model)),
        n_rows=n_prompts,
    )
    return {name: str(value) for name, value in about.items()}, prompts
