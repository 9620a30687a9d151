"""The jobs of `summarize` and `claims`."""

from __future__ import annotations

from pathlib import Path

from baklava.experiment.jobs.base import Job, all_records, all_timings
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.settings import ClaimsConfig, SummaryConfig


class SummarizeJob(Job):
    """Reduce the records of all models and tasks to one row per cell, and the headline figures."""

    summary: SummaryConfig
    records: tuple[Path, ...]
    timings: tuple[Path, ...]
    csv: Path
    parquet: Path
    headline: Path
    timings_csv: Path

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths) -> SummarizeJob:
        return cls(
            summary=config.summary,
            records=all_records(config, paths),
            timings=all_timings(config, paths),
            csv=paths.summary_csv,
            parquet=paths.summary_parquet,
            headline=paths.headline,
            timings_csv=paths.timings_csv,
        )


class ClaimsJob(Job):
    """Compare every allocator with the one under test, and check the criteria that it is held to."""

    claims: ClaimsConfig
    summary: SummaryConfig
    records: tuple[Path, ...]
    output: Path
    markdown: Path

    @classmethod
    def of(cls, config: ExperimentConfig, paths: ExperimentPaths) -> ClaimsJob:
        return cls(
            claims=config.claims,
            summary=config.summary,
            records=all_records(config, paths),
            output=paths.claims,
            markdown=paths.claims.with_suffix(".md"),
        )
