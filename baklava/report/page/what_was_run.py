"""What was run: the experiment in a few lines of names and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

import baklava
from baklava.analysis.headline import Headline
from baklava.analysis.results import describe_kept_whole, describe_repetitions
from baklava.analysis.verdict import describe_rule
from baklava.evaluation.record_schema import FULL
from baklava.experiment.jobs import PageJob
from baklava.importance.profile import Profile
from baklava.report.data.read_files import Results


def describe_run(job: PageJob, results: Results) -> list[tuple[str, list[str]]]:
    """Names, each with its values: models, tasks, methods, how they were evaluated, and with which software."""
    summary, headline, profiles = results.summary, results.headline, results.profiles
    compressed = summary[summary["allocator"] != FULL]
    methods = sorted(set((compressed["allocator"] + " / " + compressed["eviction"]).tolist()))
    return [
        ("models", [_model(job, name, profiles.get(name)) for name in headline.models]),
        ("tasks", [_task(str(task), rows) for task, rows in summary.groupby("task")]),
        ("methods", methods or ["none: full caches alone"]),
        ("compression ratios", [", ".join(f"{ratio:g}" for ratio in sorted(set(summary["ratio"])))]),
        (
            "evaluation",
            [_evaluation(summary), *describe_kept_whole(summary), *describe_repetitions(job.timings_csv)],
        ),
        ("statistics", [_statistics(headline)]),
        ("calibration", list(_calibration(profiles))),
        ("software", _software(profiles.values())),
    ]


def _model(job: PageJob, name: str, profile: Profile | None) -> str:
    config = job.models.get(name)
    parts = [name]
    if config is not None:
        parts.append(f"{config.path}, revision {config.revision}" if config.revision else config.path)
        parts.append(config.dtype)
    if profile is not None:
        n_layers, n_kv_heads = profile.n_layers, profile.n_kv_heads
        parts.append(f"{n_layers} layers x {n_kv_heads} KV heads = {n_layers * n_kv_heads} KV caches")
    return ", ".join(parts)


def _task(task: str, rows: pd.DataFrame) -> str:
    failed = f", up to {rows['n_failed'].max()} failed" if rows["n_failed"].any() else ""
    return f"{task}: {_span(rows['n'])} samples{failed}"


def _evaluation(summary: pd.DataFrame) -> str:
    protocols = ", ".join(sorted(set(summary["protocol"])))
    if "fixed" in set(summary["decoding"]):
        protocols += ", decoding fixed"
    return f"{protocols}, {_span(summary['length'])} tokens, seed {_span(summary['seed'])}"


def _statistics(headline: Headline) -> str:
    return (
        f"{100 * headline.confidence:g}% intervals from {headline.n_bootstrap} bootstrap draws; lossless up to: the "
        f"{describe_rule(headline.margin, headline.confidence)}"
    )


def _calibration(profiles: dict[str, Profile]) -> Iterator[str]:
    for model, profile in profiles.items():
        fingerprint = profile.meta.get("calibration")
        yield f"{model}: {len(profile.layer_importance)} prompts" + (f", {fingerprint}" if fingerprint else "")


def _software(profiles: Iterable[Profile]) -> list[str]:
    """This package, and the libraries that the profiles were made with."""
    versions = {f"{name} {number}" for profile in profiles for name, number in profile.meta.get("versions", {}).items()}
    return [", ".join([f"BaKlaVa {baklava.__version__}", *sorted(versions)])]


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"
