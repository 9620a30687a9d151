"""Scores for the cards that lie beside searched budgets."""

from __future__ import annotations

from pathlib import Path

from baklava.analysis.headline import Headline, MethodFigures
from baklava.search.card import CARD, SCORES
from baklava.system.files import atomic


def add_scores(budgets: Path, headline: Headline) -> None:
    """Write each method's scores into its card below the folder of all budgets, where it has one."""
    for name, model in headline.models.items():
        for method in model.methods:
            card = budgets / name / method.allocator / method.eviction / CARD
            if card.is_file():
                text = card.read_text(encoding="utf-8")
                with atomic(card) as unfinished:
                    unfinished.write_text(f"{text.partition(SCORES)[0]}{SCORES}\n\n{_scores(method)}", encoding="utf-8")


def _scores(method: MethodFigures) -> str:
    rows = [
        f"| {one.ratio:g} | {one.score:.3f} [{one.ci_low:.3f}, {one.ci_high:.3f}] | {one.full:.3f} | "
        f"{one.delta_full:+.3f} [{one.delta_full_low:+.3f}, {one.delta_full_high:+.3f}] |\n"
        for one in method.ratios
    ]
    head = "| ratio | score | full cache | difference, paired |\n| --- | --- | --- | --- |\n"
    return f"{head}{''.join(rows)}\nMean of the tasks, with bootstrap intervals.\n"
