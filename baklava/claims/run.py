"""Claims: what one allocator is held to, in figures, beside every other allocator of the experiment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from baklava.analysis.bootstrap import Bootstrap
from baklava.analysis.cells import Cells, read_cells
from baklava.analysis.comparison import MEAN, Comparison, PairedDifference
from baklava.analysis.headline import ModelFigures, headline
from baklava.claims.criteria import Criterion, evaluate_criteria
from baklava.claims.table import markdown, terminal
from baklava.evaluation.records import FULL, Cell
from baklava.experiment.jobs import ClaimsJob
from baklava.experiment.schema import ClaimsConfig, FrozenModel, SummaryConfig, check
from baklava.system.files import atomic, read_json, write_json

SCHEMA = 1


class Claims(FrozenModel):
    """What `claims.json` holds: the settings, one comparison per model, task (and their mean) and method, the bars."""

    claims: ClaimsConfig
    summary: SummaryConfig
    comparisons: tuple[Comparison, ...]
    bars: tuple[Criterion, ...]

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"), schema=SCHEMA)

    @classmethod
    def load(cls, path: Path) -> Claims:
        """Read a claims file. Raises `UserError` for a missing, broken or newer file."""
        return check(cls, read_json(path, schema=SCHEMA, what="claims"), source=str(path))


def claims(job: ClaimsJob) -> None:
    """Write and print the comparison and the bars. A bar that is missed is a finding, not an error."""
    comparisons = tuple(compared(read_cells(job.records), job.claims.allocator, job.summary))
    found = Claims(
        claims=job.claims,
        summary=job.summary,
        comparisons=comparisons,
        bars=tuple(evaluate_criteria(comparisons, job.claims, job.summary)),
    )
    found.save(job.output)
    with atomic(job.markdown) as unfinished:
        unfinished.write_text(markdown(comparisons, found.bars, job.claims, job.summary), encoding="utf-8")
    table, lines = terminal(comparisons, found.bars, job.claims, job.summary)
    wide = Console(width=1000)
    console = Console(width=max(Console().width, wide.measure(table).maximum), highlight=False)
    console.print(table)
    for line in (*lines, "", f"All of it, task by task: {job.markdown}, {job.output}"):
        console.print(Text(line), soft_wrap=True)


def compared(cells: Cells, claimant: str, settings: SummaryConfig) -> Iterator[Comparison]:
    """Every method of every model, on the mean of the tasks and then on each; `claimant`'s lead over it."""
    tasks = dict.fromkeys(cell.task for cell in cells)
    scopes = {MEAN: cells, **{task: {one: cells[one] for one in cells if one.task == task} for task in tasks}}
    for scope, some in scopes.items():
        leads = _leads(some, scope, claimant, settings)
        for model, figures in headline(some, settings).models.items():
            yield from _of_model(model, scope, figures, leads)


class _Method(NamedTuple):
    model: str
    allocator: str
    eviction: str


def _of_model(
    model: str, scope: str, figures: ModelFigures, leads: dict[_Method, dict[float, PairedDifference]]
) -> Iterator[Comparison]:
    for method in sorted(figures.methods, key=lambda one: (one.eviction, one.allocator)):
        own = leads[_Method(model, method.allocator, method.eviction)]
        yield Comparison(
            model=model,
            task=scope,
            n=sum(figures.n.values()),
            figures=method,
            leads=tuple(own[ratio] for ratio in sorted(own)),
        )


def _leads(
    cells: Cells, scope: str, claimant: str, settings: SummaryConfig
) -> dict[_Method, dict[float, PairedDifference]]:
    """How far the claimant is ahead of every other method with its eviction policy, at every ratio both have."""
    bootstrap = Bootstrap(settings.n_bootstrap, settings.confidence, settings.seed)
    points: dict[tuple[_Method, float], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.allocator not in (FULL, claimant) and cell._replace(allocator=claimant) in cells:
            points[_Method(cell.model, *cell.method), cell.ratio].append(cell)
    leads: dict[_Method, dict[float, PairedDifference]] = defaultdict(dict)
    for (method, ratio), some in points.items():
        ahead = [cells[one._replace(allocator=claimant)].score - cells[one].score for one in some]
        interval = bootstrap.mean_of_means(ahead, "lead", claimant, scope, *method, ratio)
        leads[method][ratio] = PairedDifference(
            ratio=ratio, difference=interval.estimate, low=interval.low, high=interval.high
        )
    return leads
