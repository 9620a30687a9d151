"""The figures of one model's validation."""

from __future__ import annotations

from baklava.experiment.jobs import ValidateJob
from baklava.report.plots.style import save, styled
from baklava.system.parquet import read_parquet
from baklava.validation import consistency, ranking, regret
from baklava.validation.plots_consistency import consistency as consistency_figure
from baklava.validation.plots_ranking import ranking as ranking_figure
from baklava.validation.plots_regret import regret as regret_figure


def draw_validation(job: ValidateJob) -> None:
    """Draw every figure as SVG and PNG beside the file that it shows."""
    drawn = (
        (job.consistency, consistency.COLUMNS, consistency.SCHEMA, consistency_figure),
        (job.ranking, ranking.COLUMNS, ranking.SCHEMA, ranking_figure),
        (job.regret, regret.COLUMNS, regret.SCHEMA, regret_figure),
    )
    with styled():
        for path, columns, schema, figure in drawn:
            table = read_parquet(path, columns, schema=schema, what=path.stem, hint="`baklava validate`").to_pandas()
            save(figure(table), path.parent, path.stem)
