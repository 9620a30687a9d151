"""`baklava table`: the results of an experiment as a short table on the terminal."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from baklava.analysis.headline import Headline, ModelFigures, RatioFigures
from baklava.analysis.results import describe_kept_whole, describe_repetitions, read_summary
from baklava.analysis.verdict import describe_rule
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.experiment.from_folder import experiment_of
from baklava.experiment.overrides import chosen
from baklava.experiment.ownership import read_written
from baklava.experiment.paths import ExperimentPaths
from baklava.report.data.budgets import find_choice
from baklava.report.data.looks import list_methods
from baklava.report.text_table import TableCell, TextTable
from baklava.system.units import choose_unit

Form = Literal["text", "markdown", "latex"]


def print_table(overrides: Sequence[str], form: Form = "text") -> None:
    """Print the scores, what the search chose and where the files are; as Markdown or LaTeX scores with intervals.

    `overrides` are settings, or a results folder alone.

    Raises `UserError`, naming the command that makes them, where there are no results.
    """
    config, overrides = experiment_of(overrides)
    paths = ExperimentPaths(config.results, config.name)
    _check_results(paths, overrides)
    if paths.experiment_json.is_file():  # with the settings that made the results, whatever names them here
        overrides = read_written(paths.experiment_json).get("overrides", overrides)
    headline = Headline.load(paths.headline)
    grid = tabulate_scores(headline, intervals=form != "text")
    repetitions = describe_repetitions(paths.timings_csv)
    if form != "text":
        print(grid.markdown() if form == "markdown" else grid.latex())
        for line in repetitions:
            print(f"\n{line}" if form == "markdown" else f"% {line}")
        return
    console = Console(highlight=False)
    console.print(Text(f"{config.name}: mean score over {_describe_tasks(paths)}", style="bold"))
    console.print(grid.terminal())
    for line in (
        *describe_kept_whole(read_summary(paths.summary_parquet)),
        *repetitions,
        *lossless_lines(headline),
        *estimator_lines(headline, paths),
        "",
        *_address_lines(paths, overrides),
    ):
        console.print(Text(line), soft_wrap=True)


def tabulate_scores(headline: Headline, *, intervals: bool = False) -> TextTable:
    """Tabulate scores: a row per model and ratio, a column per allocator; the best score of a row is marked."""

    def score(value: float, low: float, high: float) -> str:
        return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if intervals else "")

    methods = list_methods(headline)
    allocators = list(dict.fromkeys(allocator for allocator, _ in methods))
    several = len({eviction for _, eviction in methods}) > 1
    names = ("model", *(("eviction",) if several else ()))
    unit, size = choose_unit(max((figures.kv_bytes_full for figures in headline.models.values()), default=0.0))

    def memory(least: float, most: float) -> TableCell:
        # Allocators differ by rounding, or where all entries in few bits are fewer bytes than the ratio allows.
        n_bytes = (most,) if most - least < 0.02 * most else (least, most)
        return TableCell("-".join(dict.fromkeys(f"{n / size:.2f}" for n in n_bytes)))

    blocks = []
    for model, figures in headline.models.items():
        eviction = ("none",) if several else ()
        blank = ("",) * len(allocators)
        full = score(figures.full, figures.full_low, figures.full_high)
        first = (model, *eviction, "0", full, *blank)
        rows = [(*map(TableCell, first), memory(figures.kv_bytes_full, figures.kv_bytes_full))]
        for row, least, most in _compressed_rows(figures, allocators, score):
            rows.append((TableCell(""), *(row if several else row[1:]), memory(least, most)))
        blocks.append(tuple(rows))
    return TextTable((*names, "ratio", "full", *allocators, f"KV {unit}"), len(names), tuple(blocks))


def _compressed_rows(
    figures: ModelFigures, allocators: Sequence[str], score: Callable[[float, float, float], str]
) -> Iterator[tuple[tuple[TableCell, ...], float, float]]:
    """Cells of the rows with compression, the eviction policy first, and the least and most bytes of KV cache."""
    rows: dict[tuple[str, float], dict[str, RatioFigures]] = defaultdict(dict)
    for method in figures.methods:
        for at_ratio in method.ratios:
            rows[method.eviction, at_ratio.ratio][method.allocator] = at_ratio
    for (eviction, ratio), by_allocator in sorted(rows.items()):
        best = max(at_ratio.score for at_ratio in by_allocator.values())
        cells = [_score_cell(by_allocator.get(allocator), best, score) for allocator in allocators]
        memory = [at_ratio.kv_bytes for at_ratio in by_allocator.values()]
        names = (eviction, f"{ratio:g}", f"{figures.full:.3f}")
        yield (*map(TableCell, names), *cells), min(memory), max(memory)


def _score_cell(figures: RatioFigures | None, best: float, score: Callable[[float, float, float], str]) -> TableCell:
    if figures is None:
        return TableCell("")
    return TableCell(score(figures.score, figures.ci_low, figures.ci_high), figures.score == best)


def lossless_lines(headline: Headline) -> list[str]:
    """Write out how far every model and method compress without loss, and what says so where no ratio does."""
    lines = [f"Lossless up to: the {describe_rule(headline.margin, headline.confidence)}"]
    for model, figures in headline.models.items():
        reason = headline.explain_no_verdict(model)
        methods = [
            f"{method.allocator} / {method.eviction} {method.describe_lossless()}"
            + (f" ({why})" if (why := method.explain_none()) else "")
            for method in figures.methods
        ]
        lines.append(f"  {model}: {reason or '; '.join(methods)}")
    return lines


def estimator_lines(headline: Headline, paths: ExperimentPaths) -> list[str]:
    """Write out what the parameter search chose per model and ratio; no lines where no method searches."""
    lines = []
    for model, figures in headline.models.items():
        for method in figures.methods:
            ratios: dict[str, list[str]] = defaultdict(list)
            for at_ratio in method.ratios:
                path = paths.budgets(model, method.allocator, method.eviction, at_ratio.ratio)
                choice = find_choice(Budgets.load(path))
                if choice:
                    ratios[choice].append(f"{at_ratio.ratio:g}")
            if ratios:
                choices = "; ".join(f"{choice} at r = {', '.join(chosen_at)}" for choice, chosen_at in ratios.items())
                lines.append(f"  {model}, {method.allocator} / {method.eviction}: {choices}")
    return ["Estimator that the search chose", *lines] if lines else []


def _check_results(paths: ExperimentPaths, overrides: Sequence[str]) -> None:
    for path in (paths.summary_parquet, paths.headline):
        if not path.is_file():
            raise UserError(f"{path}: no results yet; {_name_command(overrides)}")


def _name_command(overrides: Sequence[str]) -> str:
    """The command that makes the results of the same configuration."""
    if chosen(overrides, "experiment") is None:
        return "name the experiment, as in `baklava table experiment=demo`"
    return f"make them with `{_run_command(overrides)}`"


def _run_command(overrides: Sequence[str], *options: str) -> str:
    return shlex.join(["baklava", "run", *overrides, *(("--", *options) if options else ())])


def _describe_tasks(paths: ExperimentPaths) -> str:
    summary = read_summary(paths.summary_parquet)
    tasks = list(dict.fromkeys(summary["task"]))
    counts = sorted(set(summary["n"]))
    samples = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{', '.join(tasks)} ({samples} samples each)"


def _address_lines(paths: ExperimentPaths, overrides: Sequence[str]) -> list[str]:
    plain = list(overrides) == [f"experiment={paths.experiment}"]
    report = _run_command(overrides, "--report", str(paths.snakemake_report))
    addresses: dict[str, str | Path] = {
        "All cells": paths.summary_csv,
        "Budgets": paths.budgets_folder,
        "Figures": paths.figures,
        "Page": paths.page,
        "Report": f"make report EXPERIMENT={paths.experiment}" if plain else report,
        "All runs": "make ui",
    }
    return [f"{name:<10} {address}" for name, address in addresses.items()]
