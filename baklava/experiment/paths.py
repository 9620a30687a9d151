"""Where every file of an experiment lives; the workflow's rules and the commands share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


def ratio_name(ratio: float) -> str:
    """A ratio as it appears in file names: 0.7, not 0.70."""
    return f"{ratio:g}"


@dataclass(frozen=True)
class ExperimentPaths:
    """Paths below `results/<experiment>/`. Arguments may be names or Snakemake wildcards in braces."""

    results: Path
    experiment: str

    @property
    def root(self) -> Path:
        return self.results / self.experiment

    @property
    def experiment_json(self) -> Path:
        """The experiment that the folder belongs to, and its settings."""
        return self.root / "experiment.json"

    def prompts(self, model: str) -> Path:
        return self.root / "calibration" / f"{model}.json"

    def profile(self, model: str) -> Path:
        return self.root / "profile" / f"{model}.safetensors"

    def curves(self, model: str, eviction: str) -> Path:
        return self.root / "curves" / model / f"{eviction}.safetensors"

    @property
    def budgets_folder(self) -> Path:
        return self.root / "budgets"

    def budgets(self, model: str, allocator: str, eviction: str, ratio: float | str) -> Path:
        ratio = ratio if isinstance(ratio, str) else ratio_name(ratio)
        return self.budgets_folder / model / allocator / eviction / f"{ratio}.json"

    def plan(self, model: str, allocator: str, eviction: str, ratio: float) -> Path:
        return self.root / "plan" / model / allocator / eviction / f"{ratio_name(ratio)}.json"

    def search_trace(self, model: str, allocator: str, eviction: str) -> Path:
        return self.root / "search" / model / allocator / f"{eviction}.parquet"

    def search_losses(self, model: str, allocator: str, eviction: str) -> Path:
        """Measured losses, which outlive a killed search; not an output of the workflow."""
        return self.search_trace(model, allocator, eviction).with_suffix(".losses")

    def search_cost(self, model: str, allocator: str, eviction: str) -> Path:
        """What the search took; not an output of the workflow, as it differs from run to run."""
        return self.search_trace(model, allocator, eviction).with_suffix(".cost.json")

    def records(self, model: str, task: str) -> Path:
        return self.root / "records" / model / f"{task}.parquet"

    def timings(self, model: str, task: str) -> Path:
        """Seconds per record; they differ from run to run, so they have a file of their own."""
        return self.root / "timings" / model / f"{task}.parquet"

    def store(self, model: str, task: str) -> Path:
        """Finished answers, which outlive changes of the experiment; not an output of the workflow."""
        return self.root / "store" / model / f"{task}.lines"

    @staticmethod
    def shard(merged: Path, index: int | str, of: int) -> Path:
        """One of `of` shards of a file of records or timings, until they are merged."""
        return merged.with_suffix("") / f"{index}-of-{of}{merged.suffix}"

    def measurements(self, model: str) -> Path:
        return self.root / "measurements" / f"{model}.parquet"

    def validation(self, model: str, what: str) -> Path:
        return self.root / "validation" / model / f"{what}.parquet"

    @property
    def summary_csv(self) -> Path:
        return self.root / "summary.csv"

    @property
    def summary_parquet(self) -> Path:
        return self.root / "summary.parquet"

    @property
    def headline(self) -> Path:
        return self.root / "headline.json"

    @property
    def timings_csv(self) -> Path:
        return self.root / "timings.csv"

    @property
    def claims(self) -> Path:
        return self.root / "claims.json"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    def figure(self, name: str) -> Path:
        return self.figures / f"{name}.svg"

    @property
    def page(self) -> Path:
        return self.root / "report.html"

    @property
    def headline_table(self) -> Path:
        return self.root / "headline.html"

    @property
    def snakemake_report(self) -> Path:
        """Snakemake's own report; `make report` makes it."""
        return self.root / "snakemake-report.html"

    @property
    def tracked(self) -> Path:
        return self.root / "tracked.json"

    def job(self, stage: str, content: str) -> Path:
        """A job of the workflow, which its command reads; `content` tells one from another."""
        return self.root / "jobs" / f"{stage}-{content}.json"

    def log(self, *parts: str) -> Path:
        *folders, name = parts
        return self.root.joinpath("logs", *folders, f"{name}.log")
