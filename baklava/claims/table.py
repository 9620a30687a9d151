"""The comparisons and criteria as text: for the terminal, and as a Markdown file with every task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.table import Table

from baklava.analysis.verdict import describe_rule, in_points
from baklava.claims.comparison import MEAN, Comparison
from baklava.claims.criteria import Criterion
from baklava.experiment.paths import ratio_name
from baklava.experiment.settings import ClaimsConfig, SummaryConfig
from baklava.report.text_table import TableCell, TextTable

NAMES = ("model", "eviction", "allocator", "lossless up to")


def format_terminal(
    comparisons: Sequence[Comparison], criteria: Sequence[Criterion], settings: ClaimsConfig, summary: SummaryConfig
) -> tuple[Table, list[str]]:
    """Format the table of the mean over the tasks, and the lines under it."""
    means = [comparison for comparison in comparisons if comparison.task == MEAN]
    table = _build_table(means, between="\n").terminal()
    table.title = f"{settings.allocator} against every other allocator, mean over the tasks"
    table.title_justify = "left"
    lines = [*_legend(settings, summary), *_reference_lines(means, settings), "", *_criterion_lines(criteria)]
    return table, lines


def format_markdown(
    comparisons: Sequence[Comparison], criteria: Sequence[Criterion], settings: ClaimsConfig, summary: SummaryConfig
) -> str:
    """Format the criteria, the mean over the tasks, and each task."""
    sections = [f"# Claims of `{settings.allocator}`", _format_list(_criterion_lines(criteria))]
    for task in dict.fromkeys(comparison.task for comparison in comparisons):
        of_task = [comparison for comparison in comparisons if comparison.task == task]
        title = "Mean over the tasks" if task == MEAN else task
        sections += [f"## {title}", _build_table(of_task, between=", ").markdown()]
        sections += [_format_list(_reference_lines(of_task, settings))]
    sections += [_format_list(_legend(settings, summary))]
    return "\n\n".join(filter(None, sections)) + "\n"


def _format_list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _build_table(comparisons: Sequence[Comparison], *, between: str) -> TextTable:
    """A row per model, eviction policy and allocator; per ratio the score, the gain, and the paired difference."""
    ratios = sorted({figures.ratio for comparison in comparisons for figures in comparison.figures.ratios})
    blocks = []
    for _, group in groupby(comparisons, key=lambda comparison: (comparison.model, comparison.eviction)):
        methods = list(group)
        best = {
            ratio: max((figures.score for method in methods if (figures := method.figures_at(ratio))), default=math.nan)
            for ratio in ratios
        }
        blocks.append(tuple(tuple(_row(method, best, between)) for method in methods))
    return TextTable((*NAMES, *(f"r = {ratio_name(ratio)}" for ratio in ratios)), 3, tuple(blocks))


def _row(comparison: Comparison, best: dict[float, float], between: str) -> Iterator[TableCell]:
    lossless = between.join(filter(None, (comparison.lossless, comparison.figures.explain_none())))
    yield from map(TableCell, (comparison.model, comparison.eviction, comparison.allocator, lossless))
    for ratio, best_score in best.items():
        figures, gain, paired = comparison.figures_at(ratio), comparison.gain_at(ratio), comparison.difference_at(ratio)
        if figures is None:
            yield TableCell("")
            continue
        score = f"{figures.score:.3f}" + ("" if gain is None else f" {gain:.1f}x")
        texts = [score, *([in_points(paired.difference, paired.low, paired.high)] if paired else [])]
        yield TableCell(between.join(texts), figures.score == best_score)


def _criterion_lines(criteria: Iterable[Criterion]) -> list[str]:
    """One line per criterion, its verdict first."""
    return [
        ("MISSED" if criterion.verdict == "missed" else criterion.verdict)
        + f": {criterion.model}, {criterion.eviction}: {criterion.asked}"
        + (f": {criterion.figures}" if criterion.figures else "")
        for criterion in criteria
    ]


def _reference_lines(comparisons: Sequence[Comparison], settings: ClaimsConfig) -> list[str]:
    """How far the allocator under test is from the reference (`claims.yardstick`), if there is one."""
    lines = []
    for comparison in comparisons:
        if comparison.allocator == settings.yardstick:
            differences = ", ".join(
                f"{in_points(paired.difference, paired.low, paired.high)} at r = {paired.ratio:g}"
                for paired in comparison.differences
            )
            names = f"{comparison.allocator}, {comparison.model}, {comparison.eviction}"
            lines.append(f"{settings.allocator} minus {names}: {differences}")
    return lines


def _legend(settings: ClaimsConfig, summary: SummaryConfig) -> list[str]:
    return [
        f"lossless up to: the {describe_rule(summary.margin, summary.confidence)}; a criterion tests its ratio "
        "alone, so it may be met where a smaller ratio is not",
        "at each ratio: score, times uniform's (a uniform that scores nothing counts as one right answer), and "
        f"{settings.allocator} minus this allocator in points, with its paired bootstrap interval",
    ]
