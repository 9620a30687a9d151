"""What a search leaves behind besides its budgets: a row per trial, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from baklava.allocation.fitted import Trial
from baklava.system.files import read_json, write_json
from baklava.system.parquet import read_parquet, write_parquet

if TYPE_CHECKING:
    import pandas as pd

    from baklava.experiment.jobs import AllocateJob

SCHEMA = 3
COST_SCHEMA = 1

# Besides these, where mappings were tried, a column per parameter of the search space. See `Trial` for what they mean.
COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("allocator", pa.string()),
        ("eviction", pa.string()),
        ("ratio", pa.float64()),
        ("trial", pa.int64()),
        ("move", pa.string()),
        ("loss", pa.float64()),
        ("n_prompts", pa.int64()),
        ("early_loss", pa.float64()),
        ("complete", pa.bool_()),
        ("chosen", pa.bool_()),
        ("loss_full", pa.float64()),
        ("held_back", pa.float64()),
    ]
)


def write_trace(job: AllocateJob, trials: Sequence[Trial]) -> None:
    """Write one row per trial; of an allocator that tries nothing, none."""
    method = {"model": job.model.name, "allocator": job.allocator.name, "eviction": job.eviction.name}
    rows = [{**method, **asdict(trial), "trial": trial.number, **trial.parameters} for trial in trials]
    searched = trials[0].parameters if trials else ()
    types = [(name, pa.array([row[name] for row in rows]).type) for name in searched]
    table = pa.Table.from_pylist(rows, schema=pa.schema([*COLUMNS, *types]))
    write_parquet(job.trace, table, schema=SCHEMA)


def read_trace(path: Path) -> pd.DataFrame:
    """A trace with the columns of its parameters. Raises `UserError` for a missing, broken or newer file."""
    hint = "`baklava allocate`"
    read_parquet(path, COLUMNS, schema=SCHEMA, what="search", hint=hint)
    columns = pa.schema([pa.field(field.name, field.type) for field in pq.read_schema(path)])
    return read_parquet(path, columns, schema=SCHEMA, what="search", hint=hint).to_pandas()


def parameters(frame: pd.DataFrame) -> list[str]:
    """Names of the columns that are parameters."""
    return [name for name in frame.columns if name not in COLUMNS.names]


@dataclass(frozen=True)
class Cost:
    """What the searches for the budgets of one method at all ratios took, beside one prefill of the search prompts."""

    seconds: float
    prefill_seconds: float
    n_prompts: int
    n_trials: int  # of mappings
    n_replays: int  # continuations whose loss was measured for these trials
    n_refined: int  # ratios with a local search, or rounds in which growing anew was better

    @property
    def prefills(self) -> float:
        """The time of the searches in prefills of the search prompts."""
        return self.seconds / self.prefill_seconds

    def __add__(self, other: Cost) -> Cost:
        """What both took; they share prompts, and so the time of a prefill."""
        return replace(
            self,
            seconds=self.seconds + other.seconds,
            n_trials=self.n_trials + other.n_trials,
            n_replays=self.n_replays + other.n_replays,
            n_refined=self.n_refined + other.n_refined,
        )

    def save(self, path: Path) -> None:
        write_json(path, {**asdict(self), "prefills": self.prefills}, schema=COST_SCHEMA)

    @classmethod
    def load(cls, path: Path) -> Cost:
        """Read what an earlier search took. Raises `UserError` for a missing, broken or newer file."""
        values = read_json(path, schema=COST_SCHEMA, what="cost of a search")
        return cls(**{name: value for name, value in values.items() if name in cls.__dataclass_fields__})

    def __str__(self) -> str:
        trials = f"{self.n_trials} trials with {self.n_replays} continuations, " if self.n_trials else ""
        return (
            f"{trials}{self.n_refined} refinements in {self.seconds:.1f} s, the time of {self.prefills:.1f} prefills "
            f"of the {self.n_prompts} prompts ({self.prefill_seconds:.2f} s each)"
        )
