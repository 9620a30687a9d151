"""The figures of one model's validation."""

from __future__ import annotations

from baklava import consistency, ranking, regret
from baklava.jobs import ValidateJob
from baklava.parquet import read_parquet
from baklava.plots.consistency import consistency as consistency_figure
from baklava.plots.ranking import ranking as ranking_figure
from baklava.plots.regret import regret as regret_figure
from baklava.plots.style import save, styled


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
