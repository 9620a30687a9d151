"""What a search leaves behind besides its budgets: a row per trial, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from baklava.system.files import write_json
from baklava.system.parquet import read_parquet

if TYPE_CHECKING:
    from baklava.experiment.jobs import AllocateJob
    from baklava.search.study import Study

SCHEMA = 1

# Besides these, a column per parameter of the search space.
COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("allocator", pa.string()),
        ("eviction", pa.string()),
        ("ratio", pa.float64()),
        ("trial", pa.int64()),  # 0 is the uniform allocation
        ("loss", pa.float64()),  # mean over the prompts that it saw
        ("n_prompts", pa.int64()),
        ("early_loss", pa.float64()),  # mean over those that every trial saw
        ("complete", pa.bool_()),  # saw every prompt
        ("chosen", pa.bool_()),
        ("loss_full", pa.float64()),  # of the full cache, over all prompts
    ]
)


def trace(job: AllocateJob, studies: Mapping[float, Study]) -> pd.DataFrame:
    """One row per trial; without studies (an allocator that tries nothing) an empty one."""
    rows = []
    for ratio, study in studies.items():
        best, complete, loss_full = study.best.number, study.complete, study.facts[0]["loss_full"]
        for one in study.trials:
            seen = one.intermediate_values
            rows.append(
                {
                    "model": job.model.name,
                    "allocator": job.allocator.name,
                    "eviction": job.eviction.name,
                    "ratio": ratio,
                    "trial": one.number,
                    "loss": seen[max(seen)],
                    "n_prompts": max(seen),
                    "early_loss": seen[min(seen)],
                    "complete": one in complete,
                    "chosen": one.number == best,
                    "loss_full": loss_full,
                    **one.params,
                }
            )
    if not rows:
        return COLUMNS.empty_table().to_pandas()
    return pd.DataFrame(rows)


def read_trace(path: Path) -> pd.DataFrame:
    """A trace with the columns of its parameters. Raises `UserError` for a missing, broken or newer file."""
    hint = "`baklava allocate`"
    read_parquet(path, COLUMNS, schema=SCHEMA, what="search", hint=hint)
    columns = pa.schema([pa.field(one.name, one.type) for one in pq.read_schema(path)])
    return read_parquet(path, columns, schema=SCHEMA, what="search", hint=hint).to_pandas()


def parameters(frame: pd.DataFrame) -> list[str]:
    """Names of the columns that are parameters."""
    return [name for name in frame.columns if name not in COLUMNS.names]


@dataclass(frozen=True)
class Cost:
    """What the search for the budgets of one method at all ratios took, beside one prefill of the search prompts."""

    seconds: float
    prefill_seconds: float
    n_prompts: int
    n_trials: int
    n_replays: int  # of the trials
    n_refined: int  # ratios of which the best mapping was refined; in the seconds, not in the replays

    @classmethod
    def of(cls, studies: Iterable[Study], *, n_prompts: int, n_refined: int, refined_in: float) -> Cost:
        some = list(studies)
        rounds = some[0].facts
        trials = [one for study in some for one in study.trials]
        return cls(
            seconds=sum(one["seconds"] for one in rounds) + refined_in,
            prefill_seconds=rounds[0]["prefill_seconds"],
            n_prompts=n_prompts,
            n_trials=len(trials),
            n_replays=sum(max(one.intermediate_values) for one in trials),
            n_refined=n_refined,
        )

    @property
    def prefills(self) -> float:
        """The time of the search in prefills of the search prompts."""
        return self.seconds / self.prefill_seconds

    def save(self, path: Path) -> None:
        write_json(path, {**asdict(self), "prefills": self.prefills}, schema=SCHEMA)

    def __str__(self) -> str:
        return (
            f"{self.n_trials} trials, {self.n_replays} replays and the refinement of {self.n_refined} ratios in "
            f"{self.seconds:.1f} s, the time of "
            f"{self.prefills:.1f} prefills of the {self.n_prompts} prompts ({self.prefill_seconds:.2f} s each)"
        )
