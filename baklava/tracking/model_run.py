"""Makes the run of one model: the usage of its jobs, its profile and its figures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open

from baklava.analysis.headline import Headline
from baklava.errors import UserError
from baklava.evaluation.record_schema import FULL
from baklava.experiment.jobs import VALIDATION, TrackJob
from baklava.experiment.paths import ExperimentPaths
from baklava.system.usage import SUFFIX, read_usage
from baklava.tracking.run_spec import Dataset, MetricPoint, RunSpec, make_key

STAGE = "summarize"
MODEL_PREFIXES = ("importance_", "budgets_")  # of figures whose name ends with the model's name
STAGES_WITH_USAGE = ("calibration", "profile", "search", "records", "measurements")


def make_model_run(
    job: TrackJob,
    model: str,
    headline: Headline,
    *,
    cells: pd.DataFrame,
    figures: Iterable[Path],
    usage: Mapping[str, Path],
) -> RunSpec:
    """Make the run of a model; `cells` are its rows of the summary, `usage` the usage files of its jobs by name."""
    model_figures, profile = headline.models[model], job.profiles[model]
    profile_params, calibration = _read_profile_header(job, model, profile)
    scores = {f"score_full/{row['task']}": row["score"] for _, row in cells[cells["allocator"] == FULL].iterrows()}
    return RunSpec(
        key=make_key("model", model),
        name=model,
        tags={"stage": STAGE, "experiment": job.experiment, "model": model},
        params={
            "experiment": job.experiment,
            "model": model,
            **profile_params,
            **{name: str(getattr(headline, name)) for name in ("margin", "confidence", "n_bootstrap")},
        },
        metrics={"score_full": model_figures.full, "kv_bytes_full": model_figures.kv_bytes_full, **scores},
        curves=_usage_curves(usage),
        datasets=(calibration,),
        artifacts=(
            ("", job.headline),
            ("profile", profile),
            *((_artifact_folder(job.figures, path), path) for path in figures),
            *(("validation", path) for path in find_validation_figures(job, model)),
        ),
    )


def select_figures(model: str, folder: Path, figures: Iterable[Path]) -> list[Path]:
    """Select the model's own figures and those of all models: `name`, `name_<model>` or `name/<model>/...`."""
    own = {prefix + model for prefix in MODEL_PREFIXES}

    def wanted(name: str, *below: str) -> bool:
        return below[0] == model if below else name in own or not name.startswith(MODEL_PREFIXES)

    return [path for path in figures if wanted(*path.relative_to(folder).with_suffix("").parts)]


def find_validation_figures(job: TrackJob, model: str) -> list[Path]:
    """Find the figures of the validation, which not every experiment has."""
    paths = ExperimentPaths(job.results, job.experiment)
    figures = [paths.validation(model, what).with_suffix(kind) for what in VALIDATION for kind in (".svg", ".png")]
    return [path for path in figures if path.is_file()]


def _artifact_folder(folder: Path, path: Path) -> str:
    """The folder of an artifact, so that artifacts are arranged as the files are."""
    return path.parent.relative_to(folder.parent).as_posix()


def find_usage_files(root: Path) -> dict[str, dict[str, Path]]:
    """Find the usage files of each model's jobs, by the job's name such as `records.vt`."""
    files: dict[str, dict[str, Path]] = defaultdict(dict)
    for stage in STAGES_WITH_USAGE:
        for path in sorted((root / stage).rglob(f"[!.]*{SUFFIX}")):
            model, *rest = path.relative_to(root / stage).as_posix().removesuffix(SUFFIX).split("/")
            files[model][".".join((stage, *rest))] = path
    return dict(files)


def _usage_curves(files: Mapping[str, Path]) -> dict[str, tuple[MetricPoint, ...]]:
    """Usage of each job over time, under the prefix that MLflow shows as system metrics; steps are seconds."""
    curves: dict[str, list[MetricPoint]] = defaultdict(list)
    for job, path in files.items():
        rows = read_usage(path)
        for row in rows:
            seconds = round(row["time"] - rows[0]["time"])
            for name, value in row.items():
                if name != "time":
                    curves[f"system/{job}/{name}"].append(MetricPoint(seconds, value, row["time"]))
    return {name: tuple(points) for name, points in curves.items()}


def _read_profile_header(job: TrackJob, model: str, profile: Path) -> tuple[dict[str, str], Dataset]:
    """Read the parameters of the model, and its calibration prompts as a data set, from the header of its profile.

    This does not use `Profile.load`, which imports torch.
    """
    try:
        with safe_open(str(profile), framework="np") as file:
            header: dict[str, Any] = json.loads(file.metadata()["profile"])
            n_prompts = file.get_slice("layer_importance").get_shape()[0]
    except FileNotFoundError:
        raise UserError(f"{profile}: no such profile; make it with `baklava profile`") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{profile}: not a readable profile ({' '.join(str(error).split())})") from None
    params = {f"model_{name}": header[name] for name in ("path", "revision", "dtype") if header.get(name) is not None}
    params |= header.get("versions", {})
    prompts = Dataset(
        name=f"calibration {job.calibration}",
        digest=str(header.get("calibration", "unknown")),
        context="calibration",
        source=str(ExperimentPaths(job.results, job.experiment).prompts(model)),
        n_rows=n_prompts,
    )
    return {name: str(value) for name, value in params.items()}, prompts
