"""The stage `claims`: compares one allocator with every other one, and evaluates the criteria it is held to."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field
from rich.console import Console
from rich.text import Text

from baklava.analysis.cells import read_cells
from baklava.claims.comparison import Comparison, compare_methods
from baklava.claims.criteria import Criterion, evaluate_criteria
from baklava.claims.table import format_markdown, format_terminal
from baklava.experiment.compose import check
from baklava.experiment.fields import FrozenModel
from baklava.experiment.jobs import ClaimsJob
from baklava.experiment.settings import ClaimsConfig, SummaryConfig
from baklava.system.files import atomic, read_json, write_json

SCHEMA = 1


class Claims(FrozenModel):
    """What `claims.json` holds: settings, a comparison per model, method and task (and their mean), and the criteria.

    The file calls the criteria `bars`.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    claims: ClaimsConfig
    summary: SummaryConfig
    comparisons: tuple[Comparison, ...]
    criteria: tuple[Criterion, ...] = Field(validation_alias="bars", serialization_alias="bars")

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json", by_alias=True), schema=SCHEMA)

    @classmethod
    def load(cls, path: Path) -> Claims:
        """Read a claims file. Raises `UserError` for a missing, broken or newer file."""
        return check(cls, read_json(path, schema=SCHEMA, what="claims"), source=str(path))


def claims(job: ClaimsJob) -> None:
    """Write and print the comparisons and the criteria. A criterion that is missed is a finding, not an error."""
    comparisons = tuple(compare_methods(read_cells(job.records), job.claims.allocator, job.summary))
    criteria = tuple(evaluate_criteria(comparisons, job.claims, job.summary))
    Claims(claims=job.claims, summary=job.summary, comparisons=comparisons, criteria=criteria).save(job.output)
    with atomic(job.markdown) as unfinished:
        unfinished.write_text(format_markdown(comparisons, criteria, job.claims, job.summary), encoding="utf-8")
    table, lines = format_terminal(comparisons, criteria, job.claims, job.summary)
    wide = Console(width=1000)
    console = Console(width=max(Console().width, wide.measure(table).maximum), highlight=False)
    console.print(table)
    for line in (*lines, "", f"All of it, task by task: {job.markdown}, {job.output}"):
        console.print(Text(line), soft_wrap=True)
