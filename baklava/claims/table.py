"""The table of claims and the bars as text: for the terminal, and as a Markdown file with every task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.table import Table

from baklava.analysis.comparison import MEAN, Comparison
from baklava.claims.criteria import Criterion, in_points
from baklava.experiment.paths import ratio_name
from baklava.experiment.schema import ClaimsConfig, SummaryConfig
from baklava.report.table import TableCell, TextTable

NAMES = ("model", "eviction", "allocator", "lossless to")


def terminal(
    comparisons: Sequence[Comparison], bars: Sequence[Criterion], settings: ClaimsConfig, summary: SummaryConfig
) -> tuple[Table, list[str]]:
    """The table of the mean over the tasks, and the lines under it."""
    table = grid([one for one in comparisons if one.task == MEAN], between="\n").terminal()
    table.title = f"{settings.allocator} against every other allocator, mean over the tasks"
    table.title_justify = "left"
    return table, [*_legend(settings, summary), *gap_lines(comparisons, settings), "", *criterion_lines(bars)]


def markdown(
    comparisons: Sequence[Comparison], bars: Sequence[Criterion], settings: ClaimsConfig, summary: SummaryConfig
) -> str:
    """The bars, the mean over the tasks, and each task."""
    parts = [f"# Claims of `{settings.allocator}`", "\n".join(f"- {line}" for line in criterion_lines(bars))]
    for task in dict.fromkeys(one.task for one in comparisons):
        some = [one for one in comparisons if one.task == task]
        title = "Mean over the tasks" if task == MEAN else task
        parts += [f"## {title}", grid(some, between=", ").markdown()]
        parts += ["\n".join(f"- {line}" for line in gap_lines(some, settings, task=task))]
    parts += ["\n".join(f"- {line}" for line in _legend(settings, summary))]
    return "\n\n".join(filter(None, parts)) + "\n"


def grid(comparisons: Sequence[Comparison], *, between: str) -> TextTable:
    """A row per model, eviction policy and allocator; per ratio the score, the gain, and the claimant's lead."""
    ratios = sorted({one.ratio for comparison in comparisons for one in comparison.figures.ratios})
    blocks = []
    for _, group in groupby(comparisons, key=lambda one: (one.model, one.eviction)):
        some = list(group)
        scores = {ratio: [one.score for row in some if (one := row.at(ratio))] for ratio in ratios}
        best = {ratio: max(found, default=math.nan) for ratio, found in scores.items()}
        blocks.append(tuple(tuple(_row(one, best, between)) for one in some))
    return TextTable((*NAMES, *(f"r = {ratio_name(ratio)}" for ratio in ratios)), 3, tuple(blocks))


def _row(comparison: Comparison, best: dict[float, float], between: str) -> Iterator[TableCell]:
    lossless = f"{comparison.figures.largest_lossless_ratio:g}"
    yield from map(TableCell, (comparison.model, comparison.eviction, comparison.allocator, lossless))
    for ratio, highest in best.items():
        figures, gain, lead = comparison.at(ratio), comparison.gain(ratio), comparison.lead(ratio)
        if figures is None:
            yield TableCell("")
            continue
        score = f"{figures.score:.3f}" + ("" if gain is None else f" {gain:.1f}x")
        parts = [score, *([in_points(lead.difference, lead.low, lead.high)] if lead else [])]
        yield TableCell(between.join(parts), figures.score == highest)


def criterion_lines(bars: Iterable[Criterion]) -> list[str]:
    """One line per bar, its verdict first."""
    return [
        f"{bar.verdict.upper() if bar.verdict == 'missed' else bar.verdict}: {bar.model}, {bar.eviction}: {bar.asked}"
        + (f": {bar.figures}" if bar.figures else "")
        for bar in bars
    ]


def gap_lines(comparisons: Sequence[Comparison], settings: ClaimsConfig, *, task: str = MEAN) -> list[str]:
    """The gap of the claimant to the yardstick; nothing where there is no yardstick."""
    lines = []
    for one in comparisons:
        if one.allocator == settings.yardstick and one.task == task:
            leads = ", ".join(
                f"{in_points(lead.difference, lead.low, lead.high)} at r = {lead.ratio:g}" for lead in one.leads
            )
            lines.append(f"{settings.allocator} minus {one.allocator}, {one.model}, {one.eviction}: {leads}")
    return lines


def _legend(settings: ClaimsConfig, summary: SummaryConfig) -> list[str]:
    return [
        f"lossless to: the largest ratio up to which the {100 * summary.confidence:g}% interval of the paired "
        f"difference to the full cache stays above {-100 * summary.margin:g} points",
        "at each ratio: score, times uniform's (a uniform that scores nothing counts as one right answer), and "
        f"{settings.allocator} minus this allocator in points, with its paired bootstrap interval",
    ]
