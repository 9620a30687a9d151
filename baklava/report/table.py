"""The results of an experiment as a short table on the terminal."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from baklava.analysis.headline import Headline, ModelFigures, RatioFigures
from baklava.analysis.results import read_summary
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.evaluation.records import UNIFORM
from baklava.experiment.compose import compose
from baklava.experiment.overrides import chosen, joined
from baklava.experiment.paths import ExperimentPaths
from baklava.report.data.budgets import find_choice

MEGABYTE = 1e6

Form = Literal["text", "markdown", "latex"]


def print_table(overrides: Sequence[str], form: Form = "text") -> None:
    """Print the scores, what the search chose and where the files are; as Markdown or LaTeX the scores alone.

    Raises `UserError`, with the command that makes them, where there are no results.
    """
    config = compose(overrides)
    layout = ExperimentPaths(config.results, config.name)
    _check_there(layout, overrides)
    headline = Headline.load(layout.headline)
    grid = scores(headline)
    if form != "text":
        print(grid.markdown() if form == "markdown" else grid.latex())
        return
    console = Console(highlight=False)
    console.print(Text(f"{config.name}: mean score over {_tasks(layout)}", style="bold"))
    console.print(grid.terminal())
    for line in (*lossless_lines(headline), *estimator_lines(headline, layout), "", *_where(layout, overrides)):
        console.print(Text(line), soft_wrap=True)


class TableCell(NamedTuple):
    """A cell of the table; `best` of its row."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class TextTable:
    """Rows of cells under columns, in blocks; the first `n_names` columns hold words, the others numbers."""

    columns: tuple[str, ...]
    n_names: int
    blocks: tuple[tuple[tuple[TableCell, ...], ...], ...]

    def terminal(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="left" if i < self.n_names else "right")
        for block in self.blocks:
            for row in block:
                table.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in row))
            table.add_section()
        return table

    def markdown(self) -> str:
        rules = ["---" if i < self.n_names else "---:" for i in range(len(self.columns))]
        rows = [
            [f"**{cell.text}**" if cell.best else cell.text for cell in row] for block in self.blocks for row in block
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.columns, rules, *rows))

    def latex(self) -> str:
        """A `tabular` for the package booktabs."""
        lines = [f"\\begin{{tabular}}{{{'l' * self.n_names}{'r' * (len(self.columns) - self.n_names)}}}", "\\toprule"]
        lines.append(" & ".join(_escaped(name) for name in self.columns) + r" \\")
        for block in self.blocks:
            lines.append("\\midrule")
            for row in block:
                cells = [rf"\textbf{{{_escaped(cell.text)}}}" if cell.best else _escaped(cell.text) for cell in row]
                lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def scores(headline: Headline) -> TextTable:
    """A row per model and ratio, a column per allocator; the best score of a row is marked."""
    methods = [(one.allocator, one.eviction) for model in headline.models.values() for one in model.methods]
    allocators = sorted({allocator for allocator, _ in methods}, key=lambda name: (name != UNIFORM, name))
    several = len({eviction for _, eviction in methods}) > 1
    names = ("model", *(("eviction",) if several else ()))
    blocks = []
    for model, figures in headline.models.items():
        eviction = ("none",) if several else ()
        blank = ("",) * len(allocators)
        first = (model, *eviction, "0", f"{figures.full:.3f}", *blank, _megabytes(figures.kv_bytes_full))
        rows = [tuple(map(TableCell, first))]
        for line in _lines(figures, allocators):
            rows.append((TableCell(""), *(line if several else line[1:])))
        blocks.append(tuple(rows))
    return TextTable((*names, "ratio", "full", *allocators, "KV MB"), len(names), tuple(blocks))


def _lines(figures: ModelFigures, allocators: Sequence[str]) -> Iterator[tuple[TableCell, ...]]:
    """Cells of the rows with compression, the eviction policy first."""
    rows: dict[tuple[str, float], dict[str, RatioFigures]] = defaultdict(dict)
    for method in figures.methods:
        for one in method.ratios:
            rows[method.eviction, one.ratio][method.allocator] = one
    for (eviction, ratio), found in sorted(rows.items()):
        best = max(one.score for one in found.values())
        cells = [_score(found.get(allocator), best) for allocator in allocators]
        memory = max(one.kv_bytes for one in found.values())  # they differ by rounding to whole entries at most
        names = (eviction, f"{ratio:g}", f"{figures.full:.3f}")
        yield (*map(TableCell, names), *cells, TableCell(_megabytes(memory)))


def _score(one: RatioFigures | None, best: float) -> TableCell:
    return TableCell("") if one is None else TableCell(f"{one.score:.3f}", one.score == best)


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / MEGABYTE:.2f}"


def lossless_lines(headline: Headline) -> list[str]:
    """The largest lossless ratio of every model and method."""
    rule = f"{100 * headline.confidence:g}% interval within {headline.margin:g} of the full cache"
    lines = [f"Largest lossless ratio ({rule})"]
    for model, figures in headline.models.items():
        found = [f"{one.allocator} / {one.eviction} {one.largest_lossless_ratio:g}" for one in figures.methods]
        lines.append(f"  {model}: {', '.join(found)}")
    return lines


def estimator_lines(headline: Headline, layout: ExperimentPaths) -> list[str]:
    """What the parameter search chose per model and ratio; nothing where no method searches."""
    lines = []
    for model, figures in headline.models.items():
        for method in figures.methods:
            ratios: dict[str, list[str]] = defaultdict(list)
            for one in method.ratios:
                path = layout.budgets(model, method.allocator, method.eviction, one.ratio)
                choice = find_choice(Budgets.load(path))
                if choice:
                    ratios[choice].append(f"{one.ratio:g}")
            if ratios:
                found = "; ".join(f"{name} at r = {', '.join(some)}" for name, some in ratios.items())
                lines.append(f"  {model}, {method.allocator} / {method.eviction}: {found}")
    return ["Estimator that the search chose", *lines] if lines else []


def _check_there(layout: ExperimentPaths, overrides: Sequence[str]) -> None:
    for path in (layout.summary_parquet, layout.headline):
        if not path.is_file():
            raise UserError(f"{path}: no results yet; {_how(overrides)}")


def _how(overrides: Sequence[str]) -> str:
    """The command that makes the results of the same configuration."""
    if chosen(overrides, "experiment") is None:
        return "name the experiment, as in `baklava table experiment=demo`"
    return f"make them with `snakemake --cores all {_snakemake_config(overrides)}`"


def _snakemake_config(overrides: Sequence[str]) -> str:
    experiment = " ".join(one for one in overrides if one.startswith("experiment="))
    others = joined([one for one in overrides if not one.startswith("experiment=")])
    in_quotes = shlex.quote(others) if set(others) & set('"\\$`') else f'"{others}"'
    return f"--config {experiment}" + (f" overrides={in_quotes}" if others else "")


def _tasks(layout: ExperimentPaths) -> str:
    summary = read_summary(layout.summary_parquet)
    tasks = list(dict.fromkeys(summary["task"]))
    counts = sorted(set(summary["n"]))
    samples = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{', '.join(tasks)} ({samples} samples each)"


def _where(layout: ExperimentPaths, overrides: Sequence[str]) -> list[str]:
    plain = list(overrides) == [f"experiment={layout.experiment}"]
    report = f"snakemake {_snakemake_config(overrides)} --report {shlex.quote(str(layout.snakemake_report))}"
    places: dict[str, str | Path] = {
        "All cells": layout.summary_csv,
        "Figures": layout.figures,
        "Page": layout.page,
        "Report": f"make report EXPERIMENT={layout.experiment}" if plain else report,
        "All runs": "make ui",
    }
    return [f"{name:<10} {place}" for name, place in places.items()]
