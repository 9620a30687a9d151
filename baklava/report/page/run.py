"""`baklava page`: write the interactive page."""

from __future__ import annotations

from baklava.experiment.jobs import PageJob
from baklava.report.data.read_files import Results
from baklava.report.page.budget_links import link_budgets
from baklava.report.page.budgets import show_budgets
from baklava.report.page.headline_table import tabulate_headline
from baklava.report.page.importance import show_importance
from baklava.report.page.measured import show_measured
from baklava.report.page.needle_grid import show_needle_grids
from baklava.report.page.render import render
from baklava.report.page.score_vs_kv_bytes import show_score_vs_kv_bytes
from baklava.report.page.score_vs_ratio import show_score_vs_ratio
from baklava.report.page.what_was_run import describe_run
from baklava.system.files import atomic


def write_page(job: PageJob) -> None:
    """Write the page and the headline table by itself. The same results give the same bytes."""
    results = Results.read(job)
    summary, headline = results.summary, results.headline
    views = [
        show_score_vs_ratio(summary, headline),
        show_score_vs_kv_bytes(summary, headline),
        show_needle_grids(results.needle_grids),
        show_measured(results.measurements),
        show_importance(results.profiles, results.budgets),
        show_budgets(results.budgets),
    ]
    table = tabulate_headline(headline)
    texts = {
        job.output: render(
            "page.html",
            experiment=job.experiment,
            headline=table,
            run=describe_run(job, results),
            views=[view for view in views if view.frames],
            links=link_budgets(job.budgets, job.output.parent),
            cells=summary,
        ),
        job.headline_table: render("headline.html", experiment=job.experiment, headline=table),
    }
    for path, text in texts.items():
        with atomic(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
