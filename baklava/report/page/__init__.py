"""`baklava page`: one self-contained page with interactive figures, for people without Snakemake; a file per figure."""

from __future__ import annotations

from baklava.analysis.depth_by_length import read_depth_by_length
from baklava.analysis.headline import Headline
from baklava.analysis.results import budgets_by_method, read_summary
from baklava.evaluation.measurements import read_measurements
from baklava.experiment.jobs import PageJob
from baklava.importance.profile import Profile
from baklava.report.page.budget_links import budget_links
from baklava.report.page.budgets import budgets
from baklava.report.page.headline_table import headline_table
from baklava.report.page.importance import importance
from baklava.report.page.measured import measured
from baklava.report.page.needle_grid import needle_grid
from baklava.report.page.render import rendered
from baklava.report.page.score_vs_kv_bytes import score_vs_kv_bytes
from baklava.report.page.score_vs_ratio import score_vs_ratio
from baklava.report.page.what_was_run import what_was_run
from baklava.system.files import atomic


def page(job: PageJob) -> None:
    """Write the page and the headline table by itself. The same results give the same bytes."""
    summary, headline = read_summary(job.summary), Headline.load(job.headline)
    profiles = {model: Profile.load(path) for model, path in job.profiles.items()}
    views = [
        score_vs_ratio(summary, headline),
        score_vs_kv_bytes(summary, headline),
        needle_grid(
            {(m, t): read_depth_by_length(path) for m, some in job.needle_grids.items() for t, path in some.items()}
        ),
        measured({model: read_measurements(path) for model, path in job.measurements.items()}),
        importance(profiles),
        budgets(budgets_by_method(job.budgets)),
    ]
    table = headline_table(headline)
    texts = {
        job.output: rendered(
            "page.html",
            experiment=job.experiment,
            headline=table,
            run=what_was_run(job, summary, headline, profiles),
            views=[view for view in views if view.frames],
            links=budget_links(job.budgets, job.output.parent),
            cells=summary,
        ),
        job.headline_table: rendered("headline.html", experiment=job.experiment, headline=table),
    }
    for path, text in texts.items():
        with atomic(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
